"""The two back ends behind one interface: sequences in, one token more for each of them out.

An engine belongs to the scheduler's thread. What one sequence gets does not depend on its company: the C library
promises it of its many-stream step, and the torch engine takes one sequence at a time. <UNK> is never drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnlm.binding import F32, Decoder, sampling_rows
from rnnlm.language_model import LanguageModel, Sampling

if TYPE_CHECKING:
    import rnn
    import torch_rnn

GREEDY = Sampling(temperature=0.0)


class Step(NamedTuple):
    """One token, its log-probability before temperature and top_k, and the `top` most probable (id, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Feed(NamedTuple):
    """What one step of one sequence needs.

    token: what it is fed.   u: the uniform that draws its next token.   top: how many alternatives to tell.
    target: the token that must come next, for a text that is scored; None draws one.
    """

    token: int
    u: float
    sampling: Sampling
    top: int
    target: int | None


class Engine(ABC):
    """One model, ready to advance sequences. `State` is a hidden state, opaque to the caller."""

    model: LanguageModel

    def intact(self) -> bool:
        """Whether the weights that all steps until now were made with are the ones that were loaded."""
        return True

    @abstractmethod
    def begin(self) -> Any:
        """The state of a sequence that has seen nothing."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], state: Any) -> Any:
        """The state after `tokens`."""

    @abstractmethod
    def step(self, feeds: Sequence[Feed], states: Sequence[Any]) -> tuple[list[Step], Sequence[Any]]:
        """One token for each sequence, and their new states."""


class CEngine(Engine):
    """Sequences of the C model share one pass over Why."""

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
        sampling = sampling_rows(n, banned=self.model.vocabulary.unk)
        ways = [feed.sampling if feed.target is None else GREEDY for feed in feeds]  # a target is not drawn
        sampling["u"] = [feed.u for feed in feeds]
        sampling["temperature"] = [way.temperature for way in ways]
        sampling["top_k"] = [way.top_k for way in ways]
        rows = np.stack(states)
        drawn = np.empty(n, dtype=np.int32)
        logprobs = np.empty(n, dtype=np.float32)
        asks = any(feed.top or feed.target is not None for feed in feeds)
        logits = np.empty((n, self._vocab), dtype=np.float32) if asks else None
        self._decoder.decode(tokens, sampling, rows, drawn, logprobs, logits)
        steps = [Step(token, logprob, ()) for token, logprob in zip(drawn.tolist(), logprobs.tolist(), strict=True)]
        if logits is not None:
            steps = [_look_up(feed, step, row) for feed, step, row in zip(feeds, steps, logits, strict=True)]
        return steps, rows


def _look_up(feed: Feed, step: Step, logits: F32) -> Step:
    """`step` with what only the logits (V,) tell: the alternatives, and the log-probability of a given target."""
    if not feed.top and feed.target is None:
        return step
    normaliser = float(logits[step.token]) - step.logprob
    token = step.token if feed.target is None else feed.target
    top = min(feed.top, logits.size)
    best = np.argpartition(-logits, top - 1)[:top] if top else np.empty(0, dtype=np.int64)
    best = best[np.lexsort((best, -logits[best]))]
    alternatives = tuple((int(i), float(logits[i]) - normaliser) for i in best)
    return Step(token, float(logits[token]) - normaliser, alternatives)


class TorchEngine(Engine):
    """Sequences of the torch model take turns, one step each: a batched product would round differently."""

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
            token = self._draw(logits, feed.sampling, feed.u, self.model.vocabulary.unk)
        top: tuple[tuple[int, float], ...] = ()
        if feed.top:
            best = self._torch.topk(logprobs, min(feed.top, len(logprobs)))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Step(token, float(logprobs[token]), top), state
