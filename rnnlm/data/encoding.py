"""From text to token ids, in one pass, and the cache that makes the second start quick.

A text may be larger than memory. The pass numbers the words in the order in which it meets them, and writes these
first ids to a temporary file for each split. The counts then give the vocabulary and the final ids, which are written
to a folder of the cache:

    tokens-HASH/    corpus.json: text and options it was made from, vocabulary, counts      train.npy ...: (N,) int32

Later starts with the same text, options and code map these ids into memory. A folder that does not match or is
damaged is made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from rnnlm.arrays import I32, I64, Mask
from rnnlm.data.text import DROPPED_MARK, EOS, TokenStream, Vocabulary, rank_words
from rnnlm.errors import UserError
from rnnlm.files import digest

log = logging.getLogger(__name__)

Ids = I32
Texts = Mapping[str, Iterable[str]]  # the text of each split in pieces, train first

_BLOCK = 1 << 20  # tokens at a time
_IN_MEMORY_BYTES = 64 << 20  # first ids of a split that may stay in memory; more go to disk
_NAMED_UNKNOWN = 5  # how many unknown words a report names, and how many dropped ones
_MAX_DROPPED_TYPES = 1 << 17  # whose counts are kept apart: some 15 MB; what is frequent comes early in a text


class CorpusError(UserError):
    """The corpus cannot be read, or is too small."""


@dataclass(frozen=True)
class Source:
    """A text that can be read, more than once.

    tokenizer: what suits it.   identity: JSON that changes when the text does; None: not known, so nothing is cached.
    open: returns the splits, train first, each as pieces of text cut at white space.
    notes: lines about where the text comes from and how it is read.
    optional: the splits that count as none if they hold no words, since the user cannot take them away.
    given: the names of the texts that take the place of splits, by split.
    """

    tokenizer: str
    identity: Any
    open: Callable[[], Texts]
    notes: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitStats:
    """One split of a corpus.

    tokens: their number, with `<EOS>`.   types: how many of them are distinct.
    unknown_rate: the share of tokens that become `<UNK>`.   unknown_types: how many distinct words those are.
    unknown_words: the most frequent of them.
    """

    tokens: int
    types: int
    unknown_rate: float
    unknown_types: int = 0
    unknown_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class WordCount:
    """What became of the words of all splits.

    kept: how many became tokens.   dropped: how many did not, since the tokenizer makes no word of them.
    most_dropped: the most frequent of these, each with its count.
    """

    kept: int = 0
    dropped: int = 0
    most_dropped: tuple[tuple[str, int], ...] = ()

    @property
    def dropped_rate(self) -> float:
        """The share of the words that were dropped."""
        return self.dropped / max(self.kept + self.dropped, 1)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A corpus as ids.   splits: (N,) int32 in [0, V), possibly read-only maps of files.   counts: (V,) int64."""

    vocabulary: Vocabulary
    counts: I64
    splits: Mapping[str, Ids]
    stats: Mapping[str, SplitStats]
    words: WordCount


def encode(name: str, source: Source, tokenizer: str, vocab_size: int | None, words: Sequence[str] = ()) -> Encoded:
    """Return the ids of a text, from the cache if they are there.

    name: for messages.   words: more words for the vocabulary.
    Raises CorpusError, TextError (vocab_size, tokenizer), and whatever the source raises.
    """
    if source.identity is None:
        return _in_memory(name, tokenizer, source, vocab_size, words)
    more = digest("\n".join(words).encode()) if words else None
    key = [_code_version(), tokenizer, vocab_size, more, source.identity]
    # One folder for the names of the texts, tokenizer and size: the ids of an older state of the text are replaced.
    given = [sorted(source.given.items())] if source.given else []
    place = json.dumps([name, *given, os.getcwd(), tokenizer, vocab_size, more])
    folder = cache_folder() / f"tokens-{digest(place.encode())[:32]}"
    is_piped = "-" in (name, *source.given.values())  # then another text is no news
    stored = _load(folder, key, tokenizer, tell=not is_piped)
    if stored is not None:
        return stored
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name, suffix=".tmp") as temporary,
            _Pass(name, tokenizer, source, temporary) as read,
        ):
            _store(Path(temporary, "new"), folder, key, read.plan(vocab_size, words))
    except OSError as error:  # of the cache: an error of the text would be a CorpusError
        log.warning(
            "the tokens of %s are not cached: %s; set RNN_CACHE_DIR to a folder with room",
            name,
            error.strerror or error,
        )
        return _in_memory(name, tokenizer, source, vocab_size, words)
    stored = _load(folder, key, tokenizer, tell=not is_piped)
    if stored is None:  # another process has just replaced it
        return _in_memory(name, tokenizer, source, vocab_size, words)
    return stored


