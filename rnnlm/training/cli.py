"""The training loop and the command line that both back ends share.

    text -> streams -> chunks -> Trainer.train_step -> evaluation -> weights file, metrics, curve

A back end plugs in as two classes: a `Trainer` (see run.py), which takes the steps, and a `LanguageModel`, which
generates the sample at the end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rnnlm import checkpoint, files
from rnnlm.checkpoint import Weights
from rnnlm.data.corpus import load_corpus
from rnnlm.data.embeddings import load_embeddings
from rnnlm.errors import Failure, UserError, output_lost
from rnnlm.language_model import LanguageModel, PromptError, shown
from rnnlm.training import config as configuration
from rnnlm.training import distributed, reporting
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group, PeerFailed, PeerLost
from rnnlm.training.loop import Diverged, Interrupted, Run, Trainer

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

SAMPLE_TOKENS = 60


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag, looked at between steps, so that what is saved is whole.

    A second Ctrl-C ends the program at once. Not under torchrun, which passes on what the terminal has sent already.
    """
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT and not distributed.torchrun():
            raise KeyboardInterrupt
        requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(run: Run) -> None:
    """The loop. Raises Diverged, Interrupted, PeerLost, and SaveError where the last save failed."""
    at, config = run.progress, run.config
    total, done = config.epochs * run.tokens_per_epoch, at.epoch * run.tokens_per_epoch + run.tokens_done(at.step)
    with stop_signals() as stop, reporting.bar(total, done, hidden=run.group.rank > 0) as bar:
        try:
            if not at.history:
                log.info(reporting.epoch_line(run.evaluate(None), config.epochs))
                run.save_state()
            if at.epoch < config.epochs and not run.exhausted:
                estimate = run.estimate()
                if estimate:
                    log.info(estimate)
            while at.epoch < config.epochs and not run.exhausted:
                run.train_epoch(bar, stop)
                row = run.finish_epoch()
                if row:
                    log.info(reporting.epoch_line(row, config.epochs))
        except PeerFailed:
            raise
        except PeerLost as error:
            raise run.lost(error) from error
        finally:
            run.files.close()
    if run.group.rank == 0:
        run.files.draw(at.history)
    for error in run.files.unsaved.values():
        raise error


# ---- The command line ----------------------------------------------------------------------------------------------


def initial_weights(
    embeddings: npt.NDArray[np.float32], hidden: int, seed: int, counts: npt.NDArray[np.int64] | None = None
) -> Weights:
    """Uniform within 1/sqrt(H), as torch.nn.RNN and torch.nn.Linear start.

    counts: (V,), how often each word is in the training text. The output bias then starts at their log frequencies, and
    no epoch is spent on learning how common each word is.
    """
    vocab, embed = embeddings.shape
    rng = np.random.default_rng(seed)
    bound = 1.0 / math.sqrt(hidden)

    def uniform(*shape: int) -> F32:
        numbers = np.empty(shape, dtype=np.float32)
        for row in np.atleast_2d(numbers):  # row by row, for they are drawn as float64
            row[:] = rng.uniform(-bound, bound, row.shape)
        return numbers

    weights = Weights(
        embeddings=embeddings,
        Wxh=uniform(embed, hidden),
        Whh=uniform(hidden, hidden),
        bh=uniform(hidden),
        Why=uniform(hidden, vocab),
        by=uniform(vocab),
    )
    if counts is not None:
        weights.by[:] = np.log(np.maximum(counts, 1) / counts.sum())
    return weights


def prepare(config: TrainConfig, trainer_class: type[Trainer], group: Group) -> Run:
    """Read the corpus and the vectors, and make the trainer."""
    with group.machine_first():
        corpus = load_corpus(config.corpus, vocab_size=config.vocab_size, max_tokens=config.max_tokens)
    for line in corpus.report():
        log.info(line)
    if corpus.validation.size > config.validation_tokens:
        log.info(f"evaluated on the first {config.validation_tokens:,} tokens of validation (--validation-tokens)")
    checkpoint.check_vocabulary(corpus.vocabulary.words)
    made: list[F32] = []

    def vectors() -> str:
        embeddings = load_embeddings(config.embeddings, corpus, size=config.embedding_size, seed=config.seed)
        made.append(embeddings.vectors)
        return embeddings.report()

    log.info(group.from_first(vectors))
    embeddings = group.array_from_first(made.pop() if made else None)
    counts = corpus.train_counts() if config.init == "unigram" else None
    trainer = trainer_class(initial_weights(embeddings, config.hidden_size, config.seed, counts), config, group)
    return Run(config, corpus, trainer, embeddings, group)


