"""The recipes of docs/training.md, run as written in a fresh folder, on small texts of the names that they use."""

from __future__ import annotations

import gzip
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, make_checkpoint

import rnn
import torch_rnn
from rnnlm import checkpoint, export
from rnnlm.data.text import EOS, UNK
from rnnlm.training.config import PRESETS

RECIPES = (ROOT / "docs" / "training.md").read_text().split("\n## Recipes\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
SENTENCES = (
    "The prime minister said so.",
    "The old king sat here.",
    "Der König war alt.",
    "Die Königin ging dann.",
)


def block(words: str) -> str:
    """Return the one code block that has `words`."""
    (found,) = (code for _, code in BLOCKS if words in code)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the program, the texts and vectors that the recipes name, and the demo's weights."""
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name in ("rnnlm", "lib", "service"):
            (tmp_path / path.name).symlink_to(path)
    text = "\n".join(np.random.default_rng(0).choice(SENTENCES, 300))
    data = tmp_path / "simple-examples" / "data"
    for made in (data, tmp_path / "archive"):
        made.mkdir(parents=True)
    for name in ("deutsch.txt", "my.txt", "novels.txt", "train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text(text)
    for split in ("train", "valid", "test"):
        (data / f"ptb.{split}.txt").write_text(text)
    (tmp_path / "letters.txt").write_text("Dear king, the old minister wrote here.\n" * 100)
    for name in "ab":
        (tmp_path / "archive" / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    words = sorted({word.strip(".").lower() for sentence in SENTENCES for word in sentence.split()})
    numbers = np.random.default_rng(1).standard_normal((len(words), 300))
    rows = (f"{word} {' '.join(f'{number:.3f}' for number in row)}\n" for word, row in zip(words, numbers, strict=True))
    (tmp_path / "glove.6B.300d.txt").write_text("".join(rows))
    save_demo(tmp_path / "weights" / "demo.safetensors")
    return tmp_path


def save_demo(path: Path) -> None:
    source = make_checkpoint(vocab=40, embed=9, hidden=12)
    words = (EOS, UNK, "The", "prime", "minister", *source.vocabulary[5:])
    checkpoint.save(path, replace(source, vocabulary=words))


def run(code: str, folder: Path) -> str:
    """Run a block of shell commands with the virtual environment activated, as a user would. Returns the output."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", code],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


def greedy(folder: Path, words: int) -> str:
    """Return what the demo model writes after "The prime minister", across the ends of sentences."""
    model = torch_rnn.RNN.load(folder / "weights" / "demo.safetensors")
    tokens = model.generate("The prime minister", max_tokens=words, ignore_eos=True).tokens
    return " ".join(token.word for token in tokens)


def test_a_weights_file_is_read_with_plain_safetensors(folder: Path) -> None:
    code = block("from safetensors.torch import load_file")
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"<EOS> The prime minister {greedy(folder, 17)}"


def test_onnx_says_the_same(folder: Path) -> None:
    run(block("rnnlm.export").replace("pip install", "# pip install"), folder)
    code = block("import onnxruntime")
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert said.strip() == greedy(folder, 20)


def test_another_project_uses_the_models(folder: Path) -> None:
    said = run(block("PYTHONPATH"), folder)
    model = rnn.RNN.load(folder / "weights" / "demo.safetensors")
    assert said == model.generate("The prime minister", seed=7).text + "\n"


def test_no_module_of_ours_is_in_the_way_of_another_project(folder: Path) -> None:
    """A project that has every name of our modules, but for the four that it uses, gets its own."""
    assert {module.name for module in pkgutil.iter_modules([str(ROOT)])} == {
        *("api", "main", "rnn", "rnnlm", "service", "torch_rnn")
    }
    theirs = folder / "theirs"
    theirs.mkdir()
    names = {path.stem for package in ("rnnlm", "service") for path in (ROOT / package).rglob("*.py")}
    names = names - {"__init__", "__main__", "rnnlm", "service"} | {"api", "main", "data", "training", "tests", "bench"}
    names -= set(sys.stdlib_module_names)  # theirs would be in everyone's way
    for name in names:
        (theirs / f"{name}.py").write_text("mine = True\n")
    program = "import rnn, torch_rnn\n" + "".join(f"import {name}; assert {name}.mine\n" for name in sorted(names))
    program += "for module in rnn, torch_rnn:\n    module.RNN.load('../weights/demo.safetensors').score('The prime')\n"
    (theirs / "program.py").write_text(program)
    run("cd theirs && PYTHONPATH=.. python program.py", folder)


def test_your_own_text_in_another_language(folder: Path) -> None:
    run(block("deutsch.txt"), folder)
    for name in ("deutsch", "archive"):
        assert checkpoint.load(folder / "weights" / f"{name}.safetensors").tokenizer.startswith("unicode")
    assert "könig" in checkpoint.load(folder / "weights" / "deutsch.safetensors").vocabulary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("simple-examples", ("ptb", "files")),
        ("glove", ("glove",)),
        ("torchrun", ("two",)),
    ],
)
def test_training_recipes(words: str, made: tuple[str, ...], folder: Path) -> None:
    run(block(words), folder)
    for name in made:
        assert checkpoint.load(folder / "weights" / f"{name}.safetensors").history


@pytest.mark.slow
def test_a_model_is_tuned_to_other_words(folder: Path) -> None:
    assert "unknown words   0" in run(block("letters.txt"), folder)
    novels, letters = (checkpoint.load(folder / "weights" / f"{name}.safetensors") for name in ("novels", "letters"))
    assert set(letters.vocabulary) == {*novels.vocabulary, "Dear", "the", "wrote"}


@pytest.mark.slow
def test_learning_rates_are_compared(folder: Path) -> None:
    lines = run(block("for rate in"), folder).splitlines()
    for rate in ("0.001", "0.003", "0.01"):
        assert any(line.startswith(f"rate-{rate} ") and line.endswith(f"learning_rate {rate}") for line in lines)
    assert (folder / "weights" / "comparison.png").exists()


@pytest.mark.slow
def test_three_seeds_are_one_model(folder: Path) -> None:
    assert "an ensemble of 3" in run(block("rnnlm.ensemble"), folder)
    members = checkpoint.load(folder / "weights" / "ensemble.safetensors").config["ensemble"]
    assert [member["config"]["seed"] for member in members] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_on_a_server_is_ended_and_continued(folder: Path) -> None:
    (folder / "my.txt").write_text("\n".join(np.random.default_rng(0).choice(SENTENCES, 15_000)))
    begun = "until [ -e weights/server.resume ]; do sleep 0.1; done"  # on a fast machine all is done in 20 seconds
    code = block("nohup").replace("sleep 20", begun)
    assert begun in code and "--resume --out weights/server" in run(code, folder)
    assert checkpoint.load(folder / "weights" / "server.safetensors").history[-1]["epoch"] == PRESETS["best"]["epochs"]


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def test_the_onnx_graph_does_what_the_module_does(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.safetensors", make_checkpoint(vocab=40, embed=9, hidden=12))
    assert export.main([str(tmp_path / "x.safetensors"), str(tmp_path / "x.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    model = torch_rnn.RNN.load(tmp_path / "x.safetensors")
    rng = np.random.default_rng(0)
    ids, hidden = rng.integers(0, 40, (7, 3)), rng.uniform(-1, 1, (1, 3, 12)).astype(np.float32)
    logits, last = session.run(None, {"ids": ids, "hidden": hidden})
    with torch.inference_mode():
        want, state = model(torch.tensor(ids), torch.tensor(hidden))
    assert np.abs(logits - want.numpy()).max() < 1e-5 and np.abs(last - state.numpy()).max() < 1e-5
    properties = session.get_modelmeta().custom_metadata_map
    assert tuple(properties["vocabulary"].split("\n")) == model.vocabulary.words
    assert properties["tokenizer"] == "plain"


def test_what_cannot_be_exported(
    tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.onnx"

    def refused(*arguments: Path, words: str) -> None:
        assert export.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("rnnlm.export: ") and words in said and said.count("\n") == 1 and not out.exists()

    refused(tmp_path / "none.safetensors", out, words="there is no such file")
    refused(weights_file, weights_file, words="must end in .onnx")
    checkpoint.load(weights_file)  # unharmed
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    refused(weights_file, out, words="more than the 1,000 of an ONNX file: train one with a smaller --vocab-size")
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(weights_file, out, words="pip install onnx")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_standard_output_of_an_export_is_one_line(tmp_path: Path, weights_file: Path) -> None:
    pytest.importorskip("onnx")
    command = [sys.executable, "-m", "rnnlm.export", str(weights_file), str(tmp_path / "x.onnx")]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "the output cannot be written" in result.stderr and (tmp_path / "x.onnx").exists()
