"""From the name of a corpus on the command line to token ids.

Text files and the demo need only NumPy; see hub.py for data sets in the hub's layout.
"""

import functools
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from rnnlm.arrays import I64
from rnnlm.data import hub, splits, text_files
from rnnlm.data.encoding import CorpusError, Ids, Source, SplitStats, Texts, WordCount, encode
from rnnlm.data.hub import CorpusUnavailable
from rnnlm.data.text import Vocabulary
from rnnlm.data.text_files import TextFile
from rnnlm.data.tokenizers import DROPPED, EOS, LOWERCASE, pieces
from rnnlm.errors import counted, shortened
from rnnlm.progress import progress

__all__ = ["Corpus", "CorpusError", "CorpusUnavailable", "SplitStats", "WordCount", "load_corpus"]

T = TypeVar("T")

ACCEPTED = (
    f"{', '.join(hub.NAMES)}, OWNER/NAME:CONFIG on the dataset hub, FOLDER:CONFIG in the hub's layout, "
    "a text file, a folder of .txt files or of files that name splits, - for standard input, or demo"
)

_MAX_DROPPED_RATE = 0.05  # more is worth a warning
_LISTED_FILES = 20  # of each split, in the report
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COUNTED = 1 << 20  # tokens at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as token ids.

    counts: (V,) int64, the count of each word in the whole training split; words that were cut count as `<UNK>`.
    whole_train: (N,) int32 ids in [0, V), the whole training split; train: its first max_tokens, a view.
    validation, test: (N,) int32 ids in [0, V); test is None if there is none. The ids may be read-only maps.
    stats: by split name, of the whole splits.   words: what became of the words of all splits.
    notes: lines about where the text comes from and how it was read.
    """

    name: str
    tokenizer: str
    vocabulary: Vocabulary
    counts: I64
    whole_train: Ids
    train: Ids
    validation: Ids
    test: Ids | None
    stats: Mapping[str, SplitStats]
    words: WordCount = field(default_factory=WordCount)
    notes: tuple[str, ...] = ()

    def train_counts(self) -> I64:
        """Return the count of each word in `train`, (V,) int64."""
        if self.train.size == self.whole_train.size:
            return self.counts
        counts = np.zeros_like(self.counts)
        for start in range(0, self.train.size, _COUNTED):
            counts += np.bincount(self.train[start : start + _COUNTED], minlength=counts.size)
        return counts

    def report(self) -> list[str]:
        """Describe the corpus in lines: vocabulary, splits with their unknown words, dropped words, notes."""
        lines = [f"{self.name}: {counted(len(self.vocabulary), 'word')} in the vocabulary, tokenizer {self.tokenizer}"]
        for split, of in self.stats.items():
            line = f"{split:<10} {of.tokens:>11,} tokens {of.types:>9,} types {1 - of.unknown_rate:>8.3%} covered"
            if of.unknown_types:
                more = ", ..." if of.unknown_types > len(of.unknown_words) else ""
                named = ", ".join(map(shortened, of.unknown_words))
                line += f"; {counted(of.unknown_types, 'unknown word')}: {named}{more}"
            lines.append(line)
        words = self.words
        read = words.kept + words.dropped
        lines.append(f"{counted(read, 'word')} read, {words.kept:,} kept, {words.dropped:,} dropped{self._most()}")
        return [*lines, *self.notes]

    def warning(self) -> str | None:
        """Return a line if many words were dropped."""
        if self.words.dropped_rate <= _MAX_DROPPED_RATE:
            return None
        if self.tokenizer.startswith("unicode"):
            rule = "words with digits or symbols are dropped"
        else:
            rule = "only words of the letters A to Z are kept"
            if self._are_mostly_words("unicode"):
                rule += "; --tokenizer unicode keeps those of any script"
        return f"{self.words.dropped_rate:.1%} of the words of {self.name} were dropped{self._most()}: {rule}"

    def _are_mostly_words(self, tokenizer: str) -> bool:
        """Return whether another tokenizer makes words of at least half of what was dropped most often."""
        kept = sum(
            count
            for dropped, count in self.words.most_dropped
            if any(word not in (EOS, DROPPED) for _, _, word in pieces(dropped, tokenizer))
        )
        return 2 * kept >= sum(count for _, count in self.words.most_dropped)

    def _most(self) -> str:
        most = self.words.most_dropped
        return f", most often {', '.join(f'{shortened(word)} ({count:,})' for word, count in most)}" if most else ""


def open_corpus(spec: str, *, validation: str | None = None, test: str | None = None) -> Source:
    """Find the corpus that `spec` names, and download it if necessary; `load_corpus` reads it.

    spec: one of ACCEPTED.   validation, test: text files that take the place of the corpus's own splits.
    Raises CorpusError (there is no such corpus), CorpusUnavailable (the hub cannot be reached).
    """
    given = {split: name for split, name in (("validation", validation), ("test", test)) if name is not None}
    if [spec, *given.values()].count("-") > 1:
        raise CorpusError("standard input can be only one of --corpus, --validation and --test")
    source = _reading(f"corpus {spec!r}", functools.partial(_open, spec))
    for split, name in given.items():
        file = _reading(f"{split} text {name!r}", functools.partial(_open_file, name))
        source = _with_split(source, split, name, file)
    return source


def load_corpus(
    spec: str,
    source: Source | None = None,
    *,
    validation: str | None = None,
    test: str | None = None,
    tokenizer: str | None = None,
    lowercase: bool = False,
    vocab_size: int | None = None,
    max_tokens: int | None = None,
    words: Sequence[str] = (),
) -> Corpus:
    """Read the corpus that `spec` names, in one pass. From the next start on, its ids come from a cache.

    source: what `open_corpus` has returned for spec, validation and test; None: it is called here.
    tokenizer: "plain", "unicode" or "wikitext"; None: "wikitext" for WikiText, "plain" for demo, else "unicode".
    vocab_size: how many words to keep, including `<EOS>` and `<UNK>` (None, or more than there are: all).
    words: more words for the vocabulary, whether the text has them or not.
    max_tokens: how many tokens at the start of the training split to keep (2 or more); the vocabulary and the counts
    are still those of the whole split.
    Without a validation split, the last tenth of the training sentences becomes one.
    Raises CorpusError (the corpus cannot be read, or is too small), CorpusUnavailable (the hub cannot be reached) and
    TextError (vocab_size, tokenizer).
    """
    source = source or open_corpus(spec, validation=validation, test=test)
    name = (tokenizer or source.tokenizer) + (LOWERCASE if lowercase else "")
    encoded = encode(spec, source, name, vocab_size, words)
    notes = source.notes
    if vocab_size is not None and len(encoded.vocabulary) < vocab_size:
        there = f"the vocabulary has all {len(encoded.vocabulary):,} words, fewer than --vocab-size {vocab_size}"
        notes = (there, *notes)
    train = encoded.splits["train"]
    return Corpus(
        name="standard input" if spec == "-" else spec,
        tokenizer=name,
        vocabulary=encoded.vocabulary,
        counts=encoded.counts,
        whole_train=train,
        train=train[:max_tokens],
        validation=encoded.splits["validation"],
        test=encoded.splits.get("test"),
        stats=encoded.stats,
        words=encoded.words,
        notes=notes,
    )


class Text(NamedTuple):
    """One split of a corpus as text, to be read once.

    pieces: the text, each piece cut at white space.   split: its name; "" if it is the whole corpus.
    is_tokenized: as WikiText is.
    notes: lines about where it comes from and how it is read.
    """

    pieces: Iterable[str]
    split: str
    is_tokenized: bool
    notes: tuple[str, ...]


def open_text(spec: str, split: str | None = None, *, keep_lines: bool = False) -> Text:
    """Open a split of the corpus that `spec` names; None: test if there is one, else validation, else the only one.

    keep_lines: do not join the lines of hard-wrapped text.   Raises CorpusError.
    """
    source = _reading(repr(spec), lambda: _open(spec, keep_lines, "--evaluate"))
    texts = _reading(repr(spec), source.open)
    chosen = split or next(name for name in ("test", "validation", "train") if name in texts)
    if chosen not in texts:
        raise CorpusError(f"corpus {spec!r} has no {chosen} split; it has {', '.join(texts)}")
    return Text(texts[chosen], chosen if len(texts) > 1 else "", source.tokenizer == "wikitext", source.notes)


def _reading(what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:  # a parent folder that may not be entered, a name that is too long
        raise CorpusError(f"cannot read {what}: {error.strerror or error}") from error


def _open(spec: str, keep_lines: bool = False, option: str = "--corpus") -> Source:
    """Open the corpus that `spec` names. Raises CorpusError, OSError.

    keep_lines: as in `open_text`.   option: what the user gave `spec` to, for messages.
    """
    if spec == "demo":
        return _texts("plain", {"train": [text_files.open_path(_demo_path())]})
    if spec == "-":
        return _texts("unicode", {"train": [text_files.open_standard_input()]}, keep_lines)
    if spec in hub.NAMES:
        return hub.open_hub(spec, *hub.NAMES[spec], option)
    path = Path(spec).expanduser()
    if spec and path.is_dir():  # Path("") would be the current folder
        return _folder(path, keep_lines)
    if spec and path.exists():
        return _texts("unicode", {"train": [text_files.open_path(path)]}, keep_lines)
    source, _, config = spec.rpartition(":")
    if source and config:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return hub.open_folder(spec, folder, config)
        if _HUB_ID.fullmatch(source):
            return hub.open_hub(spec, source, config, option)
    raise CorpusError(f"no corpus {spec!r}: no such file or folder, and not a known name; a corpus is {ACCEPTED}")


def _open_file(name: str) -> TextFile:
    """Open a text file for one split. Raises CorpusError, OSError."""
    if name == "-":
        return text_files.open_standard_input()
    path = Path(name).expanduser()
    if path.is_dir():
        raise CorpusError(f"{name!r} is a folder: --validation and --test take one text file")
    return text_files.open_path(path)


def _folder(path: Path, keep_lines: bool) -> Source:
    """Open the texts of a folder. Raises CorpusError, OSError."""
    found = splits.find(path)
    opened = {split: [text_files.open_path(file) for file in files] for split, files in found.files.items()}
    source = _texts("unicode", opened, keep_lines)
    files = [f"{split}: {splits.listed(path, files, _LISTED_FILES)}" for split, files in found.files.items()]
    if found.left_out:
        files.append(f"not read, since they name no split: {splits.listed(path, found.left_out, _LISTED_FILES)}")
    how = "file names tell the splits" if found.named else "all .txt files are one text"
    return replace(source, notes=(f"{path}, sub-folders included ({how}): {'; '.join(files)}", *source.notes))


def _texts(tokenizer: str, files: Mapping[str, Sequence[TextFile]], keep_lines: bool = False) -> Source:
    """Make a source of the text files of each split."""
    if keep_lines:
        for file in chain.from_iterable(files.values()):
            file.wrapping = None
    wrapped = [file for of in files.values() for file in of if file.wrapping]
    return Source(
        tokenizer=tokenizer,
        identity=[[split, [file.digest() for file in of]] for split, of in files.items()],
        open=lambda: {split: _joined(split, of) for split, of in files.items()},
        notes=tuple(_wrapping_note(file) for file in wrapped[:_LISTED_FILES]),
    )


def _with_split(source: Source, split: str, name: str, file: TextFile) -> Source:
    """Put a text file, which the user gave as `name`, in the place of a split."""

    def texts() -> Texts:
        found = {**source.open(), split: _joined(split, [file])}
        return {name: found[name] for name in splits.SPLITS if name in found}

    identity = None if source.identity is None else [source.identity, split, file.digest()]
    notes = (*source.notes, f"{split}: {file.name}", *([_wrapping_note(file)] if file.wrapping else []))
    given, optional = {**source.given, split: name}, source.optional - {split}
    return replace(source, identity=identity, open=texts, notes=notes, optional=optional, given=given)


def _wrapping_note(file: TextFile) -> str:
    assert file.wrapping
    return (
        f"{file.name}: hard-wrapped at {file.wrapping.width} columns ({file.wrapping.long:.0%} of the lines inside "
        "paragraphs are nearly that long), so blank lines end sentences, and line ends do not"
    )


def _joined(split: str, files: Sequence[TextFile]) -> Iterator[str]:
    with progress(f"reading {split}", sum(file.size for file in files), "bytes") as shown:
        for file in files:
            done, piece = 0, "\n"
            for piece in file.pieces():  # the last one is looked at below
                yield piece
                shown.advance(file.position - done)
                done = file.position
            if not piece.endswith("\n"):
                yield "\n"  # the end of a file ends its last line


def _demo_path() -> Path:
    """Find the news articles (ABC, 2000-2001; Lee, Pincombe and Welsh 2005) that gensim ships for its tests."""
    package = importlib.util.find_spec("gensim")  # does not import it
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        path = Path(folder, "test", "test_data", "lee_background.cor")
        if path.is_file():
            return path
    raise CorpusError("the demo corpus is a file of the gensim package, which is not installed: pip install gensim")
