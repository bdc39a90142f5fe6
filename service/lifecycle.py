"""Start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from types import FrameType

from service.core import Service
from service.errors import ServiceError
from service.uploads import remove_stale

log = logging.getLogger(__name__)

CANCEL_AFTER_SECONDS = 0.5  # after the cut
EXIT_AFTER_SECONDS = 1.5  # after the cut, too


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """The service between its start and its end."""
    told = _listen(service)  # first: loading may be slow, and a signal may come meanwhile
    if service.guard.made_token:
        said = "RNN_ADMIN_TOKEN is not set; until this service stops, the admin token is %s"
        # Past the log level: without this line nobody could upload.
        log.handle(log.makeRecord(log.name, logging.WARNING, __file__, 0, said, (service.guard.made_token,), None))
    for scheduler in service.schedulers.values():
        scheduler.start()
    for backend in service.settings.preload:
        if told.is_set():
            break
        try:
            await asyncio.to_thread(service.registry.engine, backend, None)
        except ServiceError as error:
            log.warning("nothing is preloaded for %s: %s", backend, error.detail)
    await asyncio.to_thread(_tidy, service)
    housekeeping = asyncio.create_task(_keep_house(service))
    try:
        yield
    finally:
        housekeeping.cancel()
        service.cut()
        for scheduler in service.schedulers.values():
            await asyncio.to_thread(scheduler.close)
        service.metrics.close()
        if told.is_set() and hasattr(signal, "pthread_sigmask"):
            # uvicorn now raises the signal once more, under the system's own handler: the process would end with 143
            # after a stop in good order. What is blocked is not delivered any more.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


async def _keep_house(service: Service) -> None:
    while True:
        await asyncio.sleep(service.settings.watch_seconds)
        await asyncio.to_thread(_tidy, service)


def _tidy(service: Service) -> None:
    """Look after files that no request may ever ask for again."""
    try:
        service.registry.prune()
        remove_stale(service.settings.weights_dir, 2 * service.settings.upload_seconds)
    except Exception:
        log.exception("the housekeeping failed")


def _listen(service: Service) -> threading.Event:
    """Begin to stop at SIGTERM or SIGINT, before uvicorn does. Returns what is set once one has come.

    uvicorn waits for all responses before it tells the application, and so without end for one that does not end.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return told  # in a test's thread: signals are not ours
    loop = asyncio.get_running_loop()

    def chain(number: signal.Signals) -> None:
        uvicorns = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None) -> None:
            if not told.is_set():
                told.set()
                loop.call_soon_threadsafe(_stop, service, loop)
            if callable(uvicorns):
                uvicorns(received, frame)

        signal.signal(number, handle)

    chain(signal.SIGTERM)
    chain(signal.SIGINT)
    return told


def _stop(service: Service, loop: asyncio.AbstractEventLoop) -> None:
    seconds = service.settings.shutdown_seconds
    log.info("stopping: %d requests have %g seconds to finish", len(service.tasks), seconds)
    service.stopping = True
    loop.call_later(seconds, service.cut)
    loop.call_later(seconds + CANCEL_AFTER_SECONDS, service.cancel)
    # A connection whose client does not read is never done for uvicorn, which waits for it. There is nothing to save.
    watchdog = threading.Timer(seconds + EXIT_AFTER_SECONDS, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
