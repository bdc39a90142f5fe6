"""--init-from: a run that starts from the weights of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, make_checkpoint
from running import BACKENDS, options, refused, same_weights, train

from rnnlm import checkpoint
from rnnlm.data.text import EOS, UNK
from rnnlm.training.distributed import Group
from rnnlm.training.init_from import Base, options_of

NEW = ["dragon", "castle"]


@pytest.fixture(scope="module")
def base(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base.safetensors"
    done = train("c", *options(text, out, vocab_size=None, embeddings="random"), "--tokenizer", "plain")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the words of the other text, and two new ones."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("\n".join(" ".join(rng.choice(WORDS[:7] + NEW, 6)) + "." for _ in range(200)))
    return path


def tuning(text: Path, out: Path, base: Path | None, **changed: object) -> list[str]:
    """Options that leave to the weights what they decide."""
    nothing = {"vocab_size": None, "embedding_size": None, "hidden_size": None}
    return options(text, out, init_from=base, **nothing | changed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_words_are_kept_and_new_ones_added(backend: str, base: Path, other_text: Path, tmp_path: Path) -> None:
    """At a learning rate of next to nothing, with another batch, optimizer and back end."""
    out = tmp_path / "tuned.safetensors"
    done = train(backend, *tuning(other_text, out, base, learning_rate=1e-12, batch_size=8, optimizer="sgd"))
    assert done.returncode == 0, done.stderr
    old, new = checkpoint.load(base), checkpoint.load(out)
    assert set(new.vocabulary) == {*old.vocabulary, *NEW} and new.tokenizer == "plain"
    rows = [new.vocabulary.index(word) for word in old.vocabulary]
    assert np.array_equal(new.weights.embeddings[rows], old.weights.embeddings)
    for name in ("Wxh", "Whh", "bh"):
        assert np.allclose(getattr(new.weights, name), getattr(old.weights, name), atol=1e-8)
    assert np.allclose(new.weights.Why[:, rows], old.weights.Why, atol=1e-8)
    assert np.allclose(new.weights.by[rows], old.weights.by, atol=1e-8)
    added = [new.vocabulary.index(word) for word in NEW]
    assert np.allclose(new.weights.Why[:, added].T, old.weights.Why.mean(axis=1), atol=1e-6)
    scale = new.weights.embeddings[added].std() / old.weights.embeddings.std()
    assert 0.3 < scale < 3 and not np.array_equal(*new.weights.embeddings[added])
    assert new.config["init_from"] == str(base) and new.config["hidden_size"] == 10
    assert f"{base}, which has {len(old.vocabulary)} of the words" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_its_own_text_a_run_starts_where_the_other_ended(
    backend: str, base: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"
    assert train(backend, *tuning(text, out, base, average=0.9, precision="float32")).returncode == 0
    first, last = checkpoint.load(out).history[0], checkpoint.load(base).history[-1]
    assert first["validation_loss"] == pytest.approx(last["validation_loss"], abs=1e-5)
    assert checkpoint.load(out).vocabulary == checkpoint.load(base).vocabulary


def test_weights_that_training_made_worse_are_told(base: Path, text: Path, tmp_path: Path) -> None:
    told = "the weights of --init-from have a lower perplexity on the validation split, "
    done = train("c", *tuning(text, tmp_path / "worse.safetensors", base, learning_rate=0.5, optimizer="adamw"))
    assert done.returncode == 0 and done.stdout.count(told) == 1, done.stderr
    done = train("c", *tuning(text, tmp_path / "better.safetensors", base, learning_rate=1e-3))
    assert done.returncode == 0 and told not in done.stdout, done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tuned_run_is_resumed(backend: str, base: Path, other_text: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    tuned = {"sampled_softmax": 5, "precision": "bfloat16"}
    assert train(backend, *tuning(other_text, whole, base, epochs=3, **tuned)).returncode == 0
    assert train(backend, *tuning(other_text, parts, base, epochs=2, **tuned), "--resume").returncode == 0
    assert train(backend, "--resume", "--out", str(parts), "--epochs", "3").returncode == 0
    assert same_weights(whole, parts)
    assert train(backend, *tuning(other_text, parts, base, epochs=3, **tuned), "--resume").returncode == 0
    assert train(backend, *tuning(other_text, parts, None, epochs=3, **tuned), "--resume").returncode == 0
    refused(train(backend, "--resume", "--out", str(parts), "--init-from", "new"), 2, "--init-from new (it was ")


def test_the_number_of_new_words_may_be_limited(base: Path, other_text: Path, tmp_path: Path) -> None:
    """To the most frequent of the text; the known ones stay."""
    out = tmp_path / "tuned.safetensors"
    assert train("c", *tuning(other_text, out, base, vocab_size=3)).returncode == 0
    old, new = checkpoint.load(base), checkpoint.load(out)
    assert {*old.vocabulary, UNK} <= {*new.vocabulary} and len({*new.vocabulary} & {*NEW}) <= 1


def write_vectors(path: Path, base: Path, changed: bool) -> Path:
    """The vectors of the base as a text file, with one for a new word; or others in their place."""
    old = checkpoint.load(base)
    rows = old.weights.embeddings + (1 if changed else 0)
    lines = [f"{word} {' '.join(map(repr, row.tolist()))}" for word, row in zip(old.vocabulary, rows, strict=True)]
    path.write_text("\n".join([*lines, "dragon " + " ".join(["0.5"] * 8)]) + "\n")
    return path


def test_new_words_may_come_from_the_same_vectors(base: Path, other_text: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "tuned.safetensors", write_vectors(tmp_path / "same.txt", base, changed=False)
    assert train("c", *tuning(other_text, out, base, embeddings=file)).returncode == 0
    new = checkpoint.load(out)
    assert new.weights.embeddings[new.vocabulary.index("dragon")].tolist() == [0.5] * 8
    other = write_vectors(tmp_path / "other.txt", base, changed=True)
    result = train("c", *tuning(other_text, tmp_path / "x", base, embeddings=other))
    refused(result, 2, "--embeddings", "other.txt", "its vector is not that of", "base.safetensors")


def test_new_words_of_rooted_vectors(base: Path, text: Path, other_text: Path, tmp_path: Path) -> None:
    """Such vectors are scaled by all words of a vocabulary: those of the weights decide."""
    file, rooted, out = (tmp_path / name for name in ("v.txt", "rooted.safetensors", "tuned.safetensors"))
    write_vectors(file, base, changed=False)
    first = options(text, rooted, vocab_size=None, embeddings=file, vector_lengths="root")
    assert train("c", *first, "--tokenizer", "plain").returncode == 0
    assert train("c", *tuning(other_text, out, rooted, embeddings=file)).returncode == 0
    old, new = checkpoint.load(rooted), checkpoint.load(out)
    assert new.config["vector_lengths"] == "root"
    ids = [model.vocabulary.index("king") for model in (old, new)]
    assert np.array_equal(old.weights.embeddings[ids[0]], new.weights.embeddings[ids[1]])
    king, dragon = checkpoint.load(base).weights.embeddings, np.full(8, 0.5)
    king = king[checkpoint.load(base).vocabulary.index("king")]
    length = np.linalg.norm(old.weights.embeddings[ids[0]])
    want = length * np.sqrt(np.linalg.norm(dragon) / np.linalg.norm(king))
    got = np.linalg.norm(new.weights.embeddings[new.vocabulary.index("dragon")])
    assert got == pytest.approx(want, rel=1e-4)
    lengths = train("c", *tuning(other_text, tmp_path / "x", base), "--vector-lengths", "root")
    refused(lengths, 2, "--vector-lengths root (it has given)")


def test_what_does_not_go_with_the_weights_is_listed(base: Path, tmp_path: Path) -> None:
    """Before the corpus is read."""
    result = train(
        "c",
        *tuning(tmp_path / "none", tmp_path / "x", base, hidden_size=11, embedding_size=9, init="unigram"),
        *("--embeddings", "train"),
    )
    said = "--hidden-size 11 (it has 10)", "--embedding-size 9 (it has 8)", "--init unigram", "--embeddings train"
    refused(result, 2, "base.safetensors", *said)
    refused(
        train("c", *tuning(tmp_path / "none", tmp_path / "x", tmp_path / "gone")),
        2,
        "--init-from",
        "gone",
        "no such file",
    )
    (tmp_path / "bad").write_bytes(b"no weights")
    refused(train("c", *tuning(tmp_path / "none", tmp_path / "x", tmp_path / "bad")), 2, "bad")
    short = base.with_suffix("")
    refused(train("c", *tuning(tmp_path / "none", tmp_path / "x", short)), 2, f"--init-from {short}: ", f"mean {base}?")


def test_the_weights_are_not_replaced_by_the_run(base: Path, text: Path) -> None:
    before = base.read_bytes()
    refused(train("c", *tuning(text, base, base)), 2, "exists", "--overwrite")
    refused(train("c", *tuning(text, base, base), "--overwrite"), 2, "would replace this file", "another --out")
    assert base.read_bytes() == before


def test_a_text_of_none_of_the_words(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("ganz andere Sprache. noch ein Satz. und noch einer.\n" * 9)
    refused(
        train("c", *tuning(tmp_path / "x.txt", tmp_path / "x", base)), 2, "base.safetensors knows no word of", "x.txt"
    )


@pytest.mark.parametrize("tokenizer", ["plain", "unicode+lowercase", "wikitext+lowercase"])
def test_the_tokenizer_is_that_of_the_weights(tokenizer: str, tmp_path: Path) -> None:
    """But for WikiText's, which is for texts that are tokenized already."""
    checkpoint.save(tmp_path / "b", replace(make_checkpoint(), tokenizer=tokenizer))
    found = options_of(str(tmp_path / "b"), tmp_path / "out", {})
    assert found.get("tokenizer") == {"wikitext": None}.get(tokenizer.split("+")[0], tokenizer.split("+")[0])
    assert found["lowercase"] == tokenizer.endswith("+lowercase")


