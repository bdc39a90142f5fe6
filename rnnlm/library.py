"""Loads the C library: where it is, its version, the types of its functions, and its errors.

This module is the Python mirror of csrc/rnnlib.h, in its order; binding.py has the functions. The library is loaded
when it is first used, so working with torch only needs no compiler. Errors:

    RNNLibraryError             the library is missing, cannot be loaded, or has another version
    RNNError                    a call failed; `.code` is the library's status
     +-- RNNInputError          the library refuses an argument (also a ValueError)
     +-- RNNMemoryError         out of memory (also a MemoryError)
     +-- RNNNonFiniteError      NaN or infinity in weights, loss or gradient (also a FloatingPointError)
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import weakref
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.ctypeslib import ndpointer

from rnnlm import openmp
from rnnlm.errors import Failure, UserError
from rnnlm.sampling import BIAS

ABI_VERSION = 5  # RNN_ABI_VERSION of rnnlib.h
PRECISIONS = {"float32": 0, "bfloat16": 1, "int8": 2}  # RNN_PRECISION_*
TRAINING_PRECISIONS = ("float32", "bfloat16")
MAX_STEPS = 64  # RNN_MAX_STEPS


class RNNLibraryError(Failure):
    """The C library is missing, cannot be loaded, or has another version."""


class RNNError(Failure, RuntimeError):
    """A call of the C library failed. `code` is the status, a negative RNN_E_* of rnnlib.h."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class RNNInputError(RNNError, ValueError):
    """The library refuses an argument; nothing was written."""

    exit_code = UserError.exit_code


class RNNMemoryError(RNNError, MemoryError):
    """Out of memory."""


class RNNNonFiniteError(RNNError, FloatingPointError):
    """NaN or infinity in the weights, the loss or the gradient."""


_EXCEPTIONS = {-4: RNNMemoryError, -5: RNNNonFiniteError}  # all other statuses report a mistake of the caller


class Dims(ctypes.Structure):
    """`rnn_dims`: V, E, H."""

    _fields_ = [("vocab", c_int32), ("embed", c_int32), ("hidden", c_int32)]


class AdamWOptions(ctypes.Structure):
    """`rnn_adamw`."""

    _fields_ = [(name, c_float) for name in ("lr", "beta1", "beta2", "epsilon", "weight_decay")] + [("step", c_int32)]


class WordsStruct(ctypes.Structure):
    """`rnn_words`."""

    _fields_ = [
        *((name, c_void_p) for name in ("params", "m", "v", "average", "done")),
        *((name, c_int32) for name in ("count", "width", "decayed")),
    ]


class RegularizationStruct(ctypes.Structure):
    """`rnn_regularization`."""

    _fields_ = [
        *((name, c_void_p) for name in ("input_mask", "output_mask", "candidates", "correction")),
        *((name, c_int32) for name in ("candidate_count", "reserved")),
    ]


SAMPLING = np.dtype(  # rnn_sampling; `biases` is an address
    [
        *(("u", "f8"), ("temperature", "f4"), ("top_k", "i4"), ("banned", "i4"), ("top_p", "f4")),
        *(("biases", np.uintp), ("bias_count", "i4"), ("reserved", "i4")),
    ]
)


def _pointer(dtype: Any, *, written: bool = False, optional: bool = False) -> Any:
    """Return the type of an argument: the address of a C-contiguous array of `dtype`.

    written: C writes to the array, so it must be writeable.   optional: None is accepted and passes NULL.
    """
    checked = ndpointer(dtype, flags=("C_CONTIGUOUS", "WRITEABLE") if written else "C_CONTIGUOUS")
    dtype = np.dtype(dtype)

    class Pointer(checked):
        @classmethod
        def from_param(cls, array: Any) -> Any:
            if array is None and optional:
                return None
            if type(array) is np.ndarray and array.dtype is dtype:
                try:  # a fifth of ndpointer's time; for the six arrays of a step, that was a tenth of a token's
                    return byref(c_char.from_buffer(array))
                except (TypeError, ValueError):  # read-only, not contiguous, or empty
                    pass
            return super().from_param(array)

    return Pointer


_F32 = _pointer(np.float32)
_I32 = _pointer(np.int32)
_SAMPLING = _pointer(SAMPLING)
_F32_OUT = _pointer(np.float32, written=True)
_I32_OUT = _pointer(np.int32, written=True)
_F32_OR_NULL = _pointer(np.float32, written=True, optional=True)
_F32_IF_ANY = _pointer(np.float32, optional=True)
_I32_IF_ANY = _pointer(np.int32, optional=True)

