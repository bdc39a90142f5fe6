"""The lesson: its program runs and shows what docs/lesson.md says, and the page quotes the code as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from rnnlm import library

CSRC = ROOT / "csrc"
PAGE = (ROOT / "docs" / "lesson.md").read_text()
SOURCE = (CSRC / "elman.c").read_text()
TEXT = "The cat sat on the mat. The dog sat on the log.\n" * 40

BACKWARD = [  # every statement of the backward pass
    "grad->by[v] += dz;",
    "grad->why[i * m->V + v] += h[i] * dz;",
    "dh[i] += m->why[i * m->V + v] * dz;",
    "grad->bh[j] += da;",
    "for (size_t i = 0; i < m->E; i++) grad->wxh[i * m->H + j] += x[i] * da;",
    "grad->whh[i * m->H + j] += h_prev[i] * da;",
    "dh_prev[i] += m->whh[i * m->H + j] * da;",
]

GRADIENTS = ["-0.049641", "0.075748", "-0.097484", "0.227861", "1.311406"]  # of TEXT, in the first weights

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler called cc")


def build(folder: Path, source: str = SOURCE, compiler: str = "cc") -> Path:
    """The lesson's program, with `source` for elman.c."""
    (folder / "elman.c").write_text(source)
    program = folder / "lesson"
    command = [
        compiler,
        "-O2",
        "-I",
        str(CSRC),
        "-o",
        str(program),
        str(folder / "elman.c"),
        str(CSRC / "lesson.c"),
        "-lm",
    ]
    subprocess.run(command, check=True)
    return program


def gradient_errors(output: str) -> list[float]:
    return [float(line.split()[-1]) for line in output.split("\n\n")[0].splitlines()[1:]]


@needs_compiler
def test_the_lesson_learns_and_its_signal_fades(tmp_path: Path) -> None:
    done = subprocess.run([build(tmp_path)], input=TEXT, capture_output=True, text=True, check=True)
    check, epochs, signal, sample = done.stdout.split("\n\n", 3)
    assert [line.split()[0] for line in check.splitlines()[1:]] == ["dL/dWxh", "dL/dWhh", "dL/dbh", "dL/dWhy", "dL/dby"]
    assert max(gradient_errors(check)) < 1e-6
    losses = [float(line.split()[1]) for line in epochs.splitlines()[1:]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5
    before = [float(line.split()[-2]) for line in signal.splitlines()[1:-1]]
    assert before == sorted(before, reverse=True) and before[0] == 1.0 and before[-1] < 1e-6
    assert len(sample) == 1 + 400 + 1 and set(sample) <= set(TEXT)


@needs_compiler
@pytest.mark.parametrize("statement", BACKWARD)
def test_the_gradient_check_notices_any_line_of_the_backward_pass(statement: str, tmp_path: Path) -> None:
    assert SOURCE.count(statement) == 1
    program = build(tmp_path, SOURCE.replace(statement, ";"))
    done = subprocess.run([program], input=TEXT, capture_output=True, text=True, check=True)
    assert max(gradient_errors(done.stdout)) >= 0.3


@needs_compiler
def test_a_weight_that_nothing_depends_on_has_no_error(tmp_path: Path) -> None:
    """Without recurrence, as the page proposes, both derivatives by Whh are 0."""
    lines = [line for line in SOURCE.splitlines() if "whh[i" not in line]
    assert len(lines) == len(SOURCE.splitlines()) - 3
    done = subprocess.run([build(tmp_path, "\n".join(lines))], input=TEXT, capture_output=True, text=True, check=True)
    errors = gradient_errors(done.stdout)
    assert errors[1] == 0.0 and max(errors) < 1e-6


def test_every_line_that_adds_to_a_gradient_is_among_them() -> None:
    adding = [line.strip() for line in SOURCE.splitlines() if re.search(r"\b(grad->\w+|dh|dh_prev)\[.*\+= ", line)]
    assert adding == BACKWARD


@needs_compiler
def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([build(tmp_path)], input="abc" * 300, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "lesson: give it a text of 1,000 bytes or more on standard input\n"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_numbers_do_not_depend_on_the_compiler(compiler: str, tmp_path: Path) -> None:
    """It evaluates the arguments of a call in an order of its own, and each may draw random numbers."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is missing")
    done = subprocess.run([build(tmp_path, compiler=compiler)], input=TEXT, capture_output=True, text=True, check=True)
    gradients = [f"{float(line.split()[1]):.6f}" for line in done.stdout.split("\n\n")[0].splitlines()[1:]]
    assert gradients == GRADIENTS


@needs_compiler
@pytest.mark.parametrize("rate", ["0,02", "abc", "0", "-1", "nan", "inf"])
def test_a_rate_that_is_none_is_refused(rate: str, tmp_path: Path) -> None:
    done = subprocess.run([build(tmp_path), rate], input=TEXT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lesson: the learning rate must be a number above 0, such as 0.003\n"


def test_the_page_quotes_the_code() -> None:
    quotes = re.findall(r"^```c\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(quotes) >= 8
    for quote in quotes:
        assert quote in SOURCE


def test_the_page_names_files_that_are_there() -> None:
    table = PAGE[PAGE.index("file in `csrc/`") :]
    names = re.findall(r"`(\w+\.[ch])`", table)
    assert len(names) >= 10 and all((CSRC / name).is_file() for name in names)


def test_the_lesson_is_not_in_the_library() -> None:
    symbols = subprocess.run(["nm", library.library_path()], capture_output=True, text=True, check=True).stdout
    assert "rnn_loss_grad" in symbols and "elman" not in symbols


@pytest.mark.slow
def test_the_page_has_what_the_program_prints() -> None:
    """To the last digit where nothing depends on the compiler's rounding, and nearly elsewhere."""
    done = subprocess.run(["make", "-s", "lesson"], cwd=ROOT, capture_output=True, text=True, check=True)
    printed = done.stdout[done.stdout.index("gradient check") :].split("\n\n")
    for block in printed[:3]:
        quoted = PAGE[PAGE.index(block.splitlines()[0]) :].split("\n```")[0]
        for ours, theirs in zip(block.splitlines()[1:], quoted.splitlines()[1:], strict=True):
            numbers, want = ([float(x) for x in re.findall(r"\s(-?\d[\d.]*(?:e[-+]\d+)?)", y)] for y in (ours, theirs))
            if "dL/d" in ours:  # the relative errors are rounding
                numbers, want = numbers[:2], want[:2]
            assert numbers == pytest.approx(want, rel=0.3 if "signal" in ours else 0.03)
