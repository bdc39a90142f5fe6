"""The training loop that both back ends share.

    text -> streams -> chunks -> Trainer.train_step -> evaluation -> weights file, metrics, curve

A back end plugs in as two classes: a `Trainer`, which holds the parameters and takes one step on one chunk, and a
`LanguageModel`, which generates the sample at the end. All else (batching, schedule, evaluation, early stop, saving,
resuming, reporting) is here, once.

What batching does to a text of the words a b c d e f g, cut into B = 2 streams and chunks of T = 2 steps:

    stream 0:  a b c     x = a d   y = b e     x = c   y = d      time runs down the rows, and y is the text
    stream 1:  d e f         b e       c f         f       g      shifted by one, here and nowhere else

The hidden state is carried from chunk to chunk, and is zero at the start of each epoch.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import checkpoint
import config as configuration
import reporting
from checkpoint import Checkpoint, SaveError, Weights
from config import ConfigError, TrainConfig
from corpus import Corpus, load_corpus
from embeddings import load_embeddings
from errors import Failure, UserError
from language_model import LanguageModel, PromptError
from noise import NO_NOISE, CandidateSampler, Noise, StepNoise

log = logging.getLogger(__name__)

I32 = npt.NDArray[np.int32]

SAVE_SECONDS = 180.0  # how often a long epoch is saved in its middle, for --resume
DRAW_SECONDS = 10.0  # how often the curve is drawn while the run goes on
SAMPLE_TOKENS = 60


class Diverged(Failure):
    """The loss or the gradient became NaN or infinite."""


class Interrupted(Failure):
    """Ctrl-C or SIGTERM; the state was saved."""

    exit_code = 130  # as shells report SIGINT


class Trainer(Protocol):
    """What a back end does for the loop. Each method raises ArithmeticError where a value is not finite."""

    backend: str

    def __init__(self, weights: Weights, config: TrainConfig) -> None: ...

    def train_step(self, x: I32, y: I32, learning_rate: float, noise: StepNoise = NO_NOISE) -> tuple[float, float]:
        """Learn from one chunk: x, y (T, B), time-major. The hidden state is carried over.

        Returns the chunk's mean loss in nats per token, and the gradient's norm before clipping.
        """

    def evaluate(self, ids: I32) -> float:
        """Mean nats per token over `ids` (N,) as one stream from a zero state. Nothing carried is touched."""

    def reset_state(self) -> None:
        """Zero the carried hidden state."""

    def weights(self) -> Weights:
        """A copy of the weights as they stand."""

    def load_weights(self, weights: Weights) -> None: ...

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that `load_state` needs to go on bit for bit: parameters, optimiser, carried hidden state."""

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None: ...


# ---- Batches, initial weights, learning rate ---------------------------------------------------------------------


def streams(ids: I32, batch_size: int) -> tuple[I32, I32]:
    """Cut a text into parallel streams: x, y (N, B), time-major; y is x shifted by one. The rest is dropped."""
    steps = (ids.size - 1) // batch_size
    if steps < 1:
        raise ConfigError(
            f"the corpus has {ids.size} training tokens, too few for --batch-size {batch_size}; "
            f"use at most {max(ids.size - 1, 1)} or a larger text"
        )
    x = ids[: steps * batch_size].reshape(batch_size, steps).T
    y = ids[1 : steps * batch_size + 1].reshape(batch_size, steps).T
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def initial_weights(embeddings: npt.NDArray[np.float32], hidden: int, seed: int) -> Weights:
    """Uniform within 1/sqrt(H), as torch.nn.RNN and torch.nn.Linear start."""
    vocab, embed = embeddings.shape
    rng = np.random.default_rng(seed)
    bound = 1.0 / math.sqrt(hidden)

    def uniform(*shape: int) -> npt.NDArray[np.float32]:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    return Weights(
        embeddings=embeddings,
        Wxh=uniform(embed, hidden),
        Whh=uniform(hidden, hidden),
        bh=uniform(hidden),
        Why=uniform(hidden, vocab),
        by=uniform(vocab),
    )