SIGNATURES: dict[str, tuple[list[Any], Any]] = {  # in the order of csrc/rnnlib.h
    "rnn_abi_version": ([], c_int32),
    "rnn_sizeof": ([c_char_p], c_size_t),
    "rnn_strerror": ([c_int32], c_char_p),
    "rnn_kernel_name": ([], c_char_p),
    "rnn_param_count": ([POINTER(Dims), POINTER(c_int64)], c_int32),
    "rnn_work_create": ([POINTER(Dims), c_int32, c_int32, c_int32, c_int32, c_int32, POINTER(c_void_p)], c_int32),
    "rnn_work_destroy": ([c_void_p], None),
    "rnn_loss": ([c_void_p, _F32, _F32, _I32, _I32, c_int32, c_int32, _F32_OUT, POINTER(c_double)], c_int32),
    "rnn_advance_state": ([c_void_p, _F32, _F32, _I32, c_int32, c_int32, _F32_OUT], c_int32),
    "rnn_loss_grad": (
        [
            *(c_void_p, _F32, _F32, _I32, _I32, c_int32, c_int32, c_float, POINTER(RegularizationStruct)),
            *(_F32_OUT, POINTER(c_double), _F32_OUT),
        ],
        c_int32,
    ),
    "rnn_grad_norm": ([_F32, c_int64, c_int32, POINTER(c_double)], c_int32),
    "rnn_sgd_update": ([_F32_OUT, _F32, _F32_OR_NULL, c_int64, c_float, c_float, c_float, c_int32], c_int32),
    "rnn_adamw_update": (
        [_F32_OUT, _F32, _F32_OUT, _F32_OUT, c_int64, c_float, POINTER(AdamWOptions), c_int32],
        c_int32,
    ),
    "rnn_average_update": ([_F32_OUT, _F32, c_int64, c_float, c_int32], c_int32),
    "rnn_adamw_words": (
        [
            *(POINTER(WordsStruct), _I32_IF_ANY, c_int32, POINTER(AdamWOptions), _F32_IF_ANY, c_int32),
            *(_F32_IF_ANY, c_float, c_int32),
        ],
        c_int32,
    ),
    "rnn_model_create": (
        [POINTER(Dims), _F32, _F32, _F32, _F32, _F32, _F32, c_int32, c_int32, POINTER(c_void_p)],
        c_int32,
    ),
    "rnn_model_destroy": ([c_void_p], None),
    "rnn_decoder_create": ([c_void_p, c_int32, c_int32, POINTER(c_void_p)], c_int32),
    "rnn_decoder_destroy": ([c_void_p], None),
    "rnn_sample": ([c_void_p, _F32, _SAMPLING, POINTER(c_int32), POINTER(c_float)], c_int32),
    "rnn_prefill": ([c_void_p, _I32, c_int32, _F32_OUT], c_int32),
    "rnn_decode": (
        [c_void_p, c_int32, _I32, _SAMPLING, _F32_OUT, _I32_OUT, _F32_OR_NULL, _F32_OR_NULL],
        c_int32,
    ),
    "rnn_logits": ([c_void_p, c_int32, _F32, _F32_OUT], c_int32),
    "rnn_score": ([c_void_p, _I32, c_int32, _F32_OUT, _F32_OUT], c_int32),
    "rnn_guard_add": ([c_void_p, c_size_t], c_int32),
    "rnn_guard_remove": ([c_void_p], None),
    "rnn_guard_lost": ([c_void_p], c_int32),
}


def library_path() -> Path:
    """Return where the library is expected: RNNLIB_PATH, or lib/rnnlib with the system's suffix."""
    override = os.environ.get("RNNLIB_PATH")
    if override:
        return Path(override)
    ending = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return Path(__file__).resolve().parent.parent / "lib" / f"rnnlib{ending}"


@functools.cache
def library() -> ctypes.CDLL:
    """Load and check the C library at its first use, and return it.

    Raises RNNLibraryError, with the file and the remedy in its message.
    """
    path = library_path()
    if not path.is_file():
        raise RNNLibraryError(f"the C library is not at {path}; run `make lib`, or set RNNLIB_PATH to its file")
    openmp.wait_briefly()
    try:
        lib = ctypes.CDLL(str(path))
        for name, (argtypes, restype) in SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = argtypes, restype
    except (OSError, AttributeError) as error:  # not a library, for another machine, or without one of the functions
        remedy = "correct RNNLIB_PATH, or unset it" if os.environ.get("RNNLIB_PATH") else "run `make lib`"
        raise RNNLibraryError(f"{path} cannot be loaded as the C library ({error}); {remedy}") from error
    sizes = {
        "rnn_dims": ctypes.sizeof(Dims),
        "rnn_regularization": ctypes.sizeof(RegularizationStruct),
        "rnn_adamw": ctypes.sizeof(AdamWOptions),
        "rnn_words": ctypes.sizeof(WordsStruct),
        "rnn_bias": BIAS.itemsize,
        "rnn_sampling": SAMPLING.itemsize,
    }
    for name, theirs, ours in (
        ("ABI version", lib.rnn_abi_version(), ABI_VERSION),
        *((f"sizeof({struct})", lib.rnn_sizeof(struct.encode()), size) for struct, size in sizes.items()),
    ):
        if theirs != ours:
            raise RNNLibraryError(f"{path}: its {name} is {theirs}, this program needs {ours}; run `make clean lib`")
    wish, taken = os.environ.get("RNN_ISA"), lib.rnn_kernel_name().decode()
    if wish and wish != taken:
        raise RNNLibraryError(
            f"RNN_ISA={wish} is not available: it must be amx, avx512bf16, avx512, avx2, baseline or reference, and "
            f"supported by this processor; unset it to use the best"
        )
    openmp.survive_fork(path)
    return lib


def kernel() -> str:
    """Return which kernels a handle created now would use, as RNN_ISA names them."""
    return library().rnn_kernel_name().decode()


def check(status: int, context: str) -> None:
    """Raise the exception of a status that is not 0. `context` tells which values were passed."""
    if status != 0:
        message = library().rnn_strerror(status).decode()
        raise _EXCEPTIONS.get(status, RNNInputError)(status, f"{context}: {message}")


def handle(create: str, destroy: str, *arguments: Any, context: str) -> c_void_p:
    """Create a handle of the library. The object behind it is destroyed when nothing refers to the handle any more."""
    made = c_void_p()
    check(getattr(library(), create)(*arguments, byref(made)), context)
    finalizer = weakref.finalize(made, getattr(library(), destroy), made.value)
    finalizer.atexit = False  # a daemon thread may still be inside a call then
    return made


def require_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise RNNInputError(-2, f"{name} has shape {array.shape}, expected {shape}")
