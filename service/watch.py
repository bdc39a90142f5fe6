"""Mapped weights whose file is changed in place, against the rules: found out, before a word of it is told.

Uploads and trainers replace a file by renaming, and what is mapped then stays as it was. But anybody who may write to
the folder can also write into a file (`cp` over it), or cut it short, and the model's numbers change or go. The
library's guard sees to it that the process outlives that; `intact` tells of it, so that the requests concerned end
with an error, and the next ones load the file anew.
"""

from __future__ import annotations

from rnnlm import binding
from rnnlm.container import MappedFile


class Watch:
    """Of one mapping of a weights file, none of which was read yet. Raises RNNLibraryError, RNNError."""

    def __init__(self, mapping: MappedFile) -> None:
        self._mapping = mapping
        self._lost = binding.guard(mapping.data)

    def intact(self) -> bool:
        """Whether all that was read of the mapping until now is what was mapped."""
        return not self._lost() and self._mapping.is_unchanged()
