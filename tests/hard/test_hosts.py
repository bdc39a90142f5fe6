"""Two machines that share no files: network namespaces, each with an address of its own, and a cable between them.

As on many machines, the own name of each resolves to the loopback address. Needs root, to make the namespaces.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from running import BACKENDS, options, run

from rnnlm import checkpoint

ADDRESSES = ("10.77.0.1", "10.77.0.2")
RESOLVERS = Path("/etc/netns")
TWO_MINUTES = 120
STEPS = 20
EXACT = {"max_tokens": 8 * 16 * STEPS + 1, "epochs": 1, "bptt": 16}  # 20 steps of 8 batch rows
LONG = {"epochs": 100_000, "patience": 0}

STATIC = [f"--node-rank {node} --master-addr {ADDRESSES[0]} --master-port 29500" for node in (0, 1)]
ELASTIC = [
    f"--rdzv-backend c10d --rdzv-endpoint {ADDRESSES[0]}:29500 --rdzv-conf is_host={1 - node} --local-addr {address}"
    for node, address in enumerate(ADDRESSES)
]


def _needs() -> str | None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs the program ip (apt-get install iproute2)"
    made = subprocess.run(["ip", "netns", "add", "rnn-try"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", "rnn-try"], capture_output=True)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else None


@pytest.fixture(scope="module")
def allowed() -> None:
    if reason := _needs():
        pytest.skip(reason)


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hosts"), pytest.mark.usefixtures("allowed")]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machine:
    """A network namespace with one cable, a folder, and at most one torchrun."""

    def __init__(self, node: int, folder: Path, text: Path) -> None:
        self.node, self.folder = node, folder
        self.space, self.card = f"rnn{os.getpid()}-{node}", f"rnn{node}"
        folder.mkdir()
        shutil.copy(text, folder / "text.txt")
        self.started: subprocess.Popen[str] | None = None
        ip("netns", "add", self.space)
        # `ip netns exec` puts this in the place of /etc/resolv.conf: no name is known, and that at once.
        (RESOLVERS / self.space).mkdir(parents=True)
        (RESOLVERS / self.space / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def connect(self) -> None:
        ip("-n", self.space, "address", "add", f"{ADDRESSES[self.node]}/24", "dev", self.card)
        for card in (self.card, "lo"):
            ip("-n", self.space, "link", "set", card, "up")

    def plug_in(self) -> None:
        ip("-n", self.space, "link", "set", self.card, "up")

    def unplug(self) -> None:
        ip("-n", self.space, "link", "set", self.card, "down")

    def start(
        self, backend: str, meeting: str, program: Path = ROOT, *, resume: bool = False, **changed: object
    ) -> None:
        """meeting: torchrun's options for where the machines meet."""
        trainer = [str(program / BACKENDS[backend]), *options(Path("text.txt"), Path("model"), **changed)]
        trainer += ["--resume"] * resume
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        self.log = (self.folder / "log").open("w+", encoding="utf-8")
        self.started = subprocess.Popen(
            ["ip", "netns", "exec", self.space, *torchrun, *meeting.split(), *trainer],
            cwd=self.folder,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def output(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8").replace("\r", "\n")

    def until(self, pattern: str, seconds: float = TWO_MINUTES) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.output()):
            assert self.started and self.started.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def ended(self, seconds: float = TWO_MINUTES) -> int:
        """Wait until torchrun has ended, and return its exit code. Afterwards it can be started again."""
        assert self.started
        code = self.started.wait(seconds)
        self.log.close()
        self.started = None
        return code

    def kill(self) -> None:
        """Take everything that runs on this machine away, as a crash of it would."""
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True).stdout.split()
        for process in found:
            os.kill(int(process), signal.SIGKILL)

    def messages(self, backend: str) -> list[str]:
        """The program's own last lines, without torchrun's report."""
        lines = self.output().splitlines()
        return [line for line in lines if line.startswith(f"{BACKENDS[backend]}: ")]

    def close(self) -> None:
        self.kill()
        if self.started:
            self.ended()
        subprocess.run(["ip", "netns", "delete", self.space], capture_output=True)
        shutil.rmtree(RESOLVERS / self.space)


@pytest.fixture
def machines(text: Path, tmp_path: Path) -> Iterator[list[Machine]]:
    two = [Machine(node, tmp_path / f"machine{node}", text) for node in (0, 1)]
    try:
        first, second = two
        ip(*f"link add {first.card} netns {first.space} type veth peer name {second.card} netns {second.space}".split())
        for machine in two:
            machine.connect()
        yield two
    finally:
        for machine in two:
            machine.close()


def start(
    machines: list[Machine], backend: str, meeting: list[str], *, resume: bool = False, **changed: object
) -> None:
    for machine, where in zip(machines, meeting, strict=True):
        machine.start(backend, where, resume=resume, **changed)


