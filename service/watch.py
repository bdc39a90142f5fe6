"""Mapped weights whose file is changed in place, against the rules: found out, before a word of it is told.

Uploads and trainers replace a file by renaming, and what is mapped then stays as it was. But anybody who may write to
the folder can also write into a file (`cp` over it), or cut it short, and the model's numbers change or go. The
library's guard sees to it that the process outlives that; `intact` tells of it, so that the requests concerned end
with an error, and the next ones load the file anew.
"""

from __future__ import annotations

import os
import weakref

import numpy as np

from rnnlm import binding


class Watch:
    """Of one mapping of a weights file. Raises RNNLibraryError, RNNError."""

    def __init__(self, handle: int, mapping: np.memmap) -> None:
        self._lost = binding.guard(mapping)
        self._file = os.dup(handle)  # this version of the file, whatever its name comes to stand for
        weakref.finalize(self, os.close, self._file)
        self._mapped = self._look()

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def intact(self) -> bool:
        """Whether all that was read of the mapping until now is what was mapped."""
        return not self._lost() and self._look() == self._mapped
