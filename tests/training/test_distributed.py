"""Several processes are one run: the same numbers as one process, each message once, and a state to resume from."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from conftest import ROOT, free_port
from running import BACKENDS, options, refused, run, same_weights
from trainers import TorchTrainer

from rnnlm import checkpoint
from rnnlm.data.embeddings import EmbeddingsError
from rnnlm.training import distributed, state_file
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import PeerLost
from rnnlm.training.run import Run

T = TypeVar("T")
STEPS = 20
EXACT = {"max_tokens": 8 * 16 * STEPS + 1, "epochs": 1, "bptt": 16}  # 20 steps of 8 batch rows


def never(error: PeerLost) -> None:
    raise AssertionError(error)


def torchrun(backend: str, *arguments: str, processes: int = 2) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
        *(str(ROOT / BACKENDS[backend]), *arguments),
    ]


def run_all(backend: str, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = torchrun(backend, *arguments, processes=processes)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def ours(stderr: str, backend: str) -> list[str]:
    """The program's own last lines, without torchrun's report."""
    return [line for line in stderr.splitlines() if line.startswith(f"{BACKENDS[backend]}: ")]


def difference(first: Path, second: Path) -> float:
    a, b = checkpoint.load(first).weights.parameters(), checkpoint.load(second).weights.parameters()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.5, "clip": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.002, "reduction": "sum", "clip": 0},
        {"optimizer": "adamw", "weight_decay": 0.01, "average": 0.8, "epsilon": 1e-5},
        {"dropout": 0.3, "input_dropout": 0.1, "sampled_softmax": 5},
    ],
    ids=["mean, clipped", "sum", "adamw", "dropout, sampled"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_are_one_of_twice_the_batch(
    backend: str, changed: dict[str, object], text: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    result = run(backend, *options(text, one, batch_size=8, **EXACT | changed))
    assert result.returncode == 0, result.stderr
    result = run_all(backend, *options(text, two, batch_size=4, **EXACT | changed), "--tensorboard")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("epoch 1/1") == 1 and result.stdout.count("validation perplexity") == 1
    rows = [checkpoint.load(path).history[1] for path in (one, two)]
    assert rows[0]["step"] == rows[1]["step"] == STEPS and rows[0]["tokens"] == rows[1]["tokens"] == 8 * 16 * STEPS
    for name in ("train_loss", "validation_loss", "gradient_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-5), name
    assert difference(one, two) < 1e-5
    assert checkpoint.load(two).config["processes"] == 2
    assert len(list(two.with_suffix(".tensorboard").iterdir())) == 1  # process 0's only


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_share_an_evaluation_and_find_what_one_finds(
    backend: str, processes: int, text: Path, tmp_path: Path
) -> None:
    tiny = tmp_path / "tiny.txt"  # shorter than there are processes
    tiny.write_text("The queen")
    rows = []
    for number in (1, processes):
        out = tmp_path / f"{number}.safetensors"
        given = options(text, out, validation=text, test=tiny, batch_size=12 // number, **EXACT)
        result = run(backend, *given) if number == 1 else run_all(backend, *given, processes=number)
        assert result.returncode == 0, result.stderr
        rows.append(checkpoint.load(out).history)
    (untrained, trained), (theirs, theirs_trained) = rows
    close = 1e-14 if backend == "c" else 1e-6
    assert untrained["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=close)
    for name in ("validation_loss", "test_loss"):
        assert trained[name] == pytest.approx(theirs_trained[name], abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("backend,rank", [("c", 0), ("torch", 1)])
def test_a_killed_process_ends_the_run_with_one_message_and_resume_goes_on(
    backend: str, rank: int, text: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    long = {"epochs": 12, "patience": 0, "batch_size": 4}
    assert run_all(backend, *options(text, whole, **long)).returncode == 0
    arguments = torchrun(backend, *options(text, killed, **long))
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if re.search("epoch 3/", line):
                os.kill(worker(process.pid, rank), signal.SIGKILL)
                break
        rest = process.stderr.read()
    assert process.returncode != 0
    (message,) = ours(rest, backend)
    for words in ("another of the 2 processes", "killed.resume", "torchrun --nproc-per-node 2", "--resume"):
        assert words in message
    result = run_all(backend, *options(text, killed, **long), "--resume")
    assert result.returncode == 0, result.stderr
    assert "epoch 1/" not in result.stderr and "epoch 12/" in result.stderr
    assert same_weights(whole, killed)
    # And with more epochs on one process, which takes the batch rows of both.
    result = run(backend, *options(text, killed, **long | {"batch_size": 8, "epochs": 13}), "--resume")
    assert result.returncode == 0, result.stderr
    assert state_file.load(killed.with_suffix(".resume"))[1]["progress"]["epoch"] == 13
    refused(run(backend, *options(text, killed, **long), "--resume"), 2, "--batch-size 4 (it was 8)")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_in_bfloat16_learn_the_same_and_a_resumed_run_keeps_them(
    backend: str, text: Path, tmp_path: Path
) -> None:
    exact, whole, parts = (tmp_path / f"{name}.safetensors" for name in ("exact", "whole", "parts"))
    given = {"batch_size": 4, "patience": 0, "exchange": "bfloat16"}
    for out, changed in ((exact, {"exchange": "float32"}), (whole, {}), (parts, {"epochs": 1})):
        result = run_all(backend, *options(text, out, **given | changed))
        assert result.returncode == 0, result.stderr
    losses = [checkpoint.load(path).history[-1]["validation_loss"] for path in (exact, whole)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.02)
    result = run_all(backend, "--resume", "--out", str(parts), "--epochs", "2")
    assert result.returncode == 0, result.stderr
    assert "--exchange bfloat16" in result.stderr and same_weights(whole, parts)
    (message,) = ours(run_all(backend, "--resume", "--out", str(parts), "--exchange", "float32").stderr, backend)
    assert "--exchange float32 (it was bfloat16)" in message


@pytest.mark.slow
def test_ctrl_c_stops_all_at_the_same_step(text: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    long = {"epochs": 12, "patience": 0, "batch_size": 4}
    assert run_all("c", *options(text, whole, **long)).returncode == 0
    arguments = torchrun("c", *options(text, stopped, **long))
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "epoch 2/" in line:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: torchrun and all that it started
                break
        rest = process.stderr.read()
    assert process.returncode != 0
    (message,) = ours(rest, "c")
    assert "stopped after " in message and "stopped.resume" in message
    result = run_all("c", *options(text, stopped, **long), "--resume")
    assert result.returncode == 0, result.stderr
    assert "epoch 1/" not in result.stderr and "epoch 12/" in result.stderr
    assert same_weights(whole, stopped)


@pytest.mark.slow
def test_an_error_is_reported_once(text: Path, tmp_path: Path) -> None:
    for changed, words in (
        ({"learning_rate": 0}, "--learning-rate"),
        ({"corpus": "no-such-corpus"}, "no-such-corpus"),
        ({"batch_size": 3000}, "in each of 2 processes"),
        ({"optimizer": "sgd", "clip": 0, "schedule": "constant", "learning_rate": 1e38}, "not finite"),
        ({"optimizer": "sgd", "bptt": 100_000, "batch_size": 1, "learning_rate": 1e38}, "on the validation split"),
    ):
        result = run_all("c", *options(text, tmp_path / "model", **changed), "--overwrite")
        assert result.returncode != 0
        (message,) = ours(result.stderr, "c")
        assert words in message


@pytest.mark.parametrize(("option", "value"), [("--learning-rate", "0"), ("--nosuch", "1")])
def test_a_slow_process_reports_what_all_have_found(text: Path, tmp_path: Path, option: str, value: str) -> None:
    """torchrun ends the slow one as soon as the other has ended."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('LOCAL_RANK') == '0':\n    time.sleep(2)\n"
    )
    command = torchrun("c", *options(text, tmp_path / "model"), option, value)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    (message,) = ours(result.stderr, "c")
    assert option in message


