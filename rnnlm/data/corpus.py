"""Corpora: from a name on the command line to token ids.

`datasets` is imported only where the hub's layout is read: text files and the demo need nothing but NumPy.
"""

import codecs
import contextlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnlm.data.encoding import CorpusError, Ids, SplitStats, encode
from rnnlm.data.network import why_unreachable
from rnnlm.data.text import Vocabulary
from rnnlm.errors import UserError

log = logging.getLogger(__name__)

__all__ = ["HUB_NAMES", "Corpus", "CorpusError", "CorpusUnavailable", "SplitStats", "load_corpus"]

HUB_NAMES = {config: ("Salesforce/wikitext", config) for config in ("wikitext-103-v1", "wikitext-2-v1")}
ACCEPTED = (
    f"{', '.join(HUB_NAMES)}, OWNER/NAME:CONFIG on the dataset hub, FOLDER:CONFIG in the hub's layout, "
    "a text file, a folder of .txt files, or demo"
)

_PRETOKENISED = re.compile(r"wikitext-\d+(-raw)?-v1")  # the configs of Salesforce/wikitext
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_CHUNK_BYTES = 1 << 20
_MAX_TOKEN_CHARS = 1 << 22
_ROWS_PER_BATCH = 1000
_COUNTED = 1 << 20  # tokens at a time


class CorpusUnavailable(CorpusError):
    """The dataset hub cannot be reached, and nothing is cached."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as token ids.

    counts: (V,) int64, each word's count in the whole training split; those of the words cut count as `<UNK>`.
    whole_train: (N,) int32 ids in [0, V), the whole training split; train: its first max_tokens, a view.
    validation, test: (N,) int32 ids in [0, V); test is None where there is none. The ids may be read-only maps.
    stats: by split name, of the whole splits.
    """

    name: str
    tokenizer: str
    vocabulary: Vocabulary
    counts: npt.NDArray[np.int64]
    whole_train: Ids
    train: Ids
    validation: Ids
    test: Ids | None
    stats: Mapping[str, SplitStats]

    def train_counts(self) -> npt.NDArray[np.int64]:
        """(V,) each word's count in `train`."""
        if self.train.size == self.whole_train.size:
            return self.counts
        counts = np.zeros_like(self.counts)
        for start in range(0, self.train.size, _COUNTED):
            counts += np.bincount(self.train[start : start + _COUNTED], minlength=counts.size)
        return counts

    def report(self) -> list[str]:
        """Lines for people: the vocabulary, then each split's tokens, types, coverage and unknown words."""
        lines = [f"{self.name}: {len(self.vocabulary):,} words in the vocabulary, tokenizer {self.tokenizer}"]
        for split, of in self.stats.items():
            line = f"{split:<10} {of.tokens:>11,} tokens {of.types:>9,} types {1 - of.unknown_rate:>8.3%} covered"
            if of.unknown_types:
                more = ", ..." if of.unknown_types > len(of.unknown_words) else ""
                line += f"; {of.unknown_types:,} unknown words: {', '.join(of.unknown_words)}{more}"
            lines.append(line)
        return lines


def load_corpus(spec: str, *, vocab_size: int | None = None, max_tokens: int | None = None) -> Corpus:
    """Read the corpus that `spec` names, in one pass; at the next start its ids come from a cache.

    spec: one of ACCEPTED. vocab_size: how many words to keep, `<EOS>` and `<UNK>` included (None: all).
    max_tokens: how many training tokens to keep, from the start (TrainConfig takes 2 or more); vocabulary and counts
    stay the whole split's.
    Where there is no validation split, the last tenth of the training sentences becomes it.
    Raises CorpusError (what it names cannot be read, or holds too little), CorpusUnavailable (the hub is out of
    reach) and TextError (vocab_size).
    """
    try:
        source = _open(spec)
    except OSError as error:  # a folder on the way that may not be entered, a name that is too long
        raise CorpusError(f"cannot read corpus {spec!r}: {error.strerror or error}") from error
    encoded = encode(spec, source.tokenizer, source.identity, vocab_size, source.open)
    train = encoded.splits["train"]
    return Corpus(
        name=spec,
        tokenizer=source.tokenizer,
        vocabulary=encoded.vocabulary,
        counts=encoded.counts,
        whole_train=train,
        train=train[:max_tokens],
        validation=encoded.splits["validation"],
        test=encoded.splits.get("test"),
        stats=encoded.stats,
    )


@dataclass(frozen=True)
class _Source:
    """A text that can be read. identity: JSON that changes when the text does, None where it is not known.

    open: the splits in order, train first, each as pieces of text.
    """

    tokenizer: str
    identity: Any
    open: Callable[[], Mapping[str, Iterable[str]]]


def _open(spec: str) -> _Source:
    """What `spec` names."""
    if spec == "demo":
        return _text(_demo_path())
    if spec in HUB_NAMES:
        return _open_hub(spec, *HUB_NAMES[spec])
    path = Path(spec).expanduser()
    if path.is_file():
        return _text(path)
    if spec and path.is_dir():  # Path("") is the folder that we are in
        return _folder(path)
    source, _, config = spec.rpartition(":")
    if source and config:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return _open_local(spec, folder, config)
        if _HUB_ID.fullmatch(source):
            return _open_hub(spec, source, config)
    raise CorpusError(f"no corpus {spec!r}: no such file or folder, and not a known name; a corpus is {ACCEPTED}")


def _identity(folder: Path, files: Iterable[Path]) -> list[Any]:
    """What changes when one of these files does."""
    stats = [(path, path.stat()) for path in sorted(files)]
    return [str(folder.resolve())] + [[str(path.relative_to(folder)), s.st_size, s.st_mtime_ns] for path, s in stats]


