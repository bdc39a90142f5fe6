"""Compare C with PyTorch: training, generation, loading. `make bench` runs it.

    python bench/bench.py [--quick] [--only NAME] [--rounds 5] [--threads 2]            about half an hour

Each engine runs in a process of its own, because PyTorch's idle threads spin and would slow the other. The processes
take turns, one sample at a time, so that a machine whose speed drifts slows all of them alike. A figure is the median
of the rounds; a ratio is the median of the rounds' ratios. The machine's own limits are measured first (peak.c).
Prints a table and writes bench/results/bench.jsonl, which plots.py draws. With --quick or --only the rows go to
bench/results/partial.jsonl instead, so those of the last full run stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from worker import random_weights

from rnnlm import checkpoint, library
from rnnlm.data.text import EOS
from rnnlm.errors import counted

RESULTS = HERE / "results"
CASE_SECONDS = 20  # no new round of a case starts after this long, once it has had LEAST_ROUNDS
LEAST_ROUNDS = 3
WIKITEXT2 = {"vocab": 31_266, "embed": 300, "hidden": 100}
VOCABS = (10_000, 31_266, 100_000, 200_000)
HIDDEN = (50, 100, 300, 1000)
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Engines: C in float32; C with `--precision bfloat16`; PyTorch, with set_float32_matmul_precision("medium"), compiled.
ENGINES = ("c", "bfloat16", "torch", "medium", "compile")
# The ratios of a row, each the median of its rounds: C's speed by PyTorch's, and C's with bfloat16 operands by theirs.
RATIOS = (("c", "torch"), ("c", "compile"), ("bfloat16", "torch"), ("bfloat16", "medium"), ("bfloat16", "c"))


def ratio_key(ours: str, theirs: str) -> str:
    return f"ratio_to_{theirs}" if ours == "c" else f"{ours}_ratio_to_{theirs}"


class Case(NamedTuple):
    group: str
    name: str
    spec: dict[str, Any]
    engines: tuple[str, ...]


def cases(threads: int, quick: bool, folder: Path) -> Iterator[Case]:
    """Yield every comparison, in the order of the table."""
    both, three = ("c", "torch"), ("c", "torch", "compile")
    training_engines = ("c", "bfloat16", "torch", "medium")

    def training(
        group: str, name: str, batch: int, steps: int, engines: tuple[str, ...] = training_engines, **changed: Any
    ) -> Case:
        spec = {"task": "train", "batch": batch, "steps": steps, "threads": threads, **WIKITEXT2, **changed}
        # PyTorch keeps the logits, their softmax and their gradients: nearly 20 bytes per token and word.
        fits = 20 * spec["vocab"] * batch * steps < 0.5 * MEMORY_BYTES
        return Case(group, name, spec, engines if fits else ("c", "bfloat16"))

    def generation(group: str, name: str, sequences: int, engines: tuple[str, ...] = both, **changed: Any) -> Case:
        spec = {"task": "generate", "sequences": sequences, "threads": threads, **WIKITEXT2, **changed}
        return Case(group, name, spec, engines)

    shapes = [(1, 250), (20, 35), (32, 35), (64, 35), (1, 5000), (1, 20)]
    for batch, steps in shapes:
        yield training("train", f"{batch} x {steps}", batch, steps, training_engines + (() if quick else ("compile",)))
    yield training("train best", "32 x 35, H=300", 32, 35, preset="best", hidden=300)
    for batch, steps in [(1, 250), (32, 35)] if quick else shapes:
        yield training("train V=200k", f"{batch} x {steps}", batch, steps, vocab=200_000)
    for sequences in (1, 16) if quick else (1, 2, 4, 8, 16, 32):
        yield generation("generate", f"{sequences} sequences", sequences, both if quick else three)
    for precision in ("bfloat16", "int8"):
        for sequences in (1, 16):
            yield generation("generate", f"{sequences} sequences, {precision}", sequences, ("c",), precision=precision)
    for precision in ("float32", "bfloat16", "int8"):
        yield generation("generate", f"1 thread, {precision}", 1, precision=precision, threads=1)
    yield generation("generate", "1 thread, 16 sequences", 16, threads=1)
    for vocab in (31_266,) if quick else VOCABS:
        path = str(folder / f"{vocab}.safetensors")
        yield Case("load", f"V={vocab:,}", {"task": "load", "path": path, **WIKITEXT2, "vocab": vocab}, both)
    if quick:
        return
    for vocab in VOCABS:
        yield training("train by V", f"32 x 35, V={vocab:,}", 32, 35, vocab=vocab)
    for hidden in HIDDEN:
        yield training("train by H", f"32 x 35, H={hidden}", 32, 35, hidden=hidden)
    for count in sorted({1, 2, threads}):
        yield training("train by threads", f"32 x 35, {counted(count, 'thread')}", 32, 35, threads=count)
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


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Return one row: tokens/s and peak memory of each engine, and C's speed relative to each other engine."""
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
        row[f"{engine}_tokens_per_second"] = statistics.median(rates[engine])
        row[f"{engine}_megabytes"] = max(s[engine]["megabytes"] for s in samples)
    for ours, theirs in RATIOS:
        if ours in rates and theirs in rates:
            pairs = zip(rates[ours], rates[theirs], strict=True)
            row[ratio_key(ours, theirs)] = statistics.median(a / b for a, b in pairs)
    if case.spec["task"] != "load" and "preset" not in case.spec:  # `best` computes fewer logits than words
        row["c_gflops"] = row["c_tokens_per_second"] * flops(case.spec) / 1e9
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


