"""Write the measured tables of the README and docs/ from their results files: `make figures`.

    python bench/figures.py                    lists the pieces, how old each is and on which processor it was measured
    python bench/figures.py load,sizes         measures these pieces first; `all`: all of them

Each piece is a command, which measures and ends with save(). A results file, bench/results/NAME.jsonl, has the date,
the processor and the command on its first line, and a row on each further line. A table stands in a document between

    <!-- make figures: BLOCK -->
    <!-- /make figures -->

and is made from its results file only. To add one: a piece, a block, and a function in tables.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tables

from rnnlm.errors import Failure, UserError, counted, exit_code_of
from rnnlm.files import atomic_write, digest

RESULTS = ROOT / "bench" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

Row = dict[str, Any]


class Piece(NamedTuple):
    """What is measured in one go. command: of this folder's Python; {corpus} stands for --corpus."""

    takes: str
    command: str


PIECES = {
    "bench": Piece("35 min", "bench/bench.py"),
    "bfloat16": Piece("10 min", "bench/bench.py --bfloat16"),
    "amx": Piece("10 min, where AMX is", "bench/bench.py --bfloat16"),
    "gpu": Piece("2 min, on a GPU", "bench/gpu.py"),
    "steps": Piece("5 min", "bench/steps.py"),
    "load": Piece("4 min", "bench/load.py"),
    "small": Piece("2 min", "bench/small.py"),
    "scaling": Piece("6 min, as root", "bench/scaling.py"),
    "large_corpus": Piece("20 min", "bench/large_corpus.py"),
    "demo": Piece("2 min", "bench/demo.py"),
    "sizes": Piece("10 s", "bench/sizes.py"),
    "screenshots": Piece("2 min", "bench/screenshots.py"),
    "results": Piece("4 hours", "bench/results.py --corpus {corpus}"),
    "precision": Piece("2 min", "bench/precision.py weights/results/c.safetensors {corpus}"),
}

# Each block's results file, and the function that writes it from the first line and the rows.
BLOCKS: dict[str, tuple[str, Callable[[Row, list[Row]], str]]] = {
    "speed": ("bench", tables.speed),
    "bench": ("bench", tables.bench),
    "bfloat16": ("bfloat16", tables.bfloat16),
    "amx": ("amx", tables.amx),
    "gpu": ("gpu", tables.gpu),
    "steps": ("steps", tables.steps),
    "generation": ("steps", tables.generation),
    "limits": ("steps", tables.limits),
    "load": ("load", tables.load),
    "small": ("small", tables.small),
    "scaling": ("scaling", tables.scaling),
    "cable": ("scaling", tables.cable),
    "machines": ("scaling", tables.machines),
    "large_corpus": ("large_corpus", tables.large_corpus),
    "results": ("results", tables.results),
    "perplexities": ("results", tables.perplexities),
    "demo": ("demo", tables.demo),
    "sampled": ("demo", tables.sampled),
    "sizes": ("sizes", tables.sizes),
    "precision": ("precision", tables.precision),
}


class FigureError(UserError):
    """A document, or a results file, is not as it should be."""


# ---- Results' files --------------------------------------------------------------------------------------------------


def processor() -> str:
    """Return the processor's name, family and model (Linux)."""
    found = re.findall(r"^(cpu family|model|model name)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    known = dict(found)
    return f"{known.get('model name')}, family {known.get('cpu family')}, model {known.get('model')}"


def command() -> str:
    """Return the command that runs, without this machine's folders."""
    script, *options = sys.argv
    shown = [Path(option).name if option.startswith("/") else option for option in options]
    return shlex.join(["python", f"bench/{Path(script).name}", *shown])


def about(**more: Any) -> Row:
    """Return the first line of a results file that is measured now."""
    today = datetime.date.today().isoformat()
    return {"measured": today, "processor": processor(), "cores": os.cpu_count(), "command": command(), **more}


def save(
    name: str,
    rows: Iterable[Row],
    *,
    whole: bool = True,
    folder: Path | None = None,
    pictures: Iterable[Path] = (),
    **more: Any,
) -> None:
    """Write a results file and the blocks that are made of it.

    whole: False if less was measured than the documents quote: the file is then partial.jsonl, which no document
    quotes.  folder: if not RESULTS, no document quotes the file.  pictures: those that were drawn; their
    digests are kept.  more: what else to say of the run.
    """
    first = about(**more)
    if drawn := digests(pictures):
        first["pictures"] = drawn
    path = (folder or RESULTS) / f"{name if whole else 'partial'}.jsonl"
    write(path, first, rows)
    print(f"-> {os.path.relpath(path, ROOT)}")
    if whole and path.parent == RESULTS:
        write_blocks(name)


def write(path: Path, first: Row, rows: Iterable[Row]) -> None:
    lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in (first, *rows))
    atomic_write(path, "".join(lines).encode())


