"""Runs on texts and vectors as people bring them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from running import BACKENDS, options, refused, train

import rnn
from rnnlm import checkpoint
from rnnlm.training.cli import parse
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.run import Run

GERMAN = (
    "Der König saß im Schloß. Die Königin ging nach Köln! Größe zählt für Mäuse nicht. Z.B. Dr. Bär kam 1945.\n" * 40
)


@pytest.fixture
def german(tmp_path: Path) -> Path:
    path = tmp_path / "deutsch.txt"
    path.write_text(GERMAN, encoding="utf-16")
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_know_how_their_text_was_read(backend: str, german: Path, tmp_path: Path) -> None:
    out = tmp_path / "de.safetensors"
    more = ["--lowercase", "--embeddings", "random", "--prompt", "Der KÖNIG"]
    done = train(backend, *options(german, out, vocab_size=20), *more)
    assert done.returncode == 0, done.stderr
    assert "800 words read, 760 kept, 40 dropped, most often 1945 (40)" in done.stderr
    assert "random: vectors of 8 for the 20 words" in done.stderr and "sample: Der KÖNIG" in done.stdout
    saved = checkpoint.load(out)
    assert saved.tokenizer == "unicode+lowercase" and {"könig", "schloß", "dr."} <= set(saved.vocabulary)
    assert rnn.RNN.load(out).score("der König").unknown == ()


def test_own_splits(text: Path, tmp_path: Path) -> None:
    """The same text in one file, and cut into the splits that a run makes of it: the same numbers."""
    lines = text.read_text().splitlines()
    folder = tmp_path / "corpus"
    (folder / "dev").mkdir(parents=True)
    (folder / "my.train.txt").write_text("\n".join(lines[:-60]))
    (folder / "dev" / "a.txt").write_text("\n".join(lines[-60:]))
    outs = [tmp_path / f"{name}.safetensors" for name in ("one", "folder", "files")]
    corpora = [(text, []), (folder, []), (folder / "my.train.txt", ["--validation", str(folder / "dev" / "a.txt")])]
    histories = []
    for out, (corpus, more) in zip(outs, corpora, strict=True):
        assert train("c", *options(corpus, out), *more).returncode == 0
        histories.append([row["validation_loss"] for row in checkpoint.load(out).history])
    assert histories[0] == histories[1] == histories[2]


def test_a_preset_s_size_belongs_to_its_vectors(tmp_path: Path) -> None:
    assert parse("c", ["--preset", "demo"]).config().embedding_size == 100
    assert parse("c", ["--preset", "demo", "--embeddings", "glove.txt"]).config().embedding_size is None
    given = ["--preset", "demo", "--embeddings", "glove.txt", "--embedding-size", "50"]
    assert parse("c", given).config().embedding_size == 50


def test_what_cannot_be_used_is_one_line(text: Path, tmp_path: Path) -> None:
    out, glove = tmp_path / "model", tmp_path / "glove.txt"
    glove.write_text("the 1 2 3\nking 4 5 6\n")
    refused(train("c", *options(text, out), "--tokenizer", "moses"), 2, "--tokenizer", "moses", "plain")
    refused(train("c", *options(text, out), "--validation", "none.txt"), 2, "none.txt", "No such file")
    refused(train("c", *options(text, out), "--embeddings", str(glove)), 2, "glove.txt", "3, not 8", "--embedding-size")
    refused(train("c", *options(tmp_path / "none", out)), 2, "none")


def test_missing_vectors_are_noticed_before_the_text_is_read(text: Path, tmp_path: Path) -> None:
    done = train("c", *options(text, tmp_path / "model"), "--embeddings", "glove.6B.300d.txt")
    refused(done, 2, "no vectors file", "glove.6B.300d.txt")
    assert len(done.stderr.splitlines()) == 1, "no report of the text"


def test_a_run_of_an_earlier_release_on_own_text_goes_on(text: Path, tmp_path: Path) -> None:
    """It read every text as plain text, and did not say so in its options."""
    out = tmp_path / "old.safetensors"
    assert train("c", *options(text, out), "--tokenizer", "plain").returncode == 0
    refused(train("c", *options(text, out, hidden_size=11), "--resume"), 2, "--hidden-size 11 (it was 10)")
    assert train("c", *options(text, out, epochs=3), "--tokenizer", "plain", "--resume").returncode == 0


def test_several_processes_cannot_share_standard_input() -> None:
    group = SimpleNamespace(size=2, rank=0)
    for given in ({"corpus": "-"}, {"validation": "-"}, {"test": "-"}):
        with pytest.raises(ConfigError, match="several processes cannot share standard input: give a text file"):
            Run.prepare(TrainConfig(**given), None, group)  # type: ignore[arg-type]