def learning_rate(config: TrainConfig, step: int, total_steps: int, scale: float) -> float:
    """The rate of `step`, counted from 0 over the whole run. scale: what the plateau schedule has come down to."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":  # Loshchilov & Hutter 2017, without restarts
        done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))
    return config.learning_rate * scale


# ---- The loop ------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where the run is: all that the loop itself must remember to go on."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed within the current epoch
    loss_sum: float = 0.0  # of those steps, weighted by their tokens
    norm_max: float = 0.0
    seconds: float = 0.0  # of training, evaluations not counted
    rate_scale: float = 1.0
    best_epoch: int = 0  # 0: no weights were saved yet
    best_loss: float | None = None
    stale: int = 0  # evaluations since the best
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training run: the configuration, the data and the trainer, and where it stands."""

    def __init__(self, config: TrainConfig, corpus: Corpus, trainer: Trainer) -> None:
        self.config, self.corpus, self.trainer = config, corpus, trainer
        if corpus.validation.size < 2:
            raise ConfigError("the validation split has fewer than two tokens; use a larger text")
        embeddings = trainer.weights().embeddings
        self.data = fingerprint(corpus, embeddings)
        self.path = config.weights_path(trainer.backend)
        self.x, self.y = streams(corpus.train, config.batch_size)
        self.bptt = min(config.bptt or len(self.x), len(self.x))
        self.steps_per_epoch = math.ceil(len(self.x) / self.bptt)
        self.noise = self.make_noise(embeddings.shape[1])
        self.progress = Progress()
        self.unsaved: dict[str, SaveError] = {}  # what could not be written when it was last tried
        self.best: Weights | None = None  # those of the best evaluation: the file may lag behind, on a full disk
        self.drawn = -math.inf

    def make_noise(self, input_size: int) -> Noise:
        """The dropout and the sampling that the configuration asks for. Raises ConfigError."""
        config, counts = self.config, self.corpus.counts
        if config.sampled_softmax > counts.size:
            raise ConfigError(
                f"--sampled-softmax {config.sampled_softmax} is more than the {counts.size} words of the vocabulary: "
                "leave it out for the full softmax"
            )
        return Noise(
            seed=config.seed,
            input_size=input_size,
            hidden_size=config.hidden_size,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            sampler=CandidateSampler(counts, config.sampled_softmax) if config.sampled_softmax else None,
        )

    @property
    def resume_path(self) -> Path:
        return self.path.with_suffix(".resume")

    # -- one epoch

    def train_epoch(self, bar: reporting.Bar, stop: Callable[[], bool]) -> None:
        """Train to the end of the current epoch. Raises Diverged, Interrupted."""
        config, at = self.config, self.progress
        if at.step == 0:
            self.trainer.reset_state()
        saved = started = time.monotonic()
        before = at.seconds
        for step in range(at.step, self.steps_per_epoch):
            rows = slice(step * self.bptt, (step + 1) * self.bptt)
            x, y = self.x[rows], self.y[rows]
            steps = at.epoch * self.steps_per_epoch + step
            rate = learning_rate(config, steps, config.epochs * self.steps_per_epoch, at.rate_scale)
            try:
                loss, norm = self.trainer.train_step(x, y, rate, self.noise.of_step(steps, y))
            except ArithmeticError as error:
                raise self.diverged(f"at step {step + 1} of epoch {at.epoch + 1}", rate) from error
            at.step = step + 1
            at.loss_sum += loss * x.size
            at.norm_max = max(at.norm_max, norm)
            now = time.monotonic()
            at.seconds = before + now - started
            bar.advance(x.size, at.loss_sum / (self.x[: rows.stop].size))
            if stop():
                raise self.interrupted()
            if now - saved > SAVE_SECONDS:
                self.save_state()
                saved = time.monotonic()

    def finish_epoch(self) -> dict[str, Any] | None:
        """Close the epoch; evaluate and save where the configuration says so. Returns the new line of the history."""
        at, config = self.progress, self.config
        train_loss = at.loss_sum / self.x.size
        at.epoch, at.step = at.epoch + 1, 0
        row = None
        if at.epoch % config.evaluate_every == 0 or at.epoch == config.epochs:
            row = self.evaluate(train_loss)
            if at.best_loss is None or row["validation_loss"] < at.best_loss:
                at.best_loss, at.best_epoch, at.stale = row["validation_loss"], at.epoch, 0
                self.best = self.trainer.weights()
                self.save_weights(self.best)
            else:
                at.stale += 1
                if config.schedule == "plateau" and not self.exhausted:
                    at.rate_scale *= 0.5
                    self.trainer.load_weights(self.best_weights())
        at.loss_sum = at.norm_max = 0.0
        if row:
            self.save_state()
        return row

    def evaluate(self, train_loss: float | None) -> dict[str, Any]:
        """Validation loss of the weights as they stand, as a line of the history."""
        at, config = self.progress, self.config
        tokens = at.epoch * self.x.size
        try:
            loss = self.trainer.evaluate(self.corpus.validation)
        except ArithmeticError as error:
            raise self.diverged(f"on the validation split after epoch {at.epoch}", config.learning_rate) from error
        last = max(at.epoch * self.steps_per_epoch - 1, 0)
        row = {
            "epoch": at.epoch,
            "step": at.epoch * self.steps_per_epoch,
            "tokens": tokens,
            "train_loss": train_loss,
            "validation_loss": loss,
            "validation_perplexity": reporting.perplexity(loss),
            "learning_rate": learning_rate(config, last, config.epochs * self.steps_per_epoch, at.rate_scale),
            "gradient_norm": at.norm_max,
            "seconds": round(at.seconds, 3),
            "tokens_per_second": round(tokens / at.seconds) if at.seconds else None,
        }
        at.history.append(row)
        return row

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self.config.patience <= self.progress.stale

    # -- endings

    def diverged(self, where: str, rate: float) -> Diverged:
        kept = (
            f"the weights of epoch {self.progress.best_epoch} are in {self.path}"
            if self.progress.best_epoch
            else "no epoch was good enough to save"
        )
        return Diverged(
            f"the loss is not finite {where} (learning rate {rate:g}): {kept}; lower --learning-rate or set --clip"
        )

    def interrupted(self) -> Interrupted:
        at = self.progress
        if not at.best_epoch and not self.path.exists():
            self.save_weights(
                self.trainer.weights()
            )  # nothing was evaluated yet, but there is something to generate from
        self.save_state()
        command = shlex.join(["python", *sys.argv, *([] if "--resume" in sys.argv else ["--resume"])])
        saved = f"saved {self.resume_path}; go on with: {command}"
        return Interrupted(
            f"stopped after step {at.step} of {self.steps_per_epoch} in epoch {at.epoch + 1}: "
            + (f"not saved: {self.unsaved['state']}" if "state" in self.unsaved else saved)
        )

    # -- files

    def best_weights(self) -> Weights:
        """Those of the best evaluation; after a resume, as the file has them. Raises ConfigError, CheckpointError."""
        if self.best is None:
            saved = checkpoint.load(self.path, copy=True)
            epochs = [row.get("epoch", 0) for row in saved.history]
            if saved.vocabulary != self.corpus.vocabulary.words or max(epochs, default=0) < self.progress.best_epoch:
                raise ConfigError(
                    f"{self.path} does not hold the weights of epoch {self.progress.best_epoch}, to which this run "
                    "goes back: put that file there again, or start without --resume"
                )
            self.best = saved.weights
        return self.best

    def save_weights(self, weights: Weights) -> None:
        """Write the weights file. A full disk does not end the run: it is reported, and what was there stays."""
        source = Checkpoint(
            weights=weights,
            vocabulary=self.corpus.vocabulary.words,
            tokenizer=self.corpus.tokenizer,
            backend=self.trainer.backend,
            config=self.config.as_dict(),
            history=self.progress.history,
        )
        self.attempt("weights", lambda: checkpoint.save(self.path, source))

    def save_state(self) -> None:
        """Write what --resume needs, beside the weights."""
        metadata = {"config": self.config.as_dict(), "data": self.data}
        metadata |= {"backend": self.trainer.backend, "progress": asdict(self.progress)}
        self.attempt("state", lambda: checkpoint.save_state(self.resume_path, self.trainer.state(), metadata))
        self.attempt("metrics", lambda: reporting.write_metrics(self.path, self.progress.history))
        if time.monotonic() - self.drawn > DRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw the loss curve, beside the weights."""
        self.attempt("curve", lambda: reporting.write_curve(self.path, self.progress.history))
        self.drawn = time.monotonic()

    def attempt(self, name: str, save: Callable[[], None]) -> None:
        try:
            save()
            self.unsaved.pop(name, None)
        except SaveError as error:
            self.unsaved[name] = error
            log.warning("%s; the run goes on", error)

    def resume(self) -> None:
        """Go on where the run of the same configuration was stopped. Raises ConfigError, CheckpointError."""
        if not self.resume_path.exists():
            raise ConfigError(f"there is nothing to resume: {self.resume_path} does not exist; leave out --resume")
        state, metadata = checkpoint.load_state(self.resume_path)
        mine = {**self.config.as_dict(), "back end": self.trainer.backend, "text or vectors": self.data}
        theirs = {**metadata["config"], "back end": metadata["backend"], "text or vectors": metadata["data"]}
        free = ("epochs", "threads", "device", "out", "prompt", "patience")  # may change from one sitting to the next
        for name in mine:
            if name not in free and mine[name] != theirs.get(name):
                raise ConfigError(
                    f"cannot resume {self.resume_path}: its {name} is {theirs.get(name)}, this run's is {mine[name]}; "
                    f"give the options of that run, or leave out --resume"
                )
        self.trainer.load_state(state)
        self.progress = Progress(**metadata["progress"])


def fingerprint(corpus: Corpus, vectors: npt.NDArray[np.float32]) -> str:
    """What tells one text, vocabulary and set of frozen vectors from another, in a few characters."""
    digest = hashlib.sha256("\n".join(corpus.vocabulary.words).encode())
    for array in (corpus.train, corpus.validation, vectors):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag, looked at between steps, so that what is saved is whole.

    A second Ctrl-C ends the program at once.
    """
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(run: Run) -> None:
    """The loop. Raises Diverged, Interrupted, and SaveError where the last save failed."""
    at, config = run.progress, run.config
    done = at.epoch * run.x.size + run.x[: at.step * run.bptt].size
    with stop_signals() as stop, reporting.bar(total=config.epochs * run.x.size, done=done) as bar:
        if not at.history:
            log.info(reporting.epoch_line(run.evaluate(None), config.epochs))
        while at.epoch < config.epochs and not run.exhausted:
            run.train_epoch(bar, stop)
            row = run.finish_epoch()
            if row:
                log.info(reporting.epoch_line(row, config.epochs))
    if at.best_epoch < at.epoch:
        log.info("best was epoch %d", at.best_epoch)
    run.draw()
    for error in run.unsaved.values():
        raise error


