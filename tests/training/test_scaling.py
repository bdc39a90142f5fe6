"""bench/scaling.py: the model of more machines is fitted to what was measured, and what it made is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import scaling
import tables

sys.path.remove(str(ROOT / "bench"))

OWN = {"c": 0.07, "torch": 0.2}
TERMS = {"float32": (4.0, 1.1), "bfloat16": (5.0, 1.2)}


def measured() -> tuple[list[scaling.Row], list[scaling.Row]]:
    """Steps on one machine and over the cable that follow the model exactly."""
    local, apart = [], []
    for backend, sampled in scaling.KINDS:
        own, sent = OWN[backend] / (1 if not sampled else 10), 12e6 if not sampled else 1e6
        about = {"backend": backend, "sampled": sampled}
        for processes, threads, step in ((1, 1, 2 * own), (1, 2, own)):
            local.append({**about, "processes": processes, "threads": threads, "exchange": "float32", "step": step})
        for exchange, (k, s) in TERMS.items():
            size = sent / (1 if exchange == "float32" else 2)
            for us, gigabits in scaling.LINKS:
                step = own + k * us * 1e-6 + s * size * 8e-9 / gigabits
                row = {"on": "cable", "us": us, "gigabits": gigabits, "sent": size, "step": step}
                apart.append({**about, "exchange": exchange, **row})
    return local, apart


def test_the_model_is_found_again_and_more_machines_follow_from_it() -> None:
    local, apart = measured()
    computed = list(scaling.computed(local, apart))
    fits = {row["exchange"]: (row["k"], row["s"]) for row in computed if row["on"] == "fit"}
    assert {exchange: pytest.approx(pair) for exchange, pair in TERMS.items()} == fits
    assert all(row["model"] == pytest.approx(row["step"]) for row in apart)
    wanted = {"backend": "c", "sampled": 0, "exchange": "float32", "us": 100, "gigabits": 10, "machines": 8}
    (row,) = (row for row in computed if row["on"] == "computed" and wanted.items() <= row.items())
    ring = 1.1 * 2 * 7 / 8 * 12e6 * 8e-9 / 10
    assert row["step"] == pytest.approx(0.07 + 4 * 7 * 1e-4 + ring)
    assert row["efficiency"] == pytest.approx(0.07 / row["step"])
    first = {"tokens": 1120, "load": 0.2}
    assert "k = 4.0 latencies and s = 1.10" in tables.cable(first, [*apart, *computed])
    assert "| C | float32 | 8 | " in tables.machines(first, computed)


def test_nothing_is_computed_from_times_that_other_programs_made_longer() -> None:
    local, apart = measured()
    rows = [*apart, *scaling.computed(local, apart)]
    for table in (tables.cable, tables.machines):
        assert "|" not in table({"tokens": 1120, "load": 10.6}, rows)


def test_a_gradient_has_more_candidates_on_more_machines() -> None:
    assert scaling.numbers(0, 8) == scaling.numbers(0, 1) == 300 * 100 + 100 * 100 + 100 + 31_266 * 101
    assert scaling.numbers(1000, 1) < scaling.numbers(1000, 8) < scaling.numbers(0, 1)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="it needs network namespaces, which only Linux has")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_measurement_that_is_ended_leaves_no_namespaces(name: str) -> None:
    program = """
import sys, time, scaling

def measurement(rounds):
    print("measuring", flush=True)
    time.sleep(60)
    yield {}

class NoCable:
    def __init__(self, folder): self.process = self
    def terminate(self): print("cable gone", flush=True)
    def wait(self): pass

scaling.check_rights = lambda: None
scaling.subprocess.run = lambda command, check: print(*command, flush=True)
scaling.Cable, scaling.on_one_machine = NoCable, measurement
sys.argv[1:] = []
sys.exit(scaling.main())
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT / "bench", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout
        lines: list[str] = []
        while (line := process.stdout.readline().strip()) not in ("", "measuring"):
            lines.append(line)
        process.send_signal(getattr(signal, name))
        rest = process.stdout.read().splitlines()
    made = [line.split()[-1] for line in lines if line.startswith("ip netns add")]
    assert rest == ["cable gone", *(f"ip netns delete {space}" for space in made)] and len(made) == 2
    assert process.returncode == {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": -signal.SIGINT}[name]
