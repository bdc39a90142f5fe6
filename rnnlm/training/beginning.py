"""How a run begins: from the start, or with --resume where another one stopped. No run destroys another's files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rnnlm.errors import show_path
from rnnlm.training import distributed, init_from, resume_options
from rnnlm.training.config import DOCUMENTED, PRESETS, ConfigError, TrainConfig
from rnnlm.training.runfiles import RunFiles

log = logging.getLogger(__name__)


# What may differ from machine to machine: the processors, and where the texts and the vectors are.
_OF_MACHINE = ("threads", "device", "corpus", "validation", "test", "embeddings")


@dataclass(frozen=True)
class Options:
    """A command line.

    given: the options that it names.   preset: None if it names none.
    """

    backend: str
    given: dict[str, Any]
    preset: str | None = None
    resume: bool = False
    overwrite: bool = False

    def config(self, found: Mapping[str, Any] = MappingProxyType({})) -> TrainConfig:
        """Return the configuration of a new run. Raises ConfigError.

        found: options that win over the preset, but not over the command line.
        """
        preset = self.preset or "reference"
        chosen = DOCUMENTED[self.backend] | self.of_preset(preset) | {**found}
        return TrainConfig(**(chosen | self.given | {"preset": preset}))

    def of_preset(self, preset: str) -> dict[str, Any]:
        """Return the options of a preset that the command line does not name."""
        chosen = {name: value for name, value in PRESETS[preset].items() if name not in self.given}
        if "embeddings" in self.given:
            chosen.pop("embedding_size", None)  # it is that of the preset's vectors
        return chosen

    def of_machine(self) -> dict[str, Any]:
        """Return the options of this command line that may differ from process 0's."""
        return {name: self.given[name] for name in _OF_MACHINE if name in self.given}

    def weights_path(self) -> Path:
        """Return where the run saves its weights. Raises ConfigError."""
        return TrainConfig(preset=self.preset or "reference", out=self.given.get("out")).weights_path(self.backend)


def begin(options: Options) -> dict[str, Any]:
    """Return the options of the run, all of them. Call it in process 0, while holding the lock of the run's files.

    Raises ConfigError (it would replace another run's files, or resume with what may not change), CheckpointError.
    """
    files = RunFiles(options.weights_path())
    state = files.last_state()[0] if options.resume else None
    if state is not None:
        preset = {} if options.preset is None else options.of_preset(options.preset)
        given = options.given | ({} if options.preset is None else {"preset": options.preset})
        restored = resume_options.restored(files.resume, state[1], given, preset, options.backend, distributed.size())
        log.info("resuming %s: %s", files.resume, resume_options.listed(restored))
        return restored
    there = files.existing(tensorboard=options.given.get("tensorboard", False))
    if options.resume and not there:
        if options.preset is None and "out" in options.given and options.given.keys() <= {*resume_options.FREE}:
            raise ConfigError(
                f"nothing to resume: {show_path(files.resume)} does not exist; correct --out, or give the options of "
                "a new run, such as --preset"
            )
        log.info("training starts from the beginning: there is no %s to resume", show_path(files.resume))
    elif there and not options.overwrite:
        found = f"{show_path(there[0])} exists"
        if options.resume:
            found += f", but not {files.resume.name}, so there is no run to go on with"
        goes_on = "" if options.resume else "go on with that run (--resume), "
        raise ConfigError(f"{found}: {goes_on}replace it (--overwrite), or choose another --out")
    source = options.given.get("init_from")
    found = {} if source is None else init_from.options_of(source, files.weights, options.given)
    return options.config(found).as_dict()
