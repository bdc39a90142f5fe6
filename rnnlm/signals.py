"""Ctrl-C and its like, put off while a result is being saved, or until the work can end in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last


class Deferred:
    """A context manager. From `defer` on to its end, signals that would end the program wait; then they are raised.

    Only the main thread can do that; in another one nothing is put off, since signals do not arrive there.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._arrived: list[int] = []

    def __enter__(self) -> Self:
        return self

    def defer(self) -> None:
        """Put signals off from now on."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        for name in _NAMES:
            if number := getattr(signal, name, None):
                self._before[number] = signal.signal(number, self._keep)

    def _keep(self, number: int, _: FrameType | None) -> None:
        self._arrived.append(number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._before = {}
        for number in self._arrived:
            signal.raise_signal(number)


@contextlib.contextmanager
def flag_of(
    numbers: Iterable[int], then: Callable[[int, FrameType | None], Any] | signal.Handlers | None
) -> Iterator[Callable[[], bool]]:
    """Turn signals within this block into a flag, which the function it yields returns.

    then: what handles Ctrl-C after the first of them; None: the flag is set again.
    A KeyboardInterrupt at once would not do: raised while ctypes converts an argument, it becomes an ArgumentError.
    """
    arrived = False

    def arrive(_: int, __: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        if then is not None:
            signal.signal(signal.SIGINT, then)

    before = {number: signal.signal(number, arrive) for number in numbers}
    try:
        yield lambda: arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