# ---- The command line ----------------------------------------------------------------------------------------------


def prepare(config: TrainConfig, trainer_class: type[Trainer]) -> Run:
    """Read the corpus and the vectors, and make the trainer."""
    checkpoint.check_writable(config.weights_path(trainer_class.backend))
    corpus = load_corpus(config.corpus, vocab_size=config.vocab_size, max_tokens=config.max_tokens)
    for line in corpus.report():
        log.info(line)
    checkpoint.check_vocabulary(corpus.vocabulary.words)
    vectors = load_embeddings(config.embeddings, corpus, size=config.embedding_size, seed=config.seed)
    log.info(vectors.report())
    trainer = trainer_class(initial_weights(vectors.vectors, config.hidden_size, config.seed), config)
    return Run(config, corpus, trainer)


def summary(run: Run, model_class: type[LanguageModel]) -> None:
    """The results, to stdout: what was reached, a sample, and where the files are."""
    at = run.progress
    best = next(row for row in at.history if row["epoch"] == at.best_epoch)
    print(
        f"validation perplexity {reporting.shown(best['validation_perplexity'])} "
        f"({best['validation_loss']:.4f} nats per token) at epoch {at.best_epoch} of {at.epoch}, "
        f"{at.seconds:.1f} s of training"
    )
    model = model_class.load(run.path)
    try:
        sample = model.generate(run.config.prompt, max_tokens=SAMPLE_TOKENS, seed=run.config.seed, ignore_eos=True)
        print(f"sample: {run.config.prompt} {sample.text}")
    except PromptError as error:
        log.warning("no sample: %s", error)
    for path in (run.path, *reporting.paths(run.path)):
        print(path)


def main(trainer_class: type[Trainer], model_class: type[LanguageModel], arguments: Sequence[str] | None = None) -> int:
    """The command line of both trainers. Returns the exit code; errors are one line on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    program = Path(sys.argv[0]).name
    try:
        config, resume = configuration.parse(trainer_class.backend, arguments)
        run = prepare(config, trainer_class)
        if resume:
            run.resume()
        fit(run)
        summary(run, model_class)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: stopped; nothing of this run was saved since its last line above", file=sys.stderr)
        return Interrupted.exit_code
    except MemoryError as error:
        print(f"{program}: out of memory ({error}); use a smaller --vocab-size or --hidden-size", file=sys.stderr)
        return Failure.exit_code
    return 0
