"""The functions of the C library in Python: a thin wrapper around each group.

In the order of csrc/rnnlib.h. library.py loads the library and has its errors; each call raises RNNError or one of the
classes derived from it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from ctypes import byref, c_double, c_int64
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnlm.arrays import F32, I32, MAX_THREADS, Mask
from rnnlm.checkpoint import Weights
from rnnlm.errors import counted
from rnnlm.library import (
    MAX_STEPS,
    PRECISIONS,
    SAMPLING,
    TRAINING_PRECISIONS,
    AdamWOptions,
    Dims,
    RegularizationStruct,
    RNNInputError,
    WordsStruct,
    check,
    handle,
    library,
    require_shape,
)
from rnnlm.regularization import NO_REGULARIZATION, Candidates, Regularization
from rnnlm.sampling import BIAS, Sampling

# ---- Training ------------------------------------------------------------------------------------------------------


def param_count(vocab: int, embed: int, hidden: int) -> int:
    """Return the length P of the flat parameter buffer."""
    count = c_int64()
    check(
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
        self._handle = handle(
            *("rnn_work_create", "rnn_work_destroy", byref(Dims(vocab, embed, hidden))),
            *(max_steps, max_batch, max_candidates, PRECISIONS[precision], threads),
            context=f"V={vocab}, E={embed}, H={hidden}, steps={max_steps}, batch={max_batch}, "
            f"candidates={max_candidates}, threads={threads}, {precision}",
        )

    def _require(self, params: F32, embeddings: F32, x: I32, state: F32) -> None:
        if x.ndim != 2:
            raise RNNInputError(-2, f"x has shape {x.shape}, expected (steps, batch)")
        require_shape("params", params, (self.param_count,))
        require_shape("embeddings", embeddings, (self.vocab, self.embed))
        require_shape("state", state, (x.shape[1], self.hidden))

    def loss(self, params: F32, embeddings: F32, x: I32, y: I32, state: F32) -> float:
        """Compute the summed loss of one chunk in nats.

        params: (P,).  embeddings: (V, E).  x, y: (T, B) int32 in [0, V), time-major; y[t] is the token after x[t].
        state: (B, H), carried: it is replaced by the state after the chunk.
        Raises RNNInputError (shape, range, token id), RNNNonFiniteError.
        """
        self._require(params, embeddings, x, state)
        require_shape("y", y, x.shape)
        loss = c_double()
        status = library().rnn_loss(self._handle, params, embeddings, x, y, *x.shape, state, byref(loss))
        check(status, f"loss of a chunk of {x.shape[0]} steps x {x.shape[1]} batch rows")
        return loss.value

    def advance(self, params: F32, embeddings: F32, x: I32, state: F32) -> None:
        """Replace the state before one chunk by the state after it, as `loss` does, without the output layer.

        The arguments are those of `loss`. Raises RNNInputError (shape, range, token id), RNNNonFiniteError.
        """
        self._require(params, embeddings, x, state)
        status = library().rnn_advance_state(self._handle, params, embeddings, x, *x.shape, state)
        check(status, f"state after a chunk of {x.shape[0]} steps x {x.shape[1]} batch rows")

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
        With candidates, params are laid out by words, and grads, (gradient_count(),), by candidates: see rnnlib.h.
        """
        candidates = regularization.candidates
        targets = y if candidates is None else candidates.targets
        self._require(params, embeddings, x, state)
        require_shape("y", targets, x.shape)
        require_shape("grads", grads, (self.gradient_count(candidates),))
        if regularization.dropped_words is not None:
            require_shape("dropped_words", regularization.dropped_words, (self.vocab,))
            embeddings, x = _without(regularization.dropped_words, embeddings, x)
        loss = c_double()
        status = library().rnn_loss_grad(
            *(self._handle, params, embeddings, x, targets, *x.shape, scale),
            *(byref(self._struct_of(regularization, x.shape[1])), state, byref(loss), grads),
        )
        check(status, f"gradient of a chunk of {x.shape[0]} steps x {x.shape[1]} batch rows")
        return loss.value

    def gradient_count(self, candidates: Candidates | None) -> int:
        """Return how many numbers a gradient has: P, or fewer with candidates."""
        absent = self.vocab - candidates.ids.size if candidates else 0
        return self.param_count - absent * (self.hidden + 1)

    def _struct_of(self, regularization: Regularization, batch: int) -> RegularizationStruct:
        """Return the C struct, which points to the arrays of `regularization`: the caller keeps them alive."""
        struct = RegularizationStruct()
        for name, width in (("input_mask", self.embed), ("output_mask", self.hidden)):
            mask = getattr(regularization, name)
            if mask is not None:
                require_shape(name, mask, (batch, width))
                setattr(struct, name, _address(mask, np.float32))
        candidates = regularization.candidates
        if candidates is not None:
            require_shape("correction", candidates.correction, candidates.ids.shape)
            struct.candidates = _address(candidates.ids, np.int32)
            struct.correction = _address(candidates.correction, np.float32)
            struct.candidate_count = candidates.ids.size
        return struct


