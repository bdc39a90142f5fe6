"""python -m rnnlm.ensemble: several models as one, in both back ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, WORDS, make_checkpoint, make_weights
from running import options, refused, train

import rnn
import torch_rnn
from rnnlm import checkpoint, ensemble, files
from rnnlm.checkpoint import Checkpoint
from rnnlm.data.text import EOS
from rnnlm.training import lock

Said = Callable[..., str]
V = 40
IDS = np.random.default_rng(3).integers(0, V, 30).astype(np.int32)


def model(embed: int = 9, hidden: int = 12, seed: int = 0, **changed: object) -> Checkpoint:
    return replace(make_checkpoint(V, embed, hidden, seed), **changed)


def with_embeddings(of: Checkpoint, hidden: int, seed: int) -> Checkpoint:
    """Return another model that reads the same vectors."""
    weights = make_weights(V, of.weights.embed_size, hidden, seed)
    return replace(of, weights=replace(weights, embeddings=of.weights.embeddings.copy()))


def combined(*members: Checkpoint) -> Checkpoint:
    return ensemble.combine(members, [f"{i}.safetensors" for i in range(len(members))])


def log_distributions(source: Checkpoint, back_end: str, folder: Path) -> np.ndarray:
    """Return log p(word | what came before) for every word after each of IDS: (30, V) float64."""
    path = folder / "of.safetensors"
    checkpoint.save(path, source)
    model = rnn.RNN.load(path) if back_end == "c" else torch_rnn.RNN.load(path)
    logits = model.logits(model.hidden_states(IDS)).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


FIRST = model()
MEMBERS = {
    "other embeddings": [FIRST, model(embed=5, hidden=7, seed=1)],
    "one set of embeddings": [FIRST, with_embeddings(FIRST, 7, seed=1), with_embeddings(FIRST, 3, seed=2)],
    "two sets of embeddings": [FIRST, model(embed=5, hidden=7, seed=1), with_embeddings(FIRST, 3, seed=2)],
    "embeddings of one size": [FIRST, model(seed=1)],
}


@pytest.mark.parametrize("back_end", ["c", "torch"])
@pytest.mark.parametrize(
    ("what", "embed", "hidden"),
    [
        ("other embeddings", 14, 19),
        ("one set of embeddings", 9, 22),
        ("two sets of embeddings", 14, 22),
        ("embeddings of one size", 18, 24),
    ],
)
def test_the_distribution_is_the_geometric_mean(
    what: str, embed: int, hidden: int, back_end: str, tmp_path: Path
) -> None:
    members = MEMBERS[what]
    made = combined(*members)
    assert (made.weights.embed_size, made.weights.hidden_size) == (embed, hidden)
    want = np.mean([log_distributions(member, back_end, tmp_path) for member in members], axis=0)
    want -= np.logaddexp.reduce(want, axis=1, keepdims=True)
    assert np.abs(log_distributions(made, back_end, tmp_path) - want).max() < 1e-5


@pytest.mark.parametrize("back_end", ["c", "torch"])
def test_a_model_with_itself_predicts_the_same(back_end: str, tmp_path: Path) -> None:
    made = combined(FIRST, FIRST)
    assert made.weights.embeddings is FIRST.weights.embeddings  # not copied
    got, want = (log_distributions(each, back_end, tmp_path) for each in (made, FIRST))
    assert np.abs(got - want).max() < 1e-5


def test_what_its_file_says_of_the_members() -> None:
    shared = {"corpus": "wikitext-2-v1", "unigram_perplexity": 1287.4, "epochs": 8, "vector_lengths": "root"}
    own = [{"seed": seed, "hidden_size": 12, "out": f"weights/seed-{seed}"} for seed in (1, 2)]
    row = {"epoch": 8, "validation_perplexity": 230.0}
    members = [model(seed=i, config=shared | own[i], history=[row]) for i in range(2)]
    members[1] = replace(members[1], backend="torch", config=members[1].config | {"device": "cpu"})
    made = combined(*members)
    assert made.config == shared | {
        "ensemble": [
            {"file": "0.safetensors", "backend": "c", "config": own[0]},
            {"file": "1.safetensors", "backend": "torch", "config": own[1] | {"device": "cpu"}},
        ]
    }
    assert made.history == [] and made.backend == "c"
    nested = combined(made, made)
    assert nested.config["ensemble"][0]["config"] == {"ensemble": made.config["ensemble"]}


# ---- The command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Save two models, a.safetensors and b.safetensors, the only files of their folder."""
    folder = tmp_path / "weights"
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    for path, source in zip(paths, MEMBERS["other embeddings"], strict=True):
        checkpoint.save(path, source)
    return paths


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "rnnlm.ensemble", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_line(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "both"
    made = command(*two, "--out", out)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == f"{out}.safetensors: V=40, E=14, H=19, an ensemble of 2\n"
    assert [path.name for path in out.parent.iterdir()] == ["both.safetensors"]
    refused(command(*two, "--out", out), 2, f"{out}.safetensors exists: replace it (--overwrite)")
    assert command(two[0], "--out", out, "--overwrite", two[0]).returncode == 0
    assert checkpoint.load(f"{out}.safetensors").weights.hidden_size == 24
    spoken = subprocess.run(
        [sys.executable, "rnn.py", f"{out}.safetensors", "waa wab", "--score"], cwd=ROOT, capture_output=True, text=True
    )
    assert spoken.returncode == 0 and "over 2 tokens" in spoken.stdout, spoken.stderr


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Return a function that checks that a command line is refused, and returns its one line."""

    def line(*arguments: object, code: int = 2) -> str:
        assert ensemble.main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("rnnlm.ensemble: "), err
        return err

    return line


def test_members_that_do_not_fit(two: list[Path], tmp_path: Path, said: Said) -> None:
    out, other = tmp_path / "x.safetensors", tmp_path / "other.safetensors"

    def line(source: Checkpoint) -> str:
        checkpoint.save(other, source)
        return said(two[0], other, "--out", out)

    words = list(FIRST.vocabulary)
    assert "two or more weights files, got only" in said(two[0], "--out", out)
    swapped = line(replace(FIRST, vocabulary=(*words[:7], words[8], words[7], *words[9:])))
    assert f"{two[0]} and {other} have different vocabularies, of 40 and 40 words" in swapped
    assert "word 7 is 'wag' in the first and 'wah' in the second: train" in swapped
    assert "of 40 and 39 words: word 39 is 'wbm' in the first and missing in the second" in line(make_checkpoint(39))
    assert "of 40 and 41 words: word 40 is missing in the first and 'wbn' in" in line(make_checkpoint(41))
    assert "with the tokenizers plain and unicode" in line(replace(FIRST, tokenizer="unicode"))
    other.write_text("no weights")
    assert f"{other}: is not a safetensors file" in said(two[0], other, "--out", out)
    assert "there is no such file: train a model" in said(two[0], tmp_path / "none", "--out", out)
    short = two[1].with_suffix("")
    assert f"{short}: there is no such file: do you mean {two[1]}?" in said(two[0], short, "--out", out)
    assert not out.exists()


def test_weights_that_are_not_finite(two: list[Path], tmp_path: Path, said: Said) -> None:
    data = bytearray(two[1].read_bytes())
    value = checkpoint.load(two[1], copy=True).weights.bh[:1].tobytes()
    at = data.index(value)
    data[at : at + 4] = np.float32(np.nan).tobytes()
    two[1].write_bytes(data)
    assert f"{two[1]}: bh[0] is nan" in said(*two, "--out", tmp_path / "x")


def test_a_result_beyond_the_limits(
    two: list[Path], tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "MAX_EMBED", 13)
    assert "embedding size E would be 9 + 5, more than 13" in said(*two, "--out", tmp_path / "x")
    monkeypatch.setattr(ensemble, "MAX_EMBED", 14)
    monkeypatch.setattr(ensemble, "MAX_HIDDEN", 18)
    assert "hidden size H would be 12 + 7, more than 18: name fewer" in said(*two, "--out", tmp_path / "x")
    assert not (tmp_path / "x.safetensors").exists()


def test_names_that_cannot_be_written(two: list[Path], tmp_path: Path, said: Said) -> None:
    before = [path.read_bytes() for path in two]
    link = tmp_path / "link.safetensors"
    link.symlink_to(two[0])
    for member in (two[0], two[1].with_suffix(""), link):
        assert "is a member of the ensemble" in said(*two, "--out", member, "--overwrite")
    assert "must name a file, got ''" in said(*two, "--out", "")
    assert "must name a file" in said(*two, "--out", tmp_path)
    (tmp_path / "run.jsonl").touch()
    assert "run.jsonl belongs to a training run" in said(*two, "--out", tmp_path / "run", "--overwrite")
    with lock.held(tmp_path / "busy.safetensors"):
        assert "another run is writing there" in said(*two, "--out", tmp_path / "busy")
    (tmp_path / "file").touch()
    assert "cannot be saved" in said(*two, "--out", tmp_path / "file" / "x", code=1)
    assert [path.read_bytes() for path in two] == before


def test_a_full_disk(two: list[Path], tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "out" / "x.safetensors"
    checkpoint.save(out, FIRST)
    before = out.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    assert "cannot be saved (No space left on device)" in said(*two, "--out", out, "--overwrite", code=1)
    assert out.read_bytes() == before and os.listdir(out.parent) == [out.name]


def test_too_little_memory(two: list[Path], tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Sequence[object]) -> None:
        raise MemoryError

    monkeypatch.setattr(ensemble, "_side_by_side", fail)
    assert "not enough memory for the ensemble" in said(*two, "--out", tmp_path / "x", code=1)


# ---- Training from an ensemble --------------------------------------------------------------------------------------


def test_a_run_starts_from_an_ensemble(text: Path, tmp_path: Path) -> None:
    words = (EOS, *WORDS)
    members = [replace(make_checkpoint(len(words), 4 + i, 3 + i, seed=i), vocabulary=words) for i in range(2)]
    base, out = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    checkpoint.save(base, combined(*members))
    sizes = {"vocab_size": None, "embedding_size": None, "hidden_size": None}
    done = train("c", *options(text, out, init_from=base, epochs=1, **sizes))
    assert done.returncode == 0, done.stderr
    tuned = checkpoint.load(out)
    assert (tuned.weights.embed_size, tuned.weights.hidden_size) == (9, 7)
    assert "ensemble" not in tuned.config and tuned.config["init_from"] == str(base)
    assert tuned.history[-1]["validation_loss"] < tuned.history[0]["validation_loss"]
    refused(train("c", *options(text, base), "--resume"), 2, "exists, but not base.resume, so there is no run")
