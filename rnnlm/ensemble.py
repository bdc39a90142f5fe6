"""Make one model of several: `python -m rnnlm.ensemble weights/seed-*.safetensors --out weights/ensemble`.

The ensemble's logits are the means of its members' logits, so its distribution is the geometric mean of theirs,
renormalized: a product of experts (Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence"),
each to the power of 1/N. Networks that err in different places err less together (Hansen and Salamon 1990, "Neural
Network Ensembles").

Elman networks side by side are one Elman network, exactly. With members 1..N:

    h = [h_1 ... h_N]        Whh = diag(Whh_1, ..., Whh_N)        Wxh: a block for each member, see _side_by_side
    bh = [bh_1 ... bh_N]     Why = [Why_1; ...; Why_N] / N        by = (by_1 + ... + by_N) / N

So it is an ordinary weights file, and whatever runs one runs an ensemble.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnlm import packages

if __name__ == "__main__":
    packages.require("numpy", "python -m rnnlm.ensemble")

import numpy as np

from rnnlm import checkpoint, terminal
from rnnlm.arrays import F32, MAX_EMBED, MAX_HIDDEN
from rnnlm.checkpoint import Checkpoint, Weights
from rnnlm.errors import ArgumentParser, Failure, UserError, exit_code_of, show_path
from rnnlm.files import check_writable
from rnnlm.strict_json import show
from rnnlm.training import lock
from rnnlm.training.config import TrainConfig
from rnnlm.training.runfiles import RunFiles

_OF_MEMBER = ("hidden_size", "embedding_size", "out", "ensemble")  # a member's own, even if all agree


def combine(members: Sequence[Checkpoint], names: Sequence[str]) -> Checkpoint:
    """Return the ensemble of two or more members. Takes the memory of the result; the members may be mapped.

    names: of the members' files. Its history is empty, since nobody has evaluated it. Its config has the options that
    all members share, and in `ensemble` for each member its file, its back end and its other options. The back end is
    that of the first.
    Raises UserError (other words, another tokenizer, too large).
    """
    first = members[0]
    for member, name in zip(members, names, strict=True):
        _check_same_words(first.vocabulary, member.vocabulary, names[0], name)
        if member.tokenizer != first.tokenizer:
            raise UserError(
                f"{names[0]} and {name} read a text differently, with the tokenizers {first.tokenizer} and "
                f"{member.tokenizer}: the members of an ensemble need the same"
            )
    configs = [member.config for member in members]
    shared = {
        option: value
        for option, value in first.config.items()
        if option not in _OF_MEMBER and all(option in config and config[option] == value for config in configs)
    }
    described: list[dict[str, Any]] = [
        {
            "file": show_path(Path(name).name),
            "backend": member.backend,
            "config": {option: value for option, value in member.config.items() if option not in shared},
        }
        for member, name in zip(members, names, strict=True)
    ]
    return Checkpoint(
        weights=_side_by_side([member.weights for member in members]),
        vocabulary=first.vocabulary,
        tokenizer=first.tokenizer,
        backend=first.backend,
        config=shared | {"ensemble": described},
        history=[],
    )


def _check_same_words(ours: Sequence[str], theirs: Sequence[str], our_name: str, their_name: str) -> None:
    if ours == theirs:
        return
    shorter = min(len(ours), len(theirs))
    place = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    a, b = (show(words[place]) if place < len(words) else "missing" for words in (ours, theirs))
    raise UserError(
        f"{our_name} and {their_name} have different vocabularies, of {len(ours):,} and {len(theirs):,} words: word "
        f"{place:,} is {a} in the first and {b} in the second: train the members of an ensemble on the same text, with "
        "the same --vocab-size"
    )


def _side_by_side(members: Sequence[Weights]) -> Weights:
    """Return the weights of the ensemble. Raises UserError (too large).

    Members with equal embeddings share them; different ones are joined, word by word. Each member's Wxh is the block
    in the rows of its embeddings and the columns of its units; everything outside the blocks is zero.
    """
    tables: list[F32] = []  # (V, E_i) each, all different
    table_of: list[int] = []  # for each member, which of them it reads
    for member in members:
        same = (i for i, table in enumerate(tables) if np.array_equal(table, member.embeddings))
        table_of.append(next(same, len(tables)))
        if table_of[-1] == len(tables):
            tables.append(member.embeddings)
    rows = _places([table.shape[1] for table in tables], "embedding size E", MAX_EMBED)
    units = _places([member.hidden_size for member in members], "hidden size H", MAX_HIDDEN)
    embed, hidden, vocab = rows[-1].stop, units[-1].stop, members[0].vocab_size
    wxh = np.zeros((embed, hidden), dtype=np.float32)
    whh = np.zeros((hidden, hidden), dtype=np.float32)
    why = np.empty((hidden, vocab), dtype=np.float32)
    for member, table, own in zip(members, table_of, units, strict=True):
        wxh[rows[table], own] = member.Wxh
        whh[own, own] = member.Whh
        np.divide(member.Why, len(members), out=why[own])
    return Weights(
        embeddings=tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1),
        Wxh=wxh,
        Whh=whh,
        bh=np.concatenate([member.bh for member in members]),
        Why=why,
        by=np.mean([member.by for member in members], axis=0, dtype=np.float64).astype(np.float32),
    )


def _places(sizes: Sequence[int], what: str, limit: int) -> list[slice]:
    """Return where each of several parts is, laid end to end. Raises UserError if they exceed `limit`."""
    if sum(sizes) > limit:
        parts = " + ".join(map(str, sizes))
        raise UserError(f"the ensemble's {what} would be {parts}, more than {limit:,}: name fewer or smaller members")
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make an ensemble as the command line asks. Returns the exit code; an error is one line on stderr."""
    terminal.prepare()
    parser = ArgumentParser(
        prog="python -m rnnlm.ensemble",
        description="Make one model of several that have the same words: its logits are the means of theirs.",
    )
    parser.add_argument("weights", nargs="+", help="two or more weights files, the members of the ensemble")
    parser.add_argument("--out", required=True, help="the weights file to write, such as weights/ensemble")
    parser.add_argument("--overwrite", action="store_true", help="replace the weights file that is there")
    options = parser.parse_args(arguments)

    def work() -> None:
        if len(options.weights) < 2:
            raise UserError(f"an ensemble needs two or more weights files, got only {show_path(options.weights[0])}")
        if not options.out:
            raise UserError("--out must name a file, got '': give a name, such as weights/ensemble")
        out = TrainConfig(out=options.out).weights_path("c")
        _check_members(options.weights, out)
        check_writable(out)
        with lock.held(out):
            _check_free(out, options.overwrite)
            members = [checkpoint.load(path) for path in options.weights]
            for member, path in zip(members, options.weights, strict=True):
                checkpoint.check_finite(member.weights, path)
            try:
                ensemble = combine(members, [show_path(path) for path in options.weights])
            except MemoryError as error:
                raise Failure("there is not enough memory for the ensemble: name fewer or smaller members") from error
            checkpoint.save(out, ensemble)
        weights = ensemble.weights
        sizes = f"V={weights.vocab_size:,}, E={weights.embed_size:,}, H={weights.hidden_size:,}"
        print(f"{show_path(out)}: {sizes}, an ensemble of {len(members)}")

    return exit_code_of(parser.prog, work)


def _check_members(paths: Sequence[str], out: Path) -> None:
    """Raise UserError if a member would be replaced by the ensemble."""
    for path in paths:
        if os.path.exists(out) and os.path.exists(path) and out.samefile(path):
            raise UserError(f"--out {show_path(out)} is a member of the ensemble: choose another --out")


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise UserError if the ensemble would replace a file without leave, or come among the files of a run."""
    there = RunFiles(out).existing(tensorboard=False)
    others = [path for path in there if path != out]
    if others:
        raise UserError(f"{show_path(others[0])} belongs to a training run: choose another --out")
    if there and not overwrite:
        raise UserError(f"{show_path(out)} exists: replace it (--overwrite), or choose another --out")


if __name__ == "__main__":
    sys.exit(main())
