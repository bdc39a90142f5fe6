#!/usr/bin/env python3
"""Build and run the image without a Docker engine: with buildah, in a chroot. Needs root and two Debian packages:

    apt-get install buildah debootstrap
    deploy/with_buildah.py build slim          # or serve; add --installer uv if PyTorch's index is within reach
    deploy/with_buildah.py run slim --port 8080

debootstrap makes the base image, python:3.11-slim, once, from the Debian mirror that apt uses here. The build also uses
this machine's pip configuration and the files that it names; neither stays in the image.

`run` starts the image's command as the image's user, on this machine's network, and runs until SIGTERM or SIGINT.
`--read-only` makes the root file system read-only, like `docker run --read-only`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = "python:3.11-slim"
PYTHON = (3, 11)  # the oldest that the project runs on
NAME = "localhost/rnn"
TARGETS = ("slim", "serve")


class CannotDo(Exception):
    """Something is missing on this machine; the message says what, and what to do."""


def output(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def check_tools() -> None:
    """Raise CannotDo without root, buildah or debootstrap."""
    if os.geteuid() != 0:
        raise CannotDo("this needs root, to make a chroot")
    for tool in ("buildah", "debootstrap"):
        if shutil.which(tool) is None:
            raise CannotDo(f"{tool} is missing: apt-get install buildah debootstrap")


# ---- The base image -------------------------------------------------------------------------------------------------


def has_image(name: str) -> bool:
    found = subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True, check=False)
    return found.returncode == 0


def make_base() -> None:
    """Make the base image unless it exists. Raises CannotDo where Debian's Python is too old."""
    if has_image(BASE):
        return
    mirror, suite = debian()
    with tempfile.TemporaryDirectory(prefix="rnn-base-") as folder:
        root = Path(folder) / "root"
        packages = "--include=ca-certificates,python3,python3-venv"
        subprocess.run(["debootstrap", "--variant=minbase", packages, suite, root, mirror], check=True)
        version = output("chroot", root, "python3", "-c", "import sys; print(*sys.version_info[:2])")
        if tuple(map(int, version.split())) < PYTHON:
            raise CannotDo(f"Debian {suite} has Python {version}, and {BASE} needs 3.11: use Debian 12 or newer")
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp"):
            for path in (root / leftover).iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        container = output("buildah", "from", "scratch")
        try:
            output("buildah", "add", "--quiet", container, root, "/")
            output("buildah", "config", "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", container)
            output("buildah", "commit", "--quiet", "--format", "docker", container, BASE)
        finally:
            output("buildah", "rm", container)


def debian() -> tuple[str, str]:
    """Return the mirror and the suite that apt uses on this machine. Raises CannotDo."""
    lines = output("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages").splitlines()
    for line in lines:
        mirror, suite = line.split()
        if "-" not in suite:  # not bookworm-updates or bookworm-security
            return mirror, suite
    raise CannotDo("apt knows no Debian suite: run apt-get update")


