"""The options: presets, ranges, and the one line for an invalid value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from running import BACKENDS, options, refused, train

from rnnlm.training.cli import parse
from rnnlm.training.config import PRESETS, ConfigError, TrainConfig


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "changed,words",
    [
        ({"epochs": 0}, ["--epochs", "0"]),
        ({"learning_rate": 1e39}, ["--learning-rate", "1e+39"]),
        ({"learning_rate": 0}, ["--learning-rate", "0"]),
        ({"learning_rate": "nan"}, ["--learning-rate", "nan"]),
        ({"learning_rate": "-1"}, ["--learning-rate", "-1"]),
        ({"epsilon": 0}, ["--epsilon must be at least 1.2e-38, the smallest normal float32, got 0.0"]),
        ({"epsilon": 1e-60}, ["--epsilon", "1e-60"]),
        ({"hidden_size": 0}, ["--hidden-size", "0"]),
        ({"batch_size": 1000000}, ["--batch-size", "1000000"]),
        ({"vocab_size": 2}, ["vocabulary size 2 is too small"]),
        ({"max_tokens": 1}, ["--max-tokens must be 2 or more, got 1"]),
        ({"validation_tokens": 1}, ["--validation-tokens", "1"]),
        ({"corpus": "no-such-corpus"}, ["no-such-corpus"]),
        ({"embeddings": "no-such-vectors"}, ["no-such-vectors"]),
        ({"optimizer": "magic"}, ["magic"]),
        ({"precision": "float16"}, ["--precision", "float16", "bfloat16"]),
        ({"bptt": "many"}, ["many"]),
    ],
)
def test_bad_options(backend: str, changed: dict[str, object], words: list[str], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"precious")
    refused(train(backend, *options(text, out, **changed), "--overwrite"), 2, *words)
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", ["many", "0", "-2", "1.5", ",4", "٣", "1025", "9" * 5000])
def test_a_bad_number_of_threads_in_the_environment(backend: str, value: str, text: Path, tmp_path: Path) -> None:
    arguments = [word for word in options(text, tmp_path / "model", threads=None, corpus="no-such-corpus")]
    said = train(backend, *arguments, OMP_NUM_THREADS=value)
    refused(said, 2, "OMP_NUM_THREADS must be", repr(value)[:70], "unset it")
    refused(train(backend, *arguments, "--threads", "1", OMP_NUM_THREADS=value), 2, "no-such-corpus")  # not needed


@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_options_get_one_line(backend: str) -> None:
    for arguments, said in {
        ("--learning-rat", "0.1"): "unrecognized arguments: --learning-rat 0.1",  # and not taken for --learning-rate
        ("--preset", "dmo"): "argument --preset: invalid choice: 'dmo'",
        ("--hidden-size", "abc"): "argument --hidden-size: invalid int value: 'abc'",
    }.items():
        refused(train(backend, *arguments), 2, said, "--help")
    shown = " ".join(train(backend, "--help").stdout.split())
    assert f"or demo ({'wikitext-103-v1' if backend == 'c' else 'wikitext-2-v1'})" in shown
    assert " OWNER/NAME:CONFIG on the hub" in shown
    assert ("with the options of rnn.py; --precision is float32 only" in shown) == (backend == "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_preset_is_the_documented_recipe(backend: str) -> None:
    options = parse(backend, [])
    config = options.config()
    assert not options.resume and config.preset == "reference"
    assert (config.hidden_size, config.learning_rate, config.epochs, config.max_tokens) == (100, 1e-5, 600, 5000)
    assert (config.batch_size, config.bptt, config.clip, config.optimizer, config.reduction) == (
        1,
        None,
        0,
        "sgd",
        "sum",
    )
    assert config.embeddings == "word2vec-google-news-300"
    assert config.corpus == {"c": "wikitext-103-v1", "torch": "wikitext-2-v1"}[backend]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_line_wins_over_the_preset(preset: str) -> None:
    config = parse("c", ["--preset", preset, "--hidden-size", "7"]).config()
    assert config.hidden_size == 7 and config.as_dict() == TrainConfig(**config.as_dict()).as_dict()


@pytest.mark.parametrize(
    "changed",
    [
        {"momentum": 1.0},
        {"dropout": 1.0},
        {"input_dropout": -0.1},
        {"word_dropout": 1.0},
        {"average": 1.0},
        {"average": -0.5},
        {"sampled_softmax": -1},
        {"momentum": 0.5, "optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"epsilon": 1e-5},
        {"epsilon": -1e-5, "optimizer": "adamw"},
        {"epsilon": math.nan, "optimizer": "adamw"},
        {"vector_lengths": "unit"},
        {"clip": math.inf},
        {"threads": 0},
    ],
)
def test_options_that_do_not_fit(changed: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changed)).replace("_", "-")):
        TrainConfig(**changed)


@pytest.mark.parametrize("name", ["corpus", "prompt", "out"])
def test_options_that_are_not_text(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name} must be text in UTF-8, got a\\udcff"):
        TrainConfig(**{name: "a\udcff"})


@pytest.mark.parametrize("name", ["seed", "epochs", "warmup_steps", "max_tokens"])
def test_numbers_that_no_file_holds(name: str) -> None:
    with pytest.raises(ConfigError, match=r"below 2\^63"):
        TrainConfig(**{name: 1 << 63})


def test_an_output_that_is_no_file_name(text: Path, tmp_path: Path) -> None:
    for out in (Path("."), tmp_path, Path("..")):
        refused(train("c", *options(text, out)), 2, "--out", str(out))
    long = tmp_path / ("x" * 300)
    refused(train("c", *options(text, long)), 1, "cannot be saved (File name too long)")
