"""The processes of one run: a single one, or those that torchrun starts, on one machine or several.

    torchrun --nproc-per-node 2 main.py --preset best ...

Each process has a rank; rank 0 logs and saves. N processes with B batch rows each learn what one process
with N * B batch rows learns: rank r has the batch rows r * B .. (r + 1) * B, and gradients are summed over all ranks.

torch.distributed is imported only if torchrun has set WORLD_SIZE, so `python main.py` never loads torch. Arrays on the
processor are exchanged by gloo, those of a CUDA model by nccl.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from rnnlm import openmp
from rnnlm.errors import Failure, UserError, counted
from rnnlm.openmp import processors
from rnnlm.training import network
from rnnlm.training.config import ConfigError
from rnnlm.training.watch import Watch

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")
Array = npt.NDArray[Any]

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them
_LOST = re.compile(r"connect|peer|timed? ?out|socket|broken pipe", re.IGNORECASE)  # words of gloo's messages

# How long a process waits for the others in an exchange. It must not be short: reading a corpus of many GB, or
# evaluating, may take hours. It need not be short: a process that dies closes its connections, so the others notice at
# once, and a machine that cannot be reached is what `Watch` finds out.
PATIENCE = timedelta(days=1)
MEETING = timedelta(minutes=5)  # how long it looks for the store of the first machine
REPORTING = 5.0  # seconds that a process has to report an error before another one ends


class PeerLost(Failure):
    """Another process of the run ended, or cannot be reached."""


class PeerFailed(PeerLost):
    """Rank 0 failed at what all wait for."""


class Group:
    """The processes of a run. This class is for a single process, where every exchange is with itself."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1  # among the processes of this machine
    explain: Callable[[PeerLost], PeerLost] = staticmethod(lambda error: error)  # adds how far the run was

    def threads(self, wanted: int | None) -> int:
        """Return how many threads this process uses: `wanted`, or OMP_NUM_THREADS, or its share of the processors.

        torchrun sets OMP_NUM_THREADS to 1 if there are several processes and it is not set: there, 1 asks for nothing.
        The number is limited to a few for each processor: more bring nothing, and if OpenMP cannot create them it ends
        the process.
        """
        most, source = max(16, 4 * processors()), "--threads"
        if not wanted and (asked := openmp.threads_asked()) and (asked > 1 or self.local_size == 1):
            wanted, source = asked, "OMP_NUM_THREADS"
        if wanted and wanted > most and self.rank == 0:
            have = counted(processors(), "processor")
            log.warning(f"{source} {wanted:,}: using {most:,}, as this machine has {have}")
        return min(wanted, most) if wanted else max(1, processors() // self.local_size)

    def sum(self, array: Array, exchange: str = "float32") -> None:
        """Replace `array` by its sum over all processes. Every process gets the same bits.

        exchange: "bfloat16" halves the bytes that a float32 array takes on its way. Its numbers are rounded to nearest
        even, added in float32 in the order of the ranks, and their sum is rounded again.
        """

    def totals(self, *values: float) -> tuple[float, ...]:
        """Return the sum over all processes of each of a few numbers."""
        return values

    def tally(self, what: str, count: int) -> int:
        """Add to what all processes have counted of `what`, and return the sum so far. It waits for no process."""
        return count

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result on every rank. If it raises, the others raise PeerFailed."""
        return make()

    def agree(self, facts: dict[str, Any]) -> None:
        """Compare what all processes must have in common. Raises ConfigError, on all of them, naming what differs."""

    def array_from_first(self, array: Array | None) -> Array:
        """Return rank 0's array on every rank. The others pass None."""
        assert array is not None
        return array

    def gather(self, array: Array) -> Array:
        """Return the arrays of all ranks, joined along the first axis, on rank 0; the rank's own elsewhere."""
        return array

    @contextlib.contextmanager
    def machine_first(self) -> Iterator[None]:
        """Let one process of each machine go first; the others then find what it has cached."""
        yield

    def may_report(self) -> bool:
        """Return whether this process is its machine's first to fail, so that one failure makes one message there."""
        return True

    def exchange(self) -> contextlib.AbstractContextManager[None]:
        """Return a block in which torch may exchange with the other processes by itself."""
        return contextlib.nullcontext()

    def leave(self) -> None:
        """End the exchange: the run is over."""


class TorchGroup(Group):
    """The processes that torchrun started. Every exchange raises PeerLost if another process is gone."""

    def __init__(self, cuda: bool, lost: Callable[[PeerLost], None]) -> None:
        """lost: called in another thread if a process cannot be reached while this one waits; it ends this process."""
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is set, but not {', '.join(missing)}: start with torchrun --nproc-per-node N, or unset "
                "WORLD_SIZE for a run of one process"
            )
        try:
            import torch.distributed as dist
        except ImportError as error:
            raise ConfigError(f"a run of several processes needs torch ({error}): pip install torch") from error
        self.dist = dist
        self.local_rank, self.local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        rank, size, master = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
        if size > self.local_size:
            network.check_master(master, machine())
        self._watch = Watch(
            rank, size, speaks=speaks(), lost=lambda why: lost(self.explain(self._lost(f"cannot be reached ({why})")))
        )
        try:
            with self._talking(f"the first machine's store at {_place()}"):
                # As init_process_group does when it is given no store; this one is also for `may_report`.
                store, self.rank, self.size = next(dist.rendezvous("env://", timeout=MEETING))
                store.set_timeout(PATIENCE)
                # torchrun may keep the store when it starts the processes again: they meet under another name then.
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                self._store = dist.PrefixStore(f"rnn/{attempt}", store)
            with self._talking("the other processes to come"):
                if self.size > 1:
                    self._watch.join(dist.PrefixStore(f"rnn/{attempt}", store.clone()))
                if self.size > self.local_size:
                    network.choose_interface(self._own_address(master))
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if cuda else "gloo",
                    store=dist.PrefixStore("group", self._store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=PATIENCE,
                )
                self._watch.met()
        except BaseException:
            self._watch.stop()
            raise

    def _own_address(self, master: str) -> str:
        """Return the address of this machine that the others can reach. Raises PeerLost (there is no route)."""
        try:
            mine = network.address_towards(master)
            if not network.is_loopback(mine):
                self._store.set(f"address/{machine()}", mine)
                return mine
            # The master's name is its own name, and leads it to itself: it looks for the way to another machine.
            return network.address_towards(self._store.get(f"address/{1 if machine() == 0 else 0}").decode())
        except OSError as error:
            raise PeerLost(f"there is no way to {master} (MASTER_ADDR): {error.strerror}") from error

    @contextlib.contextmanager
    def _talking(self, to: str = "") -> Iterator[None]:
        """Turn the errors of an exchange into PeerLost. to: whom this process waits for."""
        try:
            with self._watch.waiting(to or self._others()):
                yield
        except RuntimeError as error:  # gloo, nccl and the store raise it, and types derived from it
            self.raise_lost(error)
            raise

    def exchange(self) -> contextlib.AbstractContextManager[None]:
        return self._talking(f"torch, which computes or exchanges with {self._others()}")

    def _others(self) -> str:
        others = self.size - 1
        return "the other process" if others == 1 else f"the other {others} processes"

    def _lost(self, what: str) -> PeerLost:
        return PeerLost(f"another of the {self.size} processes {what}")

    def raise_lost(self, error: RuntimeError) -> None:
        """Raise PeerLost, with torch's message in a few words, if this error of torch's means that."""
        if isinstance(error, self.dist.DistError) or _LOST.search(str(error)):
            if self.size > 1:
                raise self._lost(f"ended, or cannot be reached ({_first_line(error)})") from error
            # They have not met yet: a single process has none to lose.
            raise PeerLost(
                f"the processes of the run cannot meet at {_place()} ({_first_line(error)}): check that torchrun runs "
                "on the first machine, and that its address and port are free and can be reached from here"
            ) from error

    def sum(self, array: Array, exchange: str = "float32") -> None:
        import torch

        self.sum_tensor(torch.from_numpy(array), exchange)

    def sum_tensor(self, tensor: torch.Tensor, exchange: str = "float32") -> None:
        """Replace `tensor` (N,), on the processor or a GPU, by its sum over all processes, as `sum` does."""
        with self._talking():
            if exchange == "bfloat16" and self.size > 1:
                self._sum_rounded(tensor)
            else:
                self.dist.all_reduce(tensor)

    def _sum_rounded(self, tensor: torch.Tensor) -> None:
        """Each process adds up one share of the numbers of all, and sends the sum to the others.

        torch's own all-reduce of bfloat16 adds in bfloat16, and rounds once for each process.
        """
        import torch

        share = -(-tensor.numel() // self.size)
        mine = torch.zeros(self.size, share, dtype=torch.bfloat16, device=tensor.device)
        mine.view(-1)[: tensor.numel()] = tensor
        theirs = torch.empty_like(mine)
        self.dist.all_to_all_single(theirs, mine)
        total = theirs[0].float()
        for row in theirs[1:]:
            total += row.float()  # converted first: torch adds two types slowly
        self.dist.all_gather(list(mine), total.bfloat16())
        tensor.copy_(mine.view(-1)[: tensor.numel()])

    def totals(self, *values: float) -> tuple[float, ...]:
        array = np.array(values, dtype=np.float64)
        self.sum(array)
        return tuple(array.tolist())

    def tally(self, what: str, count: int) -> int:
        with self._talking("the first machine's store"):
            return self._store.add(f"tally/{what}", count)

    def from_first(self, make: Callable[[], T]) -> T:
        if self.rank == 0:
            try:
                result = make()
            except BaseException as error:
                with contextlib.suppress(PeerLost):
                    self._share((False, str(error) if isinstance(error, UserError) else type(error).__name__))
                raise
            self._share((True, result))
            return result
        done, result = self._share(None)
        if not done:
            raise PeerFailed(f"process 0 failed: {result}")
        return result

    def agree(self, facts: dict[str, Any]) -> None:
        everybody: list[Any] = [None] * self.size
        with self._talking():
            self.dist.all_gather_object(everybody, facts)
        for rank, theirs in enumerate(everybody):
            first = everybody[0]
            different = [name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name)]
            if different:
                what = ", ".join(
                    f"{name} {theirs.get(name)} instead of {first.get(name)}" for name in sorted(different)
                )
                raise ConfigError(f"process {rank} differs from process 0: {what}; all must have the same")

    def _share(self, value: Any) -> Any:
        """Return the value of rank 0, which travels as a pickle."""
        import torch

        box = [value]
        with self._talking("process 0"):
            self.dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def array_from_first(self, array: Array | None) -> Array:
        import torch

        shape, dtype = self._share(None if array is None else (array.shape, array.dtype))
        mine = np.empty(shape, dtype) if array is None else array
        with self._talking("process 0"):
            self.dist.broadcast(torch.from_numpy(mine), src=0)
        return mine

    def gather(self, array: Array) -> Array:
        import torch

        whole = np.empty((self.size, *array.shape), array.dtype)
        with self._talking():
            # all_gather, because not every back end has gather.
            self.dist.all_gather(list(torch.from_numpy(whole)), torch.from_numpy(np.ascontiguousarray(array)))
        return whole.reshape(-1, *array.shape[1:]) if self.rank == 0 else array

    @contextlib.contextmanager
    def machine_first(self) -> Iterator[None]:
        if self.local_rank == 0:
            yield
            self._barrier()
        else:
            self._barrier()
            yield

    def _barrier(self) -> None:
        self.totals(0.0)  # torch's own barrier would use the GPU under nccl

    def may_report(self) -> bool:
        try:  # torchrun's own process keeps the store, so it outlives any rank
            return self._store.add(f"failed/{machine()}", 1) == 1
        except RuntimeError:
            return True

    def leave(self) -> None:
        self._watch.stop()
        self.dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    """Cut `[/where/in/gloo.cc:553] Connection closed by peer. This is ...` down to what happened."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).strip()).split("\n")[0].partition(". ")[0][:200]


def torchrun() -> bool:
    """Return whether torchrun, or a launcher like it, started this process."""
    return "WORLD_SIZE" in os.environ


def rank() -> int:
    """Return this process's rank. It is known before the processes meet."""
    value = os.environ.get("RANK", "")
    return int(value) if torchrun() and value.isdigit() else 0


