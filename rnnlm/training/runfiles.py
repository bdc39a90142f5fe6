"""The files of one run, which stand beside each other:

    NAME.safetensors    the weights of the best evaluation
    NAME.resume         what --resume needs, and NAME.resume.1, the one before it
    NAME.jsonl          the metrics, a line for each evaluation
    NAME.png            the loss curve
    NAME.tensorboard/   event files, with --tensorboard

What cannot be written (a full disk) does not end a run: it is reported, what was there stays, and the next save tries
again.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint, CheckpointError, OtherVersion, Weights
from rnnlm.files import SaveError, atomic_write
from rnnlm.training import curve
from rnnlm.training.progress import Row
from rnnlm.training.tensorboard import Events

log = logging.getLogger(__name__)

DRAW_SECONDS = 10.0  # how often the curve is drawn while the run goes on


class RunFiles:
    """unsaved: what could not be written when it was last tried, by name."""

    def __init__(self, weights: Path, *, tensorboard: bool = False) -> None:
        self.weights = weights
        self.resume, self.before = weights.with_suffix(".resume"), weights.with_suffix(".resume.1")
        self.metrics, self.curve = weights.with_suffix(".jsonl"), weights.with_suffix(".png")
        self.events = Events(weights.with_suffix(".tensorboard")) if tensorboard else None
        self.unsaved: dict[str, SaveError] = {}
        self._damaged = False  # the last state: it must not take the place of the one before
        self._drawn = -math.inf

    def attempt(self, name: str, save: Callable[[], None]) -> None:
        try:
            save()
            self.unsaved.pop(name, None)
        except SaveError as error:
            self.unsaved[name] = error
            log.warning("%s; the run goes on", error)

    def save_weights(self, source: Checkpoint) -> None:
        self.attempt("weights", lambda: checkpoint.save(self.weights, source))

    def holds(self, weights: Weights) -> bool:
        """Whether the weights file has these parameters. It may be older: the disk was full when they were saved."""
        try:
            saved = checkpoint.load(self.weights).weights.parameters()
        except CheckpointError:
            return False
        return all(np.array_equal(saved[name], array) for name, array in weights.parameters().items())

    def save_state(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any], history: Sequence[Row]) -> None:
        """Write what --resume needs; what it needed before stays beside it. And the metrics and the curve, with it."""
        keep = None if self._damaged else self.before
        self.attempt("state", lambda: checkpoint.save_state(self.resume, arrays, metadata, keep=keep))
        self._damaged = self._damaged and "state" in self.unsaved
        self.attempt("metrics", lambda: atomic_write(self.metrics, lines(history)))
        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self.draw(history)

    def draw(self, history: Sequence[Row]) -> None:
        self.attempt("curve", lambda: atomic_write(self.curve, curve.plot(history, self.weights.stem)))
        self._drawn = time.monotonic()

    def step(self, step: int, loss: float, norm: float, rate: float) -> None:
        """One step of training, for TensorBoard."""
        if self.events and "events" not in self.unsaved:  # else the next evaluation tries again, not each step
            values = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
            self.attempt("events", lambda: self.events.write(step, values))

    def evaluation(self, row: Row) -> None:
        """One line of the history, for TensorBoard."""
        if self.events:
            names = ("validation_loss", "validation_perplexity", "tokens_per_second")
            values = {name.replace("_", "/", 1): row[name] for name in names if row[name] is not None}
            self.attempt("events", lambda: self.events.write(row["step"], values))

    def close(self) -> None:
        if self.events:
            self.events.close()

    def load_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What was saved last, or where that is damaged, before that; None where nothing was saved.

        Raises CheckpointError where nothing of it can be read.
        """
        first: CheckpointError | None = None
        for path in (self.resume, self.before):
            if not path.exists():
                continue
            try:
                loaded = checkpoint.load_state(path)
            except OtherVersion:
                raise
            except CheckpointError as error:
                first = first or error
                continue
            if first:
                self._damaged = True
                log.warning("%s; going on from the state saved before it, %s", first, path)
            return loaded
        if first:
            raise first
        return None

    def listing(self) -> list[tuple[Path, str]]:
        """Where everything is, and what it is."""
        files = [
            (self.weights, "the best weights"),
            (self.metrics, "a line for each evaluation"),
            (self.curve, "the loss curve"),
            (self.resume, "for --resume, with more --epochs"),
        ]
        return files + ([(self.events.folder, "for tensorboard --logdir")] if self.events else [])


def lines(history: Sequence[Row]) -> bytes:
    """Return the history as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in history).encode()
