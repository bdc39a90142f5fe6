"""From pieces of text to token ids, in one pass, and the cache that makes the second start quick.

A text may be larger than memory. The pass writes each split's ids, in the order in which words were first seen, to a
temporary file; from its counts come the vocabulary and the final ids, and these go to a folder of the cache:

    tokens-HASH/    corpus.json: what it was made from and with, vocabulary, counts      train.npy ...: ids, (N,) int32

A start that finds a folder made from the same text with the same options by the same code maps the ids into memory.
What does not match, or is damaged, is made again.
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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from rnnlm.data import text
from rnnlm.data.text import EOS, TokenStream, Vocabulary, rank_words
from rnnlm.errors import UserError
from rnnlm.files import digest

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]
Texts = Mapping[str, Iterable[str]]  # by the split's name, train first: its text in pieces

_BLOCK = 1 << 20  # tokens at a time
_IN_MEMORY_BYTES = 64 << 20  # of a split's first ids; what is larger goes to disk
_NAMED_UNKNOWN = 5  # how many unknown words a report names


class CorpusError(UserError):
    """A corpus that cannot be read, or that holds too little."""


@dataclass(frozen=True)
class SplitStats:
    """One split of a corpus.

    tokens: `<EOS>` included; types: distinct ones; unknown_rate: share of the tokens that become `<UNK>`;
    unknown_types: how many distinct words that is; unknown_words: the most frequent of them.
    """

    tokens: int
    types: int
    unknown_rate: float
    unknown_types: int = 0
    unknown_words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """A corpus as ids. splits: (N,) int32 in [0, V), maybe read-only maps of files. counts: (V,) int64."""

    vocabulary: Vocabulary
    counts: npt.NDArray[np.int64]
    splits: Mapping[str, Ids]
    stats: Mapping[str, SplitStats]


def encode(
    name: str, tokenizer: str, identity: Any, vocab_size: int | None, open_texts: Callable[[], Texts]
) -> Encoded:
    """The ids of the text that `open_texts` gives, from the cache where it holds them.

    name: for messages.  identity: JSON that changes when the text does; None: it is not known, and nothing is cached.
    Raises CorpusError, TextError (vocab_size), and what `open_texts` raises.
    """
    if identity is None:
        return _in_memory(name, tokenizer, open_texts(), vocab_size)
    key = [_code_version(), tokenizer, vocab_size, identity]
    # One folder for each text and size: what was made of an older state of the text is replaced.
    folder = cache_folder() / f"tokens-{digest(json.dumps([name, os.getcwd(), vocab_size]).encode())[:32]}"
    stored = _load(folder, key)
    if stored is not None:
        return stored
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name, suffix=".tmp") as temporary,
            _Pass(name, tokenizer, open_texts(), temporary) as read,
        ):
            _store(Path(temporary, "new"), folder, key, read.plan(vocab_size))
    except OSError as error:  # a CorpusError is what reading the text raises
        log.warning(
            "the tokens of %s are not cached: %s; set RNN_CACHE_DIR to a folder with room",
            name,
            error.strerror or error,
        )
        return _in_memory(name, tokenizer, open_texts(), vocab_size)
    stored = _load(folder, key)
    if stored is None:  # another process puts something else there at the same time
        return _in_memory(name, tokenizer, open_texts(), vocab_size)
    return stored


# ---- One pass over the text ------------------------------------------------------------------------------------------


class _Spool:
    """A split's ids as they come. On disk where there is much, in memory where there is little or no folder."""

    def __init__(self, folder: str | None) -> None:
        self.size = 0
        # Roll-over at 0 bytes means never.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES if folder else 0, dir=folder)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, ids: array[int]) -> None:
        self._file.write(memoryview(ids).cast("B"))
        self.size += len(ids)

    def blocks(self, start: int, stop: int) -> Iterator[Ids]:
        """The ids [start, stop), some at a time."""
        while start < stop:
            count = min(_BLOCK, stop - start)
            self._file.seek(4 * start)
            yield np.frombuffer(self._file.read(4 * count), dtype=np.int32)
            start += count


@dataclass(frozen=True)
class _Part:
    """Some ids of a spool: a split."""

    spool: _Spool
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def blocks(self) -> Iterator[Ids]:
        return self.spool.blocks(self.start, self.stop)

    def counts(self, types: int) -> npt.NDArray[np.int64]:
        total = np.zeros(types, dtype=np.int64)
        for block in self.blocks():
            total += np.bincount(block, minlength=types)
        return total


@dataclass(frozen=True)
class _Plan:
    """What a corpus becomes: the vocabulary, and the parts whose ids turn into its by `new_ids`."""

    vocabulary: Vocabulary
    counts: npt.NDArray[np.int64]
    parts: Mapping[str, _Part]
    new_ids: Ids
    stats: Mapping[str, SplitStats]

    def blocks(self, split: str) -> Iterator[Ids]:
        return (self.new_ids[block] for block in self.parts[split].blocks())


