"""Fields of bodies: prompts and stop phrases in each form that clients send them, and the numbers of a generation.

A field whose limit is a setting is made by a function, so that the service's OpenAPI document shows the limit in force.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from rnnlm.arrays import MAX_VOCAB
from rnnlm.language_model import MAX_SEED
from rnnlm.sampling import MAX_BIAS, MAX_PENALTY
from service.validation import nth_item, shown

MAX_BIASES = 300
MAX_STOPS = 8
MAX_STOP_CHARS = 200
SMALLEST_TOP_P = 1e-9  # keeps one word only, and is a number in float32; smaller ones are raised to it

Temperature = Annotated[
    float | None,
    Field(
        ge=0,
        le=100,
        description="0 takes the most probable word; null is the back end's own: 1 for c, 0 for torch",
    ),
]
TopK = Annotated[int, Field(ge=0, le=MAX_VOCAB, description="draw from the k most probable words only; 0: from all")]
TopP = Annotated[
    float,
    Field(gt=0, le=1, description="draw only from the most probable words that together hold this much probability"),
    AfterValidator(lambda value: max(value, SMALLEST_TOP_P)),
]
Penalty = Annotated[
    float,
    Field(ge=-MAX_PENALTY, le=MAX_PENALTY, description="what a word's logit loses, in nats, once the text has it"),
]
PenaltyEachTime = Annotated[
    float,
    Field(ge=-MAX_PENALTY, le=MAX_PENALTY, description="what a word's logit loses each time that the text has it"),
]
Seed = Annotated[int | None, Field(ge=0, le=MAX_SEED, description="the same seed gives the same text; null draws one")]
IgnoreEos = Annotated[bool, Field(description="continue after the end of the sentence")]
Stream = Annotated[bool, Field(description="reply with server-sent events, one for each token")]


def refuse(message: str) -> PydanticCustomError:
    """Make the error of a field. The message continues a sentence that the field's name begins."""
    return PydanticCustomError("field", message)  # type: ignore[arg-type]  (a LiteralString)


def prompts(*, chars: int, count: int, ids: bool = False, description: str, example: str) -> Any:
    """Make a field for one prompt or several. Its value is a tuple of texts and, if `ids`, of tuples of token ids."""
    text = {"type": "string", "minLength": 1, "maxLength": chars}
    forms: list[dict[str, Any]] = [text, {"type": "array", "minItems": 1, "maxItems": count, "items": text}]
    says = "must be a text or a list of texts"
    if ids:
        tokens = {"type": "array", "minItems": 1, "maxItems": chars, "items": {"type": "integer", "minimum": 0}}
        forms += [tokens, {"type": "array", "minItems": 1, "maxItems": count, "items": tokens}]
        says = "must be a text, a list of texts, a list of token ids, or a list of such lists"

    def check_text(value: str, place: str) -> str:
        if not value:
            raise refuse(f"{place}must not be empty")
        if len(value) > chars:
            raise refuse(f"{place}must have at most {chars:,} characters, got {len(value):,}")
        return value

    def check_ids(value: list[int], place: str) -> tuple[int, ...]:
        if not value:
            raise refuse(f"{place}must not be empty")
        if len(value) > chars:
            raise refuse(f"{place}must have at most {chars:,} token ids, got {len(value):,}")
        return tuple(value)

    def check(value: Any) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(value, str):
            return (check_text(value, ""),)
        if not isinstance(value, list):
            raise refuse(says)
        if ids and value and _are_ids(value):
            return (check_ids(value, ""),)
        if not 1 <= len(value) <= count:
            raise refuse(f"must have from 1 to {count} items, got {len(value):,}")
        places = [f"{nth_item(index, len(value))} " for index in range(len(value))]
        if all(isinstance(item, str) for item in value):
            return tuple(map(check_text, value, places))
        if ids and all(isinstance(item, list) and _are_ids(item) for item in value):
            return tuple(map(check_ids, value, places))
        raise refuse(says)

    schema = WithJsonSchema({"anyOf": forms, "description": description, "examples": [example]})
    return Annotated[Any, PlainValidator(check), schema]


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # True is an int to isinstance


def _check_biases(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(_is_id(key) and _is_number(item) for key, item in value.items()):
        raise refuse('must be an object of token ids and numbers, such as {"5": -100}')
    if len(value) > MAX_BIASES:
        raise refuse(f"must have at most {MAX_BIASES} tokens, got {len(value):,}")
    for key, item in value.items():
        if not abs(item) <= MAX_BIAS:
            raise refuse(f"must have numbers from {-MAX_BIAS:g} to {MAX_BIAS:g}, got {shown(item)} for token {key}")
    return {int(key): float(item) for key, item in value.items()}


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= 9


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


LogitBias = Annotated[
    Any,
    PlainValidator(_check_biases),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "maxProperties": MAX_BIASES,
                    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
                },
                {"type": "null"},
            ],
            "description": "by token id, what is added to its logit, in nats: -100 all but bans it",
        }
    ),
]


def _check_stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    phrases = [value] if isinstance(value, str) else value
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise refuse("must be a text or a list of texts")
    if len(phrases) > MAX_STOPS:
        raise refuse(f"must have at most {MAX_STOPS} items, got {len(phrases):,}")
    for phrase in phrases:
        if not 1 <= len(phrase) <= MAX_STOP_CHARS:
            raise refuse(f"must have phrases of 1 to {MAX_STOP_CHARS} characters, got one of {len(phrase):,}")
    return tuple(phrases)


def stop(description: str) -> Any:
    """Make a field for one stop phrase, several or none. Its value is a tuple of texts."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
    forms = [text, {"type": "array", "maxItems": MAX_STOPS, "items": text}, {"type": "null"}]
    return Annotated[Any, PlainValidator(_check_stop), WithJsonSchema({"anyOf": forms, "description": description})]
