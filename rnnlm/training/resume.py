"""The resume file: what a stopped run needs to continue bit for bit."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rnnlm.arrays import F32
from rnnlm.checkpoint import CheckpointError, Weights
from rnnlm.errors import UserError
from rnnlm.training import distributed
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.progress import Progress
from rnnlm.training.runfiles import RunFiles
from rnnlm.training.schedule import learning_rate
from rnnlm.training.state_file import AFRESH
from rnnlm.training.trainer import Trainer

log = logging.getLogger(__name__)

SAVE_SECONDS = 180.0  # between evaluations, the state is saved this often


class State:
    """Saves the state of a run, and loads it to continue.

    The file holds the trainer's arrays with the hidden states of all processes, the best weights, the progress, and
    the run's identity: configuration, text, back end.
    saved_at: (epoch, step) of the last save, or None.
    """

    def __init__(
        self,
        files: RunFiles,
        config: TrainConfig,
        data: str,
        tokenizer: str,
        trainer: Trainer,
        vectors: F32,
        group: Group,
    ) -> None:
        """data: the fingerprint of the text and the vectors.  vectors: (V, E), the frozen embeddings."""
        self._files, self._config, self._trainer, self._vectors, self._group = files, config, trainer, vectors, group
        self._identity = {
            "config": config.as_dict(),
            "data": data,
            "backend": trainer.backend,
            "processes": group.size,
            "launch": distributed.launch(),
            "tokenizer": tokenizer,
        }
        self.saved_at: tuple[int, int] | None = None
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Return whether rank 0 should save now, between evaluations."""
        return self._group.rank == 0 and time.monotonic() - self._saved > SAVE_SECONDS

    def save(self, at: Progress, best: Weights | None) -> None:
        """Write the resume file, and with it the metrics and the curve. All processes must call it."""
        arrays = dict(self._trainer.state())
        arrays["hidden"] = self._group.gather(arrays["hidden"])
        self.saved_at, self._saved = (at.epoch, at.step), time.monotonic()
        if self._group.rank > 0:
            return
        if best is not None:
            arrays["best"] = best.flat_parameters()
        self._files.save_state(arrays, self._identity | {"progress": asdict(at)}, at.history)

    def load(self) -> tuple[Progress, Weights | None, int] | None:
        """Put the saved state into the trainer. All processes must call it.

        The configuration has been compared with the state's: see resume_options.py. Paths may differ from machine to
        machine, so the text and the vectors are compared by what was read.
        Returns the progress, the best weights and the saved run's --epochs, or None if nothing was saved.
        Raises ConfigError (another text, other vectors), CheckpointError (nothing can be read).
        """
        loaded: list[dict[str, npt.NDArray[Any]]] = []

        def load() -> tuple[list[str], dict[str, Any]] | None:
            found = self._files.load_state()
            if found is None:
                return None
            loaded.append(found[0])
            return list(found[0]), found[1]

        shared = self._group.from_first(load)
        if shared is None:
            return None
        names, metadata = shared
        try:
            if metadata["data"] != self._identity["data"]:
                raise ConfigError(
                    f"cannot resume {self._files.resume}: its text or vectors are {metadata['data']}, this run's are "
                    f"{self._identity['data']}; give what that run had, or choose another --out"
                )
            at = Progress(**metadata["progress"])
            mine = loaded.pop() if loaded else {}
            arrays = {name: self._group.array_from_first(mine.pop(name, None)) for name in names}
            rows = self._config.batch_size
            arrays["hidden"] = arrays["hidden"][rows * self._group.rank :][:rows]
            flat = arrays.pop("best", None)
            self._trainer.load_state(arrays)
            # A copy, because a view would keep the memory of all the arrays.
            best = None if flat is None else Weights.from_flat(self._vectors, flat.copy(), self._config.hidden_size)
            self.saved_at = at.epoch, at.step
            return at, best, metadata["config"]["epochs"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(
                f"{self._files.resume}: it does not hold the state of such a run: {error}; {AFRESH}"
            ) from error


def warn_of_another_rate(config: TrainConfig, epochs: int, at: Progress, steps_per_epoch: int) -> None:
    """Warn if another number of epochs than the saved run's changes the learning rate at once."""
    if config.schedule != "cosine" or epochs == config.epochs:
        return
    step = at.epoch * steps_per_epoch + at.step
    before, now = (
        learning_rate(config, step, count * steps_per_epoch, at.rate_scale) for count in (epochs, config.epochs)
    )
    log.warning(
        "--epochs %d instead of %d changes the cosine: the learning rate goes on at %.3g instead of %.3g",
        *(config.epochs, epochs, now, before),
    )


def command(weights: Path) -> str:
    """Return the command that continues this run."""
    return f"{distributed.launcher()} {shlex.join([sys.argv[0], '--resume', '--out', str(weights)])}"
