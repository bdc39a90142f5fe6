"""Start and stop of the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from types import FrameType

from rnnlm.errors import counted
from service.core import Service
from service.errors import ServiceError
from service.uploads import remove_stale

log = logging.getLogger(__name__)

CANCEL_AFTER_SECONDS = 0.5  # after the cut
EXIT_AFTER_SECONDS = 1.5  # after the cut, too


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Start the service; stop it at the end of the block."""
    signalled = _listen(service)  # first: loading may be slow, and a signal may arrive meanwhile
    if service.guard.made_token:
        message = "RNN_ADMIN_TOKEN is not set; until this service stops, the admin token is %s"
        # Bypasses the log level: without this line nobody could upload.
        log.handle(log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (service.guard.made_token,), None))
    await asyncio.to_thread(_warn_of_missing_weights, service)
    for scheduler in service.schedulers.values():
        scheduler.start()
    for backend in service.settings.preload:
        if signalled.is_set():
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
        if signalled.is_set():
            _ignore_the_second_sigterm()


def _warn_of_missing_weights(service: Service) -> None:
    with contextlib.suppress(ServiceError):  # a folder that cannot be read has its own warning
        if objection := service.registry.folder.objection() or service.registry.missing_default():
            log.warning("%s", objection)


def _ignore_the_second_sigterm() -> None:
    """Make a clean stop exit with 0.

    uvicorn (0.54) raises the signal again at the end, under the system's default handler, and the process would exit
    with 143. A blocked signal is not delivered.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


async def _keep_house(service: Service) -> None:
    while True:
        await asyncio.sleep(service.settings.watch_seconds)
        await asyncio.to_thread(_tidy, service)


def _tidy(service: Service) -> None:
    """Drop what no request may ever ask for again: replaced models, and uploads that were cut off."""
    try:
        service.registry.prune()
        remove_stale(service.settings.weights_dir, 2 * service.settings.upload_seconds)
    except Exception:
        log.exception("housekeeping failed")


def _listen(service: Service) -> threading.Event:
    """Begin to stop at SIGTERM or SIGINT, before uvicorn does. Returns an event that is set when one arrives.

    uvicorn (0.54) waits for all responses before it notifies the application, and so forever for an endless one. Its
    own handlers stand when the application starts, and are called from ours.
    """
    signalled = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return signalled  # in a test's thread: signals are not ours
    loop = asyncio.get_running_loop()

    def chain(number: signal.Signals) -> None:
        uvicorns = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None) -> None:
            if not signalled.is_set():
                signalled.set()
                loop.call_soon_threadsafe(_stop, service, loop)
            if callable(uvicorns):
                uvicorns(received, frame)

        signal.signal(number, handle)

    chain(signal.SIGTERM)
    chain(signal.SIGINT)
    return signalled


def _stop(service: Service, loop: asyncio.AbstractEventLoop) -> None:
    seconds = service.settings.shutdown_seconds
    log.info("stopping: %s in progress, with %g seconds to finish", counted(len(service.tasks), "request"), seconds)
    service.stopping = True
    loop.call_later(seconds, service.cut)
    loop.call_later(seconds + CANCEL_AFTER_SECONDS, service.cancel)
    # uvicorn waits forever for a connection whose client does not read. There is nothing left to save: exit.
    watchdog = threading.Timer(seconds + EXIT_AFTER_SECONDS, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
