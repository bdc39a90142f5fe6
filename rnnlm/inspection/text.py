"""Everything about one text: why the model predicts a word of it, and what it remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnnlm.arrays import F64
from rnnlm.data.text import Vocabulary
from rnnlm.inspection.influence import Influence, WordProbability, explain
from rnnlm.inspection.memory import Memory, first_word_replaced, remember
from rnnlm.inspection.network import (
    MAX_STATE_VALUES,
    InspectionError,
    Network,
    check_finite,
    check_sizes,
    check_tokens,
)

STATE_DECIMALS = 6


@dataclass(frozen=True)
class Inspection:
    """Why a model predicts a word, and what it remembers of a text.

    words: what the model read, in order; words[0] is the <EOS> that stands before every text.
    unknown: words of the text that the vocabulary lacks.   target: the position explained; len(words) is the next one.
    word: the word there, for the next one the most probable (<UNK> aside).   logprob: its log-probability, in nats.
    distribution: the TOP most probable words there, given all before.
    influences: of the last WINDOW tokens before the target, in order.
    states: (T, H) float64, the hidden state after each word, rounded to STATE_DECIMALS; None unless asked for.
    """

    words: tuple[str, ...]
    unknown: tuple[str, ...]
    target: int
    word: str
    logprob: float
    distribution: tuple[WordProbability, ...]
    influences: tuple[Influence, ...]
    memory: Memory
    states: F64 | None


def inspect(
    network: Network,
    vocabulary: Vocabulary,
    ids: Sequence[int],
    *,
    unknown: tuple[str, ...] = (),
    target: int | None = None,
    other: Sequence[int] | None = None,
    states: bool = False,
) -> Inspection:
    """Explain the prediction at position `target` of ids (T,), whose first is <EOS>; None: the token after the last.

    other: the ids of a text to compare hidden states with; None takes this text with its first word replaced by the
    most frequent other one.   states: give out the hidden states.   Raises InspectionError.
    """
    hidden = network.matrices().Whh.shape[0]
    check_sizes(network.matrices())
    other = first_word_replaced(vocabulary, ids) if other is None else other
    check_tokens(len(ids))
    check_tokens(len(other))
    if states and len(ids) * hidden > MAX_STATE_VALUES:
        raise InspectionError(
            f"the hidden states of {len(ids):,} tokens and {hidden:,} units are {len(ids) * hidden:,} numbers, more "
            f"than {MAX_STATE_VALUES:,}: leave them out, or inspect at most {MAX_STATE_VALUES // hidden:,} tokens"
        )
    target = len(ids) if target is None else target
    if not 1 <= target <= len(ids):
        raise InspectionError(f"target must be from 1 to {len(ids):,} (the token after the text), got {target:,}")
    history = network.hidden_states(ids)
    check_finite("hidden states", history)
    following = ids[target] if target < len(ids) else None
    explanation = explain(network, vocabulary, ids[:target], history[:target], following)
    return Inspection(
        words=tuple(vocabulary.words[i] for i in ids),
        unknown=unknown,
        target=target,
        word=explanation.word,
        logprob=explanation.logprob,
        distribution=explanation.distribution,
        influences=explanation.influences,
        memory=remember(network, vocabulary, ids, history, other),
        states=np.round(history.astype(np.float64), STATE_DECIMALS) if states else None,
    )
