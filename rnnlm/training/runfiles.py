"""The files of one run, side by side:

    NAME.safetensors    the weights of the best evaluation
    NAME.resume         what --resume needs, and NAME.resume.1, the one before it
    NAME.jsonl          the metrics, a line for each evaluation
    NAME.png            the loss curve
    NAME.tensorboard/   event files, with --tensorboard

A file that cannot be written (a full disk) does not end the run: a warning is logged, the old file stays, and the next
save tries again. The curve and the event files are optional: without them a run is still complete.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint, CheckpointError, OtherVersion, Weights
from rnnlm.files import SaveError, atomic_write
from rnnlm.training import curve, state_file
from rnnlm.training.progress import Row
from rnnlm.training.tensorboard import Events

log = logging.getLogger(__name__)

DRAW_SECONDS = 10.0  # during the run, the curve is drawn this often
OPTIONAL = ("curve", "events")


class RunFiles:
    """Writes the files, and reads the state back.

    unsaved: the errors of the files whose last write failed, by kind: weights, state, metrics, curve, events.
    """

    def __init__(self, weights: Path, *, tensorboard: bool = False) -> None:
        self.weights = weights
        self.resume, self.before = weights.with_suffix(".resume"), weights.with_suffix(".resume.1")
        self.metrics, self.curve = weights.with_suffix(".jsonl"), weights.with_suffix(".png")
        self.events = Events(weights.with_suffix(".tensorboard")) if tensorboard else None
        self.unsaved: dict[str, SaveError] = {}
        self._damaged = False  # whether the last state is: it must not replace the one before it
        self._is_new = True  # until a state is loaded or saved: those that are there are another run's
        self._drawn = time.monotonic()
        self._can_draw = True

    def attempt(self, name: str, save: Callable[[], None]) -> None:
        """Call `save`. A SaveError is kept in `unsaved` and logged."""
        try:
            save()
            self.unsaved.pop(name, None)
        except SaveError as error:
            self.unsaved[name] = error
            log.warning("%s; the run goes on", error)

    def save_weights(self, source: Checkpoint) -> None:
        """Write the weights file."""
        self.attempt("weights", lambda: checkpoint.save(self.weights, source))

    def holds(self, weights: Weights) -> bool:
        """Return whether the weights file has these parameters. It is older if the disk was full."""
        try:
            saved = checkpoint.load(self.weights).weights.parameters()
        except CheckpointError:
            return False
        return all(np.array_equal(saved[name], array) for name, array in weights.parameters().items())

    def save_state(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any], history: Sequence[Row]) -> None:
        """Write the resume file, and keep the one before it; write the metrics, and from time to time the curve."""
        keep = None if self._damaged or self._is_new else self.before
        self.attempt("state", lambda: state_file.save(self.resume, arrays, metadata, keep=keep))
        if "state" not in self.unsaved:
            if self._is_new:
                self.before.unlink(missing_ok=True)
            self._damaged = self._is_new = False
        self.attempt("metrics", lambda: atomic_write(self.metrics, lines(history)))
        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self.draw(history)

    def draw(self, history: Sequence[Row]) -> None:
        """Draw the curve, unless that has failed before: matplotlib is missing, or broken."""
        self._drawn = time.monotonic()
        if not self._can_draw:
            return
        try:
            image = curve.plot(history, self.weights.stem)
        except Exception as error:  # whatever matplotlib raises: the curve is optional
            self._can_draw = False
            log.warning("%s: no curve, since matplotlib fails (%s: %s)", self.curve, type(error).__name__, error)
        else:
            self.attempt("curve", lambda: atomic_write(self.curve, image))

    def check(self) -> None:
        """Raise the error of a last save that failed, unless the file is optional."""
        for name, error in self.unsaved.items():
            if name not in OPTIONAL:
                raise error

    def step(self, step: int, loss: float, norm: float, rate: float) -> None:
        """Write one training step to TensorBoard."""
        if self.events and "events" not in self.unsaved:  # otherwise the next evaluation tries again, not each step
            values = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
            self.attempt("events", lambda: self.events.write(step, values))

    def evaluation(self, row: Row) -> None:
        """Write one line of the history to TensorBoard."""
        if self.events:
            names = ("validation_loss", "validation_perplexity", "tokens_per_second")
            values = {name.replace("_", "/", 1): row[name] for name in names if row[name] is not None}
            self.attempt("events", lambda: self.events.write(row["step"], values))

    def close(self) -> None:
        """Close the event file."""
        if self.events:
            self.events.close()

    def existing(self, *, tensorboard: bool) -> list[Path]:
        """Return those files that are there. tensorboard: count the folder of event files too."""
        paths = [self.weights, self.resume, self.before, self.metrics, self.curve]
        paths += [self.weights.with_suffix(".tensorboard")] if tensorboard else []
        return [path for path in paths if os.path.lexists(path)]

    def has_state(self) -> bool:
        """Return whether there is a state to resume, damaged or not."""
        return self.resume.exists() or self.before.exists()

    def load_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the last state, or the one before if the last is damaged; None if there is none.

        Raises CheckpointError (no state can be read), OtherVersion.
        """
        first: CheckpointError | None = None
        for path in (self.resume, self.before):
            if not path.exists():
                continue
            try:
                loaded = state_file.load(path)
            except OtherVersion:
                raise
            except CheckpointError as error:
                first = first or error
                continue
            self._is_new = False
            if first:
                self._damaged = True
                log.warning("%s; using the state saved before it, %s", first, path)
            return loaded
        if first:
            raise first
        return None

    def listing(self) -> list[tuple[Path, str]]:
        """Return each file with what it is, for people."""
        files: list[tuple[Path, str]] = [
            (self.weights, "the best weights"),
            (self.metrics, "a line for each evaluation"),
            (self.curve, "the loss curve"),
            (self.resume, "for --resume, with more --epochs"),
        ]
        files += [(self.events.folder, "for tensorboard --logdir")] if self.events else []
        return [(path, what) for path, what in files if path.exists()]


def lines(history: Sequence[Row]) -> bytes:
    """Return the history as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in history).encode()