def summary(run: Run, model_class: type[LanguageModel]) -> None:
    """The results, to stdout: what was reached, why it ended, a sample, and where the files are."""
    at, config = run.progress, run.config
    best = next(row for row in at.history if row["epoch"] == at.best_epoch)
    print(
        f"validation perplexity {shown(best['validation_perplexity'])} "
        f"({best['validation_loss']:.4f} nats per token) at epoch {at.best_epoch} of {at.epoch}, "
        f"{at.seconds:,.1f} s of training, {at.evaluation_seconds:,.1f} s of evaluation"
    )
    if at.epoch < config.epochs:
        print(f"stopped {config.epochs - at.epoch} epochs early (--patience {config.patience})")
    model = model_class.load(run.files.weights)
    try:
        sample = model.generate(config.prompt, max_tokens=SAMPLE_TOKENS, seed=config.seed, ignore_eos=True)
        print(f"sample: {config.prompt} {sample.text}")
    except PromptError as error:
        log.warning("no sample: %s", error)
    for path, what in run.files.listing():
        print(f"{path}  {what}")


def summarise(run: Run, model_class: type[LanguageModel]) -> int:
    """The summary, on an output that may be gone. Returns the exit code."""
    try:
        summary(run, model_class)
        sys.stdout.flush()
        return 0
    except OSError as error:
        return output_lost(Path(sys.argv[0]).name, error)


def main(trainer_class: type[Trainer], model_class: type[LanguageModel], arguments: Sequence[str] | None = None) -> int:
    """The command line of both trainers. Returns the exit code; errors are one line on stderr."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # the programs leave it so while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    rank = distributed.rank()
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s", stream=sys.stderr)
    group: Group | None = None
    config: TrainConfig | None = None
    try:
        with contextlib.redirect_stderr(io.StringIO()) if rank else contextlib.nullcontext():  # argparse's own errors
            config, resume = configuration.parse(trainer_class.backend, arguments)
        device = trainer_class.check(config)
        if rank == 0:
            files.check_writable(config.weights_path(trainer_class.backend))
        group = distributed.join(cuda=device == "cuda")
        run = prepare(config, trainer_class, group)
        if resume and not run.resume() and rank == 0:
            log.warning("there is nothing to resume, %s does not exist: from the beginning", run.files.resume)
        fit(run)
        group.leave()
        return summarise(run, model_class) if rank == 0 else 0
    except (UserError, MemoryError, KeyboardInterrupt) as error:
        text, code = described(error)
        if is_mine_to_say(error, config, group):
            line = "" if rank == 0 else "\n"  # process 0's bar may stand on this one
            print(f"{line}{Path(sys.argv[0]).name}: {text}", file=sys.stderr)
        return code


def is_mine_to_say(error: BaseException, config: TrainConfig | None, group: Group | None) -> bool:
    """Of what ends a run of several processes, one of them speaks.

    config: None before the options are understood.  group: None before the processes have met.
    """
    if isinstance(error, PeerFailed):
        return False  # process 0 speaks
    if config is None or isinstance(error, Interrupted | Diverged):
        return distributed.rank() == 0  # all have found the same
    if group is None:
        # This machine may lack what others have, a library or a GPU; Ctrl-C reaches all.
        return distributed.rank() == 0 or not isinstance(error, KeyboardInterrupt)
    return group.may_report()


def described(error: BaseException) -> tuple[str, int]:
    """(one line for people, exit code) of what ends a run."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; nothing of this run was saved since its last line above", Interrupted.exit_code
    if isinstance(error, MemoryError):
        options = "--batch-size, --bptt, --hidden-size, --embedding-size or --vocab-size"
        return f"out of memory ({error}): use a smaller {options}", Failure.exit_code
    assert isinstance(error, UserError)
    return str(error), error.exit_code