# ---- One pass over the text ------------------------------------------------------------------------------------------


class _Spool:
    """The first ids of a split as they come: on disk if they are many and there is a folder, else in memory."""

    def __init__(self, folder: str | None) -> None:
        self.size = 0
        # A maximum of 0 bytes means that it never rolls over to disk.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES if folder else 0, dir=folder)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, ids: Ids) -> None:
        self._file.write(memoryview(ids).cast("B"))
        self.size += len(ids)

    def blocks(self, start: int, stop: int) -> Iterator[Ids]:
        """Yield the ids [start, stop) block by block."""
        while start < stop:
            count = min(_BLOCK, stop - start)
            self._file.seek(4 * start)
            yield np.frombuffer(self._file.read(4 * count), dtype=np.int32)
            start += count


@dataclass(frozen=True)
class _Part:
    """A range of a spool: the ids of one split."""

    spool: _Spool
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def blocks(self) -> Iterator[Ids]:
        return self.spool.blocks(self.start, self.stop)

    def counts(self, types: int) -> I64:
        total = np.zeros(types, dtype=np.int64)
        for block in self.blocks():
            total += np.bincount(block, minlength=types)
        return total


@dataclass(frozen=True)
class _Plan:
    """What a corpus becomes: the vocabulary, and the parts, whose first ids `new_ids` maps to ids of the vocabulary."""

    vocabulary: Vocabulary
    counts: I64
    parts: Mapping[str, _Part]
    new_ids: Ids
    stats: Mapping[str, SplitStats]
    words: WordCount

    def blocks(self, split: str) -> Iterator[Ids]:
        return (self.new_ids[block] for block in self.parts[split].blocks())


