"""A text as parallel streams, and chunks of them.

What becomes of the words a b c d e f g, cut into B = 2 streams and chunks of T = 2 steps:

    stream 0:  a b c     x = a d   y = b e     x = c   y = d      time runs down the rows, and y is the text
    stream 1:  d e f         b e       c f         f       g      shifted by one, here and nowhere else

Of N processes with B streams each, process r takes the streams r * B .. (r + 1) * B of N * B: together they see what
one process with N * B streams sees.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rnnlm.training.config import ConfigError

I32 = npt.NDArray[np.int32]


class Streams:
    """The streams of one process. The text may be a memory map: only chunks are copied.

    steps: the length of a stream.  width: how many streams this process has; columns: which of all they are.
    """

    def __init__(self, ids: I32, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        count = batch_size * processes
        self.steps, self.width = (ids.size - 1) // count, batch_size
        if self.steps < 1:
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"the corpus has {ids.size} training tokens, too few for one batch of --batch-size {batch_size}{each}; "
                f"use at most {max((ids.size - 1) // processes, 1)} or a larger text"
            )
        self.columns = slice(rank * batch_size, (rank + 1) * batch_size)
        used = self.steps * count  # the rest is dropped
        self._x = ids[:used].reshape(count, self.steps)
        self._y = ids[1 : used + 1].reshape(count, self.steps)

    def chunk(self, start: int, stop: int) -> tuple[I32, I32]:
        """x, y (T, B) of the steps [start, stop), time-major; fewer at the end."""
        x, y = (streams[self.columns, start:stop].T for streams in (self._x, self._y))
        return np.ascontiguousarray(x), np.ascontiguousarray(y)

    def targets(self, start: int, stop: int) -> I32:
        """The y of all processes, (T, N * B)."""
        return self._y[:, start:stop].T
