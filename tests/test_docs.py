"""What the documents name exists (commands, options, files, links, settings, routes, tests), and they are short."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SOURCES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILES = [ROOT / "Makefile", ROOT / "tests" / "hard.mk", ROOT / "deploy" / "ship.mk"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}

# Files that a command of the documents makes, and names that stand for something of the reader's.
MADE = re.compile(r"^(weights|lib|build|bench/results|\.venv)/|^(my|cities)\b|^\.\./|^(NAME|FILE|FOLDER)\b")

OPTION = r"(?<!\S)--[a-z][a-z0-9-]*|(?<=`)--[a-z][a-z0-9-]*"

pages = pytest.mark.parametrize("page", TEXTS)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str) -> str:
    """Return the commands: code blocks and inline code, with lines that end in a backslash joined to the next."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", without_blocks(text))
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
    """Return (program, options) of each `python SCRIPT --options` and `python -m rnnlm.MODULE --options`."""
    found = []
    for line in blocks(TEXTS[page]).splitlines():
        for program, rest in re.findall(r"python3? ([\w/]+\.py|-m rnnlm\.\w+)([^#|;&]*)", line):
            found.append((program, set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest))))
    return found


@functools.cache
def help_of(*program: str) -> set[str]:
    """Return the options that a Python program lists."""
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, *program, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(re.findall(OPTION, done.stdout))


@pages
def test_scripts_and_their_options_exist(page: str) -> None:
    for program, options in commands(page):
        assert program.startswith("-m ") or (ROOT / program).is_file(), program
        known = help_of(*program.split()) if options else set()
        assert options <= known, f"{program} lacks {options - known}"


@pytest.mark.parametrize(
    ("page", "programs"),
    [
        ("README.md", ["main.py", "rnn.py"]),
        ("docs/training.md", ["main.py", "-m rnnlm.compare"]),
        ("docs/generating.md", ["rnn.py"]),
        ("docs/results.md", ["main.py", "bench/results.py"]),
        ("docs/performance.md", ["main.py", "rnn.py", "bench/bench.py"]),
        ("docs/scaling.md", ["main.py", "-m torch.distributed.run"]),
        ("docs/serving.md", ["-m uvicorn"]),
    ],
)
def test_options_in_the_text_exist(page: str, programs: list[str]) -> None:
    known = set().union(*(help_of(*program.split()) for program in programs))
    named = set(re.findall(rf"`(?:uvicorn [^`]*?)?({OPTION})", without_blocks(TEXTS[page])))
    assert named <= known, named - known


@pages
def test_modules_that_are_run_exist(page: str) -> None:
    for module in re.findall(r"python3? -m ([\w.]+)", blocks(TEXTS[page])):
        if module.split(".")[0] in ("rnnlm", "service", "bench", "tests"):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def anchors(text: str) -> set[str]:
    """Return the headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", TEXTS[page]):
        target = target[0] or target[1]
        if re.match(r"[a-z]+:", target):
            continue  # on the web: there may be no network here
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page}: {target}"


@pages
def test_files_that_are_named_exist(page: str) -> None:
    for name in re.findall(
        r"`([\w./-]+\.(?:py|c|h|md|png|toml|txt|js|html|css|yaml|yml))`", without_blocks(TEXTS[page])
    ):
        places = [ROOT / folder / name for folder in ("", "tests", "service", "csrc", "docs")]
        assert MADE.search(name) or any(place.exists() for place in places), f"{page}: {name}"


@pages
def test_settings_that_are_named_exist(page: str) -> None:
    sources = "".join(path.read_text() for path in (*SOURCES, *ROOT.glob("csrc/*.[ch]"), *ROOT.glob("bench/*.py")))
    from service.settings import table

    known = set(re.findall(r"\bRNN_[A-Z0-9_]+|\bRNNLIB_PATH\b", sources + table()))
    named = set(re.findall(r"\bRNN_[A-Z0-9_]+\b|\bRNNLIB_PATH\b", TEXTS[page]))
    assert named <= known, named - known


# ---- Tests that the documents name ----------------------------------------------------------------------------------


@functools.cache
def all_tests() -> dict[str, set[str]]:
    """Return each Python test's name with the marks that all of its cases have."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        of_all = "".join(ast.unparse(node) for node in tree.body if ast.unparse(node).startswith("pytestmark"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = of_all + " ".join(ast.unparse(each) + " " for each in node.decorator_list if not_a_call(each))
                in_browser = {"page"} if path.parent.name == "page" else set()
                found[node.name] = set(re.findall(r"mark\.(slow)\b", marks)) | in_browser
    return found


def not_a_call(decorator: ast.expr) -> bool:
    return not isinstance(decorator, ast.Call)  # a call may mark single cases


@pages
def test_tests_that_are_named_exist(page: str) -> None:
    files = {path.stem for path in (ROOT / "tests").glob("**/test_*") if path.suffix in (".py", ".c")}
    for name in re.findall(r"\b(test_\w+)", TEXTS[page]):
        assert name in files or name in all_tests(), f"{page}: {name}"


