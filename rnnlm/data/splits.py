"""Find out from the names of a folder's files which split each of them is.

A file belongs to the split that its path inside the folder names: any part of it, between punctuation or digits, that
is `train`; `valid`, `validation`, `val` or `dev`; or `test`. So read `ptb.train.txt`, `wiki.valid.tokens`,
`dev/part-01.txt` and `test`. If no path names a split, the folder's `.txt` files are one text.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rnnlm.data import hub
from rnnlm.data.encoding import CorpusError

SPLITS = ("train", "validation", "test")
_NAMES = {"train": "train", "valid": "validation", "validation": "validation", "val": "validation"}
_NAMES |= {"dev": "validation", "test": "test"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
# What may name a split and is no text: tables, arrays, code, notes.
_NO_TEXT = re.compile(
    r"\.(arrow|bak|bin|c|cfg|conllu?|csv|dat|db|feather|h5|hdf5|html|idx|ini|ipynb|jsonl?|log|md|np[yz]|orig|parquet|pdf"
    r"|pickle|pkl|png|pth?|py|resume|rst|safetensors|sh|tar|tfrecord|toml|tsv|xml|ya?ml|zst)"
)
_ENDING = re.compile(r"\.[A-Za-z]+")
_LISTED = 5


@dataclass(frozen=True)
class Folder:
    """files: the paths of each split, train first, in order.   left_out: text files that belong to none.

    named: whether the paths name splits.
    """

    files: dict[str, list[Path]]
    left_out: list[Path]
    named: bool


def find(folder: Path) -> Folder:
    """Find the texts of a folder and its sub-folders. Hidden files and folders are left out.

    Raises CorpusError, naming the files, if there are none or their names are ambiguous; OSError.
    """
    paths = sorted(_walk(folder))
    splits = {path: _split_of(path.relative_to(folder)) for path in paths if not _NO_TEXT.fullmatch(_ending(path))}
    named = {path: split for path, split in splits.items() if split}
    plain = [path for path in paths if _ending(path) == ".txt"]
    if not named:
        if not plain:
            configs = hub.configs(folder)
            which = f", one of {', '.join(configs)}" if configs else ""
            raise CorpusError(
                f"no .txt files in the folder {str(folder)!r} or below it; if it is in the dataset hub's layout, add "
                f"its config: {folder}:CONFIG{which}"
            )
        _refuse_twins(folder, plain)
        return Folder({"train": plain}, [], False)
    files: dict[str, list[Path]] = defaultdict(list)
    for path, split in sorted(named.items(), key=lambda item: (SPLITS.index(item[1]), item[0])):
        files[split].append(path)
    left_out = [path for path in plain if path not in named]
    if "train" not in files:
        found = "; ".join(f"{split}: {listed(folder, files[split])}" for split in files)
        raise CorpusError(
            f"the folder {str(folder)!r} names splits ({found}), but none is train: name the training text so, "
            "or give it as --corpus and the others as --validation and --test"
        )
    for found in files.values():
        _refuse_twins(folder, found)
    _refuse_synonyms(folder, files.get("validation", []))
    return Folder(dict(files), left_out, True)


def _walk(folder: Path) -> Iterable[Path]:
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:  # a link that leads back
            continue
        seen.add(real)
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _ending(path: Path) -> str:
    """Return the ending of a name, without that of its compression, in lower case."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def _words(path: Path) -> list[str]:
    return [word for part in path.parts for word in re.split(r"[\W\d_]+", part.lower()) if word in _NAMES]


def _split_of(path: Path) -> str:
    """Return the split that a path names, or "". Raises CorpusError if it names two."""
    found = {_NAMES[word] for word in _words(path)}
    if len(found) > 1:
        raise CorpusError(
            f"{str(path)!r} names two splits, {' and '.join(sorted(found))}: rename it after the one that it is"
        )
    return found.pop() if found else ""


def _refuse_twins(folder: Path, paths: list[Path]) -> None:
    """Raise CorpusError if two files differ only in their ending: one of them would be the other's copy."""
    first: dict[Path, Path] = {}
    for path in paths:
        name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
        if _ENDING.fullmatch(name.suffix) and not _words(Path(name.suffix)):  # not `part.1`, not `wiki.train`
            name = name.with_suffix("")
        twin = first.setdefault(name, path)
        if twin != path:
            raise CorpusError(
                f"{listed(folder, [twin, path])} differ only in their ending: leave one in {str(folder)!r}"
            )


def _refuse_synonyms(folder: Path, paths: list[Path]) -> None:
    """Raise CorpusError if some files are called `valid` and others `dev`, say: only one of them can be meant."""
    by_word = {word: path for path in reversed(paths) for word in _words(path.relative_to(folder))[:1]}
    if len(by_word) > 1:
        raise CorpusError(
            f"the folder {str(folder)!r} has more than one validation split, {listed(folder, list(by_word.values()))}: "
            "leave one there"
        )


def listed(folder: Path, paths: list[Path], limit: int = _LISTED) -> str:
    """Return the first paths, inside the folder, for a message."""
    more = f", ... ({len(paths):,} files)" if len(paths) > limit else ""
    return ", ".join(str(path.relative_to(folder)) for path in paths[:limit]) + more
