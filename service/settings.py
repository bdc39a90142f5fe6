"""Settings: environment variables, checked once, at start. `python -m service.settings` prints a table of them.

Each setting is a field of `Settings`; its variable is RNN_ and the field's name in capitals.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rnnlm.checkpoint import BACKENDS
from rnnlm.errors import UserError, meant, reason
from rnnlm.library import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {"RNN_ISA", "RNN_CACHE_DIR", "RNN_PLAIN_WEIGHTS"}  # of the library, the trainers and the load test
WEIGHTS = Path("weights")  # in the folder where the service is started
CANNOT_START = 3  # exit code, uvicorn's own: with several workers, it then stops instead of starting them over and over

_WIDTH = 2 + len("RNN_MAX_REQUEST_TOKENS")  # of the names in a listing
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")


class SettingsError(UserError, ValueError):
    """A setting is out of range: the service refuses to start."""


def setting(default: Any, help_text: str, *, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "least": least, "most": most})


def secret(help_text: str) -> Any:
    """A setting that repr() leaves out, because that ends up in logs."""
    return field(default="", repr=False, metadata={"help": help_text, "least": None, "most": None})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. Raises SettingsError, which names the variable, its value and its limit."""

    # What is served
    weights_dir: Path = setting(WEIGHTS, "folder of the weights files")  # noqa: RUF009 (a Path is immutable)
    default_weights: str = setting("demo", "weights used when a request names none; if missing, the first by name")
    backends: tuple[str, ...] = setting(("c", "torch"), "back ends offered; torch only where it is installed")
    preload: tuple[str, ...] = setting((), "back ends that load the default weights at start instead of at first use")
    weights_mode: str = setting(
        "map", "`map`: share the files' pages; `read`: copy them, for folders where files change in place"
    )
    cached_weights: int = setting(
        4, "most weights kept loaded; fewer if they do not fit in memory together", least=1, most=1000
    )
    precision: str = setting("float32", f"how the C model keeps Why: {', '.join(PRECISIONS)}")
    c_threads: int = setting(1, "threads of one step of the C model", least=1, most=1024)
    torch_threads: int = setting(1, "threads of one step of the torch model", least=1, most=1024)

    # Who may use it
    api_token: str = secret(
        "if set, required by all but the page, /docs, /health and /ready (Authorization: Bearer ...)"
    )
    admin_token: str = secret("required by uploads and deletions; if unset, one is made at start and logged")

    allowed_origins: tuple[str, ...] = setting(
        (), "origins of other sites whose pages may use the service, such as https://example.org; `*`: all"
    )

    # What a request may ask for
    max_tokens: int = setting(1000, "most tokens of one sequence", least=1, most=1 << 20)
    max_prompt_chars: int = setting(10_000, "most characters of one prompt", least=1, most=1 << 20)
    max_score_chars: int = setting(50_000, "most characters of a text to score", least=1, most=1 << 20)
    max_prompts: int = setting(32, "most prompts of one request", least=1, most=1024)
    max_choices: int = setting(8, "most sequences for one prompt (`n`)", least=1, most=64)
    max_request_tokens: int = setting(
        10_000,
        "most tokens of all sequences of a request together, which may have eight times as many alternatives",
        least=1,
        most=1 << 20,
    )
    max_top_logprobs: int = setting(20, "most alternatives shown for a token", least=0, most=100)
    max_body_bytes: int = setting(
        256 << 10, "most bytes of a request's body, except uploads", least=1024, most=16 << 20
    )
    max_upload_bytes: int = setting(1 << 30, "most bytes of an uploaded weights file", least=1024)
    memory_mb: int = setting(
        0, "MB of memory that the service may use, which decides what models fit; 0: what the system grants", least=0
    )
    trial_memory_mb: int = setting(
        512, "MB of memory for trying an upload; more is answered 507", least=64, most=1 << 20
    )

    # How much at once, how long
    max_sequences: int = setting(64, "sequences of a back end that advance together", least=1, most=4096)
    max_waiting: int = setting(256, "sequences that may wait; more are answered 429", least=0, most=1 << 16)
    max_requests: int = setting(512, "requests in progress at once; more are answered 429", least=1, most=1 << 16)
    request_seconds: float = setting(
        120.0, "time limit of a request in seconds, waiting included", least=0.01, most=3600
    )
    upload_seconds: float = setting(300.0, "time limit of an upload in seconds", least=0.01, most=3600)
    watch_seconds: float = setting(
        10.0, "seconds after which the model of a replaced file is dropped", least=0.01, most=3600
    )
    comment_seconds: float = setting(
        15.0, "seconds of silence after which a stream sends a comment", least=0.01, most=3600
    )
    shutdown_seconds: float = setting(6.0, "seconds that requests in progress get at SIGTERM", least=0.0, most=3600)

    # Logs
    log_level: str = setting("info", "debug, info, warning or error")

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, least, most = getattr(self, spec.name), spec.metadata["least"], spec.metadata["most"]
            if least is None:
                continue
            if not math.isfinite(value) or value < least or (most is not None and value > most):
                limit = f"{least:,} or more" if most is None else f"from {least:,} to {most:,}"
                got = f"{value:,}" if isinstance(value, int) else value
                raise SettingsError(f"{variable(spec.name)} must be {limit}, got {got}")
        self._require_among("backends", BACKENDS)
        self._require_among("preload", self.backends)
        self._require_among("weights_mode", ("map", "read"))
        self._require_among("precision", tuple(PRECISIONS))
        self._require_among("log_level", ("debug", "info", "warning", "error"))
        if not self.backends:
            raise SettingsError(f"{variable('backends')} must name at least one of {', '.join(BACKENDS)}")
        for origin in self.allowed_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"{variable('allowed_origins')} must have origins such as https://example.org, without a path, "
                    f"got {origin!r}"
                )
        for name in ("api_token", "admin_token"):
            token = getattr(self, name)
            if token and not (token.isascii() and token.isprintable() and " " not in token and len(token) >= 8):
                raise SettingsError(f"{variable(name)} must be 8 or more printable ASCII characters without a space")

    def _require_among(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        for item in (value,) if isinstance(value, str) else value:
            if item not in choices:
                raise SettingsError(f"{variable(name)} must be of {', '.join(choices)}, got {item!r}")

    @property
    def torch_installed(self) -> bool:
        """Return whether torch can be imported, without importing it."""
        return find_spec("torch") is not None

    @property
    def served_backends(self) -> tuple[str, ...]:
        """Return `backends`, without torch if it is not installed."""
        return tuple(name for name in self.backends if name != "torch" or self.torch_installed)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Return the settings that RNN_* variables give; an empty one counts as unset. Raises SettingsError."""
        hints = typing.get_type_hints(cls)
        given = {spec.name: environment.get(variable(spec.name), "") for spec in fields(cls)}
        return cls(**{name: _parse(name, text, hints[name]) for name, text in given.items() if text})


def unknown(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is not one, mostly by a typing error."""
    known = [variable(spec.name) for spec in fields(Settings)]
    sentences = []
    for name in sorted(name for name in environment if name.startswith("RNN_") and name not in {*known, *OTHERS}):
        near = meant(name, known)
        sentences.append(f"{name} is not a setting" + (f": do you mean {near}?" if near else ", and has no effect"))
    return sentences


def check_metrics_folder(environment: Mapping[str, str]) -> None:
    """Raise SettingsError unless the folder in which prometheus_client keeps the numbers of several workers is usable.

    It is read from the environment when prometheus_client is imported, and an empty name would mean the current folder.
    """
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        folder = environment.get(name)
        if folder is None:
            continue
        remedy = "name a folder that can be written, or unset it"
        if not folder:
            raise SettingsError(f"{name} is empty: {remedy}")
        if not os.path.isdir(folder):  # unlike Path.is_dir, False also where it may not be looked at
            what = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise SettingsError(f"{name} is {folder!r}, which {what}: {remedy}")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise SettingsError(f"{name} is {folder!r}, which cannot be written ({reason(error)}): {remedy}") from None


def variable(name: str) -> str:
    """Return the environment variable of a field."""
    return f"RNN_{name.upper()}"


def _parse(name: str, text: str, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
        return tuple(item.strip() for item in text.split(",") if item.strip())
    try:
        return kind(text)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise SettingsError(f"{variable(name)} must be {wanted}, got {text!r}") from None


def table() -> str:
    """Return the table of settings for the documentation, in Markdown."""
    rows = ["| variable | default | what |", "| --- | --- | --- |"]
    for spec in fields(Settings):
        shown = f"`{_shown(spec.default)}`" if _shown(spec.default) else ""
        rows.append(f"| `{variable(spec.name)}` | {shown} | {spec.metadata['help']} |")
    return "\n".join(rows)


def listing() -> str:
    """Return the settings for a terminal."""
    return "\n".join(
        f"  {variable(spec.name):<{_WIDTH}}{spec.metadata['help']}"
        + (f" [{_shown(spec.default)}]" if spec.default else "")
        for spec in fields(Settings)
    )


def _shown(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    import sys

    sys.stdout.write(table() + "\n")