def test_each_threat_says_when_its_test_runs() -> None:
    rows = [line.split(" | ")[-1] for line in TEXTS["docs/threats.md"].splitlines() if line.startswith("| ")]
    named = re.findall(r"`(test_\w+)`(?: \(([^)]*)\))?", "\n".join(rows))
    assert len(named) > 25
    for name, remark in named:
        assert all_tests()[name] == set(re.findall("slow|page", remark)), name


# ---- What the documents say of the program --------------------------------------------------------------------------


def test_every_target_with_a_description_is_listed_by_make_help() -> None:
    described = set(re.findall(r"^([a-z-]+):.*## ", makefiles(), re.MULTILINE))
    listed = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert described and described == set(re.findall(r"^  make ([a-z-]+) ", listed, re.MULTILINE))


def test_the_table_of_settings_is_the_one_that_the_program_prints() -> None:
    from service.settings import table

    assert table() in TEXTS["docs/serving.md"]


def test_every_route_and_every_error_is_on_the_page_about_serving(tmp_path: Path) -> None:
    from service import errors
    from service.app import create_app
    from service.settings import Settings

    text = TEXTS["docs/serving.md"]
    for path, operations in create_app(Settings(weights_dir=tmp_path)).openapi()["paths"].items():
        for method in operations:
            for address in {path.replace("{backend}", backend) for backend in ("c", "torch")}:
                assert f"`{method.upper()} {address}`" in text, f"{method.upper()} {address}"
    codes = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
    assert len(codes) > 15
    assert not [code for code in codes if f"`{code}`" not in text]


def test_every_route_has_an_example(tmp_path: Path) -> None:
    from service.app import create_app
    from service.settings import Settings

    commands = re.findall(r"^\$ (.*\bcurl .*)$", blocks(TEXTS["docs/serving.md"]), re.MULTILINE)
    tried = {
        (method_of(command), address) for command in commands for address in re.findall(r":8000(/[^\s?']*)", command)
    }
    for path, operations in create_app(Settings(weights_dir=tmp_path)).openapi()["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^ ]+", path)
        for method in operations:
            assert any(used == method and re.fullmatch(pattern, address) for used, address in tried), (method, path)


def method_of(command: str) -> str:
    """Return the method of a curl command, in lower case."""
    given = re.search(r" -X (\w+)", command)
    return given[1].lower() if given else "post" if re.search(" (-d|-F) ", command) else "get"


def test_every_preset_is_described() -> None:
    from rnnlm.training.config import PRESETS

    for preset in PRESETS:
        assert re.search(rf"^\| `{preset}`", TEXTS["docs/training.md"], re.MULTILINE), preset


def test_the_command_that_continues_a_run_is_the_one_that_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnlm.training import resume

    monkeypatch.setattr(sys, "argv", ["main.py"])
    for name, mark in (("NAME", "`"), ("server", "\n")):
        printed = resume.command(Path("weights", f"{name}.safetensors"))
        assert mark + printed + mark in TEXTS["docs/training.md"], printed


# ---- The front page -------------------------------------------------------------------------------------------------

README_LINES, RELEASE_LINES, SCREEN_LINES, CODE_COLUMNS = 180, 40, 20, 140


def test_the_front_page_is_short_and_has_a_picture_on_its_first_screen() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= README_LINES
    assert any("<img " in line or line.startswith("![") for line in lines[:SCREEN_LINES])


def test_the_changelog_is_short() -> None:
    releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert releases and all(len(release.splitlines()) <= RELEASE_LINES for release in releases)


@pages
def test_no_line_of_code_is_too_long_to_read(page: str) -> None:
    fenced = "\n".join(re.findall(r"^```.*?\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL))
    assert not [line for line in fenced.splitlines() if len(line) > CODE_COLUMNS]


def test_the_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w.]+\.md)", TEXTS["docs/README.md"]))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} == linked - {"README.md"}


def test_the_layout_is_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    tree = {path.split("/")[0] + "/" * ("/" in path) for path in listed}
    layout = re.search(r"^## Layout\n+```\n(.*?)^```", TEXTS["README.md"], re.MULTILINE | re.DOTALL)
    assert layout
    named = set(re.findall(r"(?:^|  )(\w+(?:\.py|/))  ", layout[1], re.MULTILINE))
    obvious = {"README.md", "CHANGELOG.md", "Makefile", "Dockerfile", "pyproject.toml", "requirements.txt"}
    made = {"lib/", "weights/"}
    assert named | obvious == {name for name in tree if not name.startswith(".")} | made


def test_nothing_below_imports_what_is_above() -> None:
    above = {"api", "main", "rnn", "torch_rnn", "service"}
    for path in (ROOT / "rnnlm").rglob("*.py"):
        assert not imports(path) & above, path
    for path in (ROOT / "service").rglob("*.py"):
        assert not {name for name in imports(path, whole=True) if name.startswith("rnnlm.training")}, path
        assert not imports(path) & {"api", "main", "gensim", "datasets"}, path


def imports(path: Path, *, whole: bool = False) -> set[str]:
    """Return the modules that a file imports anywhere: their packages, or their whole names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found if whole else {name.split(".")[0] for name in found}