# The columns of the table: heading, width.
COLUMNS = (
    *(("", 39), ("C", 9), ("C bf16", 9), ("PyTorch", 9), ("medium", 9), ("compiled", 9)),
    *(("PyTorch", 9), ("compiled", 9), ("PyTorch", 9), ("medium", 8), ("C", 6)),
    *(("GFLOP/s", 9), ("of peak", 8), ("C", 7), ("C bf16", 7), ("PyTorch", 8)),
)


def cells(row: dict[str, Any], peak_threads: int) -> Iterator[str]:
    """Yield the cells of a line of the table, "-" for what was not measured."""
    shown = (
        *((f"{engine}_tokens_per_second", 9, ",.0f") for engine in ENGINES),
        *((ratio_key(*pair), width, ".2f") for pair, width in zip(RATIOS, (9, 9, 9, 8, 6), strict=True)),
        *(("c_gflops", 9, ".0f"), ("of_peak", 8, ".0%")),
        *((f"{engine}_megabytes", width, ",.0f") for engine, width in (("c", 7), ("bfloat16", 7), ("torch", 8))),
    )
    if "c_gflops" in row and row["threads"] == peak_threads:
        row = row | {"of_peak": row["c_gflops"] / row["peak_gflops"]}
    for key, width, form in shown:
        yield f"{format(row[key], form) if key in row else '-':>{width}}"


def processor() -> str:
    """Return the processor's name, family and model (Linux)."""
    found = re.findall(r"^(cpu family|model|model name)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    known = dict(found)
    return f"{known.get('model name')}, family {known.get('cpu family')}, model {known.get('model')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, and only eager PyTorch")
    parser.add_argument("--only", default="", help="run only the groups whose names start with this")
    parser.add_argument("--rounds", type=int, default=5, help="samples per engine and case (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every engine (%(default)s)"
    )
    options = parser.parse_args()

    limits = peak(options.threads)
    print(f"{processor()}; C uses the kernels for {library.kernel()}")
    print(f"{options.threads} threads at most: {limits['float32']:.0f} GFLOP/s of multiply-adds", end="")
    for name, instruction in (("bfloat16", "VDPBF16PS"), ("tiles", "AMX tiles")):
        if name in limits:
            print(f", {limits[name]:,.0f} of {instruction}", end="")
    print(f"; {limits['exponentials']:.1f} G exponentials/s; {limits['copy']:.1f} GB/s of copying")
    print(
        f"{'':39}{'tokens per second':^45}{'C is faster by':^18}{'C bf16 is faster by':^23}{'C':^17}"
        f"{'peak memory, MB':^22}"
    )
    print("".join(f"{name:>{width}}" for name, width in COLUMNS))
    machine = {
        "processor": processor(),
        "kernels": library.kernel(),
        "peak_gflops": limits["float32"],
        "limits": limits,
    }
    rows: list[dict[str, Any]] = []
    measured: dict[str, dict[str, Any]] = {}  # some cases belong to two groups
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.threads, options.quick, Path(folder)):
            if not case.group.startswith(options.only):
                continue
            if case.spec["task"] == "load":
                write_weights(Path(folder), case.spec["vocab"])
            key = json.dumps(case.spec, sort_keys=True)
            if key not in measured:
                measured[key] = measure(case, options.rounds) | machine
            rows.append(measured[key] | {"group": case.group, "case": case.name})
            print(f"{case.group:<17}{case.name:<22}" + "".join(cells(rows[-1], options.threads)), flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("partial.jsonl" if options.quick or options.only else "bench.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"-> {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