class _Types(dict[str, int]):
    """First ids, given in the order of look-up: 0, 1, 2, ... to words, -1, -2, ... to dropped ones.

    words, dropped: the words by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.dropped: list[str] = []

    def __missing__(self, token: str) -> int:
        if not token.startswith(DROPPED_MARK):
            self.words.append(token)
            i = len(self.words) - 1
        elif len(self.dropped) < _MAX_DROPPED_TYPES:
            self.dropped.append(token.removeprefix(DROPPED_MARK))
            i = -len(self.dropped)
        else:
            return -_MAX_DROPPED_TYPES - 1  # one id for all the others
        self[token] = i
        return i


class _Pass:
    """The text as first ids. A context manager, which closes the temporary files."""

    def __init__(self, name: str, tokenizer: str, source: Source, folder: str | None) -> None:
        self.name, self._tokenizer, self._folder = name, tokenizer, folder
        self._optional = source.optional
        self._types = _Types()
        self._dropped = np.zeros(_MAX_DROPPED_TYPES + 1, dtype=np.int64)  # the count of each dropped word
        with contextlib.ExitStack() as files:
            self.spools = {split: files.enter_context(self._read(pieces)) for split, pieces in source.open().items()}
            self._files = files.pop_all()
        self.types = self._types.words

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _read(self, pieces: Iterable[str]) -> _Spool:
        stream, ids = TokenStream(self._tokenizer, dropped=True, convert=self._types.__getitem__), array("i")
        with contextlib.ExitStack() as files:
            spool = files.enter_context(_Spool(self._folder))
            for piece in pieces:
                ids.extend(stream.feed(piece))
                if len(ids) >= _BLOCK:
                    spool.append(self._without_dropped(ids))
                    ids = array("i")
            ids.extend(stream.close())
            spool.append(self._without_dropped(ids))
            files.pop_all()  # stays open
        return spool

    def _without_dropped(self, ids: array[int]) -> Ids:
        """Return the ids of words, and count the others."""
        found = np.frombuffer(ids, dtype=np.int32)
        is_dropped = found < 0
        counts = np.bincount(-1 - found[is_dropped])
        self._dropped[: len(counts)] += counts
        return found[~is_dropped]

    def _word_count(self, kept: int) -> WordCount:
        named = self._dropped[: len(self._types.dropped)]
        most = np.argsort(-named, kind="stable")[:_NAMED_UNKNOWN]
        return WordCount(kept, int(self._dropped.sum()), tuple((self._types.dropped[i], int(named[i])) for i in most))

    def plan(self, vocab_size: int | None, words: Sequence[str]) -> _Plan:
        """Decide on vocabulary, counts and splits. Raises CorpusError, TextError."""
        types = self.types
        parts = {split: _Part(spool, 0, spool.size) for split, spool in self.spools.items()}
        eos = types.index(EOS) if types else 0
        counts = {split: part.counts(len(types)) for split, part in parts.items()}
        for split in [split for split, c in counts.items() if c.sum() == c[eos : eos + 1].sum()]:
            if split == "train":
                raise CorpusError(f"corpus {self.name!r} holds no words in its training split: use a text with words")
            if split not in self._optional:
                raise CorpusError(
                    f"the {split} split of corpus {self.name!r} holds no words: use a text with words, or leave it out"
                )
            del parts[split], counts[split]
        if "validation" not in parts:
            train, validation = self._last_tenth(parts["train"], eos, int(counts["train"][eos]))
            parts = {"train": train, "validation": validation} | {k: v for k, v in parts.items() if k != "train"}
            counts |= {"validation": validation.counts(len(types))}
            counts["train"] = counts["train"] - counts["validation"]

        seen = counts["train"] > 0
        has_unseen = any(bool((c[~seen] > 0).any()) for c in counts.values())
        ranked = rank_words(
            {types[i]: int(counts["train"][i]) for i in np.flatnonzero(seen)},
            vocab_size=vocab_size,
            has_unseen=has_unseen,
            more=words,
        )
        vocabulary = Vocabulary(ranked, self._tokenizer)
        kept = sum(int(c.sum() - c[eos]) for c in counts.values())
        unk = -1 if vocabulary.unk is None else vocabulary.unk
        new_ids = np.array([vocabulary.ids.get(word, unk) for word in types], dtype=np.int32)
        return _Plan(
            vocabulary=vocabulary,
            counts=np.fromiter(ranked.values(), dtype=np.int64, count=len(ranked)),
            parts=parts,
            new_ids=new_ids,
            stats={split: self._stats(counts[split], new_ids == unk) for split in parts},
            words=self._word_count(kept),
        )

    def _stats(self, counts: I64, unknown: Mask) -> SplitStats:
        tokens, unknown_counts = int(counts.sum()), np.where(unknown, counts, 0)
        most = np.argsort(-unknown_counts, kind="stable")[:_NAMED_UNKNOWN]
        return SplitStats(
            tokens=tokens,
            types=int((counts > 0).sum()),
            unknown_rate=float(unknown_counts.sum() / tokens),
            unknown_types=int((unknown_counts > 0).sum()),
            unknown_words=tuple(self.types[i] for i in most if unknown_counts[i]),
        )

    def _last_tenth(self, train: _Part, eos: int, sentences: int) -> tuple[_Part, _Part]:
        """Split off the last tenth of the sentences, at least one, for validation."""
        if sentences < 2:
            raise CorpusError(
                f"corpus {self.name!r} holds one sentence: training and validation need at least one each"
            )
        kept, position = sentences - max(1, sentences // 10), 0  # the cut comes after `kept` <EOS>
        for block in train.blocks():
            ends = np.flatnonzero(block == eos)
            if kept <= len(ends):
                cut = position + int(ends[kept - 1]) + 1
                return _Part(train.spool, 0, cut), _Part(train.spool, cut, train.stop)
            kept, position = kept - len(ends), position + len(block)
        raise AssertionError("fewer sentence ends than were counted")


def _in_memory(name: str, tokenizer: str, source: Source, vocab_size: int | None, words: Sequence[str]) -> Encoded:
    with _Pass(name, tokenizer, source, None) as read:
        plan = read.plan(vocab_size, words)
        splits = {}
        for split, part in plan.parts.items():
            ids, position = np.empty(len(part), dtype=np.int32), 0
            for block in plan.blocks(split):
                ids[position : position + len(block)] = block
                position += len(block)
            splits[split] = ids
    return Encoded(plan.vocabulary, plan.counts, splits, plan.stats, plan.words)


# ---- The cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder that keeps tokens and vectors between runs."""
    return Path(os.environ.get("RNN_CACHE_DIR") or "~/.cache/rnn-words").expanduser()


