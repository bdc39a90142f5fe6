"""The training text as batches: B batch rows that are trained side by side, a chunk of T steps at a time.

The words a b c d e f g as B = 2 batch rows and chunks of T = 2 steps:

    batch row 0:  a b c     x = a d   y = b e     x = c   y = d      time runs down; y is the text
    batch row 1:  d e f         b e       c f         f       g      shifted by one, here and nowhere else

In a run of N processes with B batch rows each, process r has the batch rows r * B .. (r + 1) * B of N * B. Together
they see what one process with N * B batch rows sees.
"""

from __future__ import annotations

import numpy as np

from rnnlm.arrays import I32
from rnnlm.errors import counted
from rnnlm.training.config import ConfigError


class Batches:
    """The chunks of an epoch, in order. The text may be a memory map: only chunks are copied.

    len(batches): the chunks of an epoch; training takes one step on each.
    rows: which of all batch rows this process has.  tokens: tokens of an epoch, over all processes.
    """

    def __init__(
        self, ids: I32, batch_size: int, bptt: int | None = None, *, rank: int = 0, processes: int = 1
    ) -> None:
        """Cut `ids` (N,) into batch rows. bptt: the steps T of a chunk; None takes the whole batch row as one."""
        count = batch_size * processes
        self._length = (ids.size - 1) // count  # of a batch row
        if self._length < 1:
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"the corpus has {counted(ids.size, 'training token')}, too few for one batch of "
                f"--batch-size {batch_size}{each}; use at most {max((ids.size - 1) // processes, 1)} or a larger text"
            )
        self._bptt = min(bptt or self._length, self._length)
        self.rows = slice(rank * batch_size, (rank + 1) * batch_size)
        self.tokens = self._length * count  # the rest of the text is dropped
        self._x = ids[: self.tokens].reshape(count, self._length)
        self._y = ids[1 : self.tokens + 1].reshape(count, self._length)

    def __len__(self) -> int:
        return -(-self._length // self._bptt)

    def chunk(self, index: int) -> tuple[I32, I32]:
        """Return x, y (T, B) of this process, time-major. The last chunk of an epoch may be shorter."""
        steps = self._steps(index)
        return (
            np.ascontiguousarray(self._x[self.rows, steps].T),
            np.ascontiguousarray(self._y[self.rows, steps].T),
        )

    def all_targets(self, index: int) -> I32:
        """Return the y of all processes, (T, N * B)."""
        return self._y[:, self._steps(index)].T

    def tokens_before(self, index: int) -> int:
        """Return how many tokens the first `index` chunks of an epoch have, over all processes."""
        return min(index * self._bptt, self._length) * len(self._x)

    def _steps(self, index: int) -> slice:
        return slice(index * self._bptt, (index + 1) * self._bptt)
