"""What a process finds out about the others while it waits, and how the machines of a run find each other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
from serving import until

from rnnlm.training import network, watch
from rnnlm.training.config import ConfigError
from rnnlm.training.distributed import TorchGroup
from rnnlm.training.watch import Watch

dist = pytest.importorskip("torch.distributed")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    """A list for the test's watches, which are stopped at its end. All is forty times as fast as in a run."""
    for name in ("BEAT", "GLANCE", "SILENCE", "NOTICE"):
        monkeypatch.setattr(watch, name, getattr(watch, name) / 40)
    monkeypatch.setattr(watch, "FIRST", 2 * watch.SILENCE)
    watches: list[Watch] = []
    yield watches
    for each in watches:
        each.stop()


def group(made: list[Watch], size: int) -> tuple[list[Watch], list[list[str]]]:
    """Watches that have joined, and of each a list of what it reports lost."""
    store, told = dist.HashStore(), [[] for _ in range(size)]
    for rank in range(size):
        made.append(Watch(rank, size, speaks=True, lost=told[rank].append))
        made[rank].join(store)
    return made, told


def test_a_silent_process_is_lost_to_all_that_wait(made: list[Watch]) -> None:
    watches, told = group(made, 3)
    time.sleep(4 * watch.BEAT)  # all have been heard
    watches[1].stop()
    with watches[0].waiting("the others"), watches[2].waiting("process 0"):
        until(lambda: told[0] and told[2])
    assert told[0][0].startswith("process 1 has not been heard of for") and told[2][0].startswith("process 1 ")
    assert not told[1] and len(told[0]) == len(told[2]) == 1


def test_process_0_is_watched_by_the_others(made: list[Watch]) -> None:
    watches, told = group(made, 2)
    time.sleep(4 * watch.BEAT)
    watches[0].stop()
    with watches[1].waiting("process 0"):
        until(lambda: told[1])
    assert told[1][0].startswith("process 0 ")


def test_a_process_that_was_met_and_never_counted_is_lost_like_any_other(
    made: list[Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cable that is pulled seconds after the processes have met: no count has come through."""
    monkeypatch.setattr(watch, "FIRST", 1000.0)
    told: list[str] = []
    made.append(Watch(1, 2, speaks=True, lost=told.append))
    made[0].join(dist.HashStore())
    made[0].met()
    with made[0].waiting("process 0"):
        until(lambda: told)
    assert told[0].startswith("process 0 has not been heard of for")


def test_only_waiting_comes_to_an_end(made: list[Watch]) -> None:
    watches, told = group(made, 2)
    time.sleep(4 * watch.BEAT)
    watches[1].stop()
    time.sleep(2 * watch.SILENCE)  # process 0 computes all the while
    assert told == [[], []]
    with watches[0].waiting("the other process"):
        until(lambda: told[0])


def test_processes_that_count_are_waited_for(made: list[Watch], caplog: pytest.LogCaptureFixture) -> None:
    watches, told = group(made, 2)
    with caplog.at_level(logging.WARNING), watches[0].waiting("the other process"):
        time.sleep(3 * watch.SILENCE)
    assert told == [[], []]
    assert any("s of waiting for the other process" in message for message in caplog.messages)
    assert 2 <= len(caplog.messages) <= 7  # one in half a minute, not one a second


def test_a_step_of_torch_is_not_called_waiting_for_the_others(
    made: list[Watch], caplog: pytest.LogCaptureFixture
) -> None:
    """It computes most of the time."""
    watches, _ = group(made, 2)
    torch_group = object.__new__(TorchGroup)  # without meeting others
    torch_group.size, torch_group._watch = 2, watches[0]
    with caplog.at_level(logging.WARNING), torch_group.exchange():
        until(lambda: caplog.messages)
    assert "s of waiting for torch, which computes or exchanges with the other process" in caplog.messages[0]


def test_one_that_never_came_is_given_more_time(made: list[Watch]) -> None:
    store, told = dist.HashStore(), []
    made.append(Watch(0, 2, speaks=True, lost=told.append))
    made[0].join(store)
    started = time.monotonic()
    with made[0].waiting("the other process to come"):
        until(lambda: told)
    assert time.monotonic() - started >= watch.FIRST > watch.SILENCE


def test_a_store_that_does_not_answer_silences_all(made: list[Watch]) -> None:
    class Hanging:
        def add(self, key: str, amount: int) -> int:
            threading.Event().wait()
            return 0

    told: list[str] = []
    made.append(Watch(1, 2, speaks=True, lost=told.append))
    made[0].join(Hanging())
    with made[0].waiting("process 0"):
        until(lambda: told)


def test_the_interface_is_that_of_the_address() -> None:
    assert network.address_towards("127.0.0.1") == "127.0.0.1"
    assert network.interface_of("127.0.0.1") in ("lo", "lo0", None)
    assert network.interface_of("192.0.2.1") is None  # nobody has it: it is for documents
    assert network.interface_of("2001:db8::1") is None


@pytest.mark.parametrize("set_by_user", [True, False])
def test_a_chosen_interface_stays(set_by_user: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "interface_of", lambda address: "eth7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine" if set_by_user else "")
    network.choose_interface("10.0.0.1")
    assert network.os.environ["GLOO_SOCKET_IFNAME"] == ("mine" if set_by_user else "eth7")


def test_a_master_that_is_this_machine_itself() -> None:
    assert network.is_loopback("localhost") and network.is_loopback("127.1.2.3")
    assert not network.is_loopback("10.0.0.1") and not network.is_loopback("no-such-name.invalid")
    network.check_master("localhost", 0)
    network.check_master("10.0.0.1", 1)
    with pytest.raises(ConfigError, match=r"calls itself localhost.*--local-addr"):
        network.check_master("localhost", 1)
