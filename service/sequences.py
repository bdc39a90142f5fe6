"""One sequence: a prompt and the tokens that are written after it, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnlm.sampling import Biases, Sampling
from service.engines import Engine, Feed, Step
from service.wording import Stop

PREFILL_TOKENS = 64  # of a prompt at a time, so that a long one does not delay the next token of the others


class TokenSequence:
    """A prompt and the tokens generated after it.

    prompt: ids; at least one.   eos: the id that ends the sequence; None to go on after the end of a sentence.
    scored: make a step of each prompt token but the first, too, which has its log-probability.
    max_tokens: may be 0 if scored.   seed: of the uniforms that draw its tokens, whatever runs beside it.
    stop: watches this sequence only.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        seed: int,
        eos: int | None,
        stop: Stop | None = None,
        top: int = 0,
        scored: bool = False,
    ) -> None:
        self.engine = engine
        self.prompt = tuple(prompt)
        self.max_tokens = max_tokens
        self.seed = seed
        self.prompt_steps = len(self.prompt) - 1 if scored else 0
        self.steps: list[Step] = []  # those of the prompt, then the new ones
        self.visible = 0  # how many of them can be shown; the rest may be the start of a stop phrase
        self.kept: int | None = None  # characters of the next step's token, if a stop phrase begins inside that
        self.finish_reason: str | None = None  # "eos", "stop" or "length"
        self.started_at: float | None = None  # this and the next two on the clock of time.monotonic
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._sampling = sampling
        self._biases = Biases(sampling)
        self._uniforms = np.random.default_rng(seed).random(max_tokens).tolist()
        self._eos = eos
        self._stop = stop
        self._top = top
        self._new: list[int] = []
        self._prefilled = 0
        self._state: Any = None

    @property
    def new_tokens(self) -> int:
        """Tokens generated, those of a stop phrase included."""
        return len(self._new)

    # The scheduler's thread calls the rest.

    def prefill(self) -> bool:
        """Feed the next part of the prompt to the hidden layer. Returns whether the first step can be taken."""
        if self._state is None:
            self._state = self.engine.begin()
        end = 0 if self.prompt_steps else len(self.prompt) - 1  # a scored prompt is fed in steps
        if self._prefilled < end:
            part = self.prompt[self._prefilled : min(self._prefilled + PREFILL_TOKENS, end)]
            self._state = self.engine.prefill(part, self._state)
            self._prefilled += len(part)
        return self._prefilled >= end

    def feed(self) -> tuple[Feed, Any]:
        """Return the input of the next step, and the state."""
        done = len(self.steps)
        if done < self.prompt_steps:
            return Feed(self.prompt[done], 0.0, self._sampling, self._top, self.prompt[done + 1]), self._state
        token = self._new[-1] if self._new else self.prompt[-1]
        u = self._uniforms[len(self._new)]
        return Feed(token, u, self._sampling, self._top, None, self._biases), self._state

    def take(self, step: Step, state: Any) -> None:
        """Add a token, and find out whether it is the last."""
        self._state = state
        self.steps.append(step)
        held_back = 0
        if len(self.steps) > self.prompt_steps:
            self._new.append(step.token)
            self._biases.drawn(step.token)
            if self._stop and (cut := self._stop.add(step.token)):
                self.kept = cut.kept
                self._finish("stop", len(self.steps) - cut.touched)
                return
            if step.token == self._eos:
                self._finish("eos", len(self.steps))
                return
            held_back = self._stop.held_back if self._stop else 0
        if len(self._new) >= self.max_tokens and len(self.steps) >= self.prompt_steps:
            self._finish("length", len(self.steps))
        else:
            self.visible = len(self.steps) - held_back

    def _finish(self, reason: str, visible: int) -> None:
        self.visible = visible
        self.finish_reason = reason  # last: once the reader sees this, `visible` is final