def read(name: str) -> tuple[Row, list[Row]]:
    """Return the first line of a results file, and the rows. Raises FigureError."""
    path = RESULTS / f"{name}.jsonl"
    try:
        first, *rows = map(json.loads, path.read_text().splitlines())
    except OSError:
        raise FigureError(f"there is no bench/results/{path.name}: run `make figures PIECES={name}`") from None
    except ValueError as error:
        raise FigureError(f"bench/results/{path.name} is no results file: {error}") from None
    return first, rows


def digests(pictures: Iterable[Path]) -> dict[str, str]:
    """Return each picture's digest by its path in the project."""
    return {Path(os.path.relpath(path, ROOT)).as_posix(): digest(path.read_bytes())[:16] for path in pictures}


# ---- Blocks ----------------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"(?<=^<!-- make figures: )([\w-]+)( -->\n)(.*?)(?=^<!-- /make figures -->$)", re.M | re.S)


def rendered(block: str) -> str:
    """Return the lines between the markers of a block. Raises FigureError."""
    if block not in BLOCKS:
        raise FigureError(f"there is no block {block}: one of {', '.join(BLOCKS)}")
    name, table = BLOCKS[block]
    first, rows = read(name)
    note = first.get("note", "") if block == name else ""
    return f"{table(first, rows)}\n{tables.paragraph(provenance(first, rows), note)}"


def provenance(first: Row, rows: list[Row]) -> str:
    """Return the sentence that says when, how and where the rows were measured: a row may say so itself."""

    def all_of(key: str) -> list[str]:
        return sorted({row.get(key, first[key]) for row in rows})

    days, cores = all_of("measured"), f", {counted(first['cores'], 'core')}" if first["cores"] else ""
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"Measured {when} by `{first['command']}`: {' and '.join(all_of('processor'))}{cores}."


def filled(text: str, name: str | None = None) -> str:
    """Return a document's text with its blocks written again: those of one results file, or all."""

    def block(match: re.Match[str]) -> str:
        other = name is not None and BLOCKS.get(match[1], (name,))[0] != name
        return match[0] if other else match[1] + match[2] + rendered(match[1])

    return BLOCK.sub(block, text)


def write_blocks(name: str | None = None) -> None:
    """Write the blocks of one results file, or of all, into the documents."""
    for path in DOCUMENTS:
        text = path.read_text()
        new = filled(text, name)
        if new != text:
            atomic_write(path, new.encode())
            print(f"-> {os.path.relpath(path, ROOT)}")


# ---- The command -----------------------------------------------------------------------------------------------------


def age(measured: str) -> str:
    days = (datetime.date.today() - datetime.date.fromisoformat(measured)).days
    return "today" if days < 1 else counted(days, "day")


def listing() -> str:
    """Return a line for each piece: its age, its processor, how long it takes, and the command."""
    lines = [("piece", "age", "takes", "processor", "command")]
    for name, piece in PIECES.items():
        try:
            first, rows = read(name)
            days = {row.get("measured", first["measured"]) for row in rows}
            known = (age(min(days)), first["processor"])
        except FigureError:
            known = ("none yet", "")
        lines.append((name, known[0], piece.takes, known[1], f"python {piece.command}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def run(name: str, places: Mapping[str, str]) -> None:
    """Measure a piece. Raises Failure where its command fails; what was measured before stays."""
    words = shlex.split(PIECES[name].command.format_map(places))
    print(f"{name}: python {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if status:
        raise Failure(f"{name}: its command ended with status {status}; the pieces before it are written")


def main() -> int:
    parser = argparse.ArgumentParser(prog="figures.py", description=__doc__.splitlines()[0])
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"measure first: {', '.join(PIECES)}, or all")
    parser.add_argument("--corpus", default="wikitext-2-v1", help="where WikiText-2 is (default: the dataset hub)")
    options = parser.parse_args()
    chosen = [name for words in options.pieces for name in words.split(",")]
    chosen = list(PIECES) if chosen == ["all"] else chosen
    if unknown := [name for name in chosen if name not in PIECES]:
        parser.error(f"there is no piece {unknown[0]}: {', '.join(PIECES)}, or all")

    def work() -> None:
        for name in chosen:
            run(name, {"corpus": shlex.quote(options.corpus)})
        write_blocks()
        print(listing())

    return exit_code_of("figures.py", work)


if __name__ == "__main__":
    sys.exit(main())
