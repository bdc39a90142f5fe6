"""Uploads: what is taken, what is refused and with which words, and that nothing is left of what was refused."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_checkpoint, no_sanitizer
from serving import ADMIN, GUARD_SECONDS, needs_library, save_tiny, serving
from starlette.testclient import TestClient
from test_service_api import refused

from rnnlm import checkpoint
from service.uploads import PREFIX, remove_stale

pytestmark = needs_library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder, max_upload_bytes=200_000) as client:
        yield client


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a weights file."""
    return save_tiny(tmp_path_factory.mktemp("source")).read_bytes()


def upload(client: TestClient, raw: bytes, filename: str = "new.safetensors", **fields: str) -> Any:
    return client.post("/weights", files={"file": (filename, raw)}, data=fields, headers=ADMIN)


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not os.listdir(folder)


def test_an_upload_makes_the_service_ready(client: TestClient, folder: Path, sound: bytes) -> None:
    assert client.get("/ready").status_code == 503
    digest = hashlib.sha256(sound).hexdigest()
    response = upload(client, sound, sha256=digest.upper())
    assert response.status_code == 201
    assert response.json() == {"name": "new", "sha256": digest, "size": len(sound), "replaced": False}
    assert os.listdir(folder) == ["new.safetensors"]
    assert (folder / "new.safetensors").stat().st_mode & 0o777 == 0o644
    assert client.get("/ready").status_code == 200
    reply = client.post("/generate/c", json={"prompt": "waa", "weights": "new"}).json()
    assert reply["weights"] == {"name": "new", "sha256": digest}
    assert 'rnn_uploads_total{result="added"} 1.0' in client.get("/metrics").text


def test_the_name_may_be_given(client: TestClient, folder: Path, sound: bytes) -> None:
    assert upload(client, sound, "x", name="v1.2_final").json()["name"] == "v1.2_final"
    assert upload(client, sound, "ignored.safetensors", name="other.safetensors").json()["name"] == "other"
    assert sorted(os.listdir(folder)) == ["other.safetensors", "v1.2_final.safetensors"]


def test_nothing_is_overwritten_unless_asked_for(client: TestClient, folder: Path, sound: bytes) -> None:
    upload(client, sound)
    other = save_tiny(folder.parent, seed=5).read_bytes()
    assert "overwrite=true" in refused(upload(client, other), 409, "weights_exist")["detail"]
    assert (folder / "new.safetensors").read_bytes() == sound
    refused(upload(client, other, overwrite="false"), 409, "weights_exist")
    response = upload(client, other, overwrite="true")
    assert response.json()["replaced"] is True
    assert (folder / "new.safetensors").read_bytes() == other
    assert os.listdir(folder) == ["new.safetensors"]


@pytest.mark.parametrize("links", [True, False])
def test_a_race_for_a_name_has_one_winner(folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    from service.errors import WeightsExist
    from service.uploads import _publish

    folder.mkdir()
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    for name in "ab":
        (folder / name).write_text(name)
    assert _publish(folder / "a", folder / "new.safetensors", False) is False
    with pytest.raises(WeightsExist):
        _publish(folder / "b", folder / "new.safetensors", False)
    assert (folder / "new.safetensors").read_text() == "a"
    assert sorted(os.listdir(folder)) == (["a", "b", "new.safetensors"] if links else ["b", "new.safetensors"])


def test_without_links_nobody_sees_a_file_before_it_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.errors import Busy
    from service.uploads import _publish

    def replace(source: Path, target: Path) -> None:
        assert not target.exists()
        with pytest.raises(Busy):  # who comes in between
            _publish(folder / "b", target, False)
        source.rename(target)

    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    monkeypatch.setattr("os.replace", replace)
    _publish(folder / "a", folder / "new.safetensors", False)
    assert sorted(os.listdir(folder)) == ["b", "new.safetensors"]


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


def test_a_claimed_name_is_given_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.uploads import _publish

    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    folder.mkdir()
    monkeypatch.setattr("os.link", fails)
    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        _publish(folder / "a", folder / "new.safetensors", False)
    assert nothing_left(folder)


def test_publishing_cannot_be_cancelled() -> None:
    from service.uploads import _to_the_end

    begun, go = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return go.wait(GUARD_SECONDS)

    async def test() -> None:
        task = asyncio.create_task(_to_the_end(work))
        await asyncio.to_thread(begun.wait, GUARD_SECONDS)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.02)
            assert not task.done()
        go.set()
        assert await task is True

    asyncio.run(test())


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_a_folder_of_that_name(client: TestClient, folder: Path, sound: bytes, overwrite: str) -> None:
    (folder / "new.safetensors").mkdir(parents=True)
    assert "folder" in refused(upload(client, sound, overwrite=overwrite), 409, "weights_exist")["detail"]
    assert os.listdir(folder) == ["new.safetensors"]


