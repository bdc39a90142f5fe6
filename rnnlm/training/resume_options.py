"""The options of a run that is resumed: they are in its state, and some may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnlm.checkpoint import CheckpointError
from rnnlm.container import SUFFIX
from rnnlm.errors import show_path
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.init_from import DECIDED
from rnnlm.training.state_file import AFRESH

DEFAULTS = TrainConfig().as_dict()

# Options that may differ from those of the run that is resumed.
FREE = ("epochs", "threads", "device", "out", "prompt", "patience", "tensorboard", "log_every")
# Options of the text and the vectors, which are compared themselves: a release may change a default. But for the test
# split, which may be another one.
DATA = ("validation", "test", "tokenizer", "lowercase", "embedding_size")

PROGRAMS = {"c": "main.py", "torch": "torch_rnn.py"}


def restored(
    path: Path, saved: Mapping[str, Any], given: Mapping[str, Any], preset: Mapping[str, Any], backend: str, size: int
) -> dict[str, Any]:
    """Return the options of a stopped run, with those of the command line in the place of those that may change.

    path, saved: its state file, and what that says of the run.   given: the options of the command line.
    preset: those of its --preset.   size: the number of processes.
    Raises ConfigError, which lists all options of the command line that may not change; CheckpointError.
    """
    run = _Stopped.read(path, saved)
    if run.config["init_from"] is not None:
        preset = {name: value for name, value in preset.items() if name not in DECIDED}
    if given.get("preset", run.config["preset"]) != run.config["preset"]:
        preset = {}  # its options would only repeat that it is another
    if "epochs" in preset:  # a preset does not shorten a run
        preset = {**preset, "epochs": max(preset["epochs"], run.config["epochs"])}
    asked = {**preset, **given}
    conflicts = [
        f"{_shown(name, value)} ({was})" for name, value in asked.items() if (was := run.was(name, value, size))
    ]
    if run.backend != backend:
        conflicts.insert(0, f"{PROGRAMS[backend]} (it was {PROGRAMS.get(run.backend, 'another program')})")
    if "batch_size" not in asked:
        asked["batch_size"] = run.rows // size
        if run.rows % size:
            conflicts.append(f"{size} processes (it had {run.rows} batch rows in all, which they cannot share)")
    if conflicts:
        raise ConfigError(
            f"cannot resume {show_path(path)} with {', '.join(conflicts)}: keep what that run had, or begin another "
            "one with another --out"
        )
    return run.config | asked | {"out": given.get("out", str(path.with_suffix(SUFFIX)))}


def listed(config: Mapping[str, Any]) -> str:
    """Return the options whose values are not the defaults, as for a command line."""
    return " ".join(_shown(name, value) for name, value in config.items() if value != DEFAULTS[name])


@dataclass(frozen=True)
class _Stopped:
    """What a state says of its run.

    rows: the batch rows of all processes.   begun: the epochs that it has begun.   is_within: the last of them goes on.
    tokenizer: with which the text was read; "": a release that did not say.
    """

    config: dict[str, Any]
    backend: str
    processes: int
    rows: int
    begun: int
    is_within: bool
    tokenizer: str

    @classmethod
    def read(cls, path: Path, saved: Mapping[str, Any]) -> _Stopped:
        """Raise CheckpointError if these are not the values of a run."""
        try:
            config = DEFAULTS | saved["config"]  # an option that the release of that run lacked has its default
            TrainConfig(**config)
            processes, at = saved["processes"], {"epoch": 0, "step": 0} | saved["progress"]
            rows, is_within = config["batch_size"] * processes, at["step"] > 0
            begun, tokenizer = at["epoch"] + is_within, str(saved.get("tokenizer", ""))
            return cls(config, str(saved["backend"]), processes, rows, begun, is_within, tokenizer)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{show_path(path)}: it does not hold the options of a run: {error}; {AFRESH}"
            ) from error

    def was(self, name: str, value: Any, size: int) -> str:
        """Return what the option was in the run, if `value` may not replace it; else nothing. size: of processes."""
        then = self.config[name]
        if name == "epochs":
            had = f"it is in epoch {self.begun}" if self.is_within else f"it has had {self.begun}"
            return had if value < self.begun else ""
        if name == "batch_size":
            # As many batch rows on more or fewer processes learn the same: a run may continue without a lost machine.
            together = "" if size == self.processes == 1 else " over all processes"
            return f"it was {self.rows}{together}" if value * size != self.rows else ""
        if name in ("tokenizer", "lowercase"):
            base, _, lowered = self.tokenizer.partition("+")
            then = base if name == "tokenizer" else bool(lowered)
            differs = self.tokenizer and value != then
        elif name == "embedding_size":
            differs = None not in (value, then) and value != then
        else:
            differs = name not in (*FREE, *DATA) and _as_saved(name, value) != then
        return f"it was {then if not isinstance(then, bool) else 'on' if then else 'off'}" if differs else ""


def _as_saved(name: str, value: Any) -> Any:
    """Return the value that a configuration keeps of the option."""
    try:
        return getattr(TrainConfig(**{name: value}), name)
    except ConfigError:  # it does not fit the defaults of others
        return value


def _shown(name: str, value: Any) -> str:
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    return f"{option} {show_path(str(value))}"
