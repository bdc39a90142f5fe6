"""The array types that the modules share, and the limits of the C library."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rnnlm.arguments import describe

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# The RNN_MAX_* of csrc/rnnlib.h.
MAX_VOCAB = 1 << 24
MAX_EMBED = 1 << 14
MAX_HIDDEN = 1 << 14
MAX_THREADS = 1024


def float_array(name: str, value: Any) -> F32:
    """Return numbers as a C-contiguous float32 array, copied only if necessary. Raises TypeError."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be an array of float32, got {describe(value)}")
    return np.ascontiguousarray(array, dtype=np.float32)