def size() -> int:
    """Return the number of processes. It is known before they meet."""
    value = os.environ.get("WORLD_SIZE", "")
    return int(value) if value.isdigit() and int(value) else 1


def local_rank() -> int:
    """Return this process's rank on its machine. It is known before the processes meet."""
    value = os.environ.get("LOCAL_RANK", "")
    return int(value) if torchrun() and value.isdigit() else 0


def machine() -> int:
    """Return the number of this machine among those of the run: torchrun's node rank."""
    value = os.environ.get("GROUP_RANK", "")
    return int(value) if torchrun() and value.isdigit() else 0


def speaks() -> bool:
    """Return whether this process is the one that tells its machine what all processes know."""
    return local_rank() == 0


def let_another_report() -> None:
    """Wait for the end: torchrun ends all processes once one has ended, also one that has not yet said why."""
    time.sleep(REPORTING)


def restarted() -> bool:
    """Return whether torchrun has started the processes again, after one of them failed (--max-restarts)."""
    return torchrun() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def launch() -> tuple[str, str]:
    """Return the name of this machine, and what tells this run's torchrun there from any other."""
    process, started = _torchrun()
    return socket.gethostname(), f"{process} {started}"  # process numbers are used again


def launched_ago() -> float:
    """Return how many seconds ago this run's torchrun started; infinity if this system does not tell."""
    ticks = _torchrun()[1]
    with contextlib.suppress(OSError):
        if ticks:
            return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return math.inf


