"""--init-from: a new run that starts from the weights of another, on a text that may have new words.

The vocabulary is that of the weights and of the text. Words are matched by their letters, not by their ids: a known
word keeps its vector and its output weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm import checkpoint
from rnnlm.arrays import F32
from rnnlm.checkpoint import Checkpoint, CheckpointError, Weights
from rnnlm.data.corpus import Corpus
from rnnlm.data.embeddings import Embeddings, fill_missing, load_embeddings, root_lengths
from rnnlm.data.text import EOS, UNK
from rnnlm.data.tokenizers import LOWERCASE
from rnnlm.errors import show_path
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group

# What the weights decide.
DECIDED = ("hidden_size", "embedding_size", "vector_lengths", "init", "embeddings", "tokenizer", "lowercase")


def options_of(path: str, weights_path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the weights decide, unless the command line does.

    weights_path: where the run saves its own.   given: the options of the command line.
    Raises ConfigError, which lists all that do not fit the weights; CheckpointError.
    """
    source = _load(path)
    name = show_path(path)
    if weights_path.exists() and weights_path.samefile(path):
        raise ConfigError(
            f"--init-from {name}: the run would replace this file, which --resume needs: give another --out"
        )
    fixed = {
        "hidden_size": source.weights.hidden_size,
        "embedding_size": source.weights.embed_size,
        "vector_lengths": source.config.get("vector_lengths", "given"),
    }
    conflicts = [
        f"--{option.replace('_', '-')} {given[option]} (it has {value})"
        for option, value in fixed.items()
        if given.get(option, value) != value
    ]
    if "init" in given:
        conflicts.append(f"--init {given['init']} (its output bias is kept)")
    if given.get("embeddings") == "train":
        conflicts.append("--embeddings train (vectors of one training mean nothing beside those of another)")
    if conflicts:
        raise ConfigError(f"--init-from {name} does not go with {', '.join(conflicts)}: leave that out")
    tokenizer, _, lowered = source.tokenizer.partition("+")
    found = fixed | {"embeddings": "random", "lowercase": f"+{lowered}" == LOWERCASE}
    # The words of WikiText occur in other texts too, but those are not tokenized already.
    return found if tokenizer == "wikitext" else found | {"tokenizer": tokenizer}


def _load(path: str) -> Checkpoint:
    try:
        source = checkpoint.load(path)
        checkpoint.check_finite(source.weights, path)
    except CheckpointError as error:
        raise CheckpointError(f"--init-from {error}") from error
    return source


@dataclass(frozen=True, eq=False)
class Base:
    """The weights to start from.   words: in the order of their ids.   weights: in process 0; None elsewhere."""

    name: str
    words: tuple[str, ...]
    weights: Weights | None

    @classmethod
    def load(cls, path: str, group: Group) -> Base:
        """Read the file in process 0. All processes must call it. Raises CheckpointError."""
        loaded: list[Weights] = []

        def words() -> tuple[str, ...]:
            source = _load(path)
            loaded.append(source.weights)
            return source.vocabulary

        found = group.from_first(words)
        return cls(show_path(path), found, loaded.pop() if loaded else None)

    def vectors(self, corpus: Corpus, config: TrainConfig) -> Embeddings:
        """Return the vectors of a corpus: a known word's own, and for a new one that of --embeddings. In process 0.

        With --embeddings random a new word gets a random vector of the same scale.
        Raises ConfigError (no word of the text is known; the vectors are not those that the weights were trained with),
        EmbeddingsError.
        """
        assert self.weights is not None
        words, base, source = corpus.vocabulary.words, self.weights.embeddings, config.embeddings
        rows, known = self._rows(words)
        plain = np.array([word not in (EOS, UNK) for word in words])
        if not (known & plain & (corpus.counts > 0)).any():
            raise ConfigError(
                f"--init-from {self.name} knows no word of {corpus.name}: is the text in another language or case?"
            )
        if source == "random":
            vectors, found = np.zeros((len(words), base.shape[1]), dtype=np.float32), known
        else:
            other = load_embeddings(source, corpus, size=base.shape[1], seed=config.seed)
            vectors = root_lengths(other.vectors) if config.vector_lengths == "root" else other.vectors
            found = known | other.found
            vectors[~found] = 0.0
            shared = known & other.found & plain
            if config.vector_lengths == "root" and shared.any():  # scaled by the other words of a vocabulary too
                ours, theirs = (np.linalg.norm(of, axis=1) for of in (base[rows[shared]], vectors[shared]))
                vectors *= np.float32(np.median(ours / np.maximum(theirs, 1e-12)))
            same = np.count_nonzero(np.isclose(vectors[shared], base[rows[shared]], rtol=1e-4, atol=1e-6).all(axis=1))
            if 2 * same < np.count_nonzero(shared):
                raise ConfigError(
                    f"--embeddings {source}: for {np.count_nonzero(shared) - same:,} of {np.count_nonzero(shared):,} "
                    f"words its vector is not that of {self.name}: give the vectors that this was trained with, or "
                    "random"
                )
        vectors[known] = base[rows[known]]
        fill_missing(vectors, found, words, config.seed)
        return Embeddings(
            vectors=vectors,
            found=found,
            source=f"{self.name}, which has {np.count_nonzero(known):,} of the words",
            type_coverage=float(found.mean()),
            token_coverage=float(corpus.counts[found].sum() / corpus.counts.sum()),
        )

    def extended(self, words: tuple[str, ...], vectors: F32, group: Group) -> Weights:
        """Return the weights for a larger vocabulary. All processes must call it.

        words: (V), those of the base among them.   vectors: (V, E).
        """
        flat: F32 | None = None
        if self.weights is not None:
            old = self.weights
            rows, known = self._rows(words)
            # The mean of the others: so n new words beside V together get a probability of n / (V + n) at most, and
            # hardly disturb the rest (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
            why = np.empty((old.hidden_size, len(words)), dtype=np.float32)
            why[:, known], why[:, ~known] = old.Why[:, rows[known]], old.Why.mean(axis=1, dtype=np.float64)[:, None]
            by = np.where(known, old.by[rows], np.float32(old.by.mean(dtype=np.float64)))
            flat = Weights(vectors, old.Wxh, old.Whh, old.bh, why, by).flat_parameters()
        return Weights.from_flat(vectors, group.array_from_first(flat), group.from_first(self._hidden_size))

    def _hidden_size(self) -> int:
        assert self.weights is not None
        return self.weights.hidden_size

    def _rows(self, words: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return for each word its id in the base, or 0, and whether it is there."""
        ids = {word: i for i, word in enumerate(self.words)}
        return np.array([ids.get(word, 0) for word in words]), np.array([word in ids for word in words])
