"""The two back ends behind one interface: take several sequences, and return one more token for each.

An engine belongs to the scheduler's thread. A sequence's tokens do not depend on the other sequences in the step: the C
library guarantees it, and the torch engine takes one sequence at a time. <UNK> is never drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnlm.arrays import F32
from rnnlm.binding import SAMPLING, Decoder, sampling_row
from rnnlm.language_model import LanguageModel
from rnnlm.sampling import Biases, Sampling

if TYPE_CHECKING:
    import rnn
    import torch_rnn

GREEDY = Sampling(temperature=0.0)
NO_BIASES = Biases(GREEDY)


class Step(NamedTuple):
    """A token, its log-probability under the model itself, and the `top` most probable (id, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Feed(NamedTuple):
    """The input of one step of one sequence.

    token: what it is fed.   u: the uniform that draws the next token.   top: how many alternatives to report.
    biases: of the sequence, for this step.   target: the next token of a text that is scored; None draws one.
    """

    token: int
    u: float
    sampling: Sampling
    top: int
    target: int | None
    biases: Biases = NO_BIASES


class Engine(ABC):
    """A model that advances sequences. Their hidden states are opaque to the caller."""

    model: LanguageModel

    def intact(self) -> bool:
        """Return whether all steps until now used the weights as they were loaded."""
        return True

    @abstractmethod
    def begin(self) -> Any:
        """Return the state of a sequence that has read nothing."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], state: Any) -> Any:
        """Return the state after reading `tokens`."""

    @abstractmethod
    def step(self, feeds: Sequence[Feed], states: Sequence[Any]) -> tuple[list[Step], Sequence[Any]]:
        """Return one token for each sequence, and the new states."""


class CEngine(Engine):
    """The C model. Sequences share one pass over Why."""

    def __init__(self, model: rnn.RNN, max_sequences: int) -> None:
        self.model = model
        self._hidden, self._vocab = model.model.hidden, model.model.vocab
        self._decoder = Decoder(model.model, max_sequences=max_sequences, threads=model.threads)

    def begin(self) -> F32:
        return np.zeros(self._hidden, dtype=np.float32)

    def prefill(self, tokens: Sequence[int], state: F32) -> F32:
        self._decoder.prefill(tokens, state)
        return state

    def step(self, feeds: Sequence[Feed], states: Sequence[F32]) -> tuple[list[Step], Sequence[F32]]:
        n = len(feeds)
        tokens = np.array([feed.token for feed in feeds], dtype=np.int32)
        sampling = np.array([self._sampling(feed) for feed in feeds], dtype=SAMPLING)
        rows = np.array(states, dtype=np.float32)
        drawn = np.empty(n, dtype=np.int32)
        logprobs = np.empty(n, dtype=np.float32)
        asks = any(feed.top or feed.target is not None for feed in feeds)
        logits = np.empty((n, self._vocab), dtype=np.float32) if asks else None
        self._decoder.decode(tokens, sampling, rows, drawn, logprobs, logits)
        steps = [Step(token, logprob, ()) for token, logprob in zip(drawn.tolist(), logprobs.tolist(), strict=True)]
        if logits is not None:
            steps = [_look_up(feed, step, row) for feed, step, row in zip(feeds, steps, logits, strict=True)]
        return steps, rows

    def _sampling(self, feed: Feed) -> tuple[Any, ...]:
        way = feed.sampling if feed.target is None else GREEDY  # a target is not drawn
        return sampling_row(feed.u, way, self.model.vocabulary.unk, feed.biases.rows)


def _look_up(feed: Feed, step: Step, logits: F32) -> Step:
    """Add to `step` what only the logits (V,) show: the alternatives, and the log-probability of a given target."""
    if not feed.top and feed.target is None:
        return step
    normalizer = float(logits[step.token]) - step.logprob
    token = step.token if feed.target is None else feed.target
    top = min(feed.top, logits.size)
    best = np.argpartition(-logits, top - 1)[:top] if top else np.empty(0, dtype=np.int64)
    best = best[np.lexsort((best, -logits[best]))]
    alternatives = tuple((int(i), float(logits[i]) - normalizer) for i in best)
    return Step(token, float(logits[token]) - normalizer, alternatives)


class TorchEngine(Engine):
    """The torch model. Sequences take turns, one step each: a batched product would round differently."""

    def __init__(self, model: torch_rnn.RNN) -> None:
        import torch

        import torch_rnn

        self.model = model
        self._rnn = model
        self._torch = torch
        self._draw = torch_rnn.draw

    def begin(self) -> Any:
        return self._rnn.zero_state()

    def prefill(self, tokens: Sequence[int], state: Any) -> Any:
        with self._torch.inference_mode():
            x = self._torch.tensor(tokens).unsqueeze(1)
            return self._rnn.rnn(self._rnn.embedding(x), state)[1]

    def step(self, feeds: Sequence[Feed], states: Sequence[Any]) -> tuple[list[Step], Sequence[Any]]:
        with self._torch.inference_mode():
            pairs = [self._one(feed, state) for feed, state in zip(feeds, states, strict=True)]
        return [step for step, _ in pairs], [state for _, state in pairs]

    def _one(self, feed: Feed, state: Any) -> tuple[Step, Any]:
        logits, state = self._rnn(self._torch.tensor([[feed.token]]), state)
        logits = logits.flatten().double()
        logprobs = self._torch.log_softmax(logits, 0)
        token = feed.target
        if token is None:
            token = self._draw(logits, feed.sampling, feed.u, self.model.vocabulary.unk, feed.biases.rows)
        top: tuple[tuple[int, float], ...] = ()
        if feed.top:
            best = self._torch.topk(logprobs, min(feed.top, len(logprobs)))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Step(token, float(logprobs[token]), top), state