class _Pass:
    """The text as ids in the order in which words were first seen. A context, which lets go of the temporary files."""

    def __init__(self, name: str, tokenizer: str, texts: Texts, folder: str | None) -> None:
        self.name, self._tokenizer, self._folder = name, tokenizer, folder
        self._types: defaultdict[str, int] = defaultdict()
        self._types.default_factory = self._types.__len__  # a type's first look-up gives it the next id
        with contextlib.ExitStack() as files:
            self.spools = {split: files.enter_context(self._read(pieces)) for split, pieces in texts.items()}
            self._files = files.pop_all()
        self.types = list(self._types)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _read(self, pieces: Iterable[str]) -> _Spool:
        look_up, stream, ids = self._types.__getitem__, TokenStream(self._tokenizer), array("i")
        with contextlib.ExitStack() as files:
            spool = files.enter_context(_Spool(self._folder))
            for piece in pieces:
                ids.extend(map(look_up, stream.feed(piece)))
                if len(ids) >= _BLOCK:
                    spool.append(ids)
                    ids = array("i")
            ids.extend(map(look_up, stream.close()))
            spool.append(ids)
            files.pop_all()  # it stays open
        return spool

    def plan(self, vocab_size: int | None) -> _Plan:
        """Vocabulary, counts and splits. Raises CorpusError, TextError."""
        types = self.types
        parts = {split: _Part(spool, 0, spool.size) for split, spool in self.spools.items() if spool.size}
        eos = types.index(EOS) if types else 0
        counts = {split: part.counts(len(types)) for split, part in parts.items()}
        if "train" not in parts or counts["train"].sum() == counts["train"][eos]:
            raise CorpusError(f"corpus {self.name!r} holds no words in its training split: give it a text with words")
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
        )
        vocabulary = Vocabulary(ranked)
        unk = -1 if vocabulary.unk is None else vocabulary.unk
        new_ids = np.array([vocabulary.ids.get(word, unk) for word in types], dtype=np.int32)
        return _Plan(
            vocabulary=vocabulary,
            counts=np.fromiter(ranked.values(), dtype=np.int64, count=len(ranked)),
            parts=parts,
            new_ids=new_ids,
            stats={split: self._stats(counts[split], new_ids == unk) for split in parts},
        )

    def _stats(self, counts: npt.NDArray[np.int64], unknown: npt.NDArray[np.bool_]) -> SplitStats:
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
        """Split at a sentence end: the last tenth of the sentences, one at least, is for validation."""
        if sentences < 2:
            raise CorpusError(
                f"corpus {self.name!r} holds one sentence: training and validation need one each, two at least"
            )
        kept, position = sentences - max(1, sentences // 10), 0  # the cut stands behind so many <EOS>
        for block in train.blocks():
            ends = np.flatnonzero(block == eos)
            if kept <= len(ends):
                cut = position + int(ends[kept - 1]) + 1
                return _Part(train.spool, 0, cut), _Part(train.spool, cut, train.stop)
            kept, position = kept - len(ends), position + len(block)
        raise AssertionError("fewer sentence ends than were counted")


def _in_memory(name: str, tokenizer: str, texts: Texts, vocab_size: int | None) -> Encoded:
    with _Pass(name, tokenizer, texts, None) as read:
        plan = read.plan(vocab_size)
        splits = {}
        for split, part in plan.parts.items():
            ids, position = np.empty(len(part), dtype=np.int32), 0
            for block in plan.blocks(split):
                ids[position : position + len(block)] = block
                position += len(block)
            splits[split] = ids
    return Encoded(plan.vocabulary, plan.counts, splits, plan.stats)


# ---- The cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where tokens and vectors are kept between runs."""
    return Path(os.environ.get("RNN_CACHE_DIR") or "~/.cache/rnn-words").expanduser()


def _code_version() -> str:
    """What decides the ids beside the text: this program's own code."""
    files = [Path(__file__), Path(text.__file__), Path(__file__).with_name("corpus.py")]
    return digest(b"".join(file.read_bytes() for file in files))[:16]


def _store(new: Path, folder: Path, key: list[Any], plan: _Plan) -> None:
    """Write the folder under the name `new`, then rename it: nobody ever reads half of it. Raises OSError.

    Where another process puts the folder there at the same time, that one stays.
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
    (new / "corpus.json").write_text(json.dumps(about), encoding="utf-8")
    # What was there goes first, into the folder that will be removed; who has mapped it keeps it.
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


def _load(folder: Path, key: list[Any]) -> Encoded | None:
    """What `folder` holds; None where that is nothing, damaged, or made from something else."""
    try:
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if about["key"] != json.loads(json.dumps(key)):
            log.info("the text has changed since its tokens were cached, or this program: reading it again")
            return None
        vocabulary = Vocabulary(about["words"])
        splits, stats = {}, {}
        for split, entry in about["splits"].items():
            splits[split] = _map(folder / f"{split}.npy", entry["sha256"])
            stats[split] = SplitStats(**entry["stats"] | {"unknown_words": tuple(entry["stats"]["unknown_words"])})
        counts = np.array(about["counts"], dtype=np.int64)
        return Encoded(vocabulary, counts, splits, stats)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, UserError) as error:
        log.warning("ignoring the damaged cache folder %s (%s): reading the text again", folder, error)
        return None


def _map(path: Path, sha256: str) -> Ids:
    """The ids of a file, mapped. Raises OSError, ValueError where they are not those that were written."""
    ids = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    if ids.dtype != np.int32 or ids.ndim != 1:
        raise ValueError(f"{path.name} holds {ids.dtype} {list(ids.shape)}")
    if digest(ids) != sha256:
        raise ValueError(f"{path.name} does not hold what was written to it")
    return ids
