"""What Prometheus reads at /metrics.

Each process counts for itself. With several workers set PROMETHEUS_MULTIPROC_DIR to an empty folder, and any worker
answers for all of them (the prometheus_client package then keeps its numbers in that folder); only the models are
those of the worker that answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

disable_created_metrics()  # a series more for each series, which nobody reads

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


Model = tuple[str, str, str, str]  # back end, weights, SHA-256, size of the vocabulary


class BackendMetrics:
    """The series of one back end, looked up once: a token must cost little."""

    def __init__(self, metrics: Metrics, backend: str) -> None:
        self.running = metrics.running.labels(backend)
        self.waiting = metrics.waiting.labels(backend)
        self.cancelled = metrics.cancelled.labels(backend)
        self.tokens = metrics.tokens.labels(backend)
        self.first_token = metrics.first_token_seconds.labels(backend).observe
        self.next_token = metrics.between_tokens_seconds.labels(backend).observe


class Metrics:
    """All series. A registry of its own, so that several apps (in tests) do not meet.

    models: tells which are loaded, when it is asked.
    """

    def __init__(self, models: Callable[[], list[Model]] = list) -> None:
        self.registry = CollectorRegistry()

        def make(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"rnn_{name}", text, labels, registry=self.registry, **options)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return make(Gauge, name, text, *labels, multiprocess_mode="livesum")

        self.requests = make(Counter, "requests", "Requests answered", "route", "method", "status")
        self.duration_seconds = make(
            Histogram, "request_duration_seconds", "From a request to its last byte", "route", buckets=_REQUEST_SECONDS
        )
        self.in_flight = gauge("requests_in_flight", "Requests being answered")
        self.first_token_seconds = make(
            Histogram,
            "time_to_first_token_seconds",
            "From a sequence's request to its first token",
            "backend",
            buckets=_REQUEST_SECONDS,
        )
        self.between_tokens_seconds = make(
            Histogram, "time_between_tokens_seconds", "Between two tokens", "backend", buckets=_TOKEN_SECONDS
        )
        self.tokens = make(Counter, "tokens", "Tokens written or scored", "backend")
        self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens of prompts", "backend")
        self.running = gauge("sequences_running", "Sequences that advance together", "backend")
        self.waiting = gauge("sequences_waiting", "Sequences that wait for a place", "backend")
        self.cancelled = make(
            Counter, "sequences_cancelled", "Sequences stopped because their client went away", "backend"
        )
        self.uploads = make(Counter, "uploads", "Uploads by what became of them", "result")
        self._models = _Models(models)
        self.registry.register(self._models)
        ProcessCollector(registry=self.registry)

    def backend(self, name: str) -> BackendMetrics:
        return BackendMetrics(self, name)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        folder = _shared_folder()
        if not folder:
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        everyone.register(_Workers(_living(folder)))
        everyone.register(self._models)
        MultiProcessCollector(everyone)
        return generate_latest(everyone)

    def close(self) -> None:
        """This process ends: its gauges, such as the requests that it answers, no longer count."""
        if _shared_folder():
            mark_process_dead(os.getpid())


def _shared_folder() -> str:
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")


def _living(folder: str) -> list[int]:
    """The workers, by the files that they write. Those of one that was killed are put away."""
    found = {int(path.stem.rsplit("_", 1)[1]) for path in Path(folder).glob("gauge_live*_*.db")}
    gone = {pid for pid in found if not Path(f"/proc/{pid}").exists()}
    for pid in gone:
        mark_process_dead(pid, folder)
    return sorted(found - gone)


class _Models(Collector):
    """The models that are loaded now: with a gauge, those of replaced files would stay for ever."""

    def __init__(self, models: Callable[[], list[Model]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        labels = ("backend", "weights", "sha256", "vocabulary")
        family = GaugeMetricFamily(
            "rnn_model_info", "Models loaded by the process that answers: always 1", labels=labels
        )
        for model in self._models():
            family.add_metric(model, 1)
        yield family


class _Workers(Collector):
    """Memory, processor time and files of each worker process: prometheus_client tells them of one process only."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for pid in self._pids:
            for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "pid": str(pid)}, sample.value)
        yield from families.values()
