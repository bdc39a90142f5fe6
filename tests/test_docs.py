"""What the documents name is there: commands, their options, files, links, settings, tests."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SOURCES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILES = [ROOT / "Makefile", ROOT / "tests" / "hard.mk", ROOT / "deploy" / "ship.mk"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}

# What a command of the documents makes, or stands for something of the reader's.
MADE = re.compile(r"^(weights|lib|build|bench/results|\.venv)/|^(my|cities)\b|^\.\./|^(NAME|FILE|FOLDER)\b")

pages = pytest.mark.parametrize("page", TEXTS)


def blocks(text: str) -> str:
    """The commands: code blocks and code within lines, a line that ends in a backslash joined with the next."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*fenced, *inline]).replace("\\\n", " ")


def makefiles() -> str:
    return "".join(path.read_text() for path in MAKEFILES)


@pages
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", makefiles(), re.MULTILINE))
    named = set()
    for line in blocks(TEXTS[page]).splitlines():
        command = re.match(r"(?:\$ )?make ((?:[a-zA-Z_]+=\S+ |[a-z-]+ ?)+)", line + " ")
        if command:
            named |= {word for word in command[1].split() if "=" not in word}
    assert named <= targets, named - targets


def commands(page: str) -> list[tuple[str, set[str]]]:
    """(script, options) of each `python SCRIPT --options`."""
    found = []
    for line in blocks(TEXTS[page]).splitlines():
        for script, rest in re.findall(r"python3? ([\w/]+\.py)([^#|;&]*)", line):
            found.append((script, set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest))))
    return found


@functools.cache
def help_of(script: str) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pages
def test_scripts_and_their_options_exist(page: str) -> None:
    for script, options in commands(page):
        assert (ROOT / script).is_file(), script
        known = set(re.findall(r"--[a-z][a-z0-9-]*", help_of(script))) if options else set()
        assert options <= known, f"{script} lacks {options - known}"


@pages
def test_modules_that_are_run_exist(page: str) -> None:
    for module in re.findall(r"python3? -m ([\w.]+)", blocks(TEXTS[page])):
        if module.split(".")[0] in ("service", "bench", "tests"):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def anchors(text: str) -> set[str]:
    """The headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if re.match(r"[a-z]+:", target):
            continue  # of the web: there may be no network here
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page}: {target}"


@pages
def test_files_that_are_named_exist(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`([\w./-]+\.(?:py|c|h|md|png|toml|txt|js|html|css|yaml|yml))`", text):
        places = [ROOT / folder / name for folder in ("", "tests", "service", "csrc", "docs")]
        assert MADE.search(name) or any(place.exists() for place in places), f"{page}: {name}"


@pages
def test_settings_that_are_named_exist(page: str) -> None:
    sources = "".join(path.read_text() for path in (*SOURCES, *ROOT.glob("csrc/*.[ch]"), *ROOT.glob("bench/*.py")))
    from service.settings import table

    known = set(re.findall(r"\bRNN_[A-Z0-9_]+|\bRNNLIB_PATH\b", sources + table()))
    named = set(re.findall(r"\bRNN_[A-Z0-9_]+\b|\bRNNLIB_PATH\b", TEXTS[page]))
    assert named <= known, named - known


@pages
def test_tests_that_are_named_exist(page: str) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("**/*.[pc]*") if path.is_file())
    files = {path.stem for path in (ROOT / "tests").glob("**/test_*")}
    for name in re.findall(r"\b(test_\w+)", TEXTS[page]):
        assert name in files or f"{name}(" in sources, f"{page}: {name}"


def test_every_target_with_a_description_is_listed_by_make_help() -> None:
    described = set(re.findall(r"^([a-z-]+):.*## ", makefiles(), re.MULTILINE))
    listed = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert described and described == set(re.findall(r"^  make ([a-z-]+) ", listed, re.MULTILINE))


def test_the_table_of_settings_is_the_one_that_the_program_prints() -> None:
    from service.settings import table

    assert table() in TEXTS["docs/service.md"]