# ---- The build -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pip_configuration() -> Iterator[tuple[Path, list[str]]]:
    """Yield pip's settings (files and variables) as one file, and the files and folders that they name."""
    settings: dict[str, str] = {}
    for line in output(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")  # variables come after files, and win, as in pip
        settings[key.rsplit(".", 1)[1]] = value[1:-1].encode().decode("unicode_escape")
    words = " ".join(settings.values()).split()
    local = [word for word in words if word.startswith("/")]
    local += [
        str(Path(word.removeprefix("file://")).parent) for word in words if word.startswith("file:///")
    ]  # an index
    with tempfile.TemporaryDirectory(prefix="rnn-pip-") as folder:  # its mode is 700: there may be passwords in it
        file = Path(folder) / "pip.conf"
        indented = (f"{key} = {value.strip()}".replace("\n", "\n    ") for key, value in settings.items())
        file.write_text("[global]\n" + "\n".join(indented) + "\n")
        yield file, sorted({path for path in local if Path(path).exists()})


def build(target: str, installer: str) -> None:
    make_base()
    sys.path.insert(0, str(ROOT))
    from rnnlm.version import VERSION

    revision = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    with pip_configuration() as (configuration, lent):
        command = [
            *("buildah", "build", "--isolation", "chroot", "--format", "docker", "--pull-never", "--layers"),
            *("--target", target, "--tag", f"{NAME}:{target}"),
            *("--build-arg", f"BASE={BASE}", "--build-arg", f"INSTALLER={installer}"),
            *("--build-arg", f"VERSION={VERSION}", "--build-arg", f"REVISION={revision.stdout.strip() or 'unknown'}"),
            *("--secret", f"id=pip.conf,src={configuration}"),
            *(option for path in lent for option in ("--volume", f"{path}:{path}:ro")),
            str(ROOT),
        ]
        subprocess.run(command, check=True)
    sys.stdout.write(f"{NAME}:{target}: {size_of(target) / 1e6:.0f} MB\n")


def image(target: str) -> dict[str, Any]:
    """Return the image's metadata. Raises CannotDo if there is no such image."""
    if not has_image(f"{NAME}:{target}"):
        raise CannotDo(f"there is no image {NAME}:{target}: {sys.argv[0]} build {target}")
    return json.loads(output("buildah", "inspect", "--type", "image", f"{NAME}:{target}"))


def size_of(target: str) -> int:
    """Return the size of all layers in bytes."""
    listed = json.loads(output("buildah", "images", "--json"))
    [size] = {entry["size"] for entry in listed if f"{NAME}:{target}" in (entry["names"] or ())}
    number, unit = size.split()
    return round(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


# ---- The run ---------------------------------------------------------------------------------------------------------


def run(target: str, environment: dict[str, str], read_only: bool, command: Sequence[str]) -> int:
    """Run `command` or the image's own; forward SIGTERM and SIGINT to it. Returns its exit code."""
    config = image(target)["Docker"]["config"]
    command = command or config["Cmd"]
    container = output("buildah", "from", "--pull-never", f"{NAME}:{target}")
    try:
        if read_only:
            settings = dict(pair.split("=", 1) for pair in config["Env"]) | environment
            root = output("buildah", "mount", container)
            user, group = config["User"].split(":")
            # In a mount namespace of its own, the container's files are mounted a second time, read-only.
            script = (
                'mount --bind "$1" "$1" && mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && '
                'mount -o remount,bind,ro "$1" && cd "$1" && shift && exec "$@"'
            )
            inside = ["chroot", f"--userspec={user}:{group}", "--groups=", root, "env", "-i"]
            inside += [f"--chdir={config['WorkingDir']}", *(f"{key}={value}" for key, value in settings.items())]
            full = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", root, *inside, *command]
        else:
            given = [option for pair in environment.items() for option in ("--env", "=".join(pair))]
            full = ["buildah", "run", "--isolation", "chroot", *given, container, "--", *command]
        process = subprocess.Popen(full)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: os.kill(innermost(process.pid), received))
        return process.wait()
    finally:
        output("buildah", "rm", container)


def innermost(pid: int) -> int:
    """Return the process that buildah started in the container: on SIGTERM, buildah itself would kill it."""
    while Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"buildah"):
        children = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))  # of any thread
        if not children:
            break  # the process has ended
        pid = int(children.split()[0])
    return pid


def main() -> int:
    parser = argparse.ArgumentParser(prog="with_buildah.py", description="Build and run the image with buildah.")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, what in (("build", "build an image"), ("run", "run it"), ("size", "print its size in bytes")):
        action = actions.add_parser(name, help=what)
        action.add_argument("target", choices=TARGETS)
        if name == "build":
            action.add_argument("--installer", choices=("uv", "pip"), default="pip", help="default: pip")
        if name == "run":
            action.add_argument("--port", type=int, default=8080)
            action.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
            action.add_argument("--read-only", action="store_true", help="make the root file system read-only")
            action.epilog = "A command after -- runs instead of the image's own."
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    options, command = parser.parse_args(given[:split]), given[split + 1 :]
    try:
        check_tools()
        if options.action == "build":
            build(options.target, options.installer)
        elif options.action == "size":
            image(options.target)
            sys.stdout.write(f"{size_of(options.target)}\n")
        else:
            environment = dict(pair.split("=", 1) for pair in options.env) | {"PORT": str(options.port)}
            return run(options.target, environment, options.read_only, command)
    except CannotDo as error:
        sys.stderr.write(f"with_buildah.py: {error}\n")
        return 2
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"with_buildah.py: {error.cmd[0]} exited with status {error.returncode}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
