"""How large a model fits: what is reported, what is refused, and what one processor with one gigabyte really does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, no_sanitizer
from serving import ADMIN, make_settings, needs_library, refused, save_tiny, serving
from weights_files import resident

from service import capacity
from service.capacity import Capacity

GIB = 1 << 30


def test_what_fits_is_the_largest_that_fits() -> None:
    for backends in (("c",), ("c", "torch")):
        fits = Capacity(GIB, backends)
        for hidden in (50, 100, 1000):
            most = fits.largest_vocabulary(hidden)
            assert not fits.objection(most, hidden)
            assert fits.objection(most + 1, hidden)
    assert Capacity(GIB, ("c", "torch")).largest_vocabulary(100) > 200_000  # what bench/small.py shows
    assert Capacity(GIB, ("c", "torch"), copies=True).largest_vocabulary(100) > 125_000  # as docs/deploying.md says
    assert Capacity(GIB, ("c",), "bfloat16").largest_vocabulary(100) < Capacity(GIB, ("c",)).largest_vocabulary(100)
    assert Capacity(1 << 20, ("c",)).largest_vocabulary(100) == 0


def test_models_that_fit_together() -> None:
    fits = Capacity(GIB, ("c", "torch"))
    most = fits.largest_vocabulary(100)
    assert fits.holds([]) and fits.holds([(most, 100, 300)]) and not fits.holds([(most + 1, 100, 300)])
    half = most // 2
    assert fits.holds([(half, 100, 300)] * 2) and not fits.holds([(half, 100, 300)] * 3)


def test_files_that_are_copied_count_twice(tmp_path: Path) -> None:
    """Once for the model that is served, once for its replacement."""
    mapped, copied = Capacity(GIB, ("c",)), Capacity(GIB, ("c",), copies=True)
    assert copied.needs(1000, 50, 20) - mapped.needs(1000, 50, 20) == 2 * 1000 * 4 * (20 + 50 + 1)
    assert copied.largest_vocabulary(100) < mapped.largest_vocabulary(100)
    most = copied.largest_vocabulary(100, 20)
    assert not copied.objection(most, 100, 20) and copied.objection(most + 1, 100, 20)
    assert not Capacity.of(make_settings(tmp_path)).copies
    assert Capacity.of(make_settings(tmp_path, weights_mode="read")).copies


@needs_library
def test_an_upload_that_fits_only_mapped(tmp_path: Path) -> None:
    sizes = {"vocab": 40, "hidden": 12, "embed": 16_000}
    sound = save_tiny(tmp_path, **sizes).read_bytes()
    between = (Capacity(0, ("c",)).needs(40, 12) + Capacity(0, ("c",), copies=True).needs(40, 12, 16_000)) // 2
    for mode, status in (("map", 201), ("read", 507)):
        with serving(tmp_path / mode, memory_mb=between // 10**6, weights_mode=mode) as client:
            assert client.post("/weights", files={"file": ("new", sound)}, headers=ADMIN).status_code == status


def test_the_objection_names_value_limit_and_remedy() -> None:
    said = Capacity(GIB, ("c",)).objection(5_000_000, 100)
    assert "5,000,000 words" in said and "1,073 MB" in said and "--vocab-size" in said


def test_what_the_system_grants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = capacity._groups

    def grant(**files: str) -> int:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".", 1)).write_text(text)
        monkeypatch.setattr(capacity, "_groups", lambda: groups(tmp_path))
        return capacity.granted()

    whole = capacity.granted()
    assert whole > GIB / 4
    assert grant(memory_max="max\n") == whole
    assert grant(memory_max="123456789\n") == 123456789


@no_sanitizer
def test_a_limit_of_the_process_counts() -> None:
    code = "from service.capacity import granted; print(granted())"
    command = ["prlimit", "--data=777777152", sys.executable, "-c", code]
    assert int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout) == 777777152


@needs_library
def test_the_list_tells_what_fits(tmp_path: Path) -> None:
    with serving(tmp_path, memory_mb=1000, max_upload_bytes=5000) as client:
        told = client.get("/weights").json()["capacity"]
    fits = Capacity(10**9, ("c",))
    assert told == {"memory": 10**9, "max_upload_bytes": 5000, "largest_vocabulary": fits.table()}
    assert told["largest_vocabulary"]["100"] == fits.largest_vocabulary(100)


@needs_library
def test_an_upload_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    sound = save_tiny(tmp_path).read_bytes()
    folder = tmp_path / "weights"
    with serving(folder, memory_mb=50) as client:  # the program itself takes more
        response = client.post("/weights", files={"file": ("new", sound)}, headers=ADMIN)
        assert "0 words at most" in refused(response, 507, "no_space")["detail"]
        assert os.listdir(folder) == []
    with serving(folder, memory_mb=1000) as client:
        assert client.post("/weights", files={"file": ("new", sound)}, headers=ADMIN).status_code == 201


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("vocab", [31_266, 200_000])
def test_one_processor_and_one_gigabyte(vocab: int) -> None:
    command = [sys.executable, "bench/small.py", "--size", str(vocab), "300", "100", "--seconds", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("backend", ["c", "torch"])
def test_embeddings_that_were_read_once_do_not_stay_in_memory(tmp_path: Path, backend: str) -> None:
    """Of a replaced file they would count twice."""
    save_tiny(tmp_path, embed=16_000)
    with serving(tmp_path, backends=("c", "torch")) as client:
        assert client.post(f"/generate/{backend}", json={"prompt": "waa", "max_tokens": 1}).status_code == 200
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        embeddings = registry.get("demo")._source.weights.embeddings
        assert resident(embeddings) < 0.5 * embeddings.nbytes
