"""The images, built and run by buildah (deploy/with_buildah.py): `make test-image`. Takes minutes and root."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGES, ROOT, free_port
from serving import GUARD_SECONDS, until

SCRIPT = ROOT / "deploy" / "with_buildah.py"
TOKEN = "image-admin-token"
WEIGHTS = ROOT / "weights" / "demo.safetensors"


def missing() -> str:
    """Why the images cannot be built here; empty if they can."""
    if os.geteuid() != 0:
        return "building in a chroot needs root"
    for tool in ("buildah", "debootstrap"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: apt-get install buildah debootstrap"
    return "" if WEIGHTS.is_file() else "there are no weights to put into the image: make train"


@pytest.fixture(scope="module", params=["slim", "serve"])
def target(request: pytest.FixtureRequest) -> str:
    """A target that has been built."""
    if reason := missing():
        pytest.skip(reason)
    done = subprocess.run([SCRIPT, "build", request.param], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return request.param


class Container:
    """A running image."""

    def __init__(self, target: str, log: Path, *options: str) -> None:
        self.port = free_port()
        self.log = log
        command = [SCRIPT, "run", target, "--port", str(self.port), "--env", f"RNN_ADMIN_TOKEN={TOKEN}", *options]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.ask("/ready")[0] == 200
        return False

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON). body: something to post, as JSON unless it is bytes."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", raw, {"content-type": "application/json"} | headers
        )
        try:
            with urllib.request.urlopen(request, timeout=GUARD_SECONDS) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def upload(self) -> tuple[int, Any]:
        part = b'--B\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        body = part % (b"name", b"", b"uploaded") + part % (b"file", b'; filename="x"', WEIGHTS.read_bytes())
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "multipart/form-data; boundary=B"}
        return self.ask("/weights", body + b"--B--\r\n", **headers)

    def user(self) -> int:
        """Who runs the process that listens."""
        listening = Path("/proc/net/tcp").read_text()
        [uid] = re.findall(rf"00000000:{self.port:04X} 00000000:0000 0A(?:\s+\S+){{3}}\s+(\d+)", listening)
        return int(uid)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(10)  # what Cloud Run gives


@pytest.fixture
def start(target: str, tmp_path: Path) -> Iterator[Any]:
    started: list[Container] = []

    def start(*options: str) -> Container:
        started.append(Container(target, tmp_path / f"log{len(started)}", *options))
        return started[-1]

    yield start
    for container in started:
        if container.process.poll() is None:
            container.process.terminate()
            container.process.wait(GUARD_SECONDS)


@pytest.mark.slow
def test_the_image_serves(target: str, start: Any) -> None:
    container = start()
    assert container.user() == 10001
    body = {"prompt": "The prime minister", "max_tokens": 5}
    status, reply = container.ask("/generate/c", body)
    assert status == 200 and reply["usage"]["completion_tokens"] > 0
    status, reply = container.ask("/generate/torch", body)
    if target == "serve":
        assert status == 200 and reply["backend"] == "torch"
    else:
        assert status == 501 and "torch is not installed" in reply["detail"]
    assert container.upload()[0] == 201
    assert container.terminate() == 0


@pytest.mark.slow
def test_the_image_needs_no_place_to_write_to(target: str, start: Any) -> None:
    container = start("--read-only")
    assert container.user() == 10001
    for backend in ("c", "torch") if target == "serve" else ("c",):
        assert container.ask(f"/generate/{backend}", {"prompt": "The", "max_tokens": 3})[0] == 200
    status, reply = container.upload()
    assert status == 507 and "not writable" in reply["detail"]
    assert container.terminate() == 0


def in_image(target: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "run", target, "--port", "9", "--", *command], capture_output=True, text=True)


@pytest.mark.slow
def test_the_health_check_can_fail(target: str) -> None:
    output = subprocess.run(["buildah", "inspect", "--type", "image", f"localhost/rnn:{target}"], capture_output=True)
    check = json.loads(output.stdout)["Docker"]["config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"  # not through a shell
    done = in_image(target, *check[1:])
    assert done.returncode == 1 and "/health" in done.stderr  # nobody listens on port 9


@pytest.mark.slow
def test_the_image_holds_only_what_serving_needs(target: str) -> None:
    code = (
        "import importlib.util as u, shutil; "
        "print([m for m in ('gensim', 'datasets', 'matplotlib', 'pip', 'torch', 'rnnlm.training') if u.find_spec(m)]); "
        "print([t for t in ('gcc', 'cc', 'make') if shutil.which(t)])"
    )
    done = in_image(target, "python", "-c", code)
    modules = ["torch"] if target == "serve" else []
    assert done.stdout.splitlines() == [str(modules), "[]"], done.stderr
    assert in_image(target, "find", "/opt/venv", "-type", "d", "-name", "tests").stdout == ""  # of the packages
    listing = in_image(target, "sh", "-c", "ls /app /app/service; cat /etc/pip.conf || true").stdout.split()
    assert {"tests", "csrc", "Makefile", "deploy", "bench", ".git", "main.py"}.isdisjoint(listing)
    assert "[global]" not in listing  # pip's configuration was lent to the build only


# ---- Without buildah -------------------------------------------------------------------------------------------------


def test_the_files_that_are_copied_are_enough(tmp_path: Path) -> None:
    """What the service imports, and the image lacks, would be missed in production only. The training is not in it."""
    assert "\nCOPY *.py ./\nCOPY rnnlm rnnlm\nCOPY service service\n" in (ROOT / "Dockerfile").read_text()
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.rmtree(tmp_path / "rnnlm" / "training")
    (tmp_path / "main.py").unlink()
    assert {"rnnlm/training", "main.py"} < set((ROOT / ".dockerignore").read_text().splitlines())
    code = "import api, rnn, torch_rnn, service.__main__, service.health, service.trial"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_pinned_packages_are_in_the_ranges_for_people() -> None:
    from packaging.requirements import Requirement

    def read(name: str) -> list[Requirement]:
        lines = (line.split("\\")[0].split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
        return [Requirement(line) for line in lines if line and not line.startswith("-")]

    ranges = {requirement.name: requirement for requirement in read("deploy/requirements-serve.txt")}
    ranges |= {requirement.name: requirement for requirement in read("deploy/requirements-slim.txt")}
    for name in ("deploy/pinned-slim.txt", "deploy/pinned-full.txt", "deploy/torch.txt"):
        pinned = read(name)
        for requirement in pinned:
            [pin] = requirement.specifier
            assert pin.operator == "=="
            wanted = ranges.get(requirement.name)
            assert wanted is None or wanted.specifier.contains(pin.version), requirement
        expected = {"torch"} if name.endswith("torch.txt") else ranges.keys() - {"torch"}
        assert expected <= {requirement.name for requirement in pinned}


def test_every_pin_has_a_hash() -> None:
    for path in (ROOT / "deploy").glob("pinned-*.txt"):
        entries = re.split(r"\n(?=\w)", path.read_text())[1:]
        assert entries and all("--hash=sha256:" in entry for entry in entries), path