def _torchrun() -> tuple[int, int]:
    """Return the process that started this one, perhaps through scripts, and its start in ticks; 0: not known."""
    process, ticks = os.getppid(), 0
    with contextlib.suppress(OSError):  # there is no /proc, or the process is another user's
        while True:
            parent, ticks = (int(_state_of(process)[field]) for field in (1, 19))
            if b"TORCHELASTIC_RUN_ID=" not in Path(f"/proc/{process}/environ").read_bytes():
                break
            process = parent
    return process, ticks


def _state_of(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on, the process's state."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def join(*, cuda: bool, lost: Callable[[PeerLost], None]) -> Group:
    """Meet the other processes, if there are any. cuda: whether the model is on a GPU.

    lost: is called, in another thread, if a process cannot be reached while this one waits for it. It does not return.
    Raises ConfigError (WORLD_SIZE is set, but not by torchrun; no torch), PeerLost.
    """
    return TorchGroup(cuda, lost) if torchrun() else Group()


def _place() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def launcher() -> str:
    """Return what starts this program: the command line before its own arguments."""
    if not torchrun():
        return "python"
    local, size = os.environ["LOCAL_WORLD_SIZE"], os.environ["WORLD_SIZE"]
    return f"torchrun --nproc-per-node {local}" + ("" if local == size else " (and the other options of that torchrun)")
