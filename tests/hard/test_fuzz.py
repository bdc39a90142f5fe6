"""Arbitrary input for everything that comes from outside: weights files, texts, word vectors, bodies, forms, names.

A few examples of each here; `make fuzz-python` tries 10,000 of each, `make fuzz-weights` 100,000 files.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_weights
import numpy as np
import pytest
from corpora import tokenize
from gensim.models import KeyedVectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import ADMIN, needs_library, save_tiny, serving
from starlette.testclient import TestClient

from rnnlm import checkpoint
from rnnlm.data.encoding import CorpusError
from rnnlm.data.text import EOS, TOKENIZERS, UNK, TokenStream, Vocabulary, tokens_of
from rnnlm.data.text_files import open_path
from rnnlm.data.vector_files import EmbeddingsError, read_vectors
from rnnlm.training import state_file

pytestmark = needs_library

shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(fuzz_weights.ODD_NUMBERS)
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


# ---- Weights files --------------------------------------------------------------------------------------------------


def test_mutated_weights_files_are_refused_or_serve(tmp_path: Path) -> None:
    verdicts = [
        (kind, fuzz_weights.judge(tmp_path / "mutated.safetensors", raw, "c"))
        for kind, raw in fuzz_weights.files(1500, seed=1)
    ]
    kinds = {kind for kind, _ in verdicts}
    assert len(kinds) == 1 + len(fuzz_weights.MUTATIONS)
    assert all((kind, "refused") in verdicts for kind in kinds)
    assert ("odd_floats", "accepted") in verdicts  # one more zero does no harm: not everything is refused


def test_the_sound_file_is_accepted(tmp_path: Path) -> None:
    assert fuzz_weights.judge(tmp_path / "sound.safetensors", fuzz_weights.sound_file(), "c") == "accepted"


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F64", "I32", "I64"]) | SCALARS,
        "shape": st.lists(st.integers(0, 4) | SCALARS, max_size=5) | JSON,
        "data_offsets": st.lists(st.integers(0, 60) | SCALARS, min_size=2, max_size=2) | JSON,
    }
)
NAMES = st.sampled_from(["embeddings", *checkpoint.PARAMETERS, "vocabulary", "__metadata__"])
HEADERS = st.dictionaries(NAMES | st.text(), TENSOR | JSON) | JSON


@shared
@given(header=HEADERS, data=st.binary(max_size=200), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_header_is_refused(tmp_path: Path, header: Any, data: bytes, length: int | None) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "any.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    for load in (checkpoint.load, state_file.load):
        with pytest.raises(checkpoint.CheckpointError) as caught:
            load(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@shared
@given(raw=st.binary(max_size=2000))
def test_any_bytes_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(raw)
    for copy in (False, True):
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(path, copy=copy)


# ---- Texts ----------------------------------------------------------------------------------------------------------

# Text made of the characters that the rules name, and arbitrary text.
TEXTS = st.text() | st.text(st.sampled_from("abZ .,!?'`-\n\r\t\u2014\u2019\u00e9\u0130\u2028\x00\x1c<>0")).map(str)


@shared
@given(text=TEXTS, tokenizer=st.sampled_from(TOKENIZERS))
def test_any_text_gives_words_of_letters_and_ends_of_sentences(text: str, tokenizer: str) -> None:
    tokens = tokenize(text, tokenizer)
    if not tokenizer.startswith("unicode"):
        assert all(token == EOS or (token.isascii() and token.isalpha()) for token in tokens)
    assert not tokens or tokens[-1] == EOS
    assert len(tokens) <= 2 * len(text) + 1


@shared
@given(pieces=st.lists(TEXTS, max_size=6), tokenizer=st.sampled_from(TOKENIZERS))
def test_a_text_that_comes_in_pieces_is_the_same_text(pieces: list[str], tokenizer: str) -> None:
    stream = TokenStream(tokenizer)
    tokens = [token for piece in pieces for token in stream.feed(piece + " ")] + stream.close()
    assert tokens == tokenize("".join(piece + " " for piece in pieces), tokenizer)


@shared
@given(
    text=TEXTS,
    words=st.sets(st.text("abZ", min_size=1, max_size=2)),
    unk=st.booleans(),
    tokenizer=st.sampled_from(TOKENIZERS),
)
def test_any_prompt_becomes_ids_of_the_vocabulary(text: str, words: set[str], unk: bool, tokenizer: str) -> None:
    vocabulary = Vocabulary([EOS, *([UNK] if unk else []), *sorted(words)], tokenizer)
    ids, unknown = tokens_of(vocabulary.encode(text))
    assert all(0 <= i < len(vocabulary) for i in ids)
    assert not words & set(unknown) and len(unknown) == len(set(unknown))
    vocabulary.decode(ids)


# ---- Word vectors ---------------------------------------------------------------------------------------------------

WORDS = ("waa", "wab", "wac", "w\u00e9")
VECTORS = np.arange(len(WORDS) * 3, dtype=np.float32).reshape(-1, 3) / 7


def vector_files() -> dict[str, bytes]:
    """Return a sound file of each format that --embeddings FILE reads."""
    vectors = KeyedVectors(3)
    vectors.add_vectors(list(WORDS), VECTORS)
    with tempfile.TemporaryDirectory() as folder:
        own, binary, text = (Path(folder) / name for name in ("own", "binary", "text"))
        vectors.save(str(own))
        vectors.save_word2vec_format(str(binary), binary=True)
        vectors.save_word2vec_format(str(text), binary=False)
        glove = text.read_bytes().partition(b"\n")[2]
        found = {"gensim": own.read_bytes(), "binary": binary.read_bytes(), "text": text.read_bytes(), "glove": glove}
    return found | {"gzip": gzip.compress(found["text"], mtime=0)}


SOUND = vector_files()
PIECES = st.binary(max_size=12) | st.sampled_from(
    [b"\n", b" ", b"nan", b"1e999", b"-", b"0" * 40, b"cos\nsystem\n", b"."]
)
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 9), PIECES), max_size=3)


def check_vectors(path: Path, raw: bytes) -> bool:
    """Return whether a file is read. One that is not is refused with one line; what is read is finite."""
    path.write_bytes(raw)
    try:
        vectors, found = read_vectors(path, WORDS)
    except EmbeddingsError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 + len(str(path))
        return False
    assert vectors.dtype == np.float32 and vectors.shape[0] == len(WORDS) == found.size
    assert np.isfinite(vectors).all() and not vectors[~found].any()
    return True


@pytest.mark.parametrize("kind", SOUND)
def test_sound_vectors_are_read(tmp_path: Path, kind: str) -> None:
    assert check_vectors(tmp_path / "vectors", SOUND[kind])
    vectors, found = read_vectors(tmp_path / "vectors", WORDS)
    assert np.allclose(vectors[found], VECTORS[found]) and found.all()


@shared
@given(kind=st.sampled_from(list(SOUND)), changes=CHANGES, end=st.integers(0, 4000))
def test_changed_vectors_are_refused_or_finite(
    tmp_path: Path, kind: str, changes: list[tuple[int, int, bytes]], end: int
) -> None:
    raw = SOUND[kind]
    for at, without, piece in changes:
        at %= len(raw) + 1
        raw = raw[:at] + piece + raw[at + without :]
    check_vectors(tmp_path / "vectors", raw[:end] if end < len(raw) else raw)


@shared
@given(
    raw=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x80\x04", b"2 3\n", b"\x1f\x8b\x08", b"PK\x03\x04", b"a 1 2\n"]),
)
def test_any_bytes_are_no_vectors_or_finite(tmp_path: Path, raw: bytes, head: bytes) -> None:
    check_vectors(tmp_path / "vectors", head + raw)


@shared
@given(raw=st.binary(max_size=300) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_is_a_text_or_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(raw)
    try:
        pieces = list(open_path(path).pieces())
    except CorpusError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 + len(str(path))
    else:
        assert all(isinstance(piece, str) for piece in pieces)


# ---- Bodies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("weights")
    save_tiny(folder)
    with serving(folder, max_tokens=8, max_request_tokens=40, max_body_bytes=4096, max_upload_bytes=10_000) as client:
        yield client


TEXT = st.text() | st.just("waa wab wac")
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | st.text()},
        optional={
            "content": TEXT
            | st.none()
            | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | SCALARS, max_size=3),
            "name": SCALARS,
        },
    ),
    max_size=4,
)
IDS = st.lists(st.integers(-1, 41) | st.sampled_from(fuzz_weights.ODD_NUMBERS), max_size=5)
FIELDS = {
    "prompt": TEXT | st.lists(st.text(), max_size=9) | IDS | st.lists(IDS, max_size=3),
    "text": TEXT,
    "other": TEXT | st.none(),
    "input": TEXT | st.lists(TEXT, max_size=3) | IDS,
    "messages": MESSAGES,
    "model": st.sampled_from(["c/demo", "demo", "c/../demo", "torch/demo"]) | st.text(),
    "max_tokens": st.integers(-1, 10),
    "temperature": st.floats(),
    "top_k": st.integers(-1, 50),
    "top_p": st.floats(0, 1) | st.floats(),
    "presence_penalty": st.floats(-2, 2) | st.floats(),
    "frequency_penalty": st.floats(-2, 2) | st.floats(),
    "logit_bias": st.dictionaries(st.integers(-1, 41).map(str) | st.text(), st.floats(-100, 100) | SCALARS, max_size=5),
    "seed": st.integers(),
    "n": st.integers(0, 9),
    "stop": st.text() | st.lists(st.text(), max_size=9) | st.just("waa"),
    "top_logprobs": st.integers(-1, 21),
    "logprobs": st.integers(-1, 21),
    "echo": st.booleans(),
    "target": st.integers(0, 5),
    "k": st.integers(0, 60),
    "state": st.booleans(),
    "backend": st.sampled_from(["c", "torch"]) | st.text(),
    "dimensions": st.integers(8, 10),
    "encoding_format": st.sampled_from(["float", "base64"]) | st.text(),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "weights": st.sampled_from(["demo", "../demo", "demo.safetensors", "other"]) | st.text(),
}
DRAWN = {"temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "n", "stop"}
LIMITS = {"max_tokens", "ignore_eos", "stream"}
ROUTES = {  # the fields of each; SCALARS are also sent as "unknown", which only the routes under /v1 ignore
    "/generate/c": {"prompt", "top_logprobs", "weights", *DRAWN, *LIMITS},
    "/generate/torch": {"prompt", "top_logprobs", "weights", *DRAWN, *LIMITS},
    "/score": {"text", "weights", "backend", "top_logprobs"},
    "/inspect": {"text", "other", "target", "state", "spectrum", "weights", "backend"},
    "/candidates": {"text", "temperature", "top_k", "top_p", "k", "weights", "backend"},
    "/v1/completions": {"model", "prompt", "logprobs", "echo", *DRAWN, *LIMITS},
    "/v1/chat/completions": {"model", "messages", "logprobs", "top_logprobs", *DRAWN, *LIMITS},
    "/v1/embeddings": {"model", "input", "dimensions", "encoding_format"},
}
MINIMUM = {
    "prompt": "waa",
    "text": "waa wab",
    "input": "waa",
    "model": "c/demo",
    "messages": [{"role": "user", "content": "waa"}],
}
# Nearly valid bodies: some of the fields, one of them of another type.
BODIES = st.tuples(
    st.fixed_dictionaries({}, optional=FIELDS),
    st.dictionaries(st.sampled_from([*FIELDS, "unknown"]), SCALARS, max_size=1),
    st.booleans(),
).map(lambda parts: (MINIMUM if parts[2] else {}) | parts[0] | parts[1])


def check(response: Any, *, path: str) -> None:
    assert response.status_code in (200, 400, 404, 413, 422, 501), response.text
    if response.status_code != 200:
        body = response.json()
        said = body["error"]["message"] if path.startswith("/v1") else body["detail"]
        assert said and len(said) < 3000 and "Traceback" not in said and "/tmp" not in said


def only_its_fields(path: str, body: Any) -> Any:
    """Keep the fields that the route knows: otherwise every body would be refused for an unknown field."""
    return {key: value for key, value in body.items() if key in ROUTES[path] | {"unknown"}}


@shared
@given(path=st.sampled_from(list(ROUTES)), body=BODIES)
def test_bodies_that_are_nearly_right(client: TestClient, path: str, body: Any) -> None:
    text = json.dumps(only_its_fields(path, body))  # NaN and infinity too, which JSON does not have
    check(client.post(path, content=text, headers={"content-type": "application/json"}), path=path)


@shared
@given(path=st.sampled_from(list(ROUTES)), body=JSON | st.binary(max_size=5000))
def test_bodies_of_any_kind(client: TestClient, path: str, body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code != 200
    check(response, path=path)


PARTS = st.tuples(
    st.sampled_from(['form-data; name="file"; filename="x"', 'form-data; name="name"', "form-data", ""]) | st.text(),
    st.binary(max_size=100),
)


@shared
@given(parts=st.lists(PARTS, max_size=4), end=st.sampled_from(["--B--\r\n", "--B--", "", "--"]), at=st.integers(0, 400))
def test_forms_of_any_kind(client: TestClient, parts: list[tuple[str, bytes]], end: str, at: int) -> None:
    raw = b"".join(
        b"--B\r\ncontent-disposition: " + head.encode("utf-8", "replace") + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    raw += end.encode()
    raw = raw[:at] + b"\r\n\0"[: at % 4] + raw[at:]
    headers = {**ADMIN, "content-type": "multipart/form-data; boundary=B"}
    check(client.post("/weights", content=raw, headers=headers), path="/weights")
    names = [summary["name"] for summary in client.get("/weights").json()["weights"]]
    assert names == ["demo"]


DEMO = ("demo", "demo.safetensors")


@shared
@given(name=st.text(st.characters(codec="utf-8"), max_size=100).filter(lambda name: name not in DEMO))
def test_names_of_any_kind(client: TestClient, name: str) -> None:
    """Except the name of the weights there: deleting them would break the tests that follow."""
    from urllib.parse import quote

    response = client.delete(f"/weights/{quote(name, safe='')}", headers=ADMIN)
    assert response.status_code in (404, 405, 422) or name in ("", ".")
    assert client.get("/ready").status_code == 200
