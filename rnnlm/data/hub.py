"""Data sets in the dataset hub's layout: from the hub, from its cache, or from a local folder.

`datasets` is imported only when such a corpus is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rnnlm.data.encoding import CorpusError, Source
from rnnlm.data.network import why_unreachable
from rnnlm.errors import UserError
from rnnlm.progress import progress

log = logging.getLogger(__name__)

NAMES = {config: ("Salesforce/wikitext", config) for config in ("wikitext-103-v1", "wikitext-2-v1")}

_PRETOKENISED = re.compile(r"wikitext-\d+(-raw)?-v1")  # the configs of Salesforce/wikitext
_ROWS_PER_BATCH = 1000
_OPTIONAL = frozenset({"validation", "test"})


class CorpusUnavailable(CorpusError):
    """The dataset hub cannot be reached, and no copy is cached."""


def open_folder(spec: str, folder: Path, config: str) -> Source:
    """Open a config of a local folder. Raises CorpusError when it is read."""

    def texts() -> Mapping[str, Iterable[str]]:
        import datasets

        with _quiet(datasets), _readable(spec):
            configs = datasets.get_dataset_config_names(str(folder))
            if config not in configs:
                raise CorpusError(f"no config {config!r} in {str(folder)!r}; it has {', '.join(configs)}")
            loaded = datasets.load_dataset(str(folder), config)
        return _splits(spec, loaded)

    # All files, since only `datasets` knows which of them belong to a config, and it need not be imported here.
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    identity = [config, [[str(path.relative_to(folder)), _digest(path)] for path in files]]
    return Source(_tokenizer(config), identity, texts, optional=_OPTIONAL)


def configs(folder: Path) -> list[str]:
    """Return the configs of a local folder, for a message; none if it is no data set that `datasets` can read."""
    try:
        import datasets

        with _quiet(datasets):
            return datasets.get_dataset_config_names(str(folder))
    except Exception:  # as in _readable; or `datasets` is not installed
        return []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(config: str) -> str:
    return "wikitext" if _PRETOKENISED.fullmatch(config) else "unicode"


def open_hub(spec: str, name: str, config: str, option: str = "--corpus") -> Source:
    """Open a config of a data set on the hub, or its cached copy. Raises CorpusUnavailable, CorpusError.

    option: what the user gave `spec` to.
    """
    import datasets

    endpoint = datasets.config.HF_ENDPOINT
    reason = "offline mode is set" if datasets.config.HF_HUB_OFFLINE else why_unreachable(endpoint)
    if reason is None:
        log.info("reading %s:%s from %s", name, config, endpoint)
        with _quiet(datasets), _readable(spec):
            loaded = datasets.load_dataset(name, config)
    else:
        # Online, `datasets` would retry for 25 s (measured) before it looked for its cached copy.
        try:
            with _quiet(datasets), _offline(datasets):
                loaded = datasets.load_dataset(name, config)
        except (OSError, ValueError) as error:
            no_folder = "" if spec in NAMES else f"there is no folder {name!r}, "
            raise CorpusUnavailable(
                f"{no_folder}corpus {spec!r} is not cached here, and the dataset hub cannot be reached ({endpoint}: "
                f"{reason}): run with {option} demo, or with a local copy in the hub's layout, "
                f"{option} FOLDER:{config}"
            ) from error
        log.warning("the dataset hub cannot be reached (%s): using the cached copy of %s", reason, spec)
    # By these `datasets` tells one state of a data set from another.
    fingerprints = [getattr(split, "_fingerprint", None) for split in loaded.values()]
    identity = None if None in fingerprints else [name, config, *fingerprints]
    return Source(_tokenizer(config), identity, lambda: _splits(spec, loaded), optional=_OPTIONAL)


def _splits(spec: str, loaded: Any) -> dict[str, Iterator[str]]:
    if "train" not in loaded:
        raise CorpusError(f"corpus {spec!r} has no train split; it has {', '.join(loaded)}")
    columns = loaded["train"].column_names
    if "text" not in columns:
        raise CorpusError(f"corpus {spec!r} has no text column; it has {', '.join(columns)}")
    return {name: _rows(spec, name, loaded[name]) for name in ("train", "validation", "test") if name in loaded}


def _rows(spec: str, name: str, split: Any) -> Iterator[str]:
    """Yield the rows as text. The end of a row ends its last line."""
    with _readable(spec), progress(f"reading {name}", split.num_rows, "rows") as shown:
        for batch in split.select_columns("text").iter(_ROWS_PER_BATCH):
            yield "\n".join(row for row in batch["text"] if row is not None) + "\n"
            shown.advance(len(batch["text"]))


@contextlib.contextmanager
def _readable(spec: str) -> Iterator[None]:
    """Turn whatever `datasets` raises when it cannot read something into a one-line CorpusError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # its own types, pyarrow's, and those of its HTTP client
        raise CorpusError(f"cannot read corpus {spec!r}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence `datasets`: no progress bars, and only its errors are logged."""
    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Set offline mode for a while. Both libraries read HF_HUB_OFFLINE only once, when they are imported."""
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
