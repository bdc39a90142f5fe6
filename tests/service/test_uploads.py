"""Uploads that are accepted, and how a file gets its name."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import make_checkpoint
from serving import GUARD_SECONDS, needs_library, nothing_left, refused, save_tiny, serving, upload
from starlette.testclient import TestClient

from rnnlm import checkpoint

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_an_upload_makes_the_service_ready(empty_client: TestClient, empty_folder: Path, sound: bytes) -> None:
    assert empty_client.get("/ready").status_code == 503
    digest = hashlib.sha256(sound).hexdigest()
    response = upload(empty_client, sound, sha256=digest.upper())
    assert response.status_code == 201
    assert response.json() == {
        "name": "new",
        "renamed_from": None,
        "sha256": digest,
        "size": len(sound),
        "replaced": False,
    }
    assert os.listdir(empty_folder) == ["new.safetensors"]
    assert (empty_folder / "new.safetensors").stat().st_mode & 0o777 == 0o644
    assert empty_client.get("/ready").status_code == 200
    reply = empty_client.post("/generate/c", json={"prompt": "waa", "weights": "new"}).json()
    assert reply["weights"] == {"name": "new", "sha256": digest}
    assert 'rnn_uploads_total{result="added"} 1.0' in empty_client.get("/metrics").text


def test_the_name_may_be_given(empty_client: TestClient, empty_folder: Path, sound: bytes) -> None:
    assert upload(empty_client, sound, "x", name="v1.2_final").json()["name"] == "v1.2_final"
    assert upload(empty_client, sound, "ignored.safetensors", name="other.safetensors").json()["name"] == "other"
    assert sorted(os.listdir(empty_folder)) == ["other.safetensors", "v1.2_final.safetensors"]


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("demo (1).safetensors", "demo-1"), ("my  model", "my-model"), ("[a] {b}.safetensors", "a-b")],
)
def test_spaces_and_brackets_of_a_name_are_replaced(
    empty_client: TestClient, empty_folder: Path, sound: bytes, file_name: str, name: str
) -> None:
    uploaded = upload(empty_client, sound, file_name).json()
    assert (uploaded["name"], uploaded["renamed_from"]) == (name, file_name.removesuffix(".safetensors"))
    assert os.listdir(empty_folder) == [f"{name}.safetensors"]
    assert upload(empty_client, sound, file_name, name="other").json()["renamed_from"] is None
    typed = upload(empty_client, sound, "new.safetensors", name=file_name, overwrite="true").json()
    assert (typed["name"], typed["renamed_from"]) == (name, file_name.removesuffix(".safetensors"))


def test_nothing_is_overwritten_unless_asked_for(empty_client: TestClient, empty_folder: Path, sound: bytes) -> None:
    upload(empty_client, sound)
    other = save_tiny(empty_folder.parent, seed=5).read_bytes()
    assert "overwrite=true" in refused(upload(empty_client, other), 409, "weights_exist")["detail"]
    assert (empty_folder / "new.safetensors").read_bytes() == sound
    refused(upload(empty_client, other, overwrite="false"), 409, "weights_exist")
    response = upload(empty_client, other, overwrite="true")
    assert response.json()["replaced"] is True
    assert (empty_folder / "new.safetensors").read_bytes() == other
    assert os.listdir(empty_folder) == ["new.safetensors"]


@pytest.mark.parametrize("links", [True, False])
def test_a_race_for_a_name_has_one_winner(empty_folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    from service.errors import WeightsExist
    from service.uploads import _publish

    empty_folder.mkdir()
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    for name in "ab":
        (empty_folder / name).write_text(name)
    assert _publish(empty_folder / "a", empty_folder / "new.safetensors", False) is False
    with pytest.raises(WeightsExist):
        _publish(empty_folder / "b", empty_folder / "new.safetensors", False)
    assert (empty_folder / "new.safetensors").read_text() == "a"
    assert sorted(os.listdir(empty_folder)) == (["a", "b", "new.safetensors"] if links else ["b", "new.safetensors"])


def test_without_links_nobody_sees_a_file_before_it_is_whole(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.errors import Busy
    from service.uploads import _publish

    def replace(source: Path, target: Path) -> None:
        assert not target.exists()
        with pytest.raises(Busy):  # who comes in between
            _publish(empty_folder / "b", target, False)
        source.rename(target)

    empty_folder.mkdir()
    for name in "ab":
        (empty_folder / name).write_text(name)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    monkeypatch.setattr("os.replace", replace)
    _publish(empty_folder / "a", empty_folder / "new.safetensors", False)
    assert sorted(os.listdir(empty_folder)) == ["b", "new.safetensors"]


def test_a_claimed_name_is_given_back(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.uploads import _publish

    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    empty_folder.mkdir()
    monkeypatch.setattr("os.link", fails)
    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        _publish(empty_folder / "a", empty_folder / "new.safetensors", False)
    assert nothing_left(empty_folder)


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
def test_a_folder_of_that_name(empty_client: TestClient, empty_folder: Path, sound: bytes, overwrite: str) -> None:
    (empty_folder / "new.safetensors").mkdir(parents=True)
    assert "folder" in refused(upload(empty_client, sound, overwrite=overwrite), 409, "weights_exist")["detail"]
    assert os.listdir(empty_folder) == ["new.safetensors"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": "admin-secret"}, 401)],
)
def test_only_with_the_admin_token(
    empty_client: TestClient, empty_folder: Path, sound: bytes, headers: Any, status: int
) -> None:
    refused(empty_client.post("/weights", files={"file": ("x", sound)}, headers=headers), status, "unauthorized")
    assert nothing_left(empty_folder)


def test_a_token_is_made_when_none_is_set(empty_folder: Path, sound: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with serving(empty_folder, admin_token="") as client:
        said = next(record.getMessage() for record in caplog.records if "admin token is" in record.getMessage())
        token = said.rsplit(" ", 1)[1]
        assert len(token) == 64
        response = client.post("/weights", files={"file": ("x", sound)}, headers={"authorization": f"Bearer {token}"})
        assert response.status_code == 201
        refused(client.post("/weights", headers={"authorization": "Bearer "}), 401, "unauthorized")


def test_the_folder_is_synced_after_the_rename(
    empty_client: TestClient, empty_folder: Path, sound: bytes, monkeypatch: Any
) -> None:
    synced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr("service.uploads.sync_folder", lambda path: synced.append((path, sorted(os.listdir(path)))))
    assert upload(empty_client, sound).status_code == 201
    assert synced[0][0] == empty_folder and "new.safetensors" in synced[0][1]


def test_no_file_is_touched_on_the_event_loop(
    empty_client: TestClient, empty_folder: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_loop: list[str] = []

    def watch(name: str) -> None:
        function = getattr(os, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if asyncio._get_running_loop() is not None and str(empty_folder) in str(arguments):
                in_loop.append(f"{name}{arguments}")
            return function(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    for name in ("mkdir", "open", "stat", "lstat", "unlink", "link", "replace", "chmod"):
        watch(name)
    assert upload(empty_client, sound).status_code == 201
    refused(upload(empty_client, sound), 409, "weights_exist")
    assert upload(empty_client, sound, overwrite="true").status_code == 201
    refused(upload(empty_client, sound[:-1], overwrite="true"), 422, "invalid_weights")
    assert in_loop == []


def test_the_source_is_kept_whole(empty_client: TestClient, empty_folder: Path) -> None:
    source = make_checkpoint(vocab=30)
    full = checkpoint.Checkpoint(source.weights, source.vocabulary, "wikitext", "torch", {"a": 1}, [{"epoch": 1}])
    checkpoint.save(empty_folder.parent / "full.safetensors", full)
    upload(empty_client, (empty_folder.parent / "full.safetensors").read_bytes())
    (listed,) = empty_client.get("/weights").json()["weights"]
    assert (listed["trained_by"], listed["config"], listed["history"]) == ("torch", {"a": 1}, [{"epoch": 1}])
