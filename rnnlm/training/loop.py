"""One run: its data, its trainer, where it stands, and what it does at each step, evaluation and end.

A back end plugs in as a `Trainer`, which holds the parameters and takes one step on one chunk. All else is here, once.
The hidden state is carried from chunk to chunk, and is zero at the start of each epoch.
"""

from __future__ import annotations

import logging
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rnnlm.checkpoint import Checkpoint, CheckpointError, Weights
from rnnlm.data.corpus import Corpus
from rnnlm.errors import Failure, UserError
from rnnlm.files import digest
from rnnlm.language_model import perplexity
from rnnlm.regularization import NO_REGULARIZATION, CandidateSampler, Regularization, Regularizer
from rnnlm.training import distributed, reporting
from rnnlm.training.batches import Streams
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group, PeerLost
from rnnlm.training.runfiles import RunFiles

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

SAVE_SECONDS = 180.0  # how often is saved between evaluations, for --resume
TRIAL_SECONDS = 1.0  # how long steps are timed before the first one


class Diverged(Failure):
    """The loss or the gradient became NaN or infinite."""


class Interrupted(Failure):
    """Ctrl-C or SIGTERM; the state was saved."""

    exit_code = 130  # as shells report SIGINT


class Trainer(Protocol):
    """What a back end does for the loop. Each method raises ArithmeticError where a value is not finite."""

    backend: str

    @staticmethod
    def check(config: TrainConfig) -> str:
        """Raise at once what would come after minutes otherwise. Returns the kind of device: "cpu" or "cuda"."""

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None: ...

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        """Learn from one chunk: x, y (T, B), time-major. The hidden state is carried over.

        Returns the chunk's mean loss in nats per token, and the gradient's norm before clipping. Of several processes
        each gives its own chunk, and all learn from all: the loss is of the own chunk, the norm of the whole gradient.
        """

    def evaluate(self, ids: I32) -> float:
        """Mean nats per token over `ids` (N,) as one stream from a zero state. Nothing carried is touched."""

    def reset_state(self) -> None:
        """Zero the carried hidden state."""

    def weights(self) -> Weights:
        """A copy of the weights as they stand."""

    def load_weights(self, weights: Weights) -> None: ...

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that `load_state` needs to go on bit for bit: parameters, optimiser, `hidden` (B, H). May be views.

        The names of the parameters, and no others, begin with `param`.
        """

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None: ...


def learning_rate(config: TrainConfig, step: int, total_steps: int, scale: float) -> float:
    """The rate of `step`, counted from 0 over the whole run. scale: what the plateau schedule has come down to."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":  # Loshchilov & Hutter 2017, without restarts
        done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))
    return config.learning_rate * scale