# ---- Files that are refused ------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files(client: TestClient, folder: Path, sound: bytes, what: str) -> None:
    problem = refused(upload(client, BAD_FILES[what](sound)), 422, "invalid_weights")
    assert problem["detail"] and str(folder) not in problem["detail"]
    assert nothing_left(folder)
    assert 'rnn_uploads_total{result="refused"} 1.0' in client.get("/metrics").text


def test_numbers_so_large_that_they_overflow(client: TestClient, folder: Path, sound: bytes) -> None:
    response = upload(client, with_number(sound, np.finfo(np.float32).max))
    if response.status_code != 201:  # where the model can still write a word, the file is a good one
        refused(response, 422, "invalid_weights")
        assert nothing_left(folder)


def test_a_digest_that_differs(client: TestClient, folder: Path, sound: bytes) -> None:
    problem = refused(upload(client, sound, sha256="0" * 64), 422, "invalid_weights")
    assert hashlib.sha256(sound).hexdigest() in problem["detail"]
    assert nothing_left(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "..", "a/b", ".hidden", "a\\b", "w" * 65, "a b", "a..b", "naïve", "", ".safetensors"),
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


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": "admin-secret"}, 401)],
)
def test_only_with_the_admin_token(client: TestClient, folder: Path, sound: bytes, headers: Any, status: int) -> None:
    refused(client.post("/weights", files={"file": ("x", sound)}, headers=headers), status, "unauthorized")
    assert nothing_left(folder)


def test_a_token_is_made_when_none_is_set(folder: Path, sound: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with serving(folder, admin_token="") as client:
        said = next(record.getMessage() for record in caplog.records if "admin token is" in record.getMessage())
        token = said.rsplit(" ", 1)[1]
        assert len(token) == 64
        response = client.post("/weights", files={"file": ("x", sound)}, headers={"authorization": f"Bearer {token}"})
        assert response.status_code == 201
        refused(client.post("/weights", headers={"authorization": "Bearer "}), 401, "unauthorized")


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
    assert "written" in refused(upload(client, sound), 507, "no_space")["detail"]


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("echo /secret/path >&2; kill -ABRT $$", 422, "invalid_weights"),
        ("echo /secret/path >&2; kill -KILL $$", 503, "trial_interrupted"),
        ("echo /secret/path >&2; kill -TERM $$", 503, "trial_interrupted"),
        ("echo /secret/path >&2; exit 3", 500, "internal"),
        ("echo /secret/path >&2; echo no good; exit 2", 422, "invalid_weights"),
        ('echo "$RNN_ADMIN_TOKEN$RNN_API_TOKEN$RNN_PRELOAD"; exit 2', 422, "invalid_weights"),
    ],
)
def test_a_trial_that_fails(
    client: TestClient, folder: Path, sound: bytes, monkeypatch: Any, script: str, status: int, code: str
) -> None:
    program = folder.parent / "trial"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    for name, value in (("ADMIN_TOKEN", "secret-1"), ("API_TOKEN", "secret-2"), ("PRELOAD", "c")):
        monkeypatch.setenv(f"RNN_{name}", value)
    monkeypatch.setattr("service.uploads.sys.executable", str(program))
    detail = refused(upload(client, sound), status, code)["detail"]
    assert "secret" not in detail
    if script.endswith("exit 2"):
        assert detail == ("new: c" if "$" in script else "new: no good")
    assert nothing_left(folder)


