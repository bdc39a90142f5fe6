"""The C library in Python: loading, types, errors, and a thin wrapper around each group of functions.

This module follows csrc/rnnlib.h, the C side of the contract, in its order. The library is loaded when it is first
used, so working with torch only needs no compiler. Errors:

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
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.ctypeslib import ndpointer

from rnnlm import openmp
from rnnlm.arrays import F32, I32
from rnnlm.checkpoint import Weights
from rnnlm.errors import Failure, UserError
from rnnlm.regularization import NO_REGULARIZATION, Regularization
from rnnlm.sampling import BIAS, Sampling

ABI_VERSION = 3  # RNN_ABI_VERSION of rnnlib.h
PRECISIONS = {"float32": 0, "bfloat16": 1, "int8": 2}  # RNN_PRECISION_*
TRAINING_PRECISIONS = ("float32", "bfloat16")


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

_SIGNATURES: dict[str, tuple[list[Any], Any]] = {  # in the order of csrc/rnnlib.h
    "rnn_abi_version": ([], c_int32),
    "rnn_sizeof": ([c_char_p], c_size_t),
    "rnn_strerror": ([c_int32], c_char_p),
    "rnn_kernel_name": ([], c_char_p),
    "rnn_param_count": ([POINTER(Dims), POINTER(c_int64)], c_int32),
    "rnn_work_create": ([POINTER(Dims), c_int32, c_int32, c_int32, c_int32, c_int32, POINTER(c_void_p)], c_int32),
    "rnn_work_destroy": ([c_void_p], None),
    "rnn_loss": ([c_void_p, _F32, _F32, _I32, _I32, c_int32, c_int32, _F32_OUT, POINTER(c_double)], c_int32),
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


# ---- The library and its errors ------------------------------------------------------------------------------------


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
        for name, (argtypes, restype) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = argtypes, restype
    except (OSError, AttributeError) as error:  # not a library, for another machine, or without one of the functions
        raise RNNLibraryError(f"{path} cannot be loaded as the C library ({error}); run `make lib`") from error
    sizes = {
        "rnn_dims": ctypes.sizeof(Dims),
        "rnn_regularization": ctypes.sizeof(RegularizationStruct),
        "rnn_adamw": ctypes.sizeof(AdamWOptions),
        "rnn_sampling": SAMPLING.itemsize,
    }
    for name, theirs, ours in (
        ("ABI version", lib.rnn_abi_version(), ABI_VERSION),
        *((f"sizeof({struct})", lib.rnn_sizeof(struct.encode()), size) for struct, size in sizes.items()),
    ):
        if theirs != ours:
            raise RNNLibraryError(f"{path}: its {name} is {theirs}, this program needs {ours}; run `make clean lib`")
    wish, taken = os.environ.get("RNN_ISA"), lib.rnn_kernel_name().decode()
    if wish is not None and wish != taken:
        raise RNNLibraryError(
            f"RNN_ISA={wish} is not available: it must be amx, avx512bf16, avx512, avx2, baseline or reference, and "
            f"supported by this processor; unset it to use the best"
        )
    openmp.survive_fork(path)
    return lib


def kernel() -> str:
    """Return which kernels a handle created now would use, as RNN_ISA names them."""
    return library().rnn_kernel_name().decode()


def _check(status: int, context: str) -> None:
    """Raise the exception of a status that is not 0. `context` tells which values were passed."""
    if status != 0:
        message = library().rnn_strerror(status).decode()
        raise _EXCEPTIONS.get(status, RNNInputError)(status, f"{context}: {message}")


def _handle(create: str, destroy: str, *arguments: Any, context: str) -> c_void_p:
    """Create a handle of the library. The object behind it is destroyed when nothing refers to the handle any more."""
    handle = c_void_p()
    _check(getattr(library(), create)(*arguments, byref(handle)), context)
    weakref.finalize(handle, getattr(library(), destroy), handle.value)
    return handle


def _require_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise RNNInputError(-2, f"{name} has shape {array.shape}, expected {shape}")


# ---- Training ------------------------------------------------------------------------------------------------------


def param_count(vocab: int, embed: int, hidden: int) -> int:
    """Return the length P of the flat parameter buffer."""
    count = c_int64()
    _check(
        library().rnn_param_count(byref(Dims(vocab, embed, hidden)), byref(count)),
        f"V={vocab}, E={embed}, H={hidden}",
    )
    return count.value


class Workspace:
    """The memory for one chunk of training, without the parameters. Belongs to one thread.

    max_steps, max_batch: the largest chunk. threads: how many threads one call may use.
    max_candidates: 0, or the most candidates of a sampled softmax; the workspace then serves sampled softmax only.
    """

    def __init__(
        self,
        vocab: int,
        embed: int,
        hidden: int,
        *,
        max_steps: int,
        max_batch: int,
        threads: int,
        max_candidates: int = 0,
        precision: str = "float32",
    ) -> None:
        if precision not in TRAINING_PRECISIONS:
            expected = " or ".join(TRAINING_PRECISIONS)
            raise RNNInputError(-6, f"precision must be {expected} in training, got {precision!r}")
        self.vocab, self.embed, self.hidden, self.max_steps = vocab, embed, hidden, max_steps
        self.param_count = param_count(vocab, embed, hidden)
        self._handle = _handle(
            *("rnn_work_create", "rnn_work_destroy", byref(Dims(vocab, embed, hidden))),
            *(max_steps, max_batch, max_candidates, PRECISIONS[precision], threads),
            context=f"V={vocab}, E={embed}, H={hidden}, steps={max_steps}, batch={max_batch}, "
            f"candidates={max_candidates}, threads={threads}, {precision}",
        )

    def _require(self, params: F32, embeddings: F32, x: I32, y: I32, state: F32) -> None:
        if x.ndim != 2:
            raise RNNInputError(-2, f"x has shape {x.shape}, expected (steps, batch)")
        _require_shape("params", params, (self.param_count,))
        _require_shape("embeddings", embeddings, (self.vocab, self.embed))
        _require_shape("y", y, x.shape)
        _require_shape("state", state, (x.shape[1], self.hidden))

    def loss(self, params: F32, embeddings: F32, x: I32, y: I32, state: F32) -> float:
        """Compute the summed loss of one chunk in nats.

        params: (P,).  embeddings: (V, E).  x, y: (T, B) int32 in [0, V), time-major; y[t] is the token after x[t].
        state: (B, H), carried: it is replaced by the state after the chunk.
        Raises RNNInputError (shape, range, token id), RNNNonFiniteError.
        """
        self._require(params, embeddings, x, y, state)
        loss = c_double()
        status = library().rnn_loss(self._handle, params, embeddings, x, y, *x.shape, state, byref(loss))
        _check(status, f"loss of a chunk of {x.shape[0]} steps x {x.shape[1]} batch rows")
        return loss.value

    def loss_grad(
        self,
        params: F32,
        embeddings: F32,
        x: I32,
        y: I32,
        state: F32,
        grads: F32,
        scale: float = 1.0,
        regularization: Regularization = NO_REGULARIZATION,
    ) -> float:
        """Compute the summed loss of one chunk and its gradient (full BPTT), under `regularization`.

        The arguments are those of `loss`; grads: (P,), overwritten with scale times the gradient of the *sum*.
        """
        candidates = regularization.candidates
        targets = y if candidates is None else candidates.targets
        self._require(params, embeddings, x, targets, state)
        _require_shape("grads", grads, (self.param_count,))
        loss = c_double()
        status = library().rnn_loss_grad(
            *(self._handle, params, embeddings, x, targets, *x.shape, scale),
            *(byref(self._struct_of(regularization, x.shape[1])), state, byref(loss), grads),
        )
        _check(status, f"gradient of a chunk of {x.shape[0]} steps x {x.shape[1]} batch rows")
        return loss.value

    def _struct_of(self, regularization: Regularization, batch: int) -> RegularizationStruct:
        """Return the C struct, which points to the arrays of `regularization`: the caller keeps them alive."""
        struct = RegularizationStruct()
        for name, width in (("input_mask", self.embed), ("output_mask", self.hidden)):
            mask = getattr(regularization, name)
            if mask is not None:
                _require_shape(name, mask, (batch, width))
                setattr(struct, name, _address(mask, np.float32))
        candidates = regularization.candidates
        if candidates is not None:
            _require_shape("correction", candidates.correction, candidates.ids.shape)
            struct.candidates = _address(candidates.ids, np.int32)
            struct.correction = _address(candidates.correction, np.float32)
            struct.candidate_count = candidates.ids.size
        return struct


def _address(array: npt.NDArray[Any], dtype: type) -> int:
    """Return the address of an array, which the caller keeps alive. Raises RNNInputError (type, layout)."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise RNNInputError(-6, f"expected a C-contiguous array of {np.dtype(dtype)}, got {array.dtype}")
    return array.ctypes.data


