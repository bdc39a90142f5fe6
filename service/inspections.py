"""The bodies of the routes that look inside a model, and their replies made of what rnnlm.inspection returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from rnnlm import inspection
from rnnlm.data.text import Span
from service import fields
from service.schemas import Backend, ReadToken, WeightsName, WeightsUsed

Eigenvalue = Annotated[tuple[float, float], Field(description="real and imaginary part")]


class InspectRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    text: str
    backend: Backend = "c"
    weights: WeightsName = None
    target: int | None = Field(
        None,
        ge=1,
        le=inspection.MAX_TOKENS,
        description="which of the reply's `words` is explained; null: the word that would come next",
    )
    other: str | None = Field(
        None, description="a text to compare hidden states with; null: this one with its first word replaced"
    )
    state: bool = Field(False, description="reply with the hidden state after each word")
    spectrum: bool = Field(False, description="reply with the eigenvalues of the recurrence, over this text, too")


class WordProbability(BaseModel):
    word: str
    probability: float


class WordValue(BaseModel):
    word: str
    value: float


class Influence(BaseModel):
    """What an earlier token does to the prediction of the word that is explained."""

    position: int = Field(description="of the token, in `words`")
    bits: float = Field(description="KL divergence of the prediction with the token from that without it")
    logprob_change: float = Field(description="of the explained word, if the token is left out; in nats")
    gradient: float = Field(description="norm of the gradient of its log-probability by the token's embedding")
    jacobian: float = Field(description="Frobenius norm of dh_T/dh_position, T being the last token read")
    distribution: list[WordProbability] = Field(
        description="the prediction without the token: of the words of the reply's `distribution`, in that order, and "
        "then of its own most probable words that are not among them"
    )


class Memory(BaseModel):
    """How the hidden states of two texts that differ come together again."""

    words: list[str] = Field(description="of the other text, as the model reads it")
    changed: int | None = Field(description="the first position at which the texts differ; null if none does")
    differences: list[float] = Field(description="norm of the difference of the states, at each position")
    forgotten_after: int | None = Field(
        description="how many words after the changed one the difference is below 1% of what it was, and stays there; "
        "null if it does not within the text"
    )


class Spectrum(BaseModel):
    recurrent: list[Eigenvalue] = Field(description="of Whh, the largest magnitude first")
    effective: list[Eigenvalue] | None = Field(
        description="of diag(1 - h^2) Whh averaged over the tokens of the text; null without one"
    )


class InspectResponse(BaseModel):
    backend: Backend
    weights: WeightsUsed
    tokens: list[ReadToken] = Field(description="everything in the text, in order")
    words: list[str] = Field(description="what the model read; the first is the <EOS> that begins every text")
    unknown_words: list[str]
    target: int
    word: str = Field(description="the word that is explained")
    logprob: float = Field(description="its log-probability, in nats")
    distribution: list[WordProbability] = Field(description="the most probable words at that place")
    influences: list[Influence]
    memory: Memory
    hidden_size: int
    state: list[list[float]] | None = Field(description="(words, hidden units), if it was asked for")
    spectrum: Spectrum | None = Field(description="if it was asked for")


class CandidatesRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    text: str
    backend: Backend = "c"
    weights: WeightsName = None
    temperature: fields.Temperature = None
    top_k: fields.TopK = 0
    top_p: fields.TopP = 1.0
    k: int = Field(inspection.TOP, ge=1, le=inspection.MAX_WORDS, description="words in the reply")


class Candidate(BaseModel):
    id: int
    word: str
    probability: float = Field(description="under the model itself")
    drawn: float = Field(description="with which it is drawn by the rule; 0 if that leaves it out, as always <UNK>")


class CandidatesResponse(BaseModel):
    """What may come after a text."""

    backend: Backend
    weights: WeightsUsed
    candidates: list[Candidate] = Field(description="the most probable words, in order")
    drawable: int = Field(description="how many words of the whole vocabulary can be drawn by the rule")
    unknown: float | None = Field(description="the model's probability of <UNK>; null if it has no <UNK>")


class SpectrumResponse(Spectrum):
    weights: WeightsUsed


class UnitResponse(BaseModel):
    """The words around one hidden unit, the strongest first."""

    weights: WeightsUsed
    unit: int
    raised_by: list[WordValue] = Field(description="words that drive it up most: (x Wxh)[unit]")
    lowered_by: list[WordValue]
    raises: list[WordValue] = Field(description="words whose logit it raises most: Why[unit]")
    lowers: list[WordValue]


class NeighboursResponse(BaseModel):
    """The nearest words by cosine."""

    weights: WeightsUsed
    word: str
    by_input: list[WordValue] = Field(description="by the word's embedding")
    by_output: list[WordValue] = Field(description="by the word's column of Why")


def _probabilities(words: Iterable[inspection.WordProbability]) -> list[WordProbability]:
    return [WordProbability(**entry._asdict()) for entry in words]


def _values(words: Sequence[inspection.WordValue]) -> list[WordValue]:
    return [WordValue(**entry._asdict()) for entry in words]


def _eigenvalues(values: npt.NDArray[np.complex128]) -> list[Eigenvalue]:
    return [(value.real, value.imag) for value in values.tolist()]


def of_text(
    made: inspection.Inspection,
    spans: Sequence[Span],
    backend: Backend,
    weights: WeightsUsed,
    hidden: int,
    spectrum: inspection.Spectrum | None,
) -> InspectResponse:
    return InspectResponse(
        backend=backend,
        weights=weights,
        tokens=[ReadToken(**span._asdict()) for span in spans],
        words=list(made.words),
        unknown_words=list(made.unknown),
        target=made.target,
        word=made.word,
        logprob=made.logprob,
        distribution=_probabilities(made.distribution),
        influences=[
            Influence(**vars(influence) | {"distribution": _probabilities(influence.distribution)})
            for influence in made.influences
        ],
        memory=Memory(**{name: _listed(value) for name, value in vars(made.memory).items()}),
        hidden_size=hidden,
        state=None if made.states is None else made.states.tolist(),
        spectrum=None if spectrum is None else Spectrum(**_of_spectrum(spectrum)),
    )


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def of_candidates(made: inspection.Candidates, backend: Backend, weights: WeightsUsed) -> CandidatesResponse:
    return CandidatesResponse(
        backend=backend,
        weights=weights,
        candidates=[Candidate(**entry._asdict()) for entry in made.words],
        drawable=made.drawable,
        unknown=made.unknown,
    )


def of_spectrum(made: inspection.Spectrum, weights: WeightsUsed) -> SpectrumResponse:
    return SpectrumResponse(weights=weights, **_of_spectrum(made))


def _of_spectrum(made: inspection.Spectrum) -> dict[str, list[Eigenvalue] | None]:
    effective = None if made.effective is None else _eigenvalues(made.effective)
    return {"recurrent": _eigenvalues(made.recurrent), "effective": effective}


def of_unit(made: inspection.Unit, weights: WeightsUsed) -> UnitResponse:
    lists = {name: _values(getattr(made, name)) for name in ("raised_by", "lowered_by", "raises", "lowers")}
    return UnitResponse(weights=weights, unit=made.index, **lists)


def of_neighbours(made: inspection.Neighbours, weights: WeightsUsed) -> NeighboursResponse:
    return NeighboursResponse(
        weights=weights, word=made.word, by_input=_values(made.by_input), by_output=_values(made.by_output)
    )