def test_a_trial_without_the_library_is_not_the_files_fault(
    client: TestClient, folder: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RNNLIB_PATH", "/nosuch/librnn.so")
    refused(upload(client, sound), 500, "internal")
    assert "/nosuch/librnn.so" in caplog.text
    assert nothing_left(folder)
    assert 'rnn_uploads_total{result="failed"} 1.0' in client.get("/metrics").text


def test_a_trial_without_end(client: TestClient, folder: Path, sound: bytes, monkeypatch: Any, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr("service.uploads.sys.executable", str(sleeper))
    monkeypatch.setattr("service.uploads.TRIAL_SECONDS", 0.2)
    response = upload(client, sound)
    assert "0.2 seconds" in refused(response, 503, "trial_interrupted")["detail"]
    assert int(response.headers["retry-after"]) > 0
    assert nothing_left(folder)


def test_what_a_crash_left_is_removed_at_start(folder: Path) -> None:
    folder.mkdir()
    left, new, used = (folder / f".upload-{name}" for name in ("left", "new", "used"))
    for path in (left, new, used):
        path.write_text("x")
    for path in (left, used):
        os.utime(path, (time.time() - 60,) * 2)  # long before its upload would have to be over
    with used.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the process of an upload does
        with serving(folder):
            assert sorted(os.listdir(folder)) == [".upload-new", ".upload-used"]


def test_where_files_cannot_be_locked_age_tells(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    for name, age in (("old", 601), ("young", 60)):
        (folder / f".upload-{name}").write_text("x")
        os.utime(folder / f".upload-{name}", (time.time() - age,) * 2)
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    with serving(folder, upload_seconds=300):
        assert os.listdir(folder) == [".upload-young"]


def test_an_upload_under_way_is_locked_and_survives_a_start(folder: Path, sound: bytes, monkeypatch: Any) -> None:
    from service import uploads

    seen: list[list[str]] = []
    claim = uploads._claim

    def look(temporary: Path, target: Path) -> None:
        os.utime(temporary, (1, 1))
        with serving(folder):  # another worker starts
            seen.append(os.listdir(folder))
        claim(temporary, target)

    monkeypatch.setattr(uploads, "_claim", look)
    with serving(folder) as client:
        assert upload(client, sound).status_code == 201
    assert len(seen[0]) == 1 and os.listdir(folder) == ["new.safetensors"]


def test_the_folder_is_synced_after_the_rename(
    client: TestClient, folder: Path, sound: bytes, monkeypatch: Any
) -> None:
    synced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr("service.uploads.sync_folder", lambda path: synced.append((path, sorted(os.listdir(path)))))
    assert upload(client, sound).status_code == 201
    assert synced[0][0] == folder and "new.safetensors" in synced[0][1]


def test_no_file_is_touched_on_the_event_loop(
    client: TestClient, folder: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_loop: list[str] = []

    def watch(name: str) -> None:
        function = getattr(os, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if asyncio._get_running_loop() is not None and str(folder) in str(arguments):
                in_loop.append(f"{name}{arguments}")
            return function(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    for name in ("mkdir", "open", "stat", "lstat", "unlink", "link", "replace", "chmod"):
        watch(name)
    assert upload(client, sound).status_code == 201
    refused(upload(client, sound), 409, "weights_exist")
    assert upload(client, sound, overwrite="true").status_code == 201
    refused(upload(client, sound[:-1], overwrite="true"), 422, "invalid_weights")
    assert in_loop == []


def test_the_trial_runs_the_model_as_the_service_would(
    folder: Path, sound: bytes, tmp_path: Path, monkeypatch: Any
) -> None:
    told = tmp_path / "told"
    program = tmp_path / "trial"
    program.write_text(f'#!/bin/sh\necho "$@" >{told}\n')
    program.chmod(0o755)
    monkeypatch.setattr("service.uploads.sys.executable", str(program))
    with serving(folder, precision="int8", trial_memory_mb=300) as client:
        assert upload(client, sound).status_code == 201
    assert "--precision int8 --memory-mb 300" in told.read_text()


@no_sanitizer
def test_a_model_that_takes_too_much_memory(folder: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path, "large", vocab=17_000, hidden=1000)  # its input projection takes 68 MB
    raw = (tmp_path / "large.safetensors").read_bytes()
    with serving(folder, trial_memory_mb=64) as client:
        assert "64 MB" in refused(upload(client, raw), 507, "no_space")["detail"]
        assert nothing_left(folder)


def test_the_trial_of_torch_takes_one_thread_and_its_bound_of_memory(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    program = """
import resource, sys, torch
from service import trial

before = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
code = trial.main(["--memory-mb", "512", sys.argv[1], "torch"])
grown = resource.getrlimit(resource.RLIMIT_DATA)[0] - before
print(code, torch.get_num_threads(), 512 <= grown >> 20 < 600)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, env=environment, capture_output=True)
    assert done.stdout.decode().split() == ["0", "1", "True"], done.stderr.decode()


def test_both_back_ends_try_a_file_out(folder: Path, sound: bytes) -> None:
    with serving(folder, backends=("c", "torch")) as client:
        assert upload(client, sound).status_code == 201
        refused(upload(client, with_number(sound, np.nan), "bad"), 422, "invalid_weights")
        reply = client.post("/generate/torch", json={"prompt": "waa", "weights": "new"})
        assert reply.status_code == 200


def test_the_source_is_kept_whole(client: TestClient, folder: Path) -> None:
    source = make_checkpoint(vocab=30)
    full = checkpoint.Checkpoint(source.weights, source.vocabulary, "wikitext", "torch", {"a": 1}, [{"epoch": 1}])
    checkpoint.save(folder.parent / "full.safetensors", full)
    upload(client, (folder.parent / "full.safetensors").read_bytes())
    (listed,) = client.get("/weights").json()["weights"]
    assert (listed["trained_by"], listed["config"], listed["history"]) == ("torch", {"a": 1}, [{"epoch": 1}])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_no_stale_upload(tmp_path: Path) -> None:
    """To open a pipe would wait for its other end, and the service would never listen."""
    pipe, link, stale = (tmp_path / f"{PREFIX}{name}" for name in ("pipe", "link", "stale"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    stale.write_bytes(b"half")
    for path in (pipe, stale):
        os.utime(path, (1, 1))
    cleaning = threading.Thread(target=remove_stale, args=(tmp_path, 60.0), daemon=True)
    cleaning.start()
    cleaning.join(10)
    assert not cleaning.is_alive()
    assert pipe.exists() and link.is_symlink() and not stale.exists()
