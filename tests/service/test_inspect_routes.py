"""The routes that look inside a model: what they return is what the model returns, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import needs_library, save_tiny, serving
from starlette.testclient import TestClient

import rnn

pytestmark = needs_library

TEXT = "wab wac nonsense. wad"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    save_tiny(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder, backends=("c", "torch")) as client:
        yield client


@pytest.fixture(scope="module")
def model(folder: Path) -> rnn.RNN:
    return rnn.RNN.load(folder / "demo.safetensors")


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize(("target", "other"), [(None, None), (2, "waz wac. wad")])
def test_an_inspection(client: TestClient, model: rnn.RNN, backend: str, target: int | None, other: str | None) -> None:
    asked = {"text": TEXT, "backend": backend, "target": target, "other": other, "state": True}
    reply = client.post("/inspect", json=asked)
    told, made = reply.json(), model.inspect(TEXT, target=target, other=other, states=True)
    assert reply.status_code == 200 and told["weights"]["name"] == "demo"
    assert told["words"] == list(made.words) == ["<EOS>", "wab", "wac", "<EOS>", "wad"]
    assert told["unknown_words"] == ["nonsense"]
    assert [(TEXT[token["start"] : token["end"]], token["kind"]) for token in told["tokens"]] == [
        ("wab", "known"),
        ("wac", "known"),
        ("nonsense", "unknown"),
        (".", "sentence_end"),
        ("wad", "known"),
    ]
    assert (told["target"], told["word"], told["hidden_size"]) == (made.target, made.word, 12)
    assert told["logprob"] == pytest.approx(made.logprob, abs=1e-5)
    assert [entry["word"] for entry in told["distribution"]] == [entry.word for entry in made.distribution]
    for shown, influence in zip(told["influences"], made.influences, strict=True):
        assert shown["position"] == influence.position
        for name in ("bits", "logprob_change", "gradient", "jacobian"):
            assert shown[name] == pytest.approx(getattr(influence, name), rel=1e-5, abs=1e-5), name
        got = {entry["word"]: entry["probability"] for entry in shown["distribution"]}
        assert got == pytest.approx(dict(influence.distribution), abs=1e-5)
    assert told["memory"]["words"] == list(made.memory.words)
    assert told["memory"]["changed"] == made.memory.changed
    assert told["memory"]["forgotten_after"] == made.memory.forgotten_after
    assert told["memory"]["differences"] == pytest.approx(made.memory.differences, abs=1e-5)
    assert np.abs(np.array(told["state"]) - made.states).max() <= 1e-5


def test_the_state_and_the_spectrum_are_sent_only_if_asked_for(client: TestClient) -> None:
    told = client.post("/inspect", json={"text": TEXT}).json()
    assert told["state"] is None and told["spectrum"] is None


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_a_spectrum(client: TestClient, model: rnn.RNN, backend: str) -> None:
    plain = client.get("/weights/demo/spectrum", params={"backend": backend}).json()
    made = model.spectrum(TEXT)
    assert np.allclose([complex(*pair) for pair in plain["recurrent"]], made.recurrent) and plain["effective"] is None
    told = client.get("/weights/demo/spectrum", params={"text": TEXT, "backend": backend}).json()
    moduli = np.abs([complex(*pair) for pair in told["effective"]])
    assert np.allclose(moduli, np.abs(made.effective), atol=1e-4)
    inspected = client.post("/inspect", json={"text": TEXT, "backend": backend, "spectrum": True}).json()
    assert inspected["spectrum"] == {name: told[name] for name in ("recurrent", "effective")}


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_candidates(client: TestClient, model: rnn.RNN, backend: str) -> None:
    rule = {"temperature": 0.7, "top_k": 9, "top_p": 0.8}
    told = client.post("/candidates", json={"text": TEXT, "backend": backend, "k": 12, **rule}).json()
    made = model.candidates(TEXT, k=12, **rule)
    assert (told["backend"], told["weights"]["name"], told["drawable"]) == (backend, "demo", made.drawable)
    assert [entry["word"] for entry in told["candidates"]] == [word.word for word in made.words]
    assert told["unknown"] == made.unknown
    for name in ("probability", "drawn"):
        assert [entry[name] for entry in told["candidates"]] == pytest.approx(
            [getattr(word, name) for word in made.words], abs=1e-6
        )


def test_each_back_end_has_its_own_temperature(client: TestClient) -> None:
    drawable = [
        client.post("/candidates", json={"text": TEXT, "backend": backend}).json()["drawable"]
        for backend in ("c", "torch")
    ]
    assert drawable[0] > 1 and drawable[1] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": ""}, "text"),
        ({"text": "nonsense"}, "vocabulary"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"k": 101}, "k"),
        ({"seed": 1}, "seed"),
    ],
)
def test_candidates_that_cannot_be_listed(client: TestClient, change: dict, words: str) -> None:
    reply = client.post("/candidates", json={"text": TEXT, **change})
    assert reply.status_code == 422 and words in reply.text


def test_units_and_neighbours(client: TestClient, model: rnn.RNN) -> None:
    told = client.get("/weights/demo/units/3", params={"k": 4}).json()
    made = model.unit(3, 4)
    for name in ("raised_by", "lowered_by", "raises", "lowers"):
        assert [(entry["word"], entry["value"]) for entry in told[name]] == list(getattr(made, name))
    told = client.get("/weights/demo/neighbours", params={"word": "wac", "k": 5}).json()
    made = model.neighbours("wac", 5)
    for name in ("by_input", "by_output"):
        assert [(entry["word"], entry["value"]) for entry in told[name]] == list(getattr(made, name))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": ""}, "text"),
        ({"text": "123"}, "the text has no word"),
        ({"text": "nonsense"}, "no word of the text is in the vocabulary"),
        ({"text": "waa", "target": 0}, "target must be 1 or more, got 0"),
        ({"text": "waa", "target": 3}, "target must be from 1 to 2"),
        ({"text": "waa " * 2000, "state": True}, "2,001 tokens, more than the 2,000"),
        ({"text": "waa", "other": "nonsense"}, "no word of the other text is in the vocabulary"),
        ({"text": "waa", "target": "1"}, "target"),
        ({"text": "waa", "layers": 2}, "layers"),
        ({}, "text"),
    ],
)
def test_bodies_that_cannot_be_inspected(client: TestClient, body: dict, words: str) -> None:
    reply = client.post("/inspect", json=body)
    assert reply.status_code == 422 and words in reply.text and "Traceback" not in reply.text


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/weights/none/spectrum", 404, "none"),
        ("/weights/demo/spectrum?text=nonsense", 422, "vocabulary"),
        ("/weights/demo/spectrum?backend=fortran", 422, "backend"),
        ("/weights/demo/units/12", 422, "from 0 to 11, got 12"),
        ("/weights/demo/units/-1", 422, "got -1"),
        ("/weights/demo/units/one", 422, "unit"),
        ("/weights/demo/units/0?k=101", 422, "k"),
        ("/weights/demo/neighbours", 422, "word"),
        ("/weights/demo/neighbours?word=nonsense", 422, "not among the 40 words"),
    ],
)
def test_what_is_not_there(client: TestClient, path: str, status: int, words: str) -> None:
    reply = client.get(path)
    assert reply.status_code == status and words in reply.text


def test_a_token_is_asked_for(folder: Path) -> None:
    with serving(folder, api_token="user-secret") as client:
        for path in ("/inspect", "/candidates"):
            assert client.post(path, json={"text": "waa"}).status_code == 401
        for path in ("spectrum", "units/0", "neighbours?word=waa"):
            assert client.get(f"/weights/demo/{path}").status_code == 401
        granted = {"authorization": "Bearer user-secret"}
        assert client.post("/inspect", json={"text": "waa"}, headers=granted).status_code == 200
