"""The version is defined once, and the changelog has an entry for it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from packaging.version import Version

from rnnlm.version import VERSION


def test_the_changelog_has_every_released_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = Version(VERSION)
    assert str(version) == VERSION
    if version.is_devrelease:
        assert headings[0] == "Unreleased"
    else:
        assert any(re.fullmatch(rf"{re.escape(VERSION)} - \d{{4}}-\d\d-\d\d", heading) for heading in headings)


def test_a_compiler_may_be_a_command_of_several_words() -> None:
    done = subprocess.run(["make", "-n", "lib", "CC=gcc -m64"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "build/gcc--m64-so-omp1-san0/" in done.stdout, done.stderr


def test_make_reads_the_same_version() -> None:
    said = subprocess.run(["make", "-pn", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert f"\nVERSION := {VERSION}\n" in said


@pytest.mark.parametrize(
    ("program", "package"),
    [
        *[(name, "numpy") for name in ("main.py", "rnn.py", "torch_rnn.py")],
        *[(f"-m rnnlm.{name}", "numpy") for name in ("compare", "ensemble", "export")],
        ("-m service", "uvicorn"),
    ],
)
def test_a_python_without_the_packages_is_told_where_they_are(program: str, package: str) -> None:
    bare = "-S"  # without site-packages
    done = subprocess.run([sys.executable, bare, *program.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"has no package {package}: source .venv/bin/activate" in line and program.split()[-1] in line
