"""Measure what a second process gains, and compute what more machines would.

    python bench/scaling.py          prints two tables; writes bench/results/scaling.jsonl

Measured: a training step at the size of WikiText-2, 32 batch rows x 35 steps in all, in one process with one thread, in
one with two, and in two with one thread and 16 batch rows each (torchrun, gloo). Computed: a ring all-reduce of the
gradient between N machines like this one, each with 32 batch rows of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rnnlm.training import distributed
from rnnlm.training.config import TrainConfig
from rnnlm.training.initial import initial_weights

VOCAB, EMBED, HIDDEN, BATCH_ROWS, STEPS = 31_266, 300, 100, 32, 35
CASES = [(1, 1), (1, 2), (2, 1)]  # processes, threads per process
NODES, GIGABITS = (8, 64, 512), (10, 100)
HOP_SECONDS = 30e-6  # assumed time from one machine to the next over TCP, software included


def work(backend: str, threads: int, rounds: int, sampled: int) -> None:
    """Run one process of a measurement. Rank 0 prints the medians as JSON."""
    group = distributed.join(cuda=False, lost=sys.exit)
    if backend == "c":
        from main import Trainer
    else:
        from torch_rnn import trainer_class

        Trainer = trainer_class()

    rng = np.random.default_rng(0)
    weights = initial_weights(rng.standard_normal((VOCAB, EMBED), dtype=np.float32), HIDDEN, seed=0)
    width = BATCH_ROWS // group.size
    config = TrainConfig(
        batch_size=width, reduction="mean", optimizer="adamw", clip=1.0, threads=threads, sampled_softmax=sampled
    )
    trainer = Trainer(weights, config, group)
    from rnnlm.regularization import CandidateSampler, Regularizer

    counts = np.maximum(1, 2_000_000 // np.arange(1, VOCAB + 1))
    sampler = CandidateSampler(counts, sampled) if sampled else None
    regularizer = Regularizer(seed=0, input_size=EMBED, hidden_size=HIDDEN, sampler=sampler)
    ids = rng.integers(0, VOCAB, (STEPS + 1, BATCH_ROWS), dtype=np.int32)
    mine = slice(group.rank * width, (group.rank + 1) * width)
    x, y = np.ascontiguousarray(ids[:-1, mine]), np.ascontiguousarray(ids[1:, mine])
    steps, sums, cpu = [], [], []
    gradient = np.zeros(weights.flat_parameters().size, dtype=np.float32)
    for round_ in range(rounds + 2):
        drawn = regularizer.draw(round_, ids[1:]).of_rows(mine)
        started, used = time.perf_counter(), time.process_time()
        trainer.train_step(x, y, 1e-3, drawn)
        between = time.perf_counter()
        cpu.append(time.process_time() - used)
        if backend == "c":  # with a sampled softmax, that of the candidates only
            gradient = gradient[: trainer.work.gradient_count(drawn.candidates)]
        group.sum(gradient)
        steps.append(between - started)
        sums.append(time.perf_counter() - between)
    if group.rank == 0:
        medians = {"step": steps, "sum": sums, "cpu": cpu}
        found = {name: statistics.median(times[2:]) for name, times in medians.items()}
        print(json.dumps(found | {"P": gradient.size}))
    group.leave()


def measure(backend: str, processes: int, threads: int, rounds: int, sampled: int) -> dict[str, float]:
    arguments = [__file__, "--worker", backend, "--threads", str(threads), "--rounds", str(rounds)]
    arguments += ["--sampled-softmax", str(sampled)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *arguments], capture_output=True, text=True, cwd=ROOT
    )
    if result.returncode != 0:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def ring(nodes: int, size: float, gigabits: float) -> float:
    """Return the seconds of a ring all-reduce of `size` bytes (Patarasuk & Yuan 2009)."""
    return 2 * (nodes - 1) / nodes * size / (gigabits * 1e9 / 8) + 2 * (nodes - 1) * HOP_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="steps per case (%(default)s)")
    parser.add_argument("--worker", choices=("c", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--sampled-softmax", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.threads, options.rounds, options.sampled_softmax)
        return
    rows, tokens = [], BATCH_ROWS * STEPS
    print(f"{'':24}{'ms a step':>12}{'tokens/s':>12}{'of which ms all-reduce':>24}{'CPU ms, process 0':>20}")
    for backend, sampled in (("c", 0), ("torch", 0), ("c", 2000)):
        for processes, threads in CASES:
            row = measure(backend, processes, threads, options.rounds, sampled)
            row |= {"backend": backend, "processes": processes, "threads": threads, "sampled_softmax": sampled}
            rows.append(row)
            name = f"{backend}{', sampled' if sampled else ''} {processes} x {threads}"
            shared = f"{row['sum'] * 1e3:.1f}" if processes > 1 else ""
            print(
                f"{name:24}{row['step'] * 1e3:12.1f}{tokens / row['step']:12,.0f}{shared:>24}{row['cpu'] * 1e3:20.1f}",
                flush=True,
            )
    results = ROOT / "bench" / "results" / "scaling.jsonl"
    results.parent.mkdir(exist_ok=True)
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\neach machine has 32 batch rows x 35 steps and 2 threads")
    print(f"{'':24}{'machines':>10}{'Gb/s':>6}{'ms all-reduce':>15}{'ms a step':>11}{'tokens/s':>13}{'efficiency':>12}")
    for row in rows:
        if (row["processes"], row["threads"]) == (1, 2):
            for nodes in NODES:
                for gigabits in GIGABITS:
                    size = 4 * row["P"]
                    between = ring(nodes, size, gigabits)
                    step = row["step"] + between
                    name = row["backend"] + (", sampled" if row["sampled_softmax"] else "")
                    print(
                        f"{name:24}{nodes:10}{gigabits:6}{between * 1e3:15.1f}{step * 1e3:11.1f}"
                        f"{nodes * tokens / step:13,.0f}{row['step'] / step:12.0%}"
                    )


if __name__ == "__main__":
    main()
