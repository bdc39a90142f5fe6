"""The parts of one service, made once and passed to the routes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from service.auth import Guard
from service.generation import Generator
from service.metrics import Metrics
from service.registry import Registry
from service.scheduler import Scheduler
from service.schemas import Bodies
from service.settings import Settings


class Service:
    """One service.   stopping: it received a signal to stop, and running requests may still finish.   cut_off: they may
    no longer.   tasks: the HTTP exchanges in progress.   writers: write replies, which may take seconds. The objects
    of a long one have some 50 MB, so no more than two are written at once.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bodies = Bodies.of(settings)
        self.guard = Guard(settings)
        self.registry = Registry(settings)
        self.metrics = Metrics(self._models)
        self.schedulers = {
            backend: Scheduler(
                name=backend,
                max_sequences=settings.max_sequences,
                max_waiting=settings.max_waiting,
                metrics=self.metrics.backend(backend),
            )
            for backend in settings.served_backends
        }
        self.generator = Generator(settings, self.registry, self.schedulers, self.metrics)
        self.writers = ThreadPoolExecutor(2, "write-replies")
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.cut_off = False

    def _models(self) -> list[tuple[str, str, str, str]]:
        """Return (back end, weights, their SHA-256, size of the vocabulary) for each loaded model."""
        loaded = self.registry.loaded()
        return [(backend, entry.name, entry.sha256, str(len(entry.vocabulary))) for backend, entry in loaded]

    def cut(self) -> None:
        """End what is still running; its clients get an error that asks them to try again."""
        self.cut_off = True
        for scheduler in self.schedulers.values():
            scheduler.cut()

    def cancel(self) -> None:
        """End what `cut` does not reach: uploads, and clients that do not read."""
        for task in self.tasks:
            task.cancel()
