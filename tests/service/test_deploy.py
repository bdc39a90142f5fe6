"""What deploy/ promises: a service.yaml that fits its schema, a stop in time, one folder that many servers share."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import ROOT, free_port
from serving import ADMIN, GUARD_SECONDS, Server, needs_library, save_tiny, until

from service import health
from service.__main__ import _objection
from service.middleware import READ_SECONDS
from service.settings import Settings, variable

SERVICE = ROOT / "deploy" / "service.yaml"

# What Knative Serving puts around a pod; the pod itself is Kubernetes' (https://knative.dev/docs/serving/).
ANNOTATED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}
KNATIVE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "serving.knative.dev/v1"},
        "kind": {"const": "Service"},
        "metadata": {**ANNOTATED, "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["template"],
            "additionalProperties": False,
            "properties": {
                "template": {
                    "type": "object",
                    "required": ["spec"],
                    "additionalProperties": False,
                    "properties": {
                        "metadata": ANNOTATED,
                        "spec": {
                            "type": "object",
                            "required": ["containers"],
                            "properties": {
                                "containerConcurrency": {"type": "integer", "minimum": 0, "maximum": 1000},
                                "timeoutSeconds": {"type": "integer", "minimum": 1, "maximum": 3600},
                            },
                        },
                    },
                }
            },
        },
    },
}


def check(document: dict[str, Any]) -> None:
    """Raises ValidationError for what is not a Knative service, fields that nobody knows included."""
    jsonschema.validate(document, KNATIVE)
    own = ("containerConcurrency", "timeoutSeconds")
    pod = {key: value for key, value in document["spec"]["template"]["spec"].items() if key not in own}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return yaml.safe_load(SERVICE.read_text())


def test_the_service_fits_its_schema(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "Deployment"),
        ("spec.template.spec.containerConcurrency", "64"),
        ("spec.template.spec.timeoutSeconds", 7200),
        ("spec.template.spec.containerConcurency", 64),
        ("spec.template.spec.containers.0.imag", "x"),
        ("spec.template.spec.containers.0.startupProbe.httpGet.port", None),
        ("spec.template.metadata.annotations.run.googleapis.com/startup-cpu-boost", True),
    ],
)
def test_the_schema_can_refuse(document: dict[str, Any], path: str, value: Any) -> None:
    broken = copy.deepcopy(document)
    place: Any = broken
    *way, last = path.split(".", 4 if "annotations" in path else -1)
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check(broken)


def test_the_service_and_the_page_agree(document: dict[str, Any]) -> None:
    """docs/deploying.md gives the same values as flags, and every variable is a setting."""
    page = (ROOT / "docs" / "deploying.md").read_text()
    spec = document["spec"]["template"]["spec"]
    [container] = spec["containers"]
    limits = container["resources"]["limits"]
    for flag in (
        f"--concurrency {spec['containerConcurrency']}",
        f"--timeout {spec['timeoutSeconds']}",
        f"--cpu {limits['cpu']}",
        f"--memory {limits['memory']}",
        f"--startup-probe httpGet.path={container['startupProbe']['httpGet']['path']}",
        f"--liveness-probe httpGet.path={container['livenessProbe']['httpGet']['path']}",
    ):
        assert flag in page, flag
    settings = {variable(name) for name in Settings.__dataclass_fields__} | {"GOOGLE_CLOUD_PROJECT"}
    assert {entry["name"] for entry in container["env"]} <= settings
    given = [f"{entry['name']}={entry['value']}" for entry in container["env"] if "value" in entry]
    [flag] = re.findall(r"--set-env-vars (\S+)", page)
    assert sorted(flag.split(",")) == sorted(given)
    assert spec["timeoutSeconds"] > max(Settings.request_seconds, Settings.upload_seconds) + READ_SECONDS
    assert Settings.shutdown_seconds + 2 < 10  # Cloud Run's grace


# ---- `python -m service` --------------------------------------------------------------------------------------------


def run(module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "8 0"])
def test_a_port_that_is_none(port: str) -> None:
    done = run("service", PORT=port)
    assert done.returncode == 3 and port in done.stderr and "65535" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_is_printed_and_nothing_is_started() -> None:
    done = subprocess.run([sys.executable, "-m", "service", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--root-path" in done.stdout and done.stderr == ""
    assert all(variable(name) in done.stdout for name in Settings.__dataclass_fields__)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("service", PORT=str(port))
    assert done.returncode == 3 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert f"port {port} is taken" in line and f"PORT={port % 65535 + 1}" in line


def test_a_host_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("service", HOST="192.0.2.1")  # of documentation: nobody's
    assert done.returncode == 3 and "HOST '192.0.2.1' is no address of this machine" in done.stderr
    places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, free_port())) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: places)
    assert _objection("both", 80) == ""  # as of localhost, whose ::1 may be off
    places[0] = (99, *places[0][1:])  # the system knows no such addresses
    assert _objection("both", 80) == ""


@contextlib.contextmanager
def started(folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    variables = {"PORT": str(port), "RNN_WEIGHTS_DIR": str(folder), "RNN_BACKENDS": "c"} | environment
    process = subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=os.environ | variables)
    try:
        until(lambda: run("service.health", PORT=str(port)).returncode == 0)
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@needs_library
@pytest.mark.slow
def test_the_port_is_honoured_and_the_stop_is_in_time(tmp_path: Path) -> None:
    """With a generation under way that would last longer than the platform waits."""
    save_tiny(tmp_path, vocab=600, hidden=40)
    limits = {"RNN_MAX_TOKENS": "1048576", "RNN_MAX_REQUEST_TOKENS": "1048576"}
    with started(tmp_path, **limits) as (process, port):
        body = b'{"prompt": "waa", "max_tokens": 1048576, "ignore_eos": true, "stream": true}'
        head = b"POST /generate/c HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=GUARD_SECONDS) as connection:
            connection.sendall(head % len(body) + body)
            assert connection.recv(1)
            reader = threading.Thread(target=lambda: [None for _ in iter(lambda: connection.recv(1 << 20), b"")])
            reader.start()
            began = time.monotonic()
            process.terminate()
            assert process.wait(GUARD_SECONDS) == 0
            assert time.monotonic() - began < 10  # the limit that this is about
            reader.join()


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        (None, None, "http://127.0.0.1:8000/health"),
        ("", "", "http://127.0.0.1:8000/health"),
        ("0.0.0.0", "81", "http://127.0.0.1:81/health"),
        ("::", "81", "http://[::1]:81/health"),  # asyncio listens on IPv6 only then
        ("service.internal", "81", "http://service.internal:81/health"),
        ("127.0.0.9", "81", "http://127.0.0.9:81/health"),
        ("::1", "81", "http://[::1]:81/health"),
    ],
)
def test_health_asks_where_the_service_listens(
    host: str | None, port: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOST", host), ("PORT", port)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert health.address() == url


def test_health_without_a_service() -> None:
    done = run("service.health", PORT=str(free_port()))
    assert done.returncode == 1 and "/health" in done.stderr


# ---- Two servers, one folder -----------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("mode", ["map", "read"])
def test_an_upload_to_one_server_is_seen_by_the_other(tmp_path: Path, mode: str) -> None:
    """By its very next request: on a mounted bucket the file system's own delay comes on top (docs/deploying.md)."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder)
    other = save_tiny(tmp_path, "other", seed=5).read_bytes()
    servers = [Server(folder, tmp_path / f"log{i}", RNN_WEIGHTS_MODE=mode) for i in range(2)]
    try:
        one, two = servers
        body = {"prompt": "waa", "max_tokens": 3, "seed": 1}
        before = [server.post("/generate/c", json=body).json()["weights"]["sha256"] for server in servers]
        assert before[0] == before[1]
        form = {"name": "demo", "overwrite": "true"}
        uploaded = one.post("/weights", files={"file": ("x", other)}, data=form, headers=ADMIN).json()
        assert uploaded["replaced"] and uploaded["sha256"] != before[0]
        assert two.post("/generate/c", json=body).json()["weights"]["sha256"] == uploaded["sha256"]
        added = one.post("/weights", files={"file": ("x", other)}, data={"name": "new"}, headers=ADMIN)
        assert added.status_code == 201
        assert two.post("/generate/c", json=body | {"weights": "new"}).status_code == 200
        assert two.delete_weights("new", "admin-secret") == 204
        assert one.post("/generate/c", json=body | {"weights": "new"}).status_code == 404
    finally:
        for server in servers:
            server.close()
