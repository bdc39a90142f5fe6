"""From the name of a corpus on the command line to token ids.

Text files and the demo need only NumPy; see hub.py for data sets in the hub's layout.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnnlm.arrays import I64
from rnnlm.data import hub, text_files
from rnnlm.data.encoding import CorpusError, Ids, SplitStats, encode
from rnnlm.data.hub import CorpusUnavailable
from rnnlm.data.text import Vocabulary
from rnnlm.data.text_files import Source

__all__ = ["Corpus", "CorpusError", "CorpusUnavailable", "SplitStats", "load_corpus"]

ACCEPTED = (
    f"{', '.join(hub.NAMES)}, OWNER/NAME:CONFIG on the dataset hub, FOLDER:CONFIG in the hub's layout, "
    "a text file, a folder of .txt files, or demo"
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COUNTED = 1 << 20  # tokens at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as token ids.

    counts: (V,) int64, the count of each word in the whole training split; words that were cut count as `<UNK>`.
    whole_train: (N,) int32 ids in [0, V), the whole training split; train: its first max_tokens, a view.
    validation, test: (N,) int32 ids in [0, V); test is None if there is none. The ids may be read-only maps.
    stats: by split name, of the whole splits.
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

    def train_counts(self) -> I64:
        """Return the count of each word in `train`, (V,) int64."""
        if self.train.size == self.whole_train.size:
            return self.counts
        counts = np.zeros_like(self.counts)
        for start in range(0, self.train.size, _COUNTED):
            counts += np.bincount(self.train[start : start + _COUNTED], minlength=counts.size)
        return counts

    def report(self) -> list[str]:
        """Describe the corpus in lines: its vocabulary, then each split with its coverage and unknown words."""
        lines = [f"{self.name}: {len(self.vocabulary):,} words in the vocabulary, tokenizer {self.tokenizer}"]
        for split, of in self.stats.items():
            line = f"{split:<10} {of.tokens:>11,} tokens {of.types:>9,} types {1 - of.unknown_rate:>8.3%} covered"
            if of.unknown_types:
                more = ", ..." if of.unknown_types > len(of.unknown_words) else ""
                line += f"; {of.unknown_types:,} unknown words: {', '.join(of.unknown_words)}{more}"
            lines.append(line)
        return lines


def load_corpus(spec: str, *, vocab_size: int | None = None, max_tokens: int | None = None) -> Corpus:
    """Read the corpus that `spec` names, in one pass. From the next start on, its ids come from a cache.

    spec: one of ACCEPTED.   vocab_size: how many words to keep, including `<EOS>` and `<UNK>` (None: all).
    max_tokens: how many tokens at the start of the training split to keep (2 or more); the vocabulary and the counts
    are still those of the whole split.
    Without a validation split, the last tenth of the training sentences becomes one.
    Raises CorpusError (the corpus cannot be read, or is too small), CorpusUnavailable (the hub cannot be reached) and
    TextError (vocab_size).
    """
    try:
        source = _open(spec)
    except OSError as error:  # a parent folder that may not be entered, a name that is too long
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


def _open(spec: str) -> Source:
    """Open the corpus that `spec` names. Raises CorpusError, OSError."""
    if spec == "demo":
        return text_files.text_file(_demo_path())
    if spec in hub.NAMES:
        return hub.open_hub(spec, *hub.NAMES[spec])
    path = Path(spec).expanduser()
    if path.is_file():
        return text_files.text_file(path)
    if spec and path.is_dir():  # Path("") would be the current folder
        return text_files.folder(path)
    source, _, config = spec.rpartition(":")
    if source and config:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return hub.open_folder(spec, folder, config)
        if _HUB_ID.fullmatch(source):
            return hub.open_hub(spec, source, config)
    raise CorpusError(f"no corpus {spec!r}: no such file or folder, and not a known name; a corpus is {ACCEPTED}")


def _demo_path() -> Path:
    """Find the news articles (ABC, 2000-2001; Lee, Pincombe and Welsh 2005) that gensim ships for its tests."""
    package = importlib.util.find_spec("gensim")  # does not import it
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        path = Path(folder, "test", "test_data", "lee_background.cor")
        if path.is_file():
            return path
    raise CorpusError("the demo corpus is a file of the gensim package, which is not installed: pip install gensim")
