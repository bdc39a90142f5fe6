"""Weights files: listed, loaded once, replaced, deleted, missing."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_checkpoint
from serving import ADMIN, needs_library, refused, save_tiny, serving, until, upload
from starlette.testclient import TestClient

from rnnlm import checkpoint
from service.capacity import Capacity
from service.registry import Entry

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_without_weights_the_service_says_what_to_do(tmp_path: Path) -> None:
    with serving(tmp_path / "none") as client:
        assert client.get("/health").json() == {"status": "ok"}
        problem = refused(client.get("/ready"), 503, "not_ready", names=tmp_path / "none")
        assert "make train" in problem["detail"] and "does not exist" in problem["detail"]
        problem = refused(client.post("/generate/c", json={"prompt": "waa"}), 503, "not_ready")
        assert "make train" in problem["detail"] and "/ready" in problem["detail"]
        listed = client.get("/weights").json()
        assert (listed["default"], listed["weights"]) == (None, [])
        (tmp_path / "none").mkdir()
        assert "has no weights files" in refused(client.get("/ready"), 503, "not_ready", names=tmp_path)["detail"]
        save_tiny(tmp_path / "none", "other")
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.post("/generate/c", json={"prompt": "waa"}).json()["weights"]["name"] == "other"


def test_a_file_in_place_of_the_folder_is_called_so(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    path = tmp_path / "demo.safetensors"
    with serving(path) as client:
        problem = refused(client.get("/ready"), 503, "not_ready", names=path)
        assert "is a file, not a folder: name the folder that the weights files are in" in problem["detail"]
        assert client.get("/weights").json()["weights"] == []
        problem = refused(upload(client, path.read_bytes()), 507, "no_space")
        assert problem["detail"].startswith("the weights folder of this service cannot be made: its administrator")


def test_the_list_shows_the_history(tmp_path: Path) -> None:
    source = make_checkpoint(vocab=20)
    history = [{"epoch": 1, "validation_loss": 5.5}]
    checkpoint.save(
        tmp_path / "b.safetensors",
        checkpoint.Checkpoint(source.weights, source.vocabulary, "plain", "torch", {"epochs": 1}, history),
    )
    (tmp_path / "a.safetensors").write_bytes(b"not weights")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".upload-x.safetensors").write_text("x")
    (tmp_path / "folder.safetensors").mkdir()
    with serving(tmp_path, default_weights="b") as client:
        listed = client.get("/weights").json()
        assert listed["default"] == "b"
        broken, sound = listed["weights"]
        assert broken["name"] == "a" and broken["problem"].startswith(
            "is not a safetensors file, as a weights file must"
        )
        assert sound["history"] == history and sound["config"] == {"epochs": 1} and sound["problem"] is None
        assert (sound["vocabulary"], sound["embedding_size"], sound["hidden_size"]) == (20, 9, 6)
        assert sound["trained_by"] == "torch" and len(sound["sha256"]) == 64
        problem = refused(client.post("/generate/c", json={"prompt": "waa", "weights": "a"}), 503, "weights_unusable")
        assert str(tmp_path) not in problem["detail"]
        assert client.get("/ready").status_code == 200


def test_not_ready_when_the_default_is_broken(tmp_path: Path) -> None:
    (tmp_path / "demo.safetensors").write_bytes(b"not weights")
    with serving(tmp_path) as client:
        refused(client.get("/ready"), 503, "not_ready")
        save_tiny(tmp_path, "other")
        assert "demo" in refused(client.get("/ready"), 503, "not_ready")["detail"]


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_weights_that_are_not_finite(tmp_path: Path, backend: str) -> None:
    path = save_tiny(tmp_path)
    biases = checkpoint.load(path).weights.by
    broken = biases.copy()
    broken[3] = np.nan
    raw = path.read_bytes().replace(biases.tobytes(), broken.tobytes())
    path.unlink()
    path.write_bytes(raw)
    with serving(tmp_path, backends=("c", "torch")) as client:
        refused(client.post(f"/generate/{backend}", json={"prompt": "waa"}), 503, "weights_unusable")


@pytest.mark.parametrize("mode", ["map", "read"])
def test_a_replaced_file_is_seen_and_the_old_one_lives_on(tmp_path: Path, mode: str) -> None:
    path = save_tiny(tmp_path)
    with serving(tmp_path, weights_mode=mode, cached_weights=1) as client:
        body = {"prompt": "waa", "seed": 1, "max_tokens": 30, "ignore_eos": True}
        before = client.post("/generate/c", json=body).json()
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        running = registry.get("demo")
        save_tiny(tmp_path, "demo", seed=9)
        after = client.post("/generate/c", json=body).json()
        assert after["weights"]["sha256"] != before["weights"]["sha256"]
        assert after["choices"][0]["text"] != before["choices"][0]["text"]
        assert running.sha256 == before["weights"]["sha256"]
        expected = [token["id"] for token in before["choices"][0]["tokens"]]
        old = running.engine("c").model.generate("waa", seed=1, max_tokens=30, ignore_eos=True)
        assert [token.id for token in old.tokens] == expected
        path.unlink()
        refused(client.post("/generate/c", json={**body, "weights": "demo"}), 404, "weights_not_found")


def test_weights_are_loaded_once_and_shared(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, backends=("c", "torch"), cached_weights=2) as client:
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        client.post("/generate/c", json={"prompt": "waa", "max_tokens": 1})
        entry = registry.get("demo")
        engine = entry.engine("c")
        for backend in ("c", "torch", "c"):
            client.post(f"/generate/{backend}", json={"prompt": "waa", "max_tokens": 1})
        assert registry.get(None) is entry and entry.engine("c") is engine
        mapped = entry._source.weights
        torch_model = entry.engine("torch").model
        for name, (tensor, _) in torch_model._matrices().items():
            assert tensor.data_ptr() == getattr(mapped, name).ctypes.data, name  # the same pages, not a copy
        for name in ("b", "c", "d"):
            shutil.copy(tmp_path / "demo.safetensors", tmp_path / f"{name}.safetensors")
            registry.get(name)
        assert len(registry._entries) == 2


def test_the_weights_that_were_used_least_recently_are_dropped(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_tiny(tmp_path, name)
    with serving(tmp_path, cached_weights=2) as client:
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        a, b = registry.get("a"), registry.get("b")
        assert registry.get("a") is a  # used again, so b is next to go
        registry.get("c")
        assert list(registry._entries) == ["a", "c"]
        assert registry.get("b") is b and list(registry._entries) == ["c", "b"]


@pytest.mark.parametrize("default", ["b", "b.safetensors"])
def test_the_default_may_be_named_with_its_suffix(tmp_path: Path, default: str) -> None:
    for name in ("a", "b"):
        save_tiny(tmp_path, name)
    with serving(tmp_path, default_weights=default) as client:
        assert client.get("/weights").json()["default"] == "b"


def test_weights_that_do_not_fit_beside_each_other_are_dropped(tmp_path: Path) -> None:
    sizes = {"vocab": 40, "hidden": 12, "embed": 16_000}
    for name in ("a", "b", "c"):
        save_tiny(tmp_path, name, **sizes)
    one, none = (Capacity(0, ("c",), copies=True).needs(vocab, 12, 16_000) for vocab in (40, 0))
    with serving(tmp_path, weights_mode="read", memory_mb=(one + 1.5 * (one - none)) // 10**6) as client:
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        a, b = registry.get("a"), registry.get("b")
        assert registry.get("a") is a and registry.get("b") is b  # there is room for two and a half
        registry.get("c")
        assert list(registry._entries) == ["b", "c"]
        assert registry.get("a") is a  # a request still has it: it is not loaded twice
        assert list(registry._entries) == ["c", "a"]
        dropped = weakref.ref(b)
        del b
        assert dropped() is None and registry.get("b").name == "b"
    with serving(tmp_path, weights_mode="read", memory_mb=1) as client:
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        assert registry.get("a") is registry.get("a")  # what is asked for is kept in any case


def test_nobody_sees_a_model_before_it_knows_whether_its_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        entry = client.app.state.service.registry.get("demo")  # type: ignore[attr-defined]
        seen: list[tuple[str, ...]] = []

        class Watched:
            def __setattr__(self, name: str, value: Any) -> None:
                seen.append(entry.loaded)

        monkeypatch.setattr(Entry, "_c", lambda entry: Watched())
        entry.engine("c")
        assert seen == [()] and entry.loaded == ("c",)


def test_ready_looks_at_the_default_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = checkpoint.load
    monkeypatch.setattr(
        "rnnlm.checkpoint.load", lambda path, **options: loaded.append(path.stem) or load(path, **options)
    )
    for name in ("demo", "other", "third"):
        save_tiny(tmp_path, name)
    with serving(tmp_path) as client:
        for _ in range(3):
            assert client.get("/ready").status_code == 200
    assert loaded == ["demo"]


def test_links_are_followed_within_the_folder_only(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    save_tiny(folder)
    (folder / "inside.safetensors").symlink_to("demo.safetensors")
    (folder / "outside.safetensors").symlink_to(save_tiny(elsewhere, "secret"))
    (folder / "broken.safetensors").symlink_to("nowhere")
    (folder / "circle.safetensors").symlink_to("circle.safetensors")
    with serving(folder) as client:
        assert [weights["name"] for weights in client.get("/weights").json()["weights"]] == ["demo", "inside"]
        assert client.post("/generate/c", json={"prompt": "waa", "weights": "inside"}).status_code == 200
        for name in ("outside", "broken", "circle"):
            response = client.post("/generate/c", json={"prompt": "waa", "weights": name})
            refused(response, 404, "weights_not_found")
            refused(client.delete(f"/weights/{name}", headers=ADMIN), 404, "weights_not_found")
        assert client.delete("/weights/inside", headers=ADMIN).status_code == 204
        assert (folder / "demo.safetensors").exists()


def test_a_path_is_answered_with_the_name_that_is_meant(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        for path in ("weights/demo.safetensors", "weights/demo", "../demo", "C:\\weights\\demo.safetensors"):
            problem = refused(client.post("/score", json={"text": "waa", "weights": path}), 422, "invalid_request")
            assert problem["detail"] == "weights are named without a folder: do you mean demo?"
        completion = client.post("/v1/completions", json={"prompt": "waa", "model": "c/weights/demo.safetensors"})
        assert "do you mean demo?" in completion.json()["error"]["message"]
        for path in ("weights/other.safetensors", "weights/demo/"):
            problem = refused(client.post("/score", json={"text": "waa", "weights": path}), 422, "invalid_request")
            assert "has 1 to 64 letters" in problem["detail"]
        assert client.post("/score", json={"text": "waa", "weights": "demo.safetensors"}).status_code == 200


def test_what_cannot_be_asked_for_is_not_listed(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    save_tiny(tmp_path, "x.safetensors")
    with serving(tmp_path) as client:
        assert [weights["name"] for weights in client.get("/weights").json()["weights"]] == ["demo"]
        refused(
            client.post("/generate/c", json={"prompt": "waa", "weights": "x.safetensors.safetensors"}),
            422,
            "invalid_request",
        )


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_models_of_files_that_are_gone_are_let_go(tmp_path: Path, how: str) -> None:
    path = save_tiny(tmp_path)
    save_tiny(tmp_path, "other")

    def mapped() -> bool:
        return f"{path} (deleted)" in Path("/proc/self/maps").read_text()

    def infos(client: TestClient) -> int:
        return client.get("/metrics").text.count("\nrnn_model_info{")

    with serving(tmp_path, backends=("c", "torch"), watch_seconds=0.05) as client:
        for backend in ("c", "torch"):
            assert client.post(f"/generate/{backend}", json={"prompt": "waa", "max_tokens": 3}).status_code == 200
        assert infos(client) == 2
        if how == "deleted":
            path.unlink()
        else:
            save_tiny(tmp_path, seed=4)
        until(lambda: not mapped())  # though nobody asks for it
        assert infos(client) == 0


def test_delete(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        assert client.post("/generate/c", json={"prompt": "waa"}).status_code == 200
        refused(client.delete("/weights/demo"), 401, "unauthorized")
        refused(client.delete("/weights/demo", headers={"authorization": "Bearer wrong"}), 401, "unauthorized")
        refused(client.delete("/weights/nosuch", headers=ADMIN), 404, "weights_not_found")
        for name in ("..", "a%00b", ".hidden", "w" * 65):
            assert client.delete(f"/weights/{name}", headers=ADMIN).status_code in (404, 405, 422)
        assert (tmp_path / "demo.safetensors").exists()
        response = client.delete("/weights/demo.safetensors", headers=ADMIN)
        assert response.status_code == 204 and response.content == b""
        assert not (tmp_path / "demo.safetensors").exists()
        refused(client.post("/generate/c", json={"prompt": "waa"}), 503, "not_ready")


def test_torch_can_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    save_tiny(tmp_path)
    caplog.set_level("INFO")
    monkeypatch.setattr("service.settings.find_spec", lambda name: None)
    with serving(tmp_path, backends=("c", "torch")) as client:
        problem = refused(client.post("/generate/torch", json={"prompt": "waa"}), 501, "backend_missing")
        assert "torch is not installed" in problem["detail"]
        assert [r.levelname for r in caplog.records if r.getMessage() == "POST /generate/torch 501"] == ["INFO"]
        assert client.post("/generate/c", json={"prompt": "waa"}).status_code == 200
    with serving(tmp_path, backends=("c",)) as client:
        refused(client.post("/generate/torch", json={"prompt": "waa"}), 501, "backend_missing")


def test_the_library_can_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnlm import library

    save_tiny(tmp_path)
    monkeypatch.setenv("RNNLIB_PATH", str(tmp_path / "nosuch.so"))
    library.library.cache_clear()
    try:
        with serving(tmp_path) as client:
            problem = refused(client.post("/generate/c", json={"prompt": "waa"}), 501, "backend_missing")
            assert "make lib" in problem["detail"]
    finally:
        library.library.cache_clear()