def grad_norm(grads: F32, threads: int = 1) -> float:
    """Return the Euclidean norm of a flat gradient. Raises RNNNonFiniteError."""
    norm = c_double()
    _check(library().rnn_grad_norm(grads, grads.size, threads, byref(norm)), "gradient norm")
    return norm.value


def sgd_update(
    params: F32, grads: F32, velocity: F32 | None, *, lr: float, momentum: float, grad_scale: float, threads: int = 1
) -> None:
    """Take one step of torch.optim.SGD, in place. velocity: (P,), zero at first; None when momentum is 0."""
    for name, array in (("grads", grads), ("velocity", velocity)):
        if array is not None:
            _require_shape(name, array, params.shape)
    status = library().rnn_sgd_update(params, grads, velocity, params.size, grad_scale, lr, momentum, threads)
    _check(status, f"SGD step with learning rate {lr}, momentum {momentum}")


def adamw_update(
    params: F32, grads: F32, m: F32, v: F32, options: AdamWOptions, *, grad_scale: float, threads: int = 1
) -> None:
    """Take one step of torch.optim.AdamW, in place. m, v: (P,), zero at first; options.step counts from 1."""
    for name, array in (("grads", grads), ("m", m), ("v", v)):
        _require_shape(name, array, params.shape)
    status = library().rnn_adamw_update(params, grads, m, v, params.size, grad_scale, byref(options), threads)
    _check(status, f"AdamW step {options.step} with learning rate {options.lr}")


