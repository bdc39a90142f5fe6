"""Look for known vulnerabilities in installed packages, and for dangerous habits in the sources: `make audit`.

pip-audit queries PyPI's advisory database. Without a network it says so in one line, which is not a failure. bandit
reads the sources and needs no network. Exits with 1 if either finds something.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = ("deploy/requirements-serve.txt", "requirements.txt", "tests/requirements-dev.txt")

# Checks that are skipped: asserts; programs started without a shell and found on the PATH; `try ... pass`; addresses of
# this machine; data sets without a pinned revision, because the user names them and they hold only text.
SKIPPED = "B101,B404,B603,B607,B110,B310,B615"
OFFLINE = re.compile(r"ConnectionError|Max retries|NameResolution|ConnectTimeout|ServiceError|ProxyError|resolve", re.I)


def pinned() -> list[str]:
    """Return the installed requirements, and theirs in turn, as name==version."""
    wanted = [
        line.split("#")[0].strip()
        for name in REQUIREMENTS
        for line in (ROOT / name).read_text().splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    ]
    found: dict[str, str] = {}
    while wanted:
        requirement = wanted.pop()
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if name is None or "extra ==" in requirement or name[0].lower() in found:
            continue
        try:
            package = distribution(name[0])
        except PackageNotFoundError:  # for another system or Python
            continue
        found[name[0].lower()] = package.version.split("+")[0]
        wanted += package.requires or []
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def audit_packages() -> bool:
    """Return whether pip-audit found nothing."""
    packages = pinned()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages) + "\n")
        file.flush()
        options = ["--requirement", file.name, "--no-deps", "--disable-pip", "--timeout", "15", "--format", "json"]
        command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except ValueError:
        if not OFFLINE.search(done.stderr):
            print(done.stderr)
            return False
        told = []
    # Behind a mirror of the registry, pip-audit omits packages and still reports success.
    checked = [package for package in told if "vulns" in package]
    holes = [f"{each['name']} {each['version']}: {hole['id']}" for each in checked for hole in each["vulns"]]
    if checked:
        print("\n".join(holes) or f"pip-audit: no known vulnerability in {len(checked)} packages")
    if len(checked) < len(packages):
        left = len(packages) - len(checked)
        print(f"pip-audit: {left} of {len(packages)} packages were NOT checked: the advisory database is out of reach")
    return not holes


def audit_sources() -> bool:
    """Return whether bandit found nothing."""
    sources = [
        str(path) for path in (*sorted(ROOT.glob("*.py")), *(ROOT / name for name in ("bench", "rnnlm", "service")))
    ]
    command = [sys.executable, "-m", "bandit", "--quiet", "--skip", SKIPPED, "--recursive", *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    print("bandit: nothing found" if done.returncode == 0 else done.stdout + done.stderr)
    return done.returncode == 0


def main() -> int:
    return 0 if all([audit_packages(), audit_sources()]) else 1


if __name__ == "__main__":
    sys.exit(main())