def _without(dropped: Mask, embeddings: F32, x: I32) -> tuple[F32, I32]:
    """Return the vectors of a chunk's words, zeros for those that are dropped, and the chunk as places in them."""
    words, places = np.unique(x, return_inverse=True)
    if words[0] < 0 or words[-1] >= len(embeddings):
        raise RNNInputError(-3, f"the chunk has the token ids {words[0]} to {words[-1]}, of {len(embeddings):,} words")
    vectors = embeddings[words]
    vectors[dropped[words]] = 0.0
    return vectors, places.reshape(x.shape).astype(np.int32)


def _address(array: npt.NDArray[Any], dtype: type) -> int:
    """Return the address of an array, which the caller keeps alive. Raises RNNInputError (type, layout)."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise RNNInputError(-6, f"expected a C-contiguous array of {np.dtype(dtype)}, got {array.dtype}")
    return array.ctypes.data


def grad_norm(grads: F32, threads: int = 1) -> float:
    """Return the Euclidean norm of a flat gradient. Raises RNNNonFiniteError."""
    norm = c_double()
    check(library().rnn_grad_norm(grads, grads.size, threads, byref(norm)), "gradient norm")
    return norm.value


def sgd_update(
    params: F32, grads: F32, velocity: F32 | None, *, lr: float, momentum: float, grad_scale: float, threads: int = 1
) -> None:
    """Take one step of torch.optim.SGD, in place. velocity: (P,), zero at first; None when momentum is 0."""
    for name, array in (("grads", grads), ("velocity", velocity)):
        if array is not None:
            require_shape(name, array, params.shape)
    status = library().rnn_sgd_update(params, grads, velocity, params.size, grad_scale, lr, momentum, threads)
    check(status, f"SGD step with learning rate {lr}, momentum {momentum}")


def adamw_update(
    params: F32, grads: F32, m: F32, v: F32, options: AdamWOptions, *, grad_scale: float, threads: int = 1
) -> None:
    """Take one step of torch.optim.AdamW, in place. m, v: (P,), zero at first; options.step counts from 1."""
    for name, array in (("grads", grads), ("m", m), ("v", v)):
        require_shape(name, array, params.shape)
    status = library().rnn_adamw_update(params, grads, m, v, params.size, grad_scale, byref(options), threads)
    check(status, f"AdamW step {options.step} with learning rate {options.lr}")


def average_update(average: F32, params: F32, rate: float, threads: int = 1) -> None:
    """Move a moving average, (P,) as params, by the share `rate` of the way towards them, in place."""
    require_shape("average", average, params.shape)
    status = library().rnn_average_update(average, params, params.size, rate, threads)
    check(status, f"average with rate {rate}")


class Words:
    """The words of a sampled softmax under AdamW: steps are recorded, and replayed for the words that are needed.

    params, m, v, average: (V, H + 1) each, which the caller keeps; average may be None. The last number of a row, the
    bias, has no weight decay.
    At most MAX_STEPS steps are recorded; then all words must catch up.
    """

    def __init__(self, params: F32, m: F32, v: F32, average: F32 | None, threads: int = 1) -> None:
        self._arrays = params, m, v, average
        self._done = np.zeros(params.shape[0], dtype=np.int32)
        count, width = params.shape
        self._struct = WordsStruct(count=count, width=width, decayed=width - 1)
        for name, array in zip(("params", "m", "v", "average"), self._arrays, strict=True):
            if array is not None:
                require_shape(name, array, params.shape)
                setattr(self._struct, name, _address(array, np.float32))
        self._struct.done = _address(self._done, np.int32)
        self._steps, self._averaging = (AdamWOptions * MAX_STEPS)(), np.zeros(MAX_STEPS, dtype=np.float32)
        self._count, self._threads = 0, threads

    def catch_up(self, ids: I32 | None = None) -> None:
        """Take the words `ids`, ascending, or all, through the steps that they have missed."""
        self._update(ids, None, 0.0)
        if ids is None:
            self._done[:] = self._count = 0

    def step(self, options: AdamWOptions, averaging: float, ids: I32, grads: F32, grad_scale: float) -> None:
        """Take a step of AdamW, then of the average, with grads (C, H + 1) for the words ids (C,) and 0 for the others.

        averaging: the rate of average_update; 0: none.
        """
        require_shape("grads", grads, (ids.size, self._struct.width))
        self._steps[self._count], self._averaging[self._count] = options, averaging
        self._count += 1
        self._update(ids, grads, grad_scale)
        if self._count == MAX_STEPS:
            self.catch_up()

    def _update(self, ids: I32 | None, grads: F32 | None, grad_scale: float) -> None:
        count = 0 if ids is None else ids.size
        arguments = byref(self._struct), ids, count, self._steps, self._averaging, self._count, grads, grad_scale
        status = library().rnn_adamw_words(*arguments, self._threads)
        check(status, f"AdamW steps of {count or 'all'} words")


# ---- Inference -----------------------------------------------------------------------------------------------------


class Model:
    """Weights prepared for inference. Read-only, and safe to share between threads.

    precision: how Why is stored. "float32" reads the weights where they are mapped; "bfloat16" and "int8" make a
    smaller copy, which a step reads faster. With "bfloat16" the hidden state is rounded before it multiplies Why.
    """

    def __init__(self, weights: Weights, *, precision: str = "float32", threads: int = 1) -> None:
        if precision not in PRECISIONS:
            raise RNNInputError(-6, f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if not 1 <= threads <= MAX_THREADS:
            raise RNNInputError(-6, f"threads must be from 1 to {MAX_THREADS:,}, got {threads:,}")
        self.vocab, self.embed, self.hidden = weights.vocab_size, weights.embed_size, weights.hidden_size
        self.weights, self.precision = weights, precision  # the library keeps pointers into Why and by
        self._handle = handle(
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
        self._handle = handle(
            *("rnn_decoder_create", "rnn_decoder_destroy", model._handle, max_sequences, threads),
            context=f"decoder for {counted(max_sequences, 'sequence')} on {counted(threads, 'thread')}",
        )

    def prefill(self, tokens: Sequence[int] | I32, state: F32) -> None:
        """Feed `tokens` (N,) through the hidden layer; state (H,) is replaced. Raises RNNInputError (token id)."""
        require_shape("state", state, (self.model.hidden,))
        ids = np.asarray(tokens, dtype=np.int32)
        check(library().rnn_prefill(self._handle, ids, ids.size, state), f"prompt of {counted(ids.size, 'token')}")

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
                require_shape(name, array, shape)
        status = library().rnn_decode(self._handle, n, tokens, sampling, states, following, logprobs, logits)
        check(status, f"step of {counted(n, 'sequence')} (the decoder has room for {self.max_sequences})")

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
        require_shape("states", states, (n, self.model.hidden))
        logits = np.empty((n, self.model.vocab), dtype=np.float32)
        check(library().rnn_logits(self._handle, n, states, logits), f"logits of {counted(n, 'state')}")
        return logits

    def score(self, ids: I32, state: F32 | None = None) -> F32:
        """Return log p(ids[i + 1] | ids[0..i]) as (N - 1,).

        state: (H,), before ids[0]; it is replaced by the state before ids[N - 1]. None: zeros.
        """
        logprobs = np.empty(max(ids.size - 1, 0), dtype=np.float32)
        state = np.zeros(self.model.hidden, dtype=np.float32) if state is None else state
        require_shape("state", state, (self.model.hidden,))
        status = library().rnn_score(self._handle, ids, ids.size, state, logprobs)
        check(status, f"score of {counted(ids.size, 'token')}")
        return logprobs


# ---- Mapped files --------------------------------------------------------------------------------------------------


def guard(mapping: np.memmap) -> Callable[[], bool]:
    """Make pages of `mapping` that its file loses read as zeros; without this, reading one ends the process.

    Returns a function that tells whether any were lost, and keeps no mapping alive. Raises RNNLibraryError, RNNError.
    """
    lib, address = library(), mapping.ctypes.data
    check(lib.rnn_guard_add(address, mapping.nbytes), f"guard of a mapping of {mapping.nbytes:,} bytes")
    weakref.finalize(mapping, lib.rnn_guard_remove, address).atexit = False  # a daemon thread may still read it then
    return lambda: bool(lib.rnn_guard_lost(address))