# ---- Inference -----------------------------------------------------------------------------------------------------


class Model:
    """Weights prepared for inference. Read-only, and safe to share between threads.

    precision: how Why is stored. "float32" reads the weights where they are mapped; "bfloat16" and "int8" make a
    smaller copy, which a step reads faster.
    """

    def __init__(self, weights: Weights, *, precision: str = "float32", threads: int = 1) -> None:
        if precision not in PRECISIONS:
            raise RNNInputError(-6, f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.vocab, self.embed, self.hidden = weights.vocab_size, weights.embed_size, weights.hidden_size
        self.weights, self.precision = weights, precision  # the library keeps pointers into Why and by
        self._handle = _handle(
            *("rnn_model_create", "rnn_model_destroy", byref(Dims(self.vocab, self.embed, self.hidden))),
            *(weights.embeddings, weights.Wxh, weights.Whh, weights.bh, weights.Why, weights.by),
            *(PRECISIONS[precision], threads),
            context=f"model of V={self.vocab}, E={self.embed}, H={self.hidden} in {precision}",
        )


def sampling_rows(
    n: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, banned: int | None = None
) -> npt.NDArray[Any]:
    """Return n equal rows of `rnn_sampling`, (n,) of dtype SAMPLING, with u = 0. banned: a token never drawn."""
    rows = np.zeros(n, dtype=SAMPLING)
    rows["temperature"], rows["top_k"], rows["top_p"] = temperature, top_k, top_p
    rows["banned"] = -1 if banned is None else banned
    return rows


def sampling_row(u: float, way: Sampling, banned: int | None, biases: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Return one element of an array of dtype SAMPLING.   u: draws the token.   banned: a token never drawn.

    biases: (n,) of dtype BIAS; the caller keeps them while the array is used.
    """
    address = _address(biases, BIAS) if biases.size else 0
    return u, way.temperature, way.top_k, -1 if banned is None else banned, way.top_p, address, biases.size, 0


def set_biases(row: npt.NDArray[Any], biases: npt.NDArray[Any]) -> None:
    """Make `row`, one of sampling_rows, point to biases, (n,) of dtype BIAS. The caller keeps them while it is used."""
    row["biases"], row["bias_count"] = _address(biases, BIAS), biases.size


class Decoder:
    """Scratch memory to advance up to `max_sequences` sequences of one model together. Belongs to one thread."""

    def __init__(self, model: Model, *, max_sequences: int = 1, threads: int = 1) -> None:
        self.model = model  # the library's decoder points into its model
        self.max_sequences = max_sequences
        self._handle = _handle(
            *("rnn_decoder_create", "rnn_decoder_destroy", model._handle, max_sequences, threads),
            context=f"decoder for {max_sequences} sequences on {threads} threads",
        )

    def prefill(self, tokens: Sequence[int] | I32, state: F32) -> None:
        """Feed `tokens` (N,) through the hidden layer; state (H,) is replaced. Raises RNNInputError (token id)."""
        _require_shape("state", state, (self.model.hidden,))
        ids = np.asarray(tokens, dtype=np.int32)
        _check(library().rnn_prefill(self._handle, ids, ids.size, state), f"prompt of {ids.size} tokens")

    def decode(
        self,
        tokens: I32,
        sampling: npt.NDArray[Any],
        states: F32,
        following: I32,
        logprobs: F32,
        logits: F32 | None = None,
    ) -> None:
        """Advance n sequences by one step, in one pass over Why.

        tokens: (n,) to feed.  sampling: (n,) of dtype SAMPLING.  states: (n, H), replaced.
        following: (n,), overwritten with the tokens drawn; logprobs: (n,), with their log-probabilities;
        logits: (n, V), overwritten with those of the model, before sampling changes them.
        """
        n = tokens.size
        for name, array, shape in (
            ("tokens", tokens, (n,)),
            ("sampling", sampling, (n,)),
            ("states", states, (n, self.model.hidden)),
            ("following", following, (n,)),
            ("logprobs", logprobs, (n,)),
            ("logits", logits, (n, self.model.vocab)),
        ):
            if array is not None:
                _require_shape(name, array, shape)
        status = library().rnn_decode(self._handle, n, tokens, sampling, states, following, logprobs, logits)
        _check(status, f"step of {n} sequences (the decoder has room for {self.max_sequences})")

    def hidden_states(self, tokens: Sequence[int] | I32, state: F32 | None = None) -> F32:
        """Return the hidden state after each of `tokens` (N,): (N, H). state: (H,), before the first; None: zeros."""
        current = np.zeros(self.model.hidden, dtype=np.float32) if state is None else state.copy()
        ids = np.asarray(tokens, dtype=np.int32)
        states = np.empty((ids.size, self.model.hidden), dtype=np.float32)
        for i in range(ids.size):
            self.prefill(ids[i : i + 1], current)
            states[i] = current
        return states

    def logits(self, states: F32) -> F32:
        """Return the logits (n, V) of hidden states (n, H), whose values are in -1..1."""
        n = states.shape[0]
        _require_shape("states", states, (n, self.model.hidden))
        logits = np.empty((n, self.model.vocab), dtype=np.float32)
        _check(library().rnn_logits(self._handle, n, states, logits), f"logits of {n} states")
        return logits

    def score(self, ids: I32) -> F32:
        """Return log p(ids[i + 1] | ids[0..i]) as (N - 1,), from a hidden state of zeros."""
        logprobs = np.empty(max(ids.size - 1, 0), dtype=np.float32)
        state = np.zeros(self.model.hidden, dtype=np.float32)
        _check(library().rnn_score(self._handle, ids, ids.size, state, logprobs), f"score of {ids.size} tokens")
        return logprobs


# ---- Mapped files --------------------------------------------------------------------------------------------------


def guard(mapping: np.memmap) -> Callable[[], bool]:
    """Make pages of `mapping` that its file loses read as zeros; without this, reading one ends the process.

    Returns a function that tells whether any were lost, and keeps no mapping alive. Raises RNNLibraryError, RNNError.
    """
    lib, address = library(), mapping.ctypes.data
    _check(lib.rnn_guard_add(address, mapping.nbytes), f"guard of a mapping of {mapping.nbytes:,} bytes")
    weakref.finalize(mapping, lib.rnn_guard_remove, address)
    return lambda: bool(lib.rnn_guard_lost(address))