# ---------------------------------------------------------------- text files


def _demo_path() -> Path:
    """The news articles (ABC, 2000-2001; Lee, Pincombe and Welsh 2005) that the gensim wheel brings for its tests."""
    package = importlib.util.find_spec("gensim")  # finds it without importing it
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        path = Path(folder, "test", "test_data", "lee_background.cor")
        if path.is_file():
            return path
    raise CorpusError("the demo corpus is a file of the gensim package, which is not here: pip install gensim")


def _text(path: Path) -> _Source:
    return _Source("plain", _identity(path.parent, [path]), lambda: {"train": _read_text(path)})


def _folder(folder: Path) -> _Source:
    files = sorted(path for path in folder.glob("*.txt") if path.is_file())
    if not files:
        raise CorpusError(
            f"no .txt files in the folder {str(folder)!r}; if it is in the dataset hub's layout, add its config: "
            f"{folder}:CONFIG"
        )
    return _Source("plain", _identity(folder, files), lambda: {"train": _read_files(files)})


def _read_files(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        yield from _read_text(path)
        yield "\n"


def _read_text(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file (a byte order mark is skipped), in pieces cut at white space.

    So a line may be as long as it likes; only a stretch without any white space is bounded.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    carry = ""  # what follows the last white space
    try:
        with open(path, "rb") as file:
            offset = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
            file.seek(offset)
            while True:
                chunk = file.read(_CHUNK_BYTES)
                pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk began
                try:
                    text = carry + decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{str(path)!r} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset "
                        f"{offset - pending + error.start}; convert it, e.g. with iconv -f LATIN1 -t UTF-8"
                    ) from error
                offset += len(chunk)
                cut = 1 + max(text.rfind(" "), text.rfind("\n"), text.rfind("\t"), text.rfind("\r"))
                if not chunk:
                    cut = len(text)
                carry = text[cut:]
                if len(carry) > _MAX_TOKEN_CHARS:
                    raise CorpusError(
                        f"{str(path)!r} has {len(carry):,} characters without white space before byte {offset:,}: "
                        "it does not look like text in words"
                    )
                if cut:
                    yield text[:cut]
                if not chunk:
                    return
    except OSError as error:
        raise CorpusError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


# ---------------------------------------------------------------- the dataset hub's layout


def _open_local(spec: str, folder: Path, config: str) -> _Source:
    def texts() -> Mapping[str, Iterable[str]]:
        import datasets

        with _quiet(datasets), _readable(spec):
            configs = datasets.get_dataset_config_names(str(folder))
            if config not in configs:
                raise CorpusError(f"no config {config!r} in {str(folder)!r}; it has {', '.join(configs)}")
            loaded = datasets.load_dataset(str(folder), config)
        return _splits(spec, loaded)

    # All files, for which of them a config means is a matter of `datasets`, which need not even be imported.
    files = [path for path in folder.rglob("*") if path.is_file()]
    return _Source(_tokenizer(config), [config, *_identity(folder, files)], texts)


def _tokenizer(config: str) -> str:
    return "wikitext" if _PRETOKENISED.fullmatch(config) else "plain"


def _open_hub(spec: str, name: str, config: str) -> _Source:
    import datasets

    endpoint = datasets.config.HF_ENDPOINT
    reason = "offline mode is set" if datasets.config.HF_HUB_OFFLINE else why_unreachable(endpoint)
    if reason is None:
        log.info("reading %s:%s from %s", name, config, endpoint)
        with _quiet(datasets), _readable(spec):
            loaded = datasets.load_dataset(name, config)
    else:
        # Asked online, `datasets` would retry for 25 s (measured) before it looked for its cached copy.
        try:
            with _quiet(datasets), _offline(datasets):
                loaded = datasets.load_dataset(name, config)
        except (OSError, ValueError) as error:
            no_folder = "" if spec in HUB_NAMES else f"there is no folder {name!r}, "
            raise CorpusUnavailable(
                f"{no_folder}corpus {spec!r} is not cached here, and the dataset hub cannot be reached ({endpoint}: "
                f"{reason}): run with --corpus demo, or with a local copy in the hub's layout, "
                f"--corpus FOLDER:{config}"
            ) from error
        log.warning("the dataset hub cannot be reached (%s): using the cached copy of %s", reason, spec)
    # `datasets` knows one state of a data set from another by these.
    fingerprints = [getattr(split, "_fingerprint", None) for split in loaded.values()]
    identity = None if None in fingerprints else [name, config, *fingerprints]
    return _Source(_tokenizer(config), identity, lambda: _splits(spec, loaded))


def _splits(spec: str, loaded: Any) -> dict[str, Iterator[str]]:
    if "train" not in loaded:
        raise CorpusError(f"corpus {spec!r} has no train split; it has {', '.join(loaded)}")
    columns = loaded["train"].column_names
    if "text" not in columns:
        raise CorpusError(f"corpus {spec!r} has no text column; it has {', '.join(columns)}")
    return {name: _rows(spec, loaded[name]) for name in ("train", "validation", "test") if name in loaded}


def _rows(spec: str, split: Any) -> Iterator[str]:
    """A row is a line at least, whether it says so or not."""
    with _readable(spec):
        for batch in split.select_columns("text").iter(_ROWS_PER_BATCH):
            yield "\n".join(row for row in batch["text"] if row is not None) + "\n"


@contextlib.contextmanager
def _readable(spec: str) -> Iterator[None]:
    """Make one line of whatever `datasets` raises over what it cannot read."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # its own types, pyarrow's, and those of the HTTP client of the day
        raise CorpusError(f"cannot read corpus {spec!r}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars, and from `datasets` itself only errors."""
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
    """What HF_HUB_OFFLINE=1 does, which both libraries read once, when they are imported."""
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
