"""How a run ends before its time: what is saved, and the one line that says so."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator

from rnnlm.errors import Failure, Interrupted, counted
from rnnlm.signals import flag_of
from rnnlm.training import distributed, resume
from rnnlm.training.distributed import PeerFailed, PeerLost
from rnnlm.training.run import Run

MAX_LOSS = 700.0  # nats per token; the perplexity of a larger loss is not a finite float


class Diverged(Failure):
    """The loss or the gradient became NaN or infinite, or the loss so large that nothing can be learned any more."""


def check_loss(loss: float, norm: float = 0.0) -> None:
    """Raise FloatingPointError if the mean loss per token is not finite, or above MAX_LOSS, or the norm not finite."""
    if not (loss <= MAX_LOSS and norm < math.inf):
        raise FloatingPointError(f"loss {loss}, gradient norm {norm}")


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a flag that the loop checks between steps, so that all is saved.

    A second Ctrl-C ends the program at once, except under torchrun, which sends its own copy of the terminal's signal.
    Under nohup SIGHUP stays ignored.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)  # the terminal was closed
    with flag_of(numbers, None if distributed.torchrun() else signal.default_int_handler) as requested:
        yield requested


@contextlib.contextmanager
def in_order(run: Run) -> Iterator[Callable[[], bool]]:
    """Yield the flag of `stop_signals`, turn what may end the training into one line, and close the files."""
    run.group.explain = lambda error: lost(run, error)
    try:
        with stop_signals() as requested:
            yield requested
    except FloatingPointError as error:
        at = run.progress
        where = f"at step {at.step + 1:,} of epoch {at.epoch + 1:,}"
        raise diverged(run, where, run.learning_rate(run.step)) from error
    except PeerFailed:
        raise  # it names the reason
    except PeerLost as error:
        raise lost(run, error) from error
    finally:
        run.files.close()


def interrupted(run: Run) -> Interrupted:
    """Save the state, and the weights if there is no file to generate from yet. Returns the error to raise."""
    at = run.progress
    if not at.best_epoch and not run.files.weights.exists():
        run.save_weights(run.trainer.weights())
    run.save_state()
    if run.group.rank == 0:
        run.files.draw(at.history)
    failed = run.files.unsaved.get("state")
    return Interrupted(
        f"stopped {position(run)}: "
        + (
            f"not saved: {failed}"
            if failed
            else f"saved {run.files.resume}; go on with: {resume.command(run.files.weights)}"
        )
    )


def diverged(run: Run, where: str, rate: float) -> Diverged:
    """Return the error to raise when the loss is not finite, or too large, `where`. Nothing is saved."""
    best = run.progress.best_epoch
    kept = f"the weights of epoch {best:,g} are in {run.files.weights}" if best else "no epoch was good enough to save"
    return Diverged(
        f"the run diverged {where}: its loss is not finite, or above {MAX_LOSS:g} nats per token (learning rate "
        f"{rate:g}): {kept}; lower --learning-rate or set --clip"
    )


def lost(run: Run, error: PeerLost) -> PeerLost:
    """Return the error to raise when another process is gone.

    Its hidden state went with it, so the state is not saved now.
    """
    where = f"{error}, {position(run)}"
    if run.state.saved_at is None:
        return PeerLost(f"{where}; nothing was saved yet")
    saved = after(*run.state.saved_at, len(run.batches))
    machine = "" if distributed.machine() == 0 else "on the first machine, "
    return PeerLost(
        f"{where}; saved {machine}in {run.files.resume} {saved}; go on from there with: "
        f"{resume.command(run.files.weights)}"
    )


def position(run: Run) -> str:
    return after(run.progress.epoch, run.progress.step, len(run.batches))


def after(epochs: int, step: int, steps: int) -> str:
    """Return where a run is after so many whole epochs and `step` of the `steps` of the next one."""
    epoch, step = (epochs, steps) if step == 0 and epochs else (epochs + 1, step)
    return f"after {step:,} of {counted(steps, 'step')} in epoch {epoch:,}"
