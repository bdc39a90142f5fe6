"""Evaluating a whole text: rnn.py --evaluate, and what is behind it."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_checkpoint
from running import options, refused, train

import rnn
import torch_rnn
from rnnlm import checkpoint, evaluation
from rnnlm.data.text import EOS, UNK

TEXT = "waa wab nonsense.\n\nwac, 42 waa\r\nwab? wab\n" * 5 + "wad"
LINES = TEXT.split("\n")


@pytest.fixture(params=[True, False], ids=["unk", "no unk"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Weights whose vocabulary has <UNK>, or lacks it."""
    source = make_checkpoint(vocab=13)
    words = (EOS, UNK, *source.vocabulary[1:-1]) if request.param else source.vocabulary
    checkpoint.save(tmp_path / "tiny.safetensors", replace(source, vocabulary=words))
    return tmp_path / "tiny.safetensors"


@pytest.mark.parametrize("back_end", [rnn.RNN, torch_rnn.RNN])
@pytest.mark.parametrize("scored", [1, 7, 1 << 14])
def test_an_evaluation_is_the_sum_of_a_score(
    back_end: type, scored: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens are scored at a time, and however the text is cut. A prompt has no <EOS> at its open end."""
    monkeypatch.setattr(evaluation, "_SCORED_TOKENS", scored)
    model = back_end.load(path)
    score = model.score(TEXT + "\nwaa")
    logprobs = [token.logprob for token in score.tokens][:-1]
    for pieces in ([TEXT], TEXT.splitlines(keepends=True), [word + " " for word in TEXT.split(" ")]):
        found = evaluation.evaluate(model, pieces, "plain")
        assert found.tokens == len(logprobs) and found.nats == pytest.approx(-sum(logprobs), rel=1e-6)
        assert (found.unknown, found.dropped) == (5, 5)
        assert found.words == found.tokens - sum(token.word == EOS for token in score.tokens[:-1])
    assert found.loss == found.nats / found.tokens and found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits == pytest.approx(math.log2(found.perplexity))


@pytest.mark.parametrize("scored", [1, 7, 1 << 14])
def test_lines_add_up_to_the_whole(scored: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_SCORED_TOKENS", scored)
    model = rnn.RNN.load(path)
    whole = evaluation.evaluate(model, [TEXT], "plain")
    for pieces in ([TEXT], [word + " " for word in TEXT.split(" ")], TEXT.splitlines(keepends=True)):
        lines = list(evaluation.evaluate_lines(model, pieces, "plain"))
        assert len(lines) == len(LINES) == 21
        total = sum(lines, evaluation.Evaluation())
        assert total == replace(whole, nats=pytest.approx(whole.nats))
        read = 4 if model.vocabulary.unk is not None else 3
        assert [line.tokens for line in lines] == [read, 0, 3, 4] * 5 + [2]
        assert lines[1] == evaluation.Evaluation() and lines[2].dropped == 1 and lines[0].unknown == 1


def test_a_text_larger_than_memory_is_read_part_by_part(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_SCORED_TOKENS", 100)
    model = rnn.RNN.load(path)
    sizes: list[int] = []
    score = model.log_probabilities

    def watched(ids: np.ndarray, state: np.ndarray | None = None) -> np.ndarray:
        sizes.append(ids.size)
        return score(ids, state)

    monkeypatch.setattr(model, "log_probabilities", watched)
    pieces = ("waa wab waa wac wab waa wab wac wad waa " for _ in range(500))
    assert evaluation.evaluate(model, pieces, "plain").tokens == 5001
    assert max(sizes) <= 111 and len(sizes) >= 45
    sizes.clear()
    lines = evaluation.evaluate_lines(model, ("waa wab\nwaa wac " for _ in range(2000)), "plain")
    assert sum(1 for _ in lines) == 2001 and max(sizes) <= 111


# ---- The command line


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Run rnn.py --evaluate in this process. Returns the numbers it prints, by name."""
    assert rnn.main([*arguments, "--threads", "1"]) == 0
    rows = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:]]
    return {name: value.strip() for name, value in rows}


def test_the_perplexity_of_a_file_from_the_command_line(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "text.gz").write_bytes(gzip.compress(TEXT.encode()))
    model = rnn.RNN.load(path)
    want = evaluation.evaluate(model, [TEXT], "plain")
    for name in ("text.txt", "text.gz"):
        found = evaluated(capsys, str(path), "--evaluate", str(tmp_path / name))
        assert found["tokens"].startswith(f"{want.tokens}, of which {want.words} are words")
        assert found["unknown words"] == ("5, left out" if model.vocabulary.unk is None else "5, read as <UNK>")
        assert found["dropped words"] == "5" and found["perplexity"] == f"{want.perplexity:.2f}"
        assert found["nats per token"] == f"{want.loss:.4f}" and found["bits per word"] == f"{want.bits:.4f}"


