"""How large a model fits in memory. GET /weights reports it, and an upload that does not fit is refused by it.

Only memory that the system cannot reclaim counts. It can reclaim a mapped file's pages, so of the file only Why counts,
because every token reads it. While an upload replaces the weights, two models are loaded at once. Models stay loaded
(service/registry.py) only as far as they fit together in this way. The bases were measured on running processes
(RssAnon) by bench/small.py, which checks the sum. If files are copied instead of mapped
(RNN_WEIGHTS_MODE=read), both models have all of theirs. If the weights folder itself is in memory, as a container's
often is, the files count too: set RNN_MEMORY_MB lower.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rnnlm.arrays import MAX_VOCAB
from service.settings import Settings

MB = 10**6
SERVER_BASE = {"c": 60 * MB, "torch": 140 * MB}  # of the serving process; torch adds its own
TRIAL_BASE = {"c": 40 * MB, "torch": 150 * MB}  # of the process that tries an upload
MODELS = 2  # the one that is served, and the one in trial or, after the trial, its replacement
WORD_BYTES = 160  # a word's text and its entry in a dict
LOGIT_ROWS = 2 * 16 + 3  # 16 sequences through Why together, with their logits and weights; what a cut picks out
INSPECTION_BYTES = 2 * 8 * (4 + 4 + 8)  # per word: two inspections, each of 8 rows of logits, their copy and float64
TORCH_LOGIT_BYTES = 24  # per word: a row of float64, its log-softmax and a copy
PRECISION_BYTES = {"float32": 0, "bfloat16": 2, "int8": 1}  # per weight of the C model's own copy of Why
EMBEDDING_SIZE = 300  # of a model that is not there yet: that of the default vectors
SHOWN = (50, 100, 200, 500, 1000)  # hidden sizes for which the largest vocabulary is reported


@dataclass(frozen=True)
class Capacity:
    """What the service has.   memory: bytes that it may use.   backends: those it serves.

    copies: files are copied to memory, not mapped.
    """

    memory: int
    backends: tuple[str, ...]
    precision: str = "float32"
    copies: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Capacity:
        memory, copies = settings.memory_mb * MB or granted(), settings.weights_mode == "read"
        return cls(memory, settings.served_backends, settings.precision, copies)

    def needs(self, vocab: int, hidden: int, embedding: int = EMBEDDING_SIZE) -> int:
        """Return the bytes for serving a model of these sizes, and for replacing it."""
        base = sum(SERVER_BASE[name] + TRIAL_BASE[name] for name in {"c", *self.backends})
        return base + vocab * self._bytes_of_a_word(hidden, embedding)

    def holds(self, models: Iterable[tuple[int, int, int]]) -> bool:
        """Return whether models of these sizes (V, H, E) fit together, with the replacements of all of them."""
        base = self.needs(0, 0)
        return base + sum(self.needs(*sizes) - base for sizes in models) <= self.memory

    def largest_vocabulary(self, hidden: int, embedding: int = EMBEDDING_SIZE) -> int:
        """Return the most words that a model of these sizes may have; 0 if not even the program fits."""
        words = (self.memory - self.needs(0, hidden, embedding)) // self._bytes_of_a_word(hidden, embedding)
        return max(0, min(words, MAX_VOCAB))

    def table(self) -> dict[str, int]:
        """Return the most words, by hidden size."""
        return {str(hidden): self.largest_vocabulary(hidden) for hidden in SHOWN}

    def objection(self, vocab: int, hidden: int, embedding: int = EMBEDDING_SIZE) -> str:
        """Return why a model of these sizes does not fit, for its sender; empty if it fits."""
        needs = self.needs(vocab, hidden, embedding)
        if needs <= self.memory:
            return ""
        most = self.largest_vocabulary(hidden, embedding)
        return (
            f"a model of {vocab:,} words and hidden size {hidden:,} needs about {needs // MB:,} MB to serve and to "
            f"replace, and this service has {self.memory // MB:,} MB: train with {most:,} words at most "
            "(--vocab-size), or give the service more memory (RNN_MEMORY_MB, if it is set)"
        )

    def _bytes_of_a_word(self, hidden: int, embedding: int) -> int:
        model = WORD_BYTES
        if self.copies:  # embeddings, Why, by
            model += 4 * (embedding + hidden + 1)
        if "c" in self.backends:  # embeddings Wxh + bh, a copy of Why, and the decoder's logits
            model += 4 * hidden + PRECISION_BYTES[self.precision] * hidden + 4 * LOGIT_ROWS
        if "torch" in self.backends:
            model += TORCH_LOGIT_BYTES
        return MODELS * model + 4 * hidden + INSPECTION_BYTES


def granted() -> int:
    """Return the bytes that this process may use: the least of its control group, its limits and the machine."""
    return min(limit for read in (_machine, *_groups(), _rlimit) if (limit := read()) is not None)


def _machine() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 62


def _groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[Callable[[], int | None]]:
    """Yield readers for versions 2 and 1 of control groups, as a container sees its own."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):

        def read(path: Path = root / name) -> int | None:
            with contextlib.suppress(OSError, ValueError):  # missing, or `max`
                return int(path.read_text())
            return None

        yield read


def _rlimit() -> int | None:
    """Read the limits that `prlimit --data`, `ulimit -d` or `ulimit -v` set."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)
