"""The files of one run, side by side:

    NAME.safetensors    the weights of the best evaluation
    NAME.resume         what --resume needs, and NAME.resume.1, the one before it
    NAME.jsonl          the metrics: see metrics.py
    NAME.png            the loss curve
    NAME.tensorboard/   event files, with --tensorboard

A file that cannot be written (a full disk) does not end the run: a warning is logged, the old file stays, and the next
save tries again. The curve and the event files are optional: without them a run is still complete.
"""

from __future__ import annotations

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
from rnnlm.training.metrics import Metrics
from rnnlm.training.progress import Row
from rnnlm.training.tensorboard import Events

log = logging.getLogger(__name__)

_STEP_SCALARS = ("gradient_norm", "learning_rate", "tokens_per_second")
DRAW_SECONDS = 10.0  # during the run, the curve is drawn this often
OPTIONAL = ("curve", "events")


class RunFiles:
    """Writes the files, and reads the state back.

    unsaved: the errors of the files whose last write failed, by kind: weights, state, metrics, curve, events.
    """

    def __init__(self, weights: Path, *, tensorboard: bool = False) -> None:
        self.weights = weights
        self.resume, self.before = weights.with_suffix(".resume"), weights.with_suffix(".resume.1")
        self.metrics, self.curve = Metrics(weights.with_suffix(".jsonl")), weights.with_suffix(".png")
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

    def begin(self, about: Mapping[str, Any], history: Sequence[Row], step: int) -> None:
        """Start the metrics with what the run is, or continue those of a run that is resumed after `step` steps."""
        self.attempt("metrics", lambda: self.metrics.begin(about, history, step))
        if self.events:
            self.events.hparams = {k: v for k, v in about["config"].items() if v is not None}

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
        """Write the resume file, and keep the one before it; draw the curve from time to time."""
        keep = None if self._damaged or self._is_new else self.before
        self.attempt("state", lambda: state_file.save(self.resume, arrays, metadata, keep=keep))
        if "state" not in self.unsaved:
            if self._is_new:
                self.before.unlink(missing_ok=True)
            self._damaged = self._is_new = False
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

    def step(self, row: Row, *, in_metrics: bool) -> None:
        """Write one training step to TensorBoard, and to the metrics too if `in_metrics`."""
        # After a failure the next evaluation tries again, not each step.
        if in_metrics:
            self.metrics.add("step", row)
            if "metrics" not in self.unsaved:
                self.attempt("metrics", self.metrics.flush)
        if self.events and "events" not in self.unsaved:
            loss = "train/sampled_loss" if row["train_loss_sampled"] else "train/loss"
            self._write_events(row, {"train_loss": loss, **{name: f"train/{name}" for name in _STEP_SCALARS}})

    def evaluation(self, row: Row) -> None:
        """Write one line of the history to the metrics and to TensorBoard."""
        self.metrics.add("evaluation", row)
        self.attempt("metrics", self.metrics.flush)
        tags = {"validation_loss": "validation/loss", "validation_perplexity": "validation/perplexity"}
        self._write_events(row, tags | {"tokens_per_second": "tokens/per_second"})

    def test(self, row: Row) -> None:
        """Write the result of the test split, a part of its line of the history, to the metrics and to TensorBoard."""
        names = ("epoch", "step", "test_loss", "test_perplexity", "test_tokens")
        self.metrics.add("test", {name: row[name] for name in names})
        self.attempt("metrics", self.metrics.flush)
        self._write_events(row, {"test_loss": "test/loss", "test_perplexity": "test/perplexity"})

    def _write_events(self, row: Row, tags: Mapping[str, str]) -> None:
        """Write the numbers of a row as scalars, under their tags and the row's step."""
        if self.events:
            events, values = self.events, {tag: row[name] for name, tag in tags.items() if row[name] is not None}
            self.attempt("events", lambda: events.write(row["step"], values))

    def close(self) -> None:
        """Close the event file."""
        if self.events:
            self.events.close()

    def existing(self, *, tensorboard: bool) -> list[Path]:
        """Return those files that are there. tensorboard: count the folder of event files too."""
        paths = [self.weights, self.resume, self.before, self.metrics.path, self.curve]
        paths += [self.weights.with_suffix(".tensorboard")] if tensorboard else []
        return [path for path in paths if os.path.lexists(path)]

    def load_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the last state, or with a warning the one before if the last is damaged; None if there is none.

        Raises CheckpointError (no state can be read), OtherVersion.
        """
        loaded, damage = self.last_state()
        if loaded is not None:
            self._is_new = False
        if damage is not None:
            self._damaged = True
            log.warning("%s; using the state saved before it, %s", damage, self.before)
        return loaded

    def last_state(self) -> tuple[tuple[dict[str, np.ndarray], dict[str, Any]] | None, CheckpointError | None]:
        """Return what load_state returns, and why it is not the last state. Raises the same."""
        damage: CheckpointError | None = None
        for path in (self.resume, self.before):
            if not path.exists():
                continue
            try:
                return state_file.load(path), damage
            except OtherVersion:
                raise
            except CheckpointError as error:
                damage = damage or error
        if damage:
            raise damage
        return None, None

    def are_of(self, launch: tuple[str, str], launched_ago: float) -> bool:
        """Return whether the last state is of a run that `launch`, see distributed.py, has started.

        One that was saved on another machine since then counts as such: process 0 may have moved.
        """
        try:
            loaded = self.last_state()[0]
        except CheckpointError:
            return False
        saved = loaded[1].get("launch") if loaded else None
        if saved is None:  # there is no state, or it is an earlier release's
            return False
        host, launcher = saved
        if host != launch[0]:
            return self.resume.exists() and time.time() - self.resume.stat().st_mtime < launched_ago
        return launcher == launch[1]

    def listing(self) -> list[tuple[Path, str]]:
        """Return each file with what it is, for people."""
        files: list[tuple[Path, str]] = [
            (self.weights, "the best weights"),
            (self.metrics.path, "the metrics, as JSON lines"),
            (self.curve, "the loss curve"),
            (self.resume, "for --resume, with more --epochs"),
        ]
        files += [(self.events.folder, "for tensorboard --logdir")] if self.events else []
        return [(path, what) for path, what in files if path.exists()]
