"""Prompts, generation and scoring, for both back ends.

A back end derives from `LanguageModel` and implements `open_sequence`, which starts a sequence, `log_probabilities`,
and for a look inside `hidden_states`, `logits` and `matrices`. Everything that a caller sees (how a prompt is read,
what the seed does, when a generation ends) is here, once, so that the same weights, prompt and seed give the same
tokens on both.
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rnnlm import inspection
from rnnlm.arguments import check_type
from rnnlm.arrays import F32, I32
from rnnlm.data.text import Span, Vocabulary, tokens_of
from rnnlm.errors import shortened
from rnnlm.inspection import Candidates, Inspection, Matrices, Neighbours, Spectrum, Unit
from rnnlm.sampling import PromptError, Sampling

MAX_SEED = 2**63 - 1
EVALUATION_STEPS = 512  # tokens of one forward pass over a text; the result does not depend on it


@dataclass(frozen=True)
class Token:
    """One token and its probability.

    logprob: natural logarithm of its probability under the model itself, before all that sampling does.
    """

    id: int
    word: str
    logprob: float


@dataclass(frozen=True)
class Generation:
    """The continuation of a prompt.

    text: the new words, without the prompt.  tokens: the new tokens, including a final <EOS>.
    finish_reason: "eos" (the model ended its sentence) or "length" (max_tokens were generated).
    seed: the seed that was used.  unknown: words of the prompt that the vocabulary lacks, in order.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    seed: int
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """How well the model predicts a text.

    tokens: every token of it.   unknown: as in `Generation`.
    spans: everything in the text, in order; those that have an id are the tokens.
    """

    tokens: tuple[Token, ...]
    unknown: tuple[str, ...]
    spans: tuple[Span, ...] = ()

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return -sum(token.logprob for token in self.tokens) / len(self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """Return exp(loss), at most e^700, since larger powers do not fit a float or JSON."""
    return math.exp(min(loss, 700.0))


def shown(value: float, digits: int = 1) -> str:
    """Format a perplexity for people: 142.3, 31,266.0, 4.0e+30.   digits: after the point, below a million."""
    return f"{value:,.{digits}f}" if value < 1e6 else f"{value:.1e}"


class OpenSequence(ABC):
    """One sequence being generated. It owns its hidden state."""

    @abstractmethod
    def step(self, token: int, u: float) -> tuple[int, float]:
        """Feed `token`, draw the next with the uniform u in [0, 1), and return it with its log-probability."""


class LanguageModel(ABC):
    """Generation and scoring, for any back end."""

    vocabulary: Vocabulary
    default_temperature: float

    @abstractmethod
    def open_sequence(self, prefix: list[int], sampling: Sampling) -> OpenSequence:
        """Start a sequence whose hidden state has seen `prefix` (which may be empty)."""

    @abstractmethod
    def log_probabilities(self, ids: I32, state: F32 | None = None) -> F32:
        """Return log p(ids[i + 1] | ids[0..i]) for i in 0..N-2: (N - 1,) float32. N >= 2.

        state: (H,), the hidden state before ids[0], which is replaced by the one before ids[N - 1]; None: zeros.
        """

    @abstractmethod
    def hidden_states(self, ids: Sequence[int], state: F32 | None = None) -> F32:
        """The hidden state after each of ids (N,): (N, H) float32. state: (H,), before the first; None: zeros."""

    @abstractmethod
    def logits(self, states: F32) -> F32:
        """The logits of hidden states (n, H): (n, V) float32."""

    @abstractmethod
    def matrices(self) -> Matrices:
        """The weights, without a copy."""

    def token_ids(self, ids: Sequence[int] | I32) -> I32:
        """Return token ids (N,) as an array. Raises TypeError, PromptError (an id outside the vocabulary)."""
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError("ids must be a row of integers, the ids of tokens")
        if array.size and not 0 <= array.min() <= array.max() < len(self.vocabulary):
            bad = next(int(token) for token in array if not 0 <= token < len(self.vocabulary))
            raise PromptError(f"token ids are from 0 to {len(self.vocabulary) - 1:,}, got {bad:,}")
        return array.astype(np.int32)

    def encode(self, text: str, what: str = "the prompt") -> tuple[list[int], tuple[str, ...]]:
        """Return the ids of a prompt, with <EOS> in front, and its words that the vocabulary lacks.

        what: what messages call it.
        <EOS> comes first because the model was trained on running text, where the first word of a sentence follows
        the <EOS> of the one before.
        Raises PromptError if no word of the prompt is known, or if it holds half a surrogate pair.
        """
        ids, unknown = tokens_of(self.read(text, what))
        return [self.vocabulary.eos, *ids], tuple(unknown)

    def read(self, text: str, what: str = "the prompt") -> list[Span]:
        """Return everything in a prompt, in order; the model reads those spans that have an id. Raises as `encode`."""
        check_type("the text", text, str)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"{what} is not valid Unicode at character {error.start:,}") from None
        spans = self.vocabulary.encode(text)
        if not any(span.kind == "known" for span in spans):
            unknown = tokens_of(spans)[1]
            if not unknown:
                letters, others = "the letters A to Z", "another character"
                if self.vocabulary.tokenizer.startswith("unicode"):
                    letters, others = "letters", "a digit or symbol"
                rule = f"words are made of {letters} only, and one with {others} inside is dropped whole"
                raise PromptError(f"{what} has no word: {rule}")
            words = ", ".join(map(shortened, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise PromptError(f"no word of {what} is in the vocabulary ({words}); try other words")
        return spans

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 50,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Iterator[Token]:
        """Yield the tokens of a generation one by one. Closing the iterator stops the work.

        temperature: None is the back end's own default (C samples with 1, torch is greedy with 0).
        top_k, top_p, presence_penalty, frequency_penalty, logit_bias: the fields of `Sampling`.
        seed: the same seed, prompt and weights give the same tokens; None draws a seed.
        ignore_eos: continue after the end of a sentence until max_tokens.
        Raises PromptError, and TypeError for an argument of the wrong type, from the call itself.
        """
        sampling = self._sampling(
            max_tokens, temperature, top_k, top_p, presence_penalty, frequency_penalty, logit_bias
        )
        check_type("ignore_eos", ignore_eos, bool)
        return self._tokens(self.encode(prompt)[0], max_tokens, sampling, check_seed(seed), ignore_eos)

    def _sampling(
        self,
        max_tokens: int,
        temperature: float | None,
        top_k: int,
        top_p: float,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: Mapping[int, float] | None,
    ) -> Sampling:
        check_type("max_tokens", max_tokens, int)
        if max_tokens < 1:
            raise PromptError(f"max_tokens must be 1 or more, got {max_tokens}")
        sampling = Sampling(
            self.default_temperature if temperature is None else temperature,
            top_k,
            top_p,
            presence_penalty,
            frequency_penalty,
            {} if logit_bias is None else logit_bias,
        )
        sampling.check_vocabulary(len(self.vocabulary))
        return sampling

    def _tokens(
        self, ids: list[int], max_tokens: int, sampling: Sampling, seed: int, ignore_eos: bool
    ) -> Iterator[Token]:
        uniforms = np.random.default_rng(seed)
        sequence = self.open_sequence(ids[:-1], sampling)
        token = ids[-1]
        for _ in range(max_tokens):
            token, logprob = sequence.step(token, uniforms.random())
            yield Token(token, self.vocabulary.words[token], logprob)
            if token == self.vocabulary.eos and not ignore_eos:
                return

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 50,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Generation:
        """Continue `prompt`. The options are those of `stream`."""
        sampling = self._sampling(
            max_tokens, temperature, top_k, top_p, presence_penalty, frequency_penalty, logit_bias
        )
        check_type("ignore_eos", ignore_eos, bool)
        ids, unknown = self.encode(prompt)
        seed = check_seed(seed)
        tokens = tuple(self._tokens(ids, max_tokens, sampling, seed, ignore_eos))
        ended = tokens[-1].id == self.vocabulary.eos and not ignore_eos
        return Generation(
            text=self.vocabulary.decode([token.id for token in tokens]),
            tokens=tokens,
            finish_reason="eos" if ended else "length",
            seed=seed,
            unknown=unknown,
        )

    def score(self, text: str) -> Score:
        """Return the log-probability of every token of `text`, given all tokens before it. Raises PromptError."""
        spans = self.read(text, "the text")
        ids, unknown = tokens_of(spans)
        logprobs = self.log_probabilities(np.array([self.vocabulary.eos, *ids], dtype=np.int32))
        tokens = (
            Token(token, self.vocabulary.words[token], float(logprob))
            for token, logprob in zip(ids, logprobs, strict=True)
        )
        return Score(tuple(tokens), tuple(unknown), tuple(spans))

    def inspect(
        self, text: str, *, target: int | None = None, other: str | None = None, states: bool = False
    ) -> Inspection:
        """Why the model predicts a word of `text`, and what it remembers of it.

        target: which of `Inspection.words` is explained, from 1; None: the word that would come next.
        other: a text to compare the hidden states with, such as this one with a word replaced; None replaces the first.
        states: give out the hidden states.   Raises PromptError, InspectionError (too long, out of range).
        """
        ids, unknown = self.encode(text, "the text")
        others = None if other is None else self.encode(other, "the other text")[0]
        if target is not None:
            check_type("target", target, int)
        check_type("states", states, bool)
        return inspection.inspect(
            self, self.vocabulary, ids, unknown=unknown, target=target, other=others, states=states
        )

    def candidates(
        self,
        text: str,
        *,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        k: int = inspection.TOP,
    ) -> Candidates:
        """The k most probable words after `text`, and the probability with which each is drawn. The options are
        those of `stream`.

        Raises PromptError, InspectionError (too large, k out of range).
        """
        own = self.default_temperature if temperature is None else temperature
        sampling = Sampling(own, top_k, top_p)
        return inspection.candidates(self, self.vocabulary, self.encode(text, "the text")[0], sampling, k)

    def spectrum(self, text: str | None = None) -> Spectrum:
        """The eigenvalues of Whh, and with a text those of diag(1 - h^2) Whh averaged over its tokens.

        Raises PromptError, InspectionError (too long, too large).
        """
        return inspection.spectrum(self, None if text is None else self.encode(text, "the text")[0])

    def unit(self, index: int, k: int = inspection.TOP) -> Unit:
        """The k words that drive hidden unit `index` most, and that it raises most. Raises InspectionError."""
        return inspection.unit(self, self.vocabulary, index, k)

    def neighbours(self, word: str, k: int = inspection.TOP) -> Neighbours:
        """The k words nearest to `word` by input and by output vector. Raises InspectionError (unknown word)."""
        return inspection.neighbours(self, self.vocabulary, word, k)


def check_seed(seed: int | None) -> int:
    """Return `seed`, or a fresh one for None. Raises TypeError, PromptError (out of range)."""
    if seed is None:
        return secrets.randbits(32)
    check_type("seed", seed, int)
    if not 0 <= seed <= MAX_SEED:
        raise PromptError(f"seed must be from 0 to {MAX_SEED}, got {seed}")
    return int(seed)
