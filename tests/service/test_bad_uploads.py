"""Uploads that are refused: nothing of them is left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_checkpoint
from serving import ADMIN, needs_library, nothing_left, refused, serving, upload
from starlette.testclient import TestClient

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refused") / "weights"


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder, max_upload_bytes=200_000) as client:
        yield client


def test_the_bound_of_an_upload_is_that_of_the_file(client: TestClient, folder: Path) -> None:
    assert "200,000" in refused(upload(client, b"x" * 200_001), 413, "body_too_large")["detail"]
    assert nothing_left(folder)


def test_a_disk_that_times_out_is_not_a_slow_client(
    client: TestClient, folder: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times_out(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr("service.uploads._settle", times_out)
    refused(upload(client, sound), 500, "internal")
    assert nothing_left(folder)


Damage = Callable[[bytes], bytes]


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    header, data = header_of(raw)
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_words(raw: bytes, words: bytes) -> bytes:
    """The same model with other words, of the same length."""
    old = b"\n".join(word.encode() for word in make_checkpoint(vocab=40).vocabulary)
    assert len(words) == len(old) and old in raw
    return raw.replace(old, words)


def words_of() -> bytes:
    return b"\n".join(word.encode() for word in make_checkpoint(vocab=40).vocabulary)


def with_number(raw: bytes, value: float) -> bytes:
    by = make_checkpoint(vocab=40, embed=9, hidden=12).weights.by
    changed = by.copy()
    changed[7] = value
    assert by.tobytes() in raw
    return raw.replace(by.tobytes(), changed.tobytes())


def swap(header: dict[str, Any], name: str, **entry: Any) -> None:
    header[name] = {**header[name], **entry}


BAD_FILES: dict[str, Damage] = {
    "empty": lambda raw: b"",
    "text": lambda raw: b"hello, I am not a model",
    "a pickle": lambda raw: pickle.dumps({"weights": list(range(100))}),
    "truncated": lambda raw: raw[:-1000],
    "truncated header": lambda raw: raw[:100],
    "too long": lambda raw: raw + b"\0",
    "a lying length": lambda raw: (2**63).to_bytes(8, "little") + raw[8:],
    "a lying shape": lambda raw: with_header(raw, lambda h: swap(h, "bh", shape=[13])),
    "a shape that overflows": lambda raw: with_header(raw, lambda h: swap(h, "bh", shape=[2**62, 4])),
    "another type": lambda raw: with_header(raw, lambda h: swap(h, "bh", dtype="I32")),
    "a missing tensor": lambda raw: with_header(raw, lambda h: h.update(other=h.pop("bh"))),
    "another format": lambda raw: with_header(raw, lambda h: h["__metadata__"].update(format="pt")),
    "another version": lambda raw: with_header(raw, lambda h: h["__metadata__"].update(version="2")),
    "a header that is no JSON": lambda raw: raw[:8] + b"\xff" + raw[9:],
    "a duplicate word": lambda raw: with_words(raw, words_of().replace(b"wab", b"wac")),
    "an empty word": lambda raw: with_words(raw, words_of().replace(b"wab\nwac", b"wabwac\n")),
    "words that are no UTF-8": lambda raw: with_words(raw, words_of().replace(b"wab", b"\xff\xff\xff")),
    "too few words": lambda raw: with_words(raw, words_of().replace(b"wab\nwac", b"wabxwac")),
    "no end of sentence": lambda raw: with_words(raw, words_of().replace(b"<EOS>", b"Eosss")),
    "NaN": lambda raw: with_number(raw, np.nan),
    "infinity": lambda raw: with_number(raw, -np.inf),
}

SAID = {
    "empty": "new: is empty: train a model",
    "text": "new: is not a safetensors file, as a weights file must be: train a model",
    "a lying length": "new: is not a safetensors file",
    "truncated header": "new: is cut short: 100 bytes, and its header takes ",
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files(client: TestClient, folder: Path, sound: bytes, what: str) -> None:
    before = refusals(client)
    problem = refused(upload(client, BAD_FILES[what](sound)), 422, "invalid_weights")
    assert problem["detail"] and str(folder) not in problem["detail"]
    assert SAID.get(what, "") in problem["detail"]
    assert nothing_left(folder)
    assert refusals(client) == before + 1


def refusals(client: TestClient) -> float:
    found = re.search(r'^rnn_uploads_total{result="refused"} (\S+)$', client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_numbers_so_large_that_they_overflow(client: TestClient, folder: Path, sound: bytes) -> None:
    response = upload(client, with_number(sound, np.finfo(np.float32).max))
    if response.status_code != 201:  # where the model can still write a word, the file is a good one
        refused(response, 422, "invalid_weights")
        assert nothing_left(folder)
    (folder / "new.safetensors").unlink(missing_ok=True)


def test_a_digest_that_differs(client: TestClient, folder: Path, sound: bytes) -> None:
    problem = refused(upload(client, sound, sha256="0" * 64), 422, "invalid_weights")
    assert hashlib.sha256(sound).hexdigest() in problem["detail"]
    assert nothing_left(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "..", "a/b", ".hidden", "a\\b", "w" * 65, "()", "a..b", "naïve", "", ".safetensors"),
        *("x.safetensors.safetensors", "x.safetensors.safetensors.safetensors"),
    ],
)
def test_bad_names(client: TestClient, folder: Path, sound: bytes, name: str) -> None:
    refused(upload(client, sound, name), 422, "invalid_request")
    if name:
        refused(upload(client, sound, "good.safetensors", name=name), 422, "invalid_request")
    assert nothing_left(folder) and os.listdir(folder.parent) == ["weights"]


def test_bad_fields(client: TestClient, folder: Path, sound: bytes) -> None:
    for fields in ({"sha256": "abc"}, {"overwrite": "maybe"}, {"mode": "0777"}, {"name": "x" * 300}):
        refused(upload(client, sound, **fields), 422, "invalid_request")
    response = client.post("/weights", data={"name": "x"}, files={"other": ("x", b"")}, headers=ADMIN)
    refused(response, 422, "invalid_request")
    twice = [("file", ("a.safetensors", sound)), ("file", ("b.safetensors", sound))]
    refused(client.post("/weights", files=twice, headers=ADMIN), 422, "invalid_request")
    assert nothing_left(folder)


def part(name: str, value: bytes, rest: str = "") -> bytes:
    """A field of a form whose boundary is B."""
    return f'--B\r\ncontent-disposition: form-data; name="{name}"{rest}\r\n\r\n'.encode() + value + b"\r\n"


def send(client: TestClient, form: bytes, **headers: str) -> Any:
    return client.post("/weights", content=form, headers={**ADMIN, "content-type": FORM, **headers})


FORM = "multipart/form-data; boundary=B"


BAD_FIELDS = [("name", b"a/b"), ("overwrite", b"maybe"), ("sha256", b"abc")]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_bad_field_before_the_file_spares_the_file(client: TestClient, folder: Path, name: str, value: bytes) -> None:
    form = part(name, value) + part("file", b"half")  # and no end: who waits for that says so
    refused(send(client, form), 422, "invalid_request")
    assert nothing_left(folder)


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_fields_may_follow_the_file(client: TestClient, folder: Path, sound: bytes, name: str, value: bytes) -> None:
    file = part("file", sound, '; filename="x"')
    refused(send(client, file + part(name, value) + b"--B--\r\n"), 422, "invalid_request")
    assert nothing_left(folder)
    assert send(client, file + part("name", b"late") + b"--B--\r\n").json()["name"] == "late"
    (folder / "late.safetensors").unlink()


def test_a_length_of_thousands_of_digits(client: TestClient, folder: Path) -> None:
    refused(send(client, b"--B--\r\n", **{"content-length": "9" * 5000}), 413, "body_too_large")
    assert nothing_left(folder)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 400),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=" + "b" * 300, b"x", 400),
        ("multipart/form-data; boundary=B", b"", 400),
        ("multipart/form-data; boundary=B", b"not a form", 400),
        ("multipart/form-data; boundary=B", b"--B--\r\n", 422),
        ("multipart/form-data; boundary=B", b'--B\r\ncontent-disposition: form-data; name="file"\r\n\r\nhalf', 400),
        ("multipart/form-data; boundary=B", b"--B\r\n" + b"x-long: " + b"y" * 100_000, 400),
        ("multipart/form-data; boundary=B", b"--B\r\nbad header\r\n\r\n", 400),
        ("multipart/form-data; boundary=B", b"--B\r\nx: y\r\n\r\n\r\n--B--\r\n", 422),
    ],
)
def test_bodies_that_are_no_form(client: TestClient, folder: Path, content_type: str, body: bytes, status: int) -> None:
    response = client.post("/weights", content=body, headers={**ADMIN, "content-type": content_type})
    refused(response, status, "malformed_request" if status == 400 else "invalid_request")
    assert nothing_left(folder)


@pytest.mark.parametrize("declared", [True, False])
def test_a_file_too_large(client: TestClient, folder: Path, declared: bool) -> None:
    form = b'--B\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n' + bytes(300_000)
    pieces = (form[i : i + 5000] for i in range(0, len(form), 5000))
    headers = {**ADMIN, "content-type": "multipart/form-data; boundary=B"}
    response = client.post("/weights", content=form if declared else pieces, headers=headers)
    assert "200,000" in refused(response, 413, "body_too_large")["detail"]
    assert nothing_left(folder)


def test_a_full_disk(client: TestClient, folder: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("os.fsync", full)
    refused(upload(client, sound), 507, "no_space")
    assert nothing_left(folder)


def test_a_folder_that_cannot_be_written(client: TestClient, sound: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    assert "not writable" in refused(upload(client, sound), 507, "no_space")["detail"]
