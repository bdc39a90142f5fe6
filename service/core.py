"""The parts of one service, made once and handed to the routes."""

from __future__ import annotations

import asyncio

from service.auth import Guard
from service.generation import Generator
from service.metrics import Metrics
from service.registry import Registry
from service.scheduler import Scheduler
from service.schemas import Bodies
from service.settings import Settings


class Service:
    """stopping: the service was told to stop; what runs may still finish.   cut_off: it may no longer.
    tasks: the requests that are being answered.
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
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.cut_off = False

    def _models(self) -> list[tuple[str, str, str, str]]:
        """(back end, weights, their SHA-256, size of the vocabulary) of each model that is loaded."""
        loaded = self.registry.loaded()
        return [(backend, entry.name, entry.sha256, str(len(entry.vocabulary))) for backend, entry in loaded]

    def cut(self) -> None:
        """End what is still running: its clients are told to come again."""
        self.cut_off = True
        for scheduler in self.schedulers.values():
            scheduler.cut()

    def cancel(self) -> None:
        """End what did not heed `cut`: uploads, and clients that do not read."""
        for task in self.tasks:
            task.cancel()
