"""How the next token is drawn: the options of a generation, and the biases that follow from what was drawn before.

The rule itself stands in csrc/rnnlib.h, at `rnn_sampling`; the C library and torch_rnn.draw follow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnlm.arguments import check_type
from rnnlm.arrays import F32, F64
from rnnlm.errors import UserError

MAX_TOP_K = 2**31 - 1  # as rnn_sampling in csrc/rnnlib.h has it
MAX_TEMPERATURE = 100.0
MAX_PENALTY = 2.0
MAX_BIAS = 100.0  # of logit_bias
MAX_TOTAL_BIAS = 1e6  # with the penalties, which grow with each draw: RNN_MAX_BIAS

BIAS = np.dtype([("token", "i4"), ("value", "f4")])  # rnn_bias


class PromptError(UserError, ValueError):
    """A prompt, or an option of a generation, that cannot be used."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. <UNK> is never drawn.

    temperature: 0 takes the most probable token; 1 samples from the model's own distribution.
    top_k: only the k most probable tokens can be drawn; 0 for all of them.
    top_p: of these, only the most probable that together hold this much of the probability; 1 for all of them.
    presence_penalty: what a token's logit loses, in nats, once the generation has it; negative encourages.
    frequency_penalty: likewise, for each time that the generation has it.
    logit_bias: token id to what is added to its logit, in nats: -100 all but bans it, 100 all but takes nothing else.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
            check_type(name, getattr(self, name), float)
        check_type("top_k", self.top_k, int)
        check_type("logit_bias", self.logit_bias, Mapping)
        for token, value in self.logit_bias.items():
            check_type("a token id of logit_bias", token, int)
            check_type(f"the logit_bias of token {token}", value, float)
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= MAX_TEMPERATURE):
            raise PromptError(f"temperature must be from 0 to {MAX_TEMPERATURE:g}, got {self.temperature}")
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise PromptError(f"top_k must be from 0 (all tokens) to {MAX_TOP_K:,}, got {self.top_k:,}")
        if not np.float32(0.0) < np.float32(self.top_p) <= np.float32(1.0):  # as the C library has it
            raise PromptError(f"top_p must be above 0, and at most 1 (all tokens), got {self.top_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not abs(value) <= MAX_PENALTY:
                raise PromptError(f"{name} must be from {-MAX_PENALTY:g} to {MAX_PENALTY:g}, got {value}")
        for token, value in self.logit_bias.items():
            if not abs(value) <= MAX_BIAS:
                raise PromptError(
                    f"the logit_bias of token {token} must be from {-MAX_BIAS:g} to {MAX_BIAS:g}, got {value}"
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise PromptError unless every token of logit_bias is one of a model's vocabulary."""
        for token in self.logit_bias:
            if not 0 <= token < vocab_size:
                raise PromptError(f"logit_bias must name token ids from 0 to {vocab_size - 1:,}, got {token}")


def distribution(logits: F32, sampling: Sampling, banned: int | None = None) -> F64:
    """Return the probability with which each token is drawn from logits (V,): (V,) float64, which sums to 1.

    banned: a token that is never drawn, such as <UNK>.   The penalties and logit_bias are not applied.
    """
    kept = logits.astype(np.float64)
    if banned is not None:
        kept[banned] = -np.inf
    temperature = float(np.float32(sampling.temperature))  # as the C library has it
    if temperature == 0.0:
        return (np.arange(len(kept)) == kept.argmax()).astype(np.float64)
    with np.errstate(over="ignore"):  # divided by the smallest temperatures, all but the largest become -inf
        weights = np.exp((kept - kept.max()) / temperature)
    order = np.argsort(-kept, kind="stable")  # of equal ones, the lowest ids first
    count = min(sampling.top_k, len(kept)) or len(kept)
    top_p = float(np.float32(sampling.top_p))
    if top_p < 1.0:
        cumulative = np.cumsum(weights[order[:count]])
        count = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    weights[order[count:]] = 0.0
    return weights / weights.sum()


def second_number(u: float) -> float:
    """Return a number in [0, 1) that looks unrelated to u: SplitMix64 of floor(u * 2^53) (Steele, Lea & Flood 2014).

    With top_p, a token that fell outside the nucleus is drawn again with it.
    """
    mask = 2**64 - 1
    x = (int(u * 2.0**53) + 0x9E3779B97F4A7C15) & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return ((x ^ x >> 31) >> 11) * 2.0**-53


class Biases:
    """What is added to the logits of one generation: logit_bias, less the penalties for the tokens drawn so far."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._penalized = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        self._times: dict[int, int] = {}  # that each token was drawn
        self._rows = np.array(sorted(sampling.logit_bias.items()), dtype=BIAS)  # with room at its end
        self._count = self._rows.size

    @property
    def rows(self) -> npt.NDArray[Any]:
        """(n,) of dtype BIAS, in ascending order of token; what the next draw needs, until `drawn` is called."""
        return self._rows[: self._count]

    def drawn(self, token: int) -> None:
        """Count a token of the generation."""
        if not self._penalized:
            return
        sampling, times = self._sampling, self._times.get(token, 0) + 1
        self._times[token] = times
        at = int(np.searchsorted(self.rows["token"], token))
        if at == self._count or self._rows["token"][at] != token:
            if self._count == self._rows.size:
                self._rows = np.concatenate([self._rows, np.empty(self._count + 64, dtype=BIAS)])
            self._rows[at + 1 : self._count + 1] = self._rows[at : self._count]
            self._count += 1
        value = sampling.logit_bias.get(token, 0.0) - sampling.presence_penalty - sampling.frequency_penalty * times
        self._rows[at] = token, min(max(value, -MAX_TOTAL_BIAS), MAX_TOTAL_BIAS)