@pytest.mark.parametrize("meeting", [STATIC, ELASTIC], ids=["static", "c10d"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_machines_train_as_one_process_does(
    backend: str, meeting: list[str], machines: list[Machine], text: Path, tmp_path: Path
) -> None:
    single = tmp_path / "single.safetensors"
    result = run(backend, *options(text, single, batch_size=8, **EXACT))
    assert result.returncode == 0, result.stderr
    machines[0].start(backend, meeting[0], **EXACT)
    time.sleep(3)  # the second one may come later
    machines[1].start(backend, meeting[1], **EXACT)
    assert [machine.ended() for machine in machines] == [0, 0], machines[0].output()
    rows = [checkpoint.load(path).history[1] for path in (single, machines[0].folder / "model.safetensors")]
    assert rows[0]["step"] == rows[1]["step"] == STEPS
    for name in ("train_loss", "validation_loss", "gradient_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-5), name
    assert not list(machines[1].folder.glob("model*"))  # the first machine has the files


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pulled_cable_ends_the_run_on_both_sides_and_resume_goes_on(backend: str, machines: list[Machine]) -> None:
    start(machines, backend, STATIC, **LONG)
    machines[0].until("epoch 2/")
    machines[1].unplug()
    for machine in machines:
        assert machine.ended() != 0
        (message,) = machine.messages(backend)
        assert re.search(r"cannot be reached \(process [01] has not been heard of for \d+ s\)", message)
        assert "model.resume" in message and "--resume" in message
        assert re.search(r"\d+ s of waiting for .*; process [01] was last heard of \d+ s ago", machine.output())
    machines[1].plug_in()
    epochs = last_epoch(machines[0]) + 2
    start(machines, backend, STATIC, resume=True, **LONG | {"epochs": epochs})
    assert [machine.ended() for machine in machines] == [0, 0]
    assert "epoch 1/" not in machines[0].output() and f"epoch {epochs}/" in machines[0].output()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_that_crashes_ends_the_run_with_one_message(lost: int, machines: list[Machine]) -> None:
    start(machines, "c", STATIC, **LONG)
    machines[0].until("epoch 2/")
    machines[lost].kill()
    left = machines[1 - lost]
    assert left.ended() != 0
    (message,) = left.messages("c")
    assert "another of the 2 processes" in message and "--resume" in message
    if lost == 1:  # one machine goes on with the batch rows of both
        epochs = last_epoch(left) + 1
        arguments = options(Path("text.txt"), Path("model"), **LONG | {"batch_size": 8, "epochs": epochs})
        result = run("c", *arguments, "--resume", cwd=left.folder)
        assert result.returncode == 0 and f"epoch {epochs}/" in result.stderr, result.stderr


def test_what_differs_is_named_on_both_machines(machines: list[Machine], tmp_path: Path) -> None:
    (machines[1].folder / "text.txt").write_text("Another text. It has words of its own. " * 200)
    start(machines, "c", STATIC)
    for machine in machines:
        assert machine.ended() != 0
        (message,) = machine.messages("c")
        assert "process 1 differs from process 0: text or vectors" in message
    for machine, size in zip(machines, (10, 12), strict=True):
        machine.start("c", STATIC[machine.node], hidden_size=size)
    for machine in machines:
        assert machine.ended() != 0
        (message,) = machine.messages("c")
        assert "process 1 differs from process 0: --hidden-size 12 instead of 10" in message


def test_another_release_is_named(machines: list[Machine], tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("main.py", "rnn.py", "rnnlm", "lib"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        other.mkdir(exist_ok=True)
        copy(ROOT / name, other / name)
    version = other / "rnnlm" / "version.py"
    version.write_text(re.sub(r'VERSION = ".*"', 'VERSION = "9.9.9"', version.read_text()))
    machines[0].start("c", STATIC[0])
    machines[1].start("c", STATIC[1], other)
    for machine in machines:
        assert machine.ended() != 0
        (message,) = machine.messages("c")
        assert "process 1 differs from process 0: release 9.9.9 instead of" in message


def test_an_error_of_the_first_process_is_told_on_both_machines(machines: list[Machine]) -> None:
    start(machines, "c", STATIC, embeddings="nowhere.bin")
    for machine in machines:
        assert machine.ended() != 0
        (message,) = machine.messages("c")
        assert "nowhere.bin" in message
    assert "process 0 failed: " in machines[1].messages("c")[0]


def test_a_first_machine_that_calls_itself_localhost_is_refused(machines: list[Machine]) -> None:
    """c10d sends the first machine's own name unless --local-addr says how the others reach it."""
    start(machines, "c", [where.partition(" --local-addr")[0] for where in ELASTIC])
    assert machines[1].ended() != 0
    (message,) = machines[1].messages("c")
    assert "--local-addr" in message and "localhost" in message


@pytest.mark.parametrize("meeting", [STATIC, ELASTIC], ids=["static", "c10d"])
def test_torchrun_starts_a_failed_run_again_from_its_state(meeting: list[str], machines: list[Machine]) -> None:
    start(machines, "c", [f"{where} --max-restarts 3" for where in meeting], **LONG)
    machines[0].until("epoch 3/")
    found = subprocess.run(["ip", "netns", "pids", machines[1].space], capture_output=True, text=True).stdout.split()
    (worker,) = [pid for pid in found if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    os.kill(int(worker), signal.SIGKILL)
    machines[0].until(r"another of the 2 processes")
    machines[0].until(r"another of the 2 processes[^§]*epoch (\d+)/")
    before, _, after = machines[0].output().partition("another of the 2 processes")
    epochs = [int(number) for number in re.findall(r"epoch (\d+)/", before)]
    assert int(re.findall(r"epoch (\d+)/", after)[0]) in (epochs[-1], epochs[-1] + 1)


def last_epoch(machine: Machine) -> int:
    return int(re.findall(r"epoch (\d+)/", machine.output())[-1])
