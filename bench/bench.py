"""Compare C with PyTorch: training, generation, loading. `make bench` runs it.

    python bench/bench.py                    C, PyTorch, torch.compile                           about half an hour
    python bench/bench.py --bfloat16         training with bfloat16 operands beside it           about ten minutes
    python bench/bench.py --quick            fewer cases; also --only NAME, --rounds 3, --threads 1

Each engine runs in a process of its own, because PyTorch's idle threads spin and would slow the other. The processes
take turns, one sample at a time, so that a machine whose speed drifts slows all of them alike. A figure is the median
of the rounds; a ratio is the median of the rounds' ratios. The machine's own limits are measured first (peak.c).
Prints a table, writes bench/results/bench.jsonl (or bfloat16.jsonl) and the tables of the documents, and draws the
pictures (plots.py). With any other option the rows go to bench/results/partial.jsonl: those of the last full run stay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import figures
from tables import COMPARISONS, bench_head, bench_line, ratio_key
from worker import random_weights

from rnnlm import checkpoint, library
from rnnlm.data.text import EOS
from rnnlm.errors import counted

CASE_SECONDS = 20  # no new round of a case starts after this long, once it has had LEAST_ROUNDS
LEAST_ROUNDS = 3
WIKITEXT2 = {"vocab": 31_266, "embed": 300, "hidden": 100}
VOCABS = (10_000, 31_266, 100_000, 200_000)
HIDDEN = (50, 100, 300, 1000)
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Case(NamedTuple):
    group: str
    name: str
    spec: dict[str, Any]
    engines: tuple[str, ...]


def training(group: str, name: str, engines: tuple[str, ...], batch: int, steps: int, **changed: Any) -> Case:
    spec = {"task": "train", "batch": batch, "steps": steps, **WIKITEXT2, **changed}
    # PyTorch keeps the logits, their softmax and their gradients: nearly 20 bytes per token and word.
    fits = 20 * spec["vocab"] * batch * steps < 0.5 * MEMORY_BYTES
    return Case(group, name, spec, tuple(engine for engine in engines if fits or engine in ("c", "bfloat16")))


SHAPES = [(1, 250), (20, 35), (32, 35), (64, 35), (1, 5000), (1, 20)]


def bfloat16_cases(threads: int, quick: bool) -> Iterator[Case]:
    """Yield the comparisons of training steps with bfloat16 operands, in the order of the table."""
    engines = COMPARISONS["bfloat16"].engines
    for batch, steps in SHAPES:
        yield training("train", f"{batch} x {steps}", engines, batch, steps, threads=threads)
    if quick:
        return
    yield training("train best", "32 x 35, H=300", engines, 32, 35, threads=threads, preset="best", hidden=300)
    yield training("train V=200k", "32 x 35", engines, 32, 35, threads=threads, vocab=200_000)
    for hidden in HIDDEN:
        yield training("train by H", f"32 x 35, H={hidden}", engines, 32, 35, threads=threads, hidden=hidden)


def cases(threads: int, quick: bool, folder: Path) -> Iterator[Case]:
    """Yield every comparison, in the order of the table."""
    both, three = ("c", "torch"), ("c", "torch", "compile")

    def generation(group: str, name: str, sequences: int, engines: tuple[str, ...] = both, **changed: Any) -> Case:
        spec = {"task": "generate", "sequences": sequences, "threads": threads, **WIKITEXT2, **changed}
        return Case(group, name, spec, engines)

    for batch, steps in SHAPES:
        yield training("train", f"{batch} x {steps}", both if quick else three, batch, steps, threads=threads)
    yield training("train best", "32 x 35, H=300", both, 32, 35, threads=threads, preset="best", hidden=300)
    for batch, steps in [(1, 250), (32, 35)] if quick else SHAPES:
        yield training("train V=200k", f"{batch} x {steps}", both, batch, steps, threads=threads, vocab=200_000)
    for sequences in (1, 16) if quick else (1, 2, 4, 8, 16, 32):
        yield generation("generate", counted(sequences, "sequence"), sequences, both if quick else three)
    for precision in ("bfloat16", "int8"):
        for sequences in (1, 16):
            name = f"{counted(sequences, 'sequence')}, {precision}"
            yield generation("generate", name, sequences, ("c",), precision=precision)
    for precision in ("float32", "bfloat16", "int8"):
        yield generation("generate", f"1 thread, {precision}", 1, precision=precision, threads=1)
    yield generation("generate", "1 thread, 16 sequences", 16, threads=1)
    for vocab in (31_266,) if quick else VOCABS:
        path = str(folder / f"{vocab}.safetensors")
        yield Case("load", f"V={vocab:,}", {"task": "load", "path": path, **WIKITEXT2, "vocab": vocab}, both)
    if quick:
        return
    for vocab in VOCABS:
        yield training("train by V", f"32 x 35, V={vocab:,}", both, 32, 35, threads=threads, vocab=vocab)
    for hidden in HIDDEN:
        yield training("train by H", f"32 x 35, H={hidden}", both, 32, 35, threads=threads, hidden=hidden)
    for count in sorted({1, 2, threads}):
        yield training("train by threads", f"32 x 35, {counted(count, 'thread')}", both, 32, 35, threads=count)
    for vocab in VOCABS:
        yield generation("generate by V", f"1 sequence, V={vocab:,}", 1, vocab=vocab)
    for hidden in HIDDEN:
        yield generation("generate by H", f"1 sequence, H={hidden}", 1, hidden=hidden)


def flops(spec: dict[str, Any]) -> float:
    """Return the FLOP per token that the mathematics needs, two per multiply-add; recomputation does not count."""
    v, e, h = spec["vocab"], spec["embed"], spec["hidden"]
    if spec["task"] == "train":  # the output layer and its two gradients; Wxh and its gradient; Whh and its two
        return 6.0 * h * v + 4.0 * e * h + 6.0 * h * h
    return 2.0 * h * v + 2.0 * h * h  # embeddings Wxh is computed once, at load


class Worker:
    """A process that runs a sample whenever it is asked to."""

    def __init__(self, engine: str, spec: dict[str, Any]) -> None:
        self.engine = engine
        command = [sys.executable, str(HERE / "worker.py"), json.dumps({"engine": engine} | spec)]
        environment = os.environ | {"OMP_NUM_THREADS": str(spec.get("threads", 1))}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self._line("ready")

    def _line(self, expected: str) -> str:
        line = self.process.stdout.readline()
        if expected not in line:
            raise RuntimeError(f"the {self.engine} worker exited with status {self.process.wait()}")
        return line

    def sample(self) -> dict[str, float]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self._line("seconds"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(case: Case, rounds: int, ratios: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return one row: tokens/s and peak memory of each engine, and the speed of some relative to others."""
    workers = []
    try:
        for engine in case.engines:
            workers.append(Worker(engine, case.spec))
        start, samples = time.monotonic(), []
        while len(samples) < rounds and (len(samples) < LEAST_ROUNDS or time.monotonic() < start + CASE_SECONDS):
            samples.append({worker.engine: worker.sample() for worker in workers})
    finally:
        for worker in workers:
            worker.close()
    rates = {engine: [s[engine]["tokens"] / s[engine]["seconds"] for s in samples] for engine in case.engines}
    row: dict[str, Any] = {"group": case.group, "case": case.name, **case.spec}
    row.pop("path", None)
    for engine in case.engines:
        row[f"{engine}_tokens_per_second"] = round(statistics.median(rates[engine]), 2)
        row[f"{engine}_megabytes"] = round(max(s[engine]["megabytes"] for s in samples))
    for ours, theirs in ratios:
        if ours in rates and theirs in rates:
            pairs = zip(rates[ours], rates[theirs], strict=True)
            row[ratio_key(ours, theirs)] = round(statistics.median(a / b for a, b in pairs), 3)
    if case.spec["task"] != "load" and "preset" not in case.spec:  # `best` computes fewer logits than words
        row["c_gflops"] = round(row["c_tokens_per_second"] * flops(case.spec) / 1e9, 2)
    return row | {"rounds": len(samples)}


