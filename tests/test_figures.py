"""Every table of measured figures in the documents is the one that its results file gives (bench/figures.py)."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import figures
import tables

sys.path.remove(str(ROOT / "bench"))  # there, `bench` is a module, but other tests import from the folder

documents = pytest.mark.parametrize("document", figures.DOCUMENTS, ids=lambda path: path.name)
results = pytest.mark.parametrize("name", sorted({name for name, _ in figures.BLOCKS.values()} | figures.PIECES.keys()))


@documents
def test_a_document_has_what_the_results_files_give(document: Path) -> None:
    text = document.read_text()
    assert figures.filled(text) == text, f"{document.name}: run `make figures`"


@documents
def test_a_figure_that_is_edited_by_hand_is_noticed(document: Path) -> None:
    text = document.read_text()
    for match in figures.BLOCK.finditer(text):
        edited, count = re.subn(r"\d(?=\D*$)", "07", match[3])
        assert count and figures.filled(text[: match.start(3)] + edited + text[match.end(3) :]) == text


def test_every_block_stands_in_a_document_and_every_marker_has_a_block() -> None:
    texts = [path.read_text() for path in figures.DOCUMENTS]
    found = [match[1] for text in texts for match in figures.BLOCK.finditer(text)]
    assert sorted(found) == sorted(figures.BLOCKS)
    assert sum(text.count("make figures -->") + text.count("<!-- make figures") for text in texts) == 2 * len(found)


@results
def test_a_results_file_says_where_it_comes_from(name: str) -> None:
    path = figures.RESULTS / f"{name}.jsonl"
    assert path.stat().st_size < 60_000
    assert not re.search(r"(?<![\w.])/[a-z]\w*/", path.read_text()), "a folder of the machine"
    first, rows = figures.read(name)
    assert rows and first["command"]
    for row in rows:
        assert datetime.date.fromisoformat(row.get("measured", first["measured"])) <= datetime.date.today()
        assert row.get("processor", first["processor"])


def test_results_files_are_in_git_and_each_has_a_piece() -> None:
    listed = subprocess.run(["git", "ls-files", "bench"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    assert {f"bench/results/{name}.jsonl" for name in figures.PIECES} == {
        path for path in listed if path.endswith(".jsonl")
    }
    assert {piece.command.split()[0] for piece in figures.PIECES.values()} <= set(listed)


@results
def test_pictures_are_those_that_the_command_drew(name: str) -> None:
    drawn = figures.read(name)[0].get("pictures", {})
    assert figures.digests(ROOT / path for path in drawn) == drawn


def test_the_table_of_results_has_the_columns_that_were_measured() -> None:
    rows = [
        {"model": "unigram", "processor_minutes": 0.04, "megabytes": 512, "validation": 1287.42},
        {
            "model": "best",
            "hidden": 300,
            "epochs": "44 of 44",
            "processor_minutes": 24.31,
            "validation": 231.7,
            "test": 226.5,
        },
    ]
    assert tables.results({}, rows).splitlines() == [
        "| model | hidden units | epochs | processor minutes | memory | validation perplexity | test |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| unigram | | | 0.0 | 512 MB | 1,287.4 | |",
        "| best | 300 | 44 of 44 | 24.3 | | **231.7** | **226.5** |",
    ]


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One document with one block, and a results' folder, in a folder of their own."""
    document = tmp_path / "page.md"
    document.write_text("before\n\n<!-- make figures: rates -->\nold\n<!-- /make figures -->\n\nafter\n")
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(figures, "DOCUMENTS", [document])
    monkeypatch.setattr(figures, "BLOCKS", {"rates": ("rates", lambda first, rows: f"| {rows[0]['rate']} |\n")})
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench/rates.py", "--corpus", "/home/me/texts", "--rounds", "3"])
    return document


def test_save_writes_the_file_and_its_block(sandbox: Path) -> None:
    figures.save("rates", [{"rate": 12}], threads=2)
    first, rows = figures.read("rates")
    assert rows == [{"rate": 12}] and first["threads"] == 2 and first["processor"] == figures.processor()
    assert first["command"] == "python bench/rates.py --corpus texts --rounds 3"
    today = datetime.date.today().isoformat()
    text = sandbox.read_text()
    start = f"before\n\n<!-- make figures: rates -->\n| 12 |\n\nMeasured {today} by `python bench/rates.py "
    assert text.startswith(start) and text.endswith(".\n<!-- /make figures -->\n\nafter\n") and "old" not in text


def test_a_part_of_a_measurement_leaves_the_documents(sandbox: Path) -> None:
    before = sandbox.read_text()
    figures.save("rates", [{"rate": 12}], whole=False)
    assert sandbox.read_text() == before
    assert [path.name for path in figures.RESULTS.iterdir()] == ["partial.jsonl"]


def test_rows_of_several_days_and_processors_are_named_so() -> None:
    first = {"measured": "2026-02-01", "processor": "A", "cores": 1, "command": "make rates"}
    rows = [{}, {"measured": "2026-01-01", "processor": "B"}]
    assert figures.provenance(first, rows) == "Measured 2026-01-01 to 2026-02-01 by `make rates`: A and B, 1 core."


def test_a_block_without_its_file_is_one_line(sandbox: Path) -> None:
    with pytest.raises(figures.FigureError, match=r"there is no bench/results/rates"):
        figures.write_blocks()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/figures.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_the_list_has_a_line_for_each_piece() -> None:
    lines = figures.listing().splitlines()
    assert [line.split()[0] for line in lines] == ["piece", *figures.PIECES]
    for line, name in zip(lines[1:], figures.PIECES, strict=True):
        assert figures.read(name)[0]["processor"] in line and ("today" in line or " day" in line)


def test_a_piece_that_does_not_exist() -> None:
    done = command("load,loud")
    assert done.returncode == 2 and "there is no piece loud" in done.stderr and not done.stdout


def test_a_piece_whose_command_fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(figures.PIECES, "load", figures.Piece("1 s", "bench/load.py --clients none"))
    monkeypatch.setattr(sys, "argv", ["figures.py", "load"])
    assert figures.main() == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == "figures.py: load: its command ended with status 2; the pieces before it are written"
