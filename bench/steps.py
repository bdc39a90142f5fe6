"""Measure single steps in processor time, which other programs disturb less than time by the clock.

    python bench/steps.py                    about five minutes; --rounds 1: a quick look

Training steps of 32 x 35 tokens, of C, of C with bfloat16 operands and of PyTorch, and steps of generation from each
copy of Why; all with one thread. The engines take turns (bench.py), and a figure is the fastest step of all. Prints
two tables and the limits of one thread (peak.c); writes bench/results/steps.jsonl and docs/performance.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import figures
from tables import STEP_ENGINES, generation, limits, steps

from bench import WIKITEXT2, Worker, peak
from rnnlm.library import PRECISIONS

KINDS = {"SGD, full softmax": {}, "`best`": {"preset": "best"}}
HIDDEN = (100, 300, 1000)
SEQUENCES = (1, 16, 32)


def fastest(specs: Iterable[dict[str, Any]], rounds: int) -> list[float]:
    """Return the processor seconds of the fastest step of each; the processes take turns."""
    workers = []
    try:
        for spec in specs:
            workers.append(Worker(spec["engine"], {**WIKITEXT2, "threads": 1, **spec}))
        samples = [[worker.sample()["fastest_step"] for worker in workers] for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.close()
    return list(map(min, zip(*samples, strict=True)))


def training(rounds: int) -> Iterable[dict[str, Any]]:
    for name, kind in KINDS.items():
        for hidden in HIDDEN:
            spec = {"task": "train", "batch": 32, "steps": 35, "hidden": hidden, **kind}
            found = fastest([spec | {"engine": engine} for engine in STEP_ENGINES], rounds)
            times = {f"{engine}_ms": round(1000 * time, 2) for engine, time in zip(STEP_ENGINES, found, strict=True)}
            yield {"task": "train", "step": f"{name}, H = {hidden:,}", **times}


def generating(rounds: int) -> Iterable[dict[str, Any]]:
    for sequences in SEQUENCES:
        spec = {"task": "generate", "engine": "c", "sequences": sequences}
        found = fastest([spec | {"precision": precision} for precision in PRECISIONS], rounds)
        rates = {precision: round(sequences / time) for precision, time in zip(PRECISIONS, found, strict=True)}
        yield {"task": "generate", "sequences": sequences, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="samples per engine (%(default)s)")
    options = parser.parse_args()

    first = {"limits": peak(1)}
    print(limits(first, []))
    rows = list(training(options.rounds))
    print(steps(first, rows))
    rows += generating(options.rounds)
    print(generation(first, rows))
    figures.save("steps", rows, whole=vars(options) == vars(parser.parse_args([])), **first)


if __name__ == "__main__":
    main()