def peak(threads: int) -> dict[str, float]:
    """Measure this machine's limits, by the names of peak.c."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp"]
        subprocess.run(["gcc", *flags, str(HERE / "peak.c"), "-o", str(program), "-lm"], check=True)
        out = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in map(str.split, out.splitlines())}


def write_weights(folder: Path, vocab: int) -> None:
    """Write a weights file to load, with the words of worker.py's prompt."""
    words = (EOS, "first", *(f"word{number}" for number in range(2, vocab)))
    source = checkpoint.Checkpoint(random_weights(vocab, 300, 100), words, "plain", "c", {}, [])
    checkpoint.save(folder / f"{vocab}.safetensors", source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="compare training with bfloat16 operands, and PyTorch's medium precision",
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases, and only eager PyTorch")
    parser.add_argument("--only", default="", help="run only the groups whose names start with this")
    parser.add_argument("--rounds", type=int, default=5, help="samples per engine and case (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every engine (%(default)s)"
    )
    options = parser.parse_args()

    name = "bfloat16" if options.bfloat16 else "bench"
    comparison = COMPARISONS[name]
    first = {"kernels": library.kernel(), "threads": options.threads, "limits": peak(options.threads)}
    print(f"{figures.processor()}; C uses the kernels for {first['kernels']}")
    print(bench_head(first, comparison))
    rows: list[dict[str, Any]] = []
    measured: dict[str, dict[str, Any]] = {}  # some cases belong to two groups
    with tempfile.TemporaryDirectory() as folder:
        chosen = (
            bfloat16_cases(options.threads, options.quick)
            if options.bfloat16
            else cases(options.threads, options.quick, Path(folder))
        )
        for case in chosen:
            if not case.group.startswith(options.only):
                continue
            if case.spec["task"] == "load":
                write_weights(Path(folder), case.spec["vocab"])
            key = json.dumps(case.spec, sort_keys=True)
            if key not in measured:
                measured[key] = measure(case, options.rounds, comparison.ratios)
            rows.append(measured[key] | {"group": case.group, "case": case.name})
            print(bench_line(first, comparison, rows[-1]), flush=True)
    whole = vars(options) | {"bfloat16": False} == vars(parser.parse_args([]))
    pictures = []
    if whole and name == "bench":
        from plots import draw  # here, since it needs matplotlib

        pictures = draw(rows)
    if options.bfloat16 and first["kernels"] == "amx":
        name = "amx"  # a table of its own
    figures.save(name, rows, whole=whole, pictures=pictures, **first)


if __name__ == "__main__":
    main()
