"""How a run begins: afresh, or with --resume where a stopped one was. No run destroys another's files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnlm.errors import show_path
from rnnlm.training.config import DOCUMENTED, PRESETS, ConfigError, TrainConfig
from rnnlm.training.runfiles import RunFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """A command line.

    given: the options that it names, but for --preset, which is None if it is not named.
    """

    backend: str
    given: dict[str, Any]
    preset: str | None = None
    resume: bool = False
    overwrite: bool = False

    def config(self) -> TrainConfig:
        """Return the configuration of a new run. Raises ConfigError."""
        preset = self.preset or "reference"
        chosen = DOCUMENTED[self.backend] | PRESETS[preset]
        if "embeddings" in self.given:
            chosen.pop("embedding_size", None)  # it is that of the preset's vectors
        return TrainConfig(**(chosen | self.given | {"preset": preset}))

    def weights_path(self) -> Path:
        """Return where the run saves its weights. Raises ConfigError."""
        return TrainConfig(preset=self.preset or "reference", out=self.given.get("out")).weights_path(self.backend)


def check(options: Options) -> None:
    """Raise ConfigError if the run would replace another's files. Call it in process 0, while holding the lock."""
    files = RunFiles(options.weights_path())
    if options.overwrite or (options.resume and files.has_state()):
        return
    there = files.existing(tensorboard=options.given.get("tensorboard", False))
    if options.resume and not there:
        log.warning("nothing to resume: %s does not exist; training starts from the beginning", files.resume)
    elif there:
        begin = f"{show_path(there[0])} exists"
        if options.resume:
            begin += f", but not {files.resume.name}, so there is no run to go on with"
        resume = "" if options.resume else "go on with that run (--resume), "
        raise ConfigError(f"{begin}: {resume}replace it (--overwrite), or choose another --out")