def test_a_text_is_read_as_that_of_the_weights(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("The king's dragon sat. the queen don't stand.\n" * 40)
    for more, words in ([], {"king", "don"}), (["--tokenizer", "unicode", "--lowercase"], {"king's", "don't"}):
        out = tmp_path / f"x{len(more)}.safetensors"
        assert train("c", *tuning(tmp_path / "x.txt", out, base), *more).returncode == 0
        assert words <= set(checkpoint.load(out).vocabulary)


def test_processes_without_the_file_get_the_weights_of_the_first(tmp_path: Path) -> None:
    """Each holds a part of what process 0 shares."""
    source = make_checkpoint(vocab=13)
    checkpoint.save(tmp_path / "b.safetensors", source)
    shared: list[object] = []

    class First(Group):
        def from_first(self, make):  # type: ignore[no-untyped-def]
            shared.append(made := make())
            return made

        def array_from_first(self, array):  # type: ignore[no-untyped-def]
            shared.append(array)
            return array

    class Second(Group):
        rank = 1

        def from_first(self, make):  # type: ignore[no-untyped-def]
            return shared.pop(0)

        def array_from_first(self, array):  # type: ignore[no-untyped-def]
            assert array is None
            return shared.pop(0)

    words = (*source.vocabulary, "new")
    vectors = np.ones((14, 9), dtype=np.float32)
    first = Base.load(str(tmp_path / "b.safetensors"), First()).extended(words, vectors, First())
    group = Second()
    second = Base.load(str(tmp_path / "missing"), group).extended(words, vectors, group)
    assert EOS in words and all(np.array_equal(second.parameters()[name], a) for name, a in first.parameters().items())
