"""Metrics for Prometheus, at /metrics.

Each process counts for itself. With several workers, set PROMETHEUS_MULTIPROC_DIR to an empty folder: any worker then
answers for all of them (prometheus_client keeps its numbers in that folder). Only the list of models is that of the
worker that answers.
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

disable_created_metrics()  # one more series for each series, which nobody reads

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


Model = tuple[str, str, str, str]  # back end, weights, SHA-256, size of the vocabulary


class BackendMetrics:
    """The series of one back end, looked up once, because a token must cost little."""

    def __init__(self, metrics: Metrics, backend: str) -> None:
        self.running = metrics.running.labels(backend)
        self.waiting = metrics.waiting.labels(backend)
        self.cancelled = metrics.cancelled.labels(backend)
        self.tokens = metrics.tokens.labels(backend)
        self.first_token = metrics.first_token_seconds.labels(backend).observe
        self.next_token = metrics.between_tokens_seconds.labels(backend).observe


class Metrics:
    """All series, in a registry of their own, so that several apps in one process (tests) stay apart.

    models: returns the loaded models.
    """

    def __init__(self, models: Callable[[], list[Model]] = list) -> None:
        self.registry = CollectorRegistry()

        def make(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"rnn_{name}", text, labels, registry=self.registry, **options)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return make(Gauge, name, text, *labels, multiprocess_mode="livesum")

        self.requests = make(Counter, "requests", "HTTP requests answered", "route", "method", "status")
        self.duration_seconds = make(
            Histogram,
            "request_duration_seconds",
            "Seconds from a request's arrival to the last byte of its response",
            "route",
            buckets=_REQUEST_SECONDS,
        )
        self.in_flight = gauge("requests_in_flight", "HTTP requests in progress")
        self.first_token_seconds = make(
            Histogram,
            "time_to_first_token_seconds",
            "Seconds from a request's arrival to the first token of a sequence",
            "backend",
            buckets=_REQUEST_SECONDS,
        )
        self.between_tokens_seconds = make(
            Histogram,
            "time_between_tokens_seconds",
            "Seconds between two tokens of a sequence",
            "backend",
            buckets=_TOKEN_SECONDS,
        )
        self.tokens = make(Counter, "tokens", "Tokens generated or scored", "backend")
        self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens of the prompts that were accepted", "backend")
        self.running = gauge("sequences_running", "Sequences being generated or scored", "backend")
        self.waiting = gauge("sequences_waiting", "Sequences waiting to start", "backend")
        self.cancelled = make(
            Counter, "sequences_cancelled", "Sequences stopped because their client disconnected", "backend"
        )
        self.uploads = make(Counter, "uploads", "Uploads, by outcome", "result")
        self._models = _Models(models)
        self.registry.register(self._models)
        ProcessCollector(registry=self.registry)

    def backend(self, name: str) -> BackendMetrics:
        return BackendMetrics(self, name)

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads."""
        folder = _shared_folder()
        if not folder:
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        everyone.register(_Workers(_living(folder)))
        everyone.register(self._models)
        MultiProcessCollector(everyone)
        return generate_latest(everyone)

    def close(self) -> None:
        """Take this process, which ends, out of the gauges."""
        if _shared_folder():
            mark_process_dead(os.getpid())


def _shared_folder() -> str:
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")


def _living(folder: str) -> list[int]:
    """Return the process ids of the living workers; remove the gauges of those that were killed.

    The ids are in the names of the files that prometheus_client (0.26) writes: gauge_livesum_PID.db.
    """
    found = {int(path.stem.rsplit("_", 1)[1]) for path in Path(folder).glob("gauge_live*_*.db")}
    gone = {pid for pid in found if not Path(f"/proc/{pid}").exists()}
    for pid in gone:
        mark_process_dead(pid, folder)
    return sorted(found - gone)


class _Models(Collector):
    """The models that are loaded now. A gauge would keep those of replaced files forever."""

    def __init__(self, models: Callable[[], list[Model]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        labels = ("backend", "weights", "sha256", "vocabulary")
        family = GaugeMetricFamily(
            "rnn_model_info", "Models loaded by the process that answers; the value is always 1", labels=labels
        )
        for model in self._models():
            family.add_metric(model, 1)
        yield family


class _Workers(Collector):
    """Memory, processor time and open files of each worker: prometheus_client reports one process only."""

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
