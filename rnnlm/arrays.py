"""The array types that the modules share, and the limits of the C library."""

import numpy as np
import numpy.typing as npt

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