def worker(launcher: int, rank: int) -> int:
    """The process id of a rank that `launcher` started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == launcher and f"RANK={rank}".encode() in environment:
                return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in distributed._NEEDED:
        monkeypatch.delenv(name, raising=False)
    yield


def test_a_stray_world_size_is_refused(no_torchrun: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"not RANK, .* torchrun"):
        distributed.join(cuda=False, lost=never)


def test_an_address_that_is_taken(no_torchrun: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        at = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in ({name: "1" for name in distributed._NEEDED} | at).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(PeerLost, match=f"processes of the run cannot meet at 127.0.0.1:{port} \\("):
            distributed.join(cuda=False, lost=never)


def test_a_process_reports_what_only_its_machine_lacks(text: Path, tmp_path: Path) -> None:
    """Before the processes have met. Wrong options are found by all of them, and one on each machine reports them."""
    second = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    arguments = options(text, tmp_path / "model")
    refused(run("c", *arguments, RNNLIB_PATH=str(tmp_path / "none.so"), **second), 1, "none.so", "make lib")
    result = run("c", *options(text, tmp_path / "model", learning_rate=0), **second)
    assert result.returncode == 2 and not result.stderr
    another = second | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1"}
    refused(run("c", *options(text, tmp_path / "model", learning_rate=0), **another), 2, "--learning-rate")


def test_one_process_never_imports_torch(text: Path, tmp_path: Path) -> None:
    program = (
        "import sys, main; code = main.cli.main(main.Trainer, sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    arguments = options(text, tmp_path / "model", epochs=1)
    result = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_one_process_is_its_own_group(no_torchrun: None) -> None:
    group = distributed.join(cuda=False, lost=never)
    array = np.arange(3.0)
    group.sum(array)
    assert array.tolist() == [0.0, 1.0, 2.0] and group.gather(array) is array and group.totals(1, 2) == (1, 2)
    assert group.from_first(lambda: 7) == 7 and group.may_report()


def test_missing_vectors_are_told_to_all_before_the_corpus_is_read(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, an error of process 0 outside of `from_first` would be a lost connection."""
    told: list[BaseException] = []

    class First(distributed.Group):
        def from_first(self, make: Callable[[], T]) -> T:
            try:
                return make()
            except BaseException as error:
                told.append(error)
                raise

    monkeypatch.setattr("rnnlm.training.run.load_corpus", never)
    config = TrainConfig(corpus=str(text), embeddings="nowhere.bin")
    with pytest.raises(EmbeddingsError, match=r"nowhere\.bin") as raised:
        Run.prepare(config, TorchTrainer, First())
    assert told == [raised.value]


