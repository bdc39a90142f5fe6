"""The command line of both trainers."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rnnlm import files, openmp, terminal
from rnnlm.errors import ArgumentParser, Failure, UserError, output_lost
from rnnlm.language_model import shown
from rnnlm.training import beginning, distributed, lock, schedule
from rnnlm.training.beginning import Options
from rnnlm.training.config import DOCUMENTED, PRESETS, TrainConfig
from rnnlm.training.distributed import Group, PeerFailed, PeerLost
from rnnlm.training.loop import train
from rnnlm.training.resume_options import DATA, DEFAULTS, FREE
from rnnlm.training.run import Run
from rnnlm.training.runfiles import RunFiles
from rnnlm.training.stopping import Diverged, Interrupted
from rnnlm.training.trainer import Trainer
from rnnlm.version import VERSION

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 60
GENERATES = "--generate WEIGHTS PROMPT generates instead, with the options of rnn.py; --precision is float32 only."


def main(trainer_class: type[Trainer], arguments: Sequence[str] | None = None) -> int:
    """Train, and print the results. Returns the exit code; an error is one line on stderr."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as main.py and torch_rnn.py leave it while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    terminal.prepare()
    rank = distributed.rank()
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s", stream=sys.stderr)
    group: Group | None = None
    config: TrainConfig | None = None
    try:
        with quiet_unless_it_speaks():
            options = parse(trainer_class.backend, arguments)
            config = TrainConfig(**options.of_machine()) if options.resume else options.config()
        with own_files(options) if rank == 0 else contextlib.nullcontext(({}, False)) as (chosen, resumes):
            if rank == 0:
                config = TrainConfig(**chosen)
            if config.threads is None:
                openmp.threads_asked()  # raises now what it would raise after the corpus is read
            device = trainer_class.check(config)
            group = distributed.join(cuda=device == "cuda", lost=end)
            group.agree(common(options))
            chosen, resumes = group.from_first(lambda: (chosen, resumes))
            config = TrainConfig(**chosen | options.of_machine())
            run = Run.prepare(config, trainer_class, group)
            if resumes and run.resume() and schedule.is_finished(config, run.progress):
                log.info("the run is finished: there is nothing left to train after %s", in_epochs(run.epochs))
            train(run)
            group.leave()
            return print_summary(run) if rank == 0 else 0
    except (UserError, MemoryError, KeyboardInterrupt) as error:
        text, code = describe(error)
        if should_report(error, config, group):
            report(text)
        elif not isinstance(error, Interrupted | KeyboardInterrupt):  # then torchrun waits for all
            distributed.let_another_report()
        return code


@contextlib.contextmanager
def quiet_unless_it_speaks() -> Iterator[None]:
    """Let one process of each machine say what argparse says of the options; all find the same errors."""
    if distributed.speaks():
        yield
        return
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except SystemExit as end:
        if end.code:
            distributed.let_another_report()
        raise


@contextlib.contextmanager
def own_files(options: Options) -> Iterator[tuple[dict[str, Any], bool]]:
    """Keep other runs away from the files of this one within this block. Yield its options, and whether it is resumed.

    Raises what would otherwise be raised minutes or hours later.
    """
    weights = options.weights_path()
    files.check_writable(weights)
    with lock.held(weights):
        if distributed.restarted() and RunFiles(weights).are_of(distributed.launch(), distributed.launched_ago()):
            options = replace(options, resume=True, overwrite=False)
        chosen = beginning.begin(options)
        RunFiles(weights, tensorboard=chosen["tensorboard"])  # which needs a package
        yield chosen, options.resume


def common(options: Options) -> dict[str, Any]:
    """Return what all processes of a run must have in common. Paths may differ: what was read is compared later."""
    own = {*FREE, *DATA, "corpus", "embeddings", "init_from"}
    asked = DEFAULTS | options.given | {"preset": options.preset}
    chosen = {f"--{name.replace('_', '-')}": value for name, value in asked.items() if name not in own}
    return {"release": VERSION, "back end": options.backend, "--resume": options.resume} | chosen


# ---- Options