@pytest.mark.parametrize("program", [("rnn.py",), ("torch_rnn.py", "--generate")])
def test_standard_input_line_by_line(program: tuple[str, ...], weights_file: Path) -> None:
    """Lines that look hard-wrapped are lines all the same."""
    lines = ["waa wab wac wad " * 4, "wab waa", "", "nonsense 42", *["wae waf wag wah " * 4] * 8]
    result = subprocess.run(
        [sys.executable, *program, str(weights_file), "--evaluate", "-", "--per-line"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["line"] for row in rows] == list(range(1, len(lines) + 1))
    assert [row["tokens"] for row in rows] == [17, 3, 0, 1, *[17] * 8]
    assert rows[2] == {"line": 3, "tokens": 0, "unknown": 0, "dropped": 0, "nats": 0.0} | dict.fromkeys(
        ("nats_per_token", "perplexity", "bits_per_word")
    )
    assert (rows[3]["unknown"], rows[3]["dropped"]) == (1, 1)
    total = sum(row["nats"] for row in rows) / sum(row["tokens"] for row in rows)
    assert f"nats per token  {total:.4f}" in result.stderr and "standard input, tokenizer plain" in result.stderr
    assert rows[0]["perplexity"] == pytest.approx(math.exp(rows[0]["nats"] / 17))


def test_the_evaluation_of_a_test_split_is_what_its_run_reported(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = text.read_text().splitlines()
    (tmp_path / "splits").mkdir()
    for name, part in (("train", sentences[:-40]), ("valid", sentences[-40:-20]), ("test", sentences[-20:])):
        (tmp_path / "splits" / f"{name}.txt").write_text("\n".join(part) + "\n")
    out = tmp_path / "model.safetensors"
    assert train("c", *options(tmp_path / "splits", out)).returncode == 0
    best = checkpoint.load(out).history[-1]
    found = evaluated(capsys, str(out), "--evaluate", str(tmp_path / "splits"))
    assert found["nats per token"] == f"{best['test_loss']:.4f}"
    assert found["tokens"].startswith(f"{best['test_tokens']:,}, ")
    validation = evaluated(capsys, str(out), "--evaluate", str(tmp_path / "splits"), "--split", "validation")
    assert float(validation["nats per token"]) == pytest.approx(best["validation_loss"], abs=0.02)  # but for a token


def test_wikitext_is_read_as_its_models_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In text that is tokenized already, `king's` is no word; in a file of one's own it is one and a half."""
    from rnnlm.data import corpus

    source = replace(make_checkpoint(vocab=13), tokenizer="wikitext")
    checkpoint.save(tmp_path / "w.safetensors", source)
    (tmp_path / "own.txt").write_text("waa wab's wac.\n")
    arguments = [str(tmp_path / "w.safetensors"), "--evaluate", str(tmp_path / "own.txt")]
    assert evaluated(capsys, *arguments)["tokens"].startswith("4, ")
    assert evaluated(capsys, *arguments, "--tokenizer", "wikitext")["tokens"].startswith("2, ")
    tokenized = corpus.Text(["waa wab's wac .\n"], "test", True, ())
    monkeypatch.setattr(corpus, "open_text", lambda *_, **__: tokenized)
    assert evaluated(capsys, *arguments)["tokens"].startswith("3, ")
    checkpoint.save(tmp_path / "w.safetensors", replace(source, tokenizer="plain"))  # a model of another text
    assert evaluated(capsys, *arguments)["tokens"].startswith("4, ")


def test_evaluating_imports_nothing_that_trains(weights_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    program = (
        "import sys, rnn; code = rnn.main(sys.argv[1:]); "
        "sys.exit(code or str({'torch', 'gensim', 'datasets', 'rnnlm.training', 'matplotlib'} & set(sys.modules)))"
    )
    arguments = [str(weights_file), "--evaluate", str(tmp_path / "text.txt")]
    result = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() == "set()" and "perplexity" in result.stdout


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--evaluate", "none.txt"], ["no corpus 'none.txt'"]),
        (["--evaluate", ""], ["--evaluate must name a text"]),
        (["waa", "--evaluate", "text.txt"], ["leave out the prompt 'waa'"]),
        (["--score", "--evaluate", "text.txt"], ["leave out --score"]),
        (["waa", "--per-line"], ["--per-line is for --evaluate"]),
        (["waa", "--split", "test"], ["--split is for --evaluate"]),
        (["--evaluate", "text.txt", "--split", "test"], ["no test split", "it has train"]),
        (["--evaluate", "empty.txt"], ["empty.txt is empty: use another text"]),
        (["--evaluate", "-"], ["standard input is empty: use another text"]),
        (["--evaluate", "foreign.txt"], ["foreign.txt has no word that the model knows"]),
        (["--evaluate", "numbers.txt", "--per-line"], ["numbers.txt has no word that the model knows"]),
        (["--evaluate", "latin1.txt"], ["latin1.txt", "iconv"]),
    ],
)
def test_evaluations_that_are_refused(
    arguments: list[str], words: list[str], weights_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "foreign.txt").write_text("nonsense")
    (tmp_path / "numbers.txt").write_text("1 2 3")
    (tmp_path / "latin1.txt").write_bytes(b"waa w\xe4b.")
    result = subprocess.run(
        [sys.executable, str(ROOT / "rnn.py"), str(weights_file), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    refused(result, 2, *words)