def test_threads_are_shared_by_the_processes_of_a_machine_and_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    group = distributed.Group()
    assert group.threads(None) == distributed.processors() and group.threads(3) == 3
    assert group.threads(1000) == max(16, 4 * distributed.processors()) and "1,000" in caplog.text
    caplog.clear()
    group.rank = 1  # rank 0 has warned already
    assert group.threads(1000) == max(16, 4 * distributed.processors()) and not caplog.text
    group.local_size = 10_000
    assert group.threads(None) == 1


def test_omp_num_threads_is_the_default_number_of_threads(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = distributed.Group()
    for value, threads in {"3": 3, " 2 ": 2, "5,2": 5, "1": 1, "": distributed.processors()}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert group.threads(None) == threads and group.threads(7) == 7 and not caplog.text
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    assert group.threads(None) == max(16, 4 * distributed.processors())
    assert "OMP_NUM_THREADS 1,000: using" in caplog.text
    group.local_size = 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert group.threads(None) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
    assert group.threads(None) == max(1, distributed.processors() // 2)


def test_a_process_without_a_gpu_of_its_own_says_so_before_it_meets_the_others(
    no_torchrun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert TorchTrainer.check(TrainConfig(device="cuda")) == "cuda"  # one process takes the first GPU
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="process 1 of this machine has no GPU of its own"):
        TorchTrainer.check(TrainConfig(device="cuda"))


def test_a_process_waits_longer_than_torchs_half_hour(no_torchrun: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the first to read a large corpus: in the store, and in every exchange, but not until they have met."""
    import torch.distributed as dist

    met: list[timedelta] = []
    store = dist.HashStore()

    def rendezvous(url: str, timeout: timedelta) -> Iterator[tuple[dist.Store, int, int]]:
        met.append(timeout)
        yield store, 1, 1

    monkeypatch.setattr(dist, "rendezvous", rendezvous)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, timeout, **__: met.append(timeout))
    for name in distributed._NEEDED:
        monkeypatch.setenv(name, "1")
    distributed.join(cuda=False, lost=never)
    assert [*met, store.timeout] == [distributed.MEETING, distributed.PATIENCE, distributed.PATIENCE]
    assert distributed.PATIENCE.days >= 1


def test_of_one_failure_one_process_reports(no_torchrun: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that asks."""
    import torch.distributed as dist

    port = free_port()
    at = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in ({name: "1" for name in distributed._NEEDED} | at).items():
        monkeypatch.setenv(name, value)
    group = distributed.join(cuda=False, lost=never)
    try:
        assert (group.rank, group.size, group.totals(2.5)) == (0, 1, (2.5,))
        assert [group.may_report() for _ in range(3)] == [True, False, False]
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        monkeypatch.setattr(group, "_store", dist.PrefixStore("rnn/0", store))
        assert not group.may_report()
        monkeypatch.setenv("GROUP_RANK", "1")  # another machine has a terminal of its own
        assert group.may_report()
    finally:
        group.leave()


def test_gloos_messages_are_shortened() -> None:
    error = RuntimeError("[/a/b/pair.cc:553] Connection closed by peer [127.0.0.1]:20865. This is typically")
    assert distributed._first_line(error) == "Connection closed by peer [127.0.0.1]:20865"
