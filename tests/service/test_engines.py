"""Both engines: batching changes nothing, and both give the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from conftest import make_checkpoint
from scheduling import request_of, sequence, with_scheduler
from serving import needs_library

from rnnlm.checkpoint import Checkpoint
from rnnlm.data.text import UNK, Vocabulary
from rnnlm.language_model import Sampling
from service.engines import Engine, Step
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.sequences import TokenSequence


def source_with_unk() -> Checkpoint:
    source = make_checkpoint(vocab=60, embed=9, hidden=12)
    by = source.weights.by.copy()
    by[4] = 3.0  # so probable that it would be drawn
    words = (*source.vocabulary[:4], UNK, *source.vocabulary[5:])
    return dataclasses.replace(source, weights=dataclasses.replace(source.weights, by=by), vocabulary=words)


def c_engine() -> Engine:
    import rnn
    from service.engines import CEngine

    return CEngine(rnn.RNN(source_with_unk()), 32)


def torch_engine() -> Engine:
    import torch_rnn
    from service.engines import TorchEngine

    source = source_with_unk()
    return TorchEngine(torch_rnn.RNN.mapped(source.weights, Vocabulary(source.vocabulary, source.tokenizer)))


def carry_out(requests: Callable[[], list[list[TokenSequence]]]) -> list[list[Step]]:
    """The steps of every sequence, of requests that are submitted together."""
    steps: list[list[Step]] = []

    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        made = [request_of(*sequences) for sequences in requests()]
        for request in made:
            scheduler.submit(request)
        for request in made:
            await request.wait()
            steps.extend(sequence.steps for sequence in request.sequences)

    with_scheduler(test, max_sequences=32, max_waiting=64)
    return steps


@needs_library
@pytest.mark.parametrize("make", [c_engine, torch_engine])
def test_company_changes_nothing(make: Callable[[], Engine]) -> None:
    engine = make()

    def one(seed: int, **options: Any) -> TokenSequence:
        return sequence(engine, prompt=[0, seed % 50, 7], max_tokens=10 + seed % 7, seed=seed, eos=None, **options)

    alone = [carry_out(lambda seed=seed: [[one(seed)]])[0] for seed in range(12)]  # type: ignore[misc]
    together = carry_out(lambda: [[one(seed) for seed in range(6)], *([one(seed)] for seed in range(6, 12))])
    assert together == alone
    with_logits = carry_out(lambda: [[one(0, top=3)], *([one(seed)] for seed in range(1, 12))])
    assert [[step.token for step in steps] for steps in with_logits] == [[s.token for s in steps] for steps in alone]


@needs_library
def test_the_engines_agree() -> None:
    def both(make: Callable[[], Engine]) -> list[list[Step]]:
        engine = make()
        options: dict[str, Any] = {"max_tokens": 12, "eos": None, "top": 4}
        return carry_out(
            lambda: [
                [sequence(engine, prompt=[0, 3, 5], seed=5, **options)],
                [sequence(engine, prompt=[0, 3, 5, 9, 1], seed=6, scored=True, **options)],
            ]
        )

    for ours, theirs in zip(both(c_engine), both(torch_engine), strict=True):
        assert any(token == 4 for step in ours for token, _ in step.top)  # <UNK> is reported,
        assert not any(step.token == 4 for step in ours)  # and never drawn
        assert [step.token for step in ours] == [step.token for step in theirs]
        assert [step.logprob for step in ours] == pytest.approx([step.logprob for step in theirs], abs=1e-4)
        for a, b in zip(ours, theirs, strict=True):
            assert [token for token, _ in a.top] == [token for token, _ in b.top]
            assert [value for _, value in a.top] == pytest.approx([value for _, value in b.top], abs=1e-4)


@needs_library
@pytest.mark.parametrize("make", [c_engine, torch_engine])
def test_scored_prompts_agree_with_the_model(make: Callable[[], Engine]) -> None:
    engine = make()
    prompt = [0, 3, 5, 9, 1, 0, 22]
    (steps,) = carry_out(lambda: [[sequence(engine, prompt=prompt, max_tokens=0, scored=True, top=2)]])
    import numpy as np

    expected = engine.model.log_probabilities(np.array(prompt, dtype=np.int32))
    assert [step.token for step in steps] == prompt[1:]
    assert [step.logprob for step in steps] == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(len(step.top) == 2 and step.top[0][1] >= step.logprob - 1e-5 for step in steps)


@needs_library
def test_more_alternatives_than_words() -> None:
    import rnn
    from service.engines import CEngine

    engine = CEngine(rnn.RNN(make_checkpoint(vocab=5)), 4)
    (steps,) = carry_out(lambda: [[sequence(engine, max_tokens=2, eos=None, top=20)]])
    assert all(sorted(token for token, _ in step.top) == [0, 1, 2, 3, 4] for step in steps)
    assert all([value for _, value in step.top] == sorted((v for _, v in step.top), reverse=True) for step in steps)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
def test_the_smallest_temperatures_take_the_most_probable_word(temperature: float) -> None:
    import torch

    import torch_rnn

    logits = torch.tensor([-3.0, 2.0, 9.0, 1.0], dtype=torch.float64)
    for u in (0.0, 0.5, 0.999):
        assert torch_rnn.draw(logits, Sampling(temperature), u, banned=2) == 1


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7, top_p=0.6),
    Sampling(top_k=9, top_p=0.9, presence_penalty=1.0),
    Sampling(temperature=0.0, frequency_penalty=2.0),
    Sampling(logit_bias={3: 5.0, 30: -100.0}, frequency_penalty=-0.5),
]


@needs_library
@pytest.mark.parametrize("make", [c_engine, torch_engine])
def test_every_way_of_sampling_writes_what_the_model_writes(make: Callable[[], Engine]) -> None:
    """Alone, as model.generate does, and side by side."""
    engine = make()
    words = engine.model.vocabulary.words

    def requests() -> list[list[TokenSequence]]:
        ids, _ = engine.model.encode("waa wab")
        return [
            [sequence(engine, prompt=ids, max_tokens=12, seed=seed, eos=None, sampling=way) for seed in range(2)]
            for way in SAMPLINGS
        ]

    steps = iter(carry_out(requests))
    for way in SAMPLINGS:
        for seed in range(2):
            options = {"max_tokens": 12, "seed": seed, "ignore_eos": True, **dataclasses.asdict(way)}
            written = engine.model.generate("waa wab", **options)
            assert [words[step.token] for step in next(steps)] == [token.word for token in written.tokens]
