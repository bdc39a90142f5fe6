"""Measure what a second process gains on one machine and over a slow cable, and compute what more machines would.

    python bench/scaling.py          six minutes, as root; writes bench/results/scaling.jsonl and docs/scaling.md

A training step has 32 batch rows x 35 steps of a text with the word frequencies of a natural one, at the size of
WikiText-2. On one machine: one process with one thread and with two, and two with one thread and 16 batch rows each.
Between machines: the same two processes in network namespaces that link.c joins. To these steps a model is fitted,

    seconds = own work + k x latency + s x bytes / bandwidth

with a `k` and an `s` for each exchange, and an own work for each kind of step. It then gives steps of more machines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import numpy as np
from scipy.optimize import nnls
from servers import end_in_order

from rnnlm.errors import Failure, UserError, exit_code_of
from rnnlm.regularization import CandidateSampler, Regularizer
from rnnlm.training import distributed
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.initial import initial_weights

Row = dict[str, Any]

VOCAB, EMBED, HIDDEN, BATCH_ROWS, STEPS, SAMPLED = 31_266, 300, 100, 32, 35, 1000
COUNTS = np.maximum(1, 2_000_000 // np.arange(1, VOCAB + 1))
KINDS = [(backend, sampled) for backend in ("c", "torch") for sampled in (0, SAMPLED)]
EXCHANGES = ("float32", "bfloat16")
LINKS = [(microseconds, gigabits) for gigabits in (1, 10) for microseconds in (100, 1000)]
MACHINES = (1, 8, 64, 512)
SPACES = [f"rnn{os.getpid()}-{machine}" for machine in (0, 1)]
ADDRESSES = ("10.78.0.1", "10.78.0.2")


# ---- One process of a measurement


def work(backend: str, threads: int, rounds: int, cases: list[tuple[int, str]], card: str) -> None:
    """Measure each case, a sampled softmax and an exchange, when a line comes. Rank 0 prints what it found as JSON."""
    group = distributed.join(cuda=False, lost=sys.exit)
    for sampled, exchange in cases:
        if group.rank == 0 and not sys.stdin.readline():
            break  # the parent process has ended
        group.totals(0.0)
        found = measure(group, backend, threads, rounds, sampled, exchange, card)
        if group.rank == 0:
            print(json.dumps(found), flush=True)
    group.leave()


def measure(
    group: Group, backend: str, threads: int, rounds: int, sampled: int, exchange: str, card: str
) -> dict[str, float]:
    """Return the time of the fastest of some steps, what other programs disturbed least, and the bytes sent at each."""
    if backend == "c":
        from main import Trainer
    else:
        from torch_rnn import trainer_class

        Trainer = trainer_class()
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((VOCAB, EMBED), dtype=np.float32)
    width = BATCH_ROWS // group.size
    config = TrainConfig(
        batch_size=width, reduction="mean", optimizer="adamw", clip=1.0, threads=threads, exchange=exchange
    )
    trainer = Trainer(initial_weights(vectors, HIDDEN, seed=0), with_sampled(config, sampled), group)
    ids = rng.choice(VOCAB, (STEPS + 1, BATCH_ROWS), p=COUNTS / COUNTS.sum()).astype(np.int32)
    mine = slice(group.rank * width, (group.rank + 1) * width)
    x, y = np.ascontiguousarray(ids[:-1, mine]), np.ascontiguousarray(ids[1:, mine])
    draws, steps, used, sent = regularizer(sampled), [], [], 0
    for step in range(rounds + 2):
        drawn = draws.draw(step, ids[1:]).of_rows(mine)
        group.totals(0.0)
        if step == 2:
            sent = sent_bytes(card)
        started, processor = time.perf_counter(), time.process_time()
        loss, _ = trainer.train_step(x, y, 1e-3, drawn)
        group.totals(loss, x.size, 0.0, 0.0)  # as the loop does
        steps.append(time.perf_counter() - started)
        used.append(time.process_time() - processor)
    sent = sent_bytes(card) - sent
    return {"step": min(steps[2:]), "cpu": statistics.median(used[2:]), "sent": sent / rounds}


def with_sampled(config: TrainConfig, sampled: int) -> TrainConfig:
    return TrainConfig(**config.as_dict() | {"sampled_softmax": sampled})


def regularizer(sampled: int) -> Regularizer:
    sampler = CandidateSampler(COUNTS, sampled) if sampled else None
    return Regularizer(seed=0, input_size=EMBED, hidden_size=HIDDEN, sampler=sampler)


def sent_bytes(card: str) -> int:
    """Return how many bytes a process has sent over a network device; of the loopback, half of what it carried."""
    if not card:
        return 0
    sent = int(Path(f"/sys/class/net/{card}/statistics/tx_bytes").read_text())
    return sent // 2 if card == "lo" else sent


def numbers(sampled: int, machines: int) -> int:
    """Return how many numbers the gradient of a step has, if each of the machines has a whole batch."""
    words = VOCAB
    if sampled:
        rng = np.random.default_rng(1)
        ids = rng.choice(VOCAB, (STEPS, machines * BATCH_ROWS), p=COUNTS / COUNTS.sum()).astype(np.int32)
        words = regularizer(sampled).draw(0, ids).candidates.ids.size
    return (EMBED + HIDDEN + 1) * HIDDEN + words * (HIDDEN + 1)


# ---- The machines


class Cable:
    """The program link.c, which joins the namespaces. Each has its own loopback too."""

    def __init__(self, folder: Path) -> None:
        program = folder / "link"
        source = Path(__file__).with_name("link.c")
        subprocess.run(["gcc", "-O2", "-pthread", str(source), "-o", str(program)], check=True)
        ends = [word for space, address in zip(SPACES, ADDRESSES, strict=True) for word in (space, f"{address}/24")]
        self.process = subprocess.Popen(
            [str(program), *ends], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def set(self, microseconds: float, gigabits: float) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{microseconds} {gigabits * 1e3}\n")
        if self.process.stdout.readline() != "ready\n":
            raise Failure("the cable between the network namespaces is gone")


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            for space in SPACES:
                subprocess.run(["ip", "netns", "add", space], check=True)
                subprocess.run(["ip", "-n", space, "link", "set", "lo", "up"], check=True)
            made = Cable(Path(folder))
            try:
                yield made
            finally:
                made.process.terminate()
                made.process.wait()
        finally:
            for space in SPACES:
                subprocess.run(["ip", "netns", "delete", space], check=False)


@contextlib.contextmanager
def started(
    backend: str, threads: int, rounds: int, cases: list[tuple[int, str]], processes: int, apart: bool
) -> Iterator[subprocess.Popen[str]]:
    """Yield rank 0 of some processes. apart: each in a namespace of its own; else all in the first."""
    running = []
    card = "" if processes == 1 else "cable" if apart else "lo"
    local = 1 if apart else processes
    for rank in range(processes):
        place = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
        place |= {
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "GROUP_RANK": rank // local,
            "MASTER_ADDR": ADDRESSES[0] if apart else "127.0.0.1",
        }
        environment = {name: str(value) for name, value in place.items()} | {"MASTER_PORT": "29517"}
        arguments = ["--worker", backend, "--threads", str(threads), "--rounds", str(rounds)]
        arguments += ["--cases", json.dumps(cases), "--card", card]
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", SPACES[rank if apart else 0], sys.executable, __file__, *arguments],
                env=os.environ | (environment if processes > 1 else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
    try:
        yield running[0]
        for process in running:
            process.wait(60)
    finally:
        for process in running:
            process.kill()
            process.wait()


def answer(first: subprocess.Popen[str]) -> dict[str, float]:
    """Let rank 0 measure its next case. Raises Failure if it ended."""
    assert first.stdin and first.stdout
    first.stdin.write("\n")
    line = first.stdout.readline()
    if not line:
        raise Failure("a process of the measurement failed: see above")
    return json.loads(line)


# ---- The measurement


def on_one_machine(rounds: int) -> Iterator[Row]:
    for processes, threads in ((1, 1), (1, 2), (2, 1)):
        for backend in ("c", "torch"):
            cases = [(sampled, exchange) for _, sampled in KINDS[:2] for exchange in EXCHANGES[:processes]]
            with started(backend, threads, rounds, cases, processes, False) as first:
                for sampled, exchange in cases:
                    about = {"backend": backend, "sampled": sampled, "exchange": exchange}
                    yield {"on": "one", "processes": processes, "threads": threads, **about, **answer(first)}


def over_the_cable(rounds: int, link: Cable) -> Iterator[Row]:
    kinds = [(sampled, exchange) for _, sampled in KINDS[:2] for exchange in EXCHANGES]
    for backend in ("c", "torch"):
        link.set(0, 1e3)
        with started(backend, 1, rounds, [kind for kind in kinds for _ in LINKS], 2, True) as first:
            for sampled, exchange in kinds:
                for microseconds, gigabits in LINKS:
                    link.set(microseconds, gigabits)
                    about = {"backend": backend, "sampled": sampled, "exchange": exchange}
                    yield {"on": "cable", "us": microseconds, "gigabits": gigabits, **about, **answer(first)}


def fitted(rows: list[Row]) -> tuple[dict[tuple[str, int, str], float], dict[str, tuple[float, float]]]:
    """Fit the model to the steps over the cable, by least squares of the relative errors; nothing is below 0.

    Returns the own work of each kind of step, and (k, s) of each exchange. Adds to the rows what the model gives.
    """
    kinds = [(*kind, exchange) for kind in KINDS for exchange in EXCHANGES]
    kind_of = [(row["backend"], row["sampled"], row["exchange"]) for row in rows]
    design = np.zeros((len(rows), len(kinds) + 2 * len(EXCHANGES)))
    for line, row, kind in zip(design, rows, kind_of, strict=True):
        at = len(kinds) + 2 * EXCHANGES.index(row["exchange"])
        line[kinds.index(kind)] = 1.0
        line[at : at + 2] = row["us"] * 1e-6, row["sent"] * 8e-9 / row["gigabits"]
    steps = np.array([row["step"] for row in rows])
    found, _ = nnls(design / steps[:, None], np.ones(len(rows)))
    for row, modelled in zip(rows, design @ found, strict=True):
        row["model"] = modelled
    own = dict(zip(kinds, found.tolist(), strict=False))
    pairs = found[len(kinds) :].reshape(-1, 2).tolist()
    return own, {exchange: (k, s) for exchange, (k, s) in zip(EXCHANGES, pairs, strict=True)}


def computed(local: list[Row], rows: list[Row]) -> Iterator[Row]:
    """Fit the model, and yield what it gives for more machines, each with 2 threads and a whole batch of its own.

    In a ring all latencies but one pair are between other machines: N machines have N - 1 times those of two. Each
    sends 2 (N - 1) / N times the gradient (Patarasuk and Yuan 2009), where two send it once.
    """
    own, terms = fitted(rows)
    for exchange, (k, s) in terms.items():
        yield {"on": "fit", "exchange": exchange, "k": k, "s": s}
    for backend, sampled in KINDS:
        step = {(row["processes"], row["threads"]): row["step"] for row in local if is_of(row, backend, sampled)}
        # What two processes need beyond their share of the work, however fast the cable is.
        sent = {exchange: mean_sent(rows, backend, sampled, exchange) for exchange in EXCHANGES}
        for exchange, (k, s) in terms.items():
            beyond = max(0.0, own[backend, sampled, exchange] - step[1, 1] / 2)
            for microseconds, gigabits in LINKS:
                for machines in MACHINES:
                    grown = numbers(sampled, machines) / numbers(sampled, 1)
                    size = 2 * (machines - 1) / machines * sent[exchange] * grown
                    between = k * (machines - 1) * microseconds * 1e-6 + s * size * 8e-9 / gigabits
                    between += beyond * grown if machines > 1 else 0.0
                    about = {"backend": backend, "sampled": sampled, "exchange": exchange, "us": microseconds}
                    about |= {"gigabits": gigabits, "machines": machines, "step": step[1, 2] + between}
                    yield {"on": "computed", **about, "efficiency": step[1, 2] / (step[1, 2] + between)}


def is_of(row: Row, backend: str, sampled: int) -> bool:
    return row["backend"] == backend and row["sampled"] == sampled and row["exchange"] == "float32"


def mean_sent(rows: list[Row], backend: str, sampled: int, exchange: str) -> float:
    kind = backend, sampled, exchange
    return statistics.mean(r["sent"] for r in rows if (r["backend"], r["sampled"], r["exchange"]) == kind)


def shown(rows: Iterator[Row]) -> list[Row]:
    found = []
    for row in rows:
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
        found.append(rounded)
        print(*(f"{name} {value}" for name, value in rounded.items()), flush=True)
    return found


def check_rights() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        raise UserError("this needs root and /dev/net/tun, to make network namespaces and a cable between them")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scaling.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each case (%(default)s)")
    parser.add_argument("--worker", choices=("c", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--card", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.threads, options.rounds, options.cases, options.card)
        return 0

    def run() -> None:
        check_rights()
        end_in_order()  # by default these signals leave the namespaces
        load = round(os.getloadavg()[0], 1)
        with cable() as link:
            local = shown(on_one_machine(options.rounds))
            rows = shown(over_the_cable(options.rounds, link))
        more = shown(computed(local, rows))
        for row in rows:
            row["model"] = float(f"{row['model']:.4g}")
        figures.save("scaling", [*local, *rows, *more], tokens=BATCH_ROWS * STEPS, load=load)

    return exit_code_of("scaling.py", run)


if __name__ == "__main__":
    sys.exit(main())