def parser(backend: str) -> argparse.ArgumentParser:
    """Derive the options from the fields of TrainConfig."""
    name = "main.py" if backend == "c" else "torch_rnn.py"
    options = ArgumentParser(
        prog=name,
        description=f"Train the {'C' if backend == 'c' else 'torch'} model.",
        argument_default=argparse.SUPPRESS,
        epilog=None if backend == "c" else GENERATES,
    )
    options.add_argument("--preset", choices=PRESETS, help="a named set of the options below (default: reference)")
    begin = options.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="continue the run of --out, with its options")
    begin.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run")
    types_of = typing.get_type_hints(TrainConfig)
    for spec in fields(TrainConfig):
        default = DOCUMENTED[backend].get(spec.name, spec.default)
        if "help" in spec.metadata and types_of[spec.name] is bool:
            options.add_argument(
                "--" + spec.name.replace("_", "-"), action=argparse.BooleanOptionalAction, help=spec.metadata["help"]
            )
        elif "help" in spec.metadata:
            options.add_argument(
                "--" + spec.name.replace("_", "-"),
                type=_plain(types_of[spec.name]),
                choices=spec.metadata["choices"],
                metavar=None if spec.metadata["choices"] else _plain(types_of[spec.name]).__name__.upper(),
                help=f"{spec.metadata['help']} ({default})".replace(" (None)", ""),
            )
    return options


def _plain(annotation: Any) -> type:
    """Return the type to parse for `T` or `T | None`."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def parse(backend: str, arguments: Sequence[str] | None = None) -> Options:
    """Parse a command line. argparse itself exits with 2."""
    given = vars(parser(backend).parse_args(arguments))
    flags = {name: given.pop(name) for name in ("preset", "resume", "overwrite") if name in given}
    return Options(backend, given, **flags)


# ---- Results and errors


def print_summary(run: Run) -> int:
    """Print the summary. Returns the exit code: standard output may be closed, or on a full disk."""
    try:
        for line in summary(run):
            print(line)
        sys.stdout.flush()
        return 0
    except (OSError, UnicodeError) as error:
        return output_lost(Path(sys.argv[0]).name, error)


def summary(run: Run) -> Iterator[str]:
    """Yield the results: the best perplexity, why the run ended, a sample, and the files."""
    at, config = run.progress, run.config
    best = at.best_row
    yield (
        f"validation perplexity {shown(best['validation_perplexity'])} "
        f"({best['validation_loss']:.4f} nats per token) at epoch {at.best_epoch:g} of {run.epochs:g}, "
        f"{at.seconds:,.1f} s of training, {at.evaluation_seconds:,.1f} s of evaluation"
    )
    if "test_loss" in best:
        yield (
            f"test perplexity {shown(best['test_perplexity'])} ({best['test_loss']:.4f} nats per token) of these "
            f"weights, over {best['test_tokens']:,} tokens"
        )
    untrained = at.history[0]
    if (
        config.init_from is not None
        and untrained["step"] == 0
        and untrained["validation_loss"] < best["validation_loss"]
    ):
        yield (
            "the weights of --init-from have a lower perplexity on the validation split, "
            f"{shown(untrained['validation_perplexity'])}: use a smaller --learning-rate, or more text"
        )
    if at.epoch < config.epochs:
        yield f"stopped {in_epochs(config.epochs - run.epochs)} early (--patience {config.patience})"
    try:
        model = run.trainer.model_class.load(run.files.weights)
        sample = model.generate(config.prompt, max_tokens=SAMPLE_TOKENS, seed=config.seed, ignore_eos=True)
        yield f"sample: {config.prompt} {sample.text}"
    except (UserError, MemoryError) as error:  # a prompt of unknown words; weights that are gone
        log.warning("no sample: %s", error)
    for path, what in run.files.listing():
        yield f"{path}  {what}"


def in_epochs(number: float) -> str:
    """Return a number of epochs, whole or not, for a message."""
    return f"{number:g} epoch" if number == 1 else f"{number:g} epochs"


def describe(error: BaseException) -> tuple[str, int]:
    """Return the line for the user and the exit code of an error that ends a run."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; nothing was saved after the last line above", Interrupted.exit_code
    if isinstance(error, MemoryError):
        options = "--batch-size, --bptt, --hidden-size, --embedding-size or --vocab-size"
        return f"out of memory ({error}): use a smaller {options}", Failure.exit_code
    assert isinstance(error, UserError)
    return str(error), error.exit_code


def should_report(error: BaseException, config: TrainConfig | None, group: Group | None) -> bool:
    """Return whether this process reports the error: of the processes of a machine, one does.

    config: None before the options are parsed.  group: None before the processes have met.
    """
    if config is None or isinstance(error, Interrupted | Diverged):
        return distributed.speaks()  # all processes have the same error
    if isinstance(error, PeerFailed) and distributed.machine() == 0:
        return False  # process 0 is on this machine, and says what failed
    if group is None:
        # One process may lack what others have, a library or a GPU. Ctrl-C reaches all processes.
        return distributed.speaks() or not isinstance(error, KeyboardInterrupt)
    return group.may_report()


def report(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def end(error: PeerLost) -> None:
    """End the process at once: the main thread hangs in an exchange with a process that will not answer."""
    if distributed.speaks():
        if sys.stderr.isatty():
            print(file=sys.stderr)  # a bar is on the current line
        report(str(error))
    os._exit(error.exit_code)
