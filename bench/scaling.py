"""Measure what a second process gains.

    python bench/scaling.py          about two minutes; --rounds 3: a quick look

A training step at the size of WikiText-2, 32 batch rows x 35 steps in all, in one process with one thread, in one with
two, and in two with one thread and 16 batch rows each (torchrun, gloo). Prints a table, and writes it to
bench/results/scaling.jsonl and docs/scaling.md, where bench.py's results also say what more machines would gain.
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

import figures
from tables import scaling

from rnnlm.training import distributed
from rnnlm.training.config import TrainConfig
from rnnlm.training.initial import initial_weights

VOCAB, EMBED, HIDDEN, BATCH_ROWS, STEPS = 31_266, 300, 100, 32, 35
CASES = [(1, 1), (1, 2), (2, 1)]  # processes, threads per process


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
    rows = []
    for backend, sampled in (("c", 0), ("torch", 0), ("c", 2000)):
        for processes, threads in CASES:
            found = measure(backend, processes, threads, options.rounds, sampled)
            times = {name: round(found[name], 5) for name in ("step", "sum", "cpu")}
            case = {"backend": backend, "sampled_softmax": sampled, "processes": processes, "threads": threads}
            rows.append({**case, "tokens": BATCH_ROWS * STEPS, **times, "P": found["P"]})
            print(json.dumps(rows[-1]), flush=True)
    print(scaling({}, rows))
    figures.save("scaling", rows, whole=vars(options) == vars(parser.parse_args([])))


if __name__ == "__main__":
    main()