def _code_version() -> str:
    """Identify the code that makes the ids: what else they depend on beside the text."""
    names = ("corpus", "encoding", "hub", "splits", "text", "text_files", "tokenizers", "wrapping")
    files = [Path(__file__).with_name(f"{name}.py") for name in names]
    return digest(b"".join(file.read_bytes() for file in files))[:16]


def _store(new: Path, folder: Path, key: list[Any], plan: _Plan) -> None:
    """Write the folder under the name `new`, then rename it, so that nobody reads half of it. Raises OSError.

    If another process puts the folder there at the same time, that one stays.
    """
    new.mkdir()
    splits = {}
    for split, part in plan.parts.items():
        written = hashlib.sha256()
        with open(new / f"{split}.npy", "wb") as file:
            _write_header(file, len(part))
            for block in plan.blocks(split):
                file.write(block)
                written.update(block)
        splits[split] = {"sha256": written.hexdigest(), "stats": asdict(plan.stats[split])}
    about = {"key": key, "splits": splits, "words": plan.vocabulary.words, "counts": plan.counts.tolist()}
    about["word_count"] = asdict(plan.words)
    (new / "corpus.json").write_text(json.dumps(about), encoding="utf-8")
    # First move the old folder into the one that will be removed. Processes that have mapped its files keep them.
    with contextlib.suppress(FileNotFoundError):
        folder.rename(new.with_name("old"))
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _write_header(file: BinaryIO, count: int) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(np.int32).str, "fortran_order": False, "shape": (count,)}
    )


def _load(folder: Path, key: list[Any], tokenizer: str, *, tell: bool) -> Encoded | None:
    """Return what `folder` holds; None if it is missing, damaged, or was made from something else.

    tell: log it if the text has changed.
    """
    try:
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if about["key"] != json.loads(json.dumps(key)):
            if tell:
                log.info("the text, or this program, has changed since the tokens were cached: reading the text again")
            return None
        vocabulary = Vocabulary(about["words"], tokenizer)
        splits, stats = {}, {}
        for split, entry in about["splits"].items():
            splits[split] = _map(folder / f"{split}.npy", entry["sha256"])
            stats[split] = SplitStats(**entry["stats"] | {"unknown_words": tuple(entry["stats"]["unknown_words"])})
        counts = np.array(about["counts"], dtype=np.int64)
        most = tuple((str(word), int(count)) for word, count in about["word_count"]["most_dropped"])
        words = WordCount(**about["word_count"] | {"most_dropped": most})
        return Encoded(vocabulary, counts, splits, stats, words)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, UserError) as error:
        log.warning("ignoring the damaged cache folder %s (%s): reading the text again", folder, error)
        return None


def _map(path: Path, sha256: str) -> Ids:
    """Map the ids of a file. Raises OSError; ValueError if they are not the ones that were written."""
    ids = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    if ids.dtype != np.int32 or ids.ndim != 1:
        raise ValueError(f"{path.name} holds {ids.dtype} {list(ids.shape)}")
    if digest(ids) != sha256:
        raise ValueError(f"{path.name} has changed since it was written")
    return ids