@dataclass
class Progress:
    """Where the run is: all that the loop itself must remember to go on."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed within the current epoch
    loss_sum: float = 0.0  # of those steps, weighted by their tokens
    norm_max: float = 0.0
    seconds: float = 0.0  # of training, evaluations not counted
    evaluation_seconds: float = 0.0
    rate_scale: float = 1.0
    best_epoch: int = 0  # 0: no weights were saved yet
    best_loss: float | None = None
    stale: int = 0  # evaluations since the best
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training run: the configuration, the data and the trainer, and where it stands.

    Of several processes each has its own, and all take the same decisions at the same steps; only rank 0 writes.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, trainer: Trainer, vectors: F32, group: Group) -> None:
        self.config, self.corpus, self.trainer, self.vectors, self.group = config, corpus, trainer, vectors, group
        self.validation = corpus.validation[: config.validation_tokens]
        if self.validation.size < 2:
            raise ConfigError("the validation split has fewer than two tokens; use a larger text")
        self.streams = Streams(corpus.train, config.batch_size, group.rank, group.size)
        self.data = fingerprint(corpus, vectors)
        if self.data != group.from_first(lambda: self.data):
            raise ConfigError(f"process {group.rank} has read another text than process 0: give all the same --corpus")
        is_first = group.rank == 0
        self.files = RunFiles(config.weights_path(trainer.backend), tensorboard=config.tensorboard and is_first)
        self.bptt = min(config.bptt or self.streams.steps, self.streams.steps)
        self.steps_per_epoch = math.ceil(self.streams.steps / self.bptt)
        self.tokens_per_step = self.streams.width * group.size  # of time
        self.tokens_per_epoch = self.streams.steps * self.tokens_per_step
        self.regularizer = self.make_regularizer(vectors.shape[1])
        self.progress = Progress()
        self.best: Weights | None = None  # those of the best evaluation; the file may lag behind, on a full disk
        self.saved_at: tuple[int, int] | None = None  # (epoch, step) of the last state that was saved
        self.saved = time.monotonic()  # when that was

    def make_regularizer(self, input_size: int) -> Regularizer:
        """The dropout and the sampling that the configuration asks for."""
        config, counts = self.config, self.corpus.train_counts()
        is_sampled = 0 < config.sampled_softmax < counts.size  # a sample of all words is the full softmax
        return Regularizer(
            seed=config.seed,
            input_size=input_size,
            hidden_size=config.hidden_size,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            sampler=CandidateSampler(counts, config.sampled_softmax) if is_sampled else None,
        )

    # -- one epoch

    def step(self, step: int, start: int, rate: float) -> tuple[float, float, int]:
        """Learn from the chunk at `start`, as step `step`. (loss, gradient norm, tokens), as Trainer."""
        stop = start + self.bptt
        x, y = self.streams.chunk(start, stop)
        regularization = self.regularizer.draw(step, self.streams.targets(start, stop)).of_rows(self.streams.columns)
        return *self.trainer.train_step(x, y, rate, regularization), x.size

    def train_epoch(self, bar: reporting.Bar, stop: Callable[[], bool]) -> None:
        """Train to the end of the current epoch. Raises Diverged, Interrupted, PeerLost."""
        at = self.progress
        if at.step == 0:
            self.trainer.reset_state()
        started = time.monotonic()
        before = at.seconds
        for step in range(at.step, self.steps_per_epoch):
            steps = at.epoch * self.steps_per_epoch + step
            rate = self.rate(steps)
            try:
                loss, norm, size = self.step(steps, step * self.bptt, rate)
                due = self.group.rank == 0 and time.monotonic() - self.saved > SAVE_SECONDS
                # One process's wish is all processes' wish, or they would part.
                loss_sum, tokens, stopping, saving = self.group.totals(loss * size, size, stop(), due)
                if not math.isfinite(loss_sum):
                    raise FloatingPointError(f"loss {loss_sum}")
            except ArithmeticError as error:
                raise self.diverged(f"at step {step + 1} of epoch {at.epoch + 1}", rate) from error
            at.step = step + 1
            at.loss_sum += loss_sum
            at.norm_max = max(at.norm_max, norm)
            at.seconds = before + time.monotonic() - started
            bar.advance(int(tokens), at.loss_sum / self.tokens_done(at.step))
            self.files.step(steps + 1, loss_sum / tokens, norm, rate)
            if stopping:
                raise self.interrupted()
            if saving:
                self.save_state()

    def tokens_done(self, step: int) -> int:
        """Tokens of an epoch's first `step` steps."""
        return min(step * self.bptt, self.streams.steps) * self.tokens_per_step

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted over the whole run."""
        return learning_rate(self.config, step, self.config.epochs * self.steps_per_epoch, self.progress.rate_scale)

    def is_evaluated(self, epoch: int) -> bool:
        """Whether the weights at the end of `epoch`, counted from 1, are evaluated."""
        return epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs

    def finish_epoch(self) -> dict[str, Any] | None:
        """Close the epoch; evaluate and save where the configuration says so. Returns the new line of the history."""
        at, config = self.progress, self.config
        train_loss = at.loss_sum / self.tokens_per_epoch
        at.epoch, at.step = at.epoch + 1, 0
        row = None
        if self.is_evaluated(at.epoch):
            row = self.evaluate(train_loss)
            if at.best_loss is None or row["validation_loss"] < at.best_loss:
                at.best_loss, at.best_epoch, at.stale = row["validation_loss"], at.epoch, 0
                self.best = self.trainer.weights()
                self.save_weights(self.best)
            else:
                at.stale += 1
                if config.schedule == "plateau" and not self.exhausted and self.best is not None:
                    at.rate_scale *= 0.5
                    self.trainer.load_weights(self.best)
        at.loss_sum = at.norm_max = 0.0
        if row:
            self.save_state()
        return row

    def evaluate(self, train_loss: float | None) -> dict[str, Any]:
        """Validation loss of the weights as they stand, as a line of the history."""
        at = self.progress
        started = time.monotonic()
        try:
            loss = self.group.from_first(lambda: self.trainer.evaluate(self.validation))
        except ArithmeticError as error:
            where = f"on the validation split after epoch {at.epoch}"
            raise self.diverged(where, self.config.learning_rate) from error
        at.evaluation_seconds += time.monotonic() - started
        tokens = at.epoch * self.tokens_per_epoch
        row = {
            "epoch": at.epoch,
            "step": at.epoch * self.steps_per_epoch,
            "tokens": tokens,
            "train_loss": train_loss,
            "validation_loss": loss,
            "validation_perplexity": perplexity(loss),
            "learning_rate": self.rate(max(at.epoch * self.steps_per_epoch - 1, 0)),
            "gradient_norm": at.norm_max,
            "seconds": round(at.seconds, 3),
            "tokens_per_second": round(tokens / at.seconds) if at.seconds else None,
        }
        at.history.append(row)
        self.files.evaluation(row)
        return row

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self.config.patience <= self.progress.stale

    # -- how long it will take

    def estimate(self) -> str | None:
        """How long the rest of the run takes, for people: from steps on a copy of the state, and evaluations so far.

        None where the steps diverge: training says that itself.
        """
        at, config = self.progress, self.config
        # Steps at a rate of 0 leave the parameters as they are, which are most of the memory: no copy of those.
        state = {
            name: array if name.startswith("param") else array.copy() for name, array in self.trainer.state().items()
        }
        times: list[float] = []
        try:
            while self.group.from_first(lambda: len(times) < 2 or (sum(times) < TRIAL_SECONDS and len(times) < 10)):
                started = time.monotonic()
                self.step(0, 0, 0.0)
                times.append(time.monotonic() - started)
        except ArithmeticError:
            return None
        finally:
            self.trainer.load_state(state)
        step = statistics.median(times[1:])  # the first one also makes what the others use
        epochs = config.epochs - at.epoch
        tokens = epochs * self.tokens_per_epoch - self.tokens_done(at.step)
        # As many as is_evaluated says; --epochs may be a number that nobody means to reach.
        evaluations = -(-config.epochs // config.evaluate_every) - at.epoch // config.evaluate_every
        each = at.evaluation_seconds / max(len(at.history), 1)
        seconds = tokens / self.tokens_done(1) * step + evaluations * each
        return (
            f"{'at most ' if config.patience else ''}{reporting.duration(seconds)} for {epochs:,} epochs: {tokens:,} "
            f"tokens at {self.tokens_done(1) / step:,.0f}/s, {evaluations:,} evaluations of {reporting.duration(each)}"
        )

    # -- endings

    def diverged(self, where: str, rate: float) -> Diverged:
        kept = (
            f"the weights of epoch {self.progress.best_epoch} are in {self.files.weights}"
            if self.progress.best_epoch
            else "no epoch was good enough to save"
        )
        return Diverged(
            f"the loss is not finite {where} (learning rate {rate:g}): {kept}; lower --learning-rate or set --clip"
        )

    def interrupted(self) -> Interrupted:
        at = self.progress
        if not at.best_epoch and not self.files.weights.exists():
            # Nothing was evaluated yet, but there is something to generate from.
            self.save_weights(self.trainer.weights())
        self.save_state()
        failed = self.files.unsaved.get("state")
        return Interrupted(
            f"stopped after step {at.step} of {self.steps_per_epoch} in epoch {at.epoch + 1}: "
            + (f"not saved: {failed}" if failed else f"saved {self.files.resume}; go on with: {resume_command()}")
        )

    def lost(self, error: PeerLost) -> PeerLost:
        """What to say where another process is gone: its hidden state went with it, so this state is not saved."""
        at = self.progress
        where = f"{error}, after step {at.step} of {self.steps_per_epoch} in epoch {at.epoch + 1}"
        if self.saved_at is None:
            return PeerLost(f"{where}; nothing was saved yet")
        epoch, step = self.saved_at
        return PeerLost(
            f"{where}; saved in {self.files.resume} after step {step} of epoch {epoch + 1}; go on from there with: "
            f"{resume_command()}"
        )

    # -- files

    def save_weights(self, weights: Weights) -> None:
        """Write the weights file. A full disk does not end the run: it is reported, and what was there stays."""
        if self.group.rank == 0:
            source = Checkpoint(
                weights=weights,
                vocabulary=self.corpus.vocabulary.words,
                tokenizer=self.corpus.tokenizer,
                backend=self.trainer.backend,
                config=self.config.as_dict() | {"processes": self.group.size},
                history=self.progress.history,
            )
            self.files.save_weights(source)

    def save_state(self) -> None:
        """Write what --resume needs, beside the weights."""
        at = self.progress
        arrays = dict(self.trainer.state())
        arrays["hidden"] = self.group.gather(arrays["hidden"])
        self.saved_at, self.saved = (at.epoch, at.step), time.monotonic()
        if self.group.rank > 0:
            return
        if "weights" in self.files.unsaved and self.best is not None:
            self.save_weights(self.best)  # there may be room again
        if self.best is not None:
            arrays["best"] = self.best.flat_parameters()
        self.files.save_state(arrays, self.identity() | {"progress": asdict(at)}, at.history)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return {
            "config": self.config.as_dict(),
            "data": self.data,
            "backend": self.trainer.backend,
            "processes": self.group.size,
        }

    def resume(self) -> bool:
        """Go on where the run of the same configuration was stopped; False where there is nothing to go on with.

        Raises ConfigError, CheckpointError.
        """
        loaded: list[dict[str, npt.NDArray[Any]]] = []

        def load() -> tuple[list[str], dict[str, Any]] | None:
            found = self.files.load_state()
            if found is None:
                return None
            loaded.append(found[0])
            return list(found[0]), found[1]

        shared = self.group.from_first(load)
        if shared is None:
            return False
        names, metadata = shared
        try:
            self.refuse_another(metadata)
            progress = Progress(**metadata["progress"])
            begun = progress.epoch + (progress.step > 0)
            if begun > self.config.epochs:
                raise ConfigError(
                    f"cannot resume {self.files.resume}: it is in epoch {begun}, after the last of --epochs "
                    f"{self.config.epochs}; give --epochs {begun} at least"
                )
            mine = loaded.pop() if loaded else {}
            arrays = {name: self.group.array_from_first(mine.pop(name, None)) for name in names}
            arrays["hidden"] = arrays["hidden"][self.streams.width * self.group.rank :][: self.streams.width]
            best = arrays.pop("best", None)
            self.trainer.load_state(arrays)
            if best is not None:  # a copy: it would keep the memory of all the arrays
                self.best = Weights.from_flat(self.vectors, best.copy(), self.config.hidden_size)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(f"{self.files.resume}: holds another state than this program's: {error}") from error
        self.progress = progress
        self.warn_of_another_rate(metadata["config"]["epochs"])
        self.saved_at = progress.epoch, progress.step
        if self.group.rank == 0 and self.best is not None and not self.files.holds(self.best):
            self.save_weights(self.best)
        return True

    def warn_of_another_rate(self, epochs: int) -> None:
        """Say so where another number of epochs than the state's changes the learning rate at once."""
        if self.config.schedule != "cosine" or epochs == self.config.epochs or self.group.rank > 0:
            return
        step = self.progress.epoch * self.steps_per_epoch + self.progress.step
        before = learning_rate(self.config, step, epochs * self.steps_per_epoch, self.progress.rate_scale)
        log.warning(
            "--epochs %d instead of %d makes another cosine: the learning rate goes on at %.3g instead of %.3g",
            *(self.config.epochs, epochs, self.rate(step), before),
        )

    def refuse_another(self, theirs: dict[str, Any]) -> None:
        """Raise ConfigError, naming what differs, unless the state is one of this run."""

        def flat(identity: dict[str, Any]) -> dict[str, Any]:
            config = dict(identity["config"])
            # As many streams on fewer processes, or on more, learn the same: a run may go on without a lost machine.
            streams = config.pop("batch_size") * identity["processes"]
            rest = {"back end": identity["backend"], "text or vectors": identity["data"]}
            return config | {"batch_size, over all processes,": streams} | rest

        mine, other = flat(self.identity()), flat(theirs)
        free = ("epochs", "threads", "device", "out", "prompt", "patience", "tensorboard")  # may change on the way
        for name in mine:
            if name not in free and mine[name] != other.get(name):
                raise ConfigError(
                    f"cannot resume {self.files.resume}: its {name} is {other.get(name)}, this run's is {mine[name]}; "
                    f"give the options of that run, or leave out --resume"
                )


def resume_command() -> str:
    return f"{distributed.again()} {shlex.join([*sys.argv, *([] if '--resume' in sys.argv else ['--resume'])])}"


def fingerprint(corpus: Corpus, vectors: npt.NDArray[np.float32]) -> str:
    """What tells one text, vocabulary and set of frozen vectors from another, in a few characters."""
    return digest("\n".join(corpus.vocabulary.words).encode(), corpus.train, corpus.validation, vectors)[:16]
