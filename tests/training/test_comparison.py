"""python -m rnnlm.compare: a table of runs and their curves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from running import metrics, options, refused, train

from rnnlm.training import comparison


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "rnnlm.compare", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


def save(path: Path, losses: list[float], config: dict[str, object] | None = None, test: float | None = None) -> Path:
    lines: list[dict[str, object]] = [] if config is None else [{"event": "config", "backend": "c", "config": config}]
    for epoch, loss in enumerate(losses):
        row = {"event": "evaluation", "epoch": epoch, "step": 7 * epoch, "tokens": 100 * epoch, "seconds": 60.0 * epoch}
        numbers = {"validation_loss": loss, "validation_perplexity": 2.0**loss, "tokens_per_second": 1500}
        lines.append(row | numbers)
    if test:
        lines.append({"event": "test", "epoch": 1, "step": 7, "test_perplexity": test})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_three_runs_side_by_side(tmp_path: Path) -> None:
    base = {"learning_rate": 0.01, "hidden_size": 50, "out": "a", "clip": None}
    paths = [
        save(tmp_path / "slow.jsonl", [8.0, 7.0, 6.0], base, test=70.0),
        save(tmp_path / "fast.jsonl", [8.0, 4.0, 5.0], base | {"learning_rate": 0.1, "out": "b"}),
        save(tmp_path / "wide.jsonl", [8.0, 7.5], base | {"hidden_size": 100, "out": "c", "clip": 1.0}),
    ]
    with paths[2].open("a") as file:  # it is still going on: the last line is not whole
        file.write('{"event": "evaluation", "epo')
    result = compare(*paths)
    assert result.returncode == 0, result.stderr
    head, *rows, most, last = [line.split("  ") for line in result.stdout.splitlines()]
    assert [cell.strip() for cell in head if cell] == [
        *("run", "perplexity", "epoch", "test", "training", "tokens/s", "what differs")
    ]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["fast", "16.0", "1 of 2", "-", "2 min", "1,500", "learning_rate 0.1"],
        ["slow", "64.0", "2 of 2", "70.0", "2 min", "1,500"],
        ["wide", "181.0", "1 of 1", "-", "60 s", "1,500", "hidden_size 100, clip 1"],
    ]
    assert most == ["most runs have learning_rate 0.01, hidden_size 50, clip default"]
    assert last == [str(tmp_path / "comparison.png"), "the curves"]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def told(*configs: dict[str, object]) -> list[str]:
    return comparison.differences([comparison.Trained(str(i), config, [], None) for i, config in enumerate(configs)])


def test_each_run_shows_what_it_does_not_share_with_most() -> None:
    alike = {f"option_{i}": i for i in range(25)}
    unlike = {name: -1 for name in alike}
    assert told(*[alike] * 18, unlike, alike | {"option_3": 7, "out": "x"})[-3:] == [
        "",
        ", ".join(f"{name} -1" for name in alike),
        "option_3 7",
    ]
    newer = {"learning_rate": 0.01, "average": 0.9}
    assert told({"learning_rate": 0.01}, newer, newer | {"learning_rate": 0.02}) == [
        "average default",
        "",
        "learning_rate 0.02",
    ]  # an option that an earlier release had not
    rates = [{"learning_rate": rate, "seed": 1} for rate in (0.001, 0.003, 0.01, 0.01, 0.01)]
    listed = [f"learning_rate {run['learning_rate']}" for run in rates]
    assert told(*rates) == listed  # the only option that differs
    rates[0]["clip"] = 1.0
    assert told(*rates[:4]) == [listed[0] + ", clip 1", *listed[1:4]]  # half are not most
    assert told(*rates) == [listed[0] + ", clip 1", listed[1], "", "", ""]
    old: dict[str, object] = {}  # a run of release 0.1
    assert told(old, {"seed": 1}, {"seed": 1, "average": 0.9}) == ["", "average default", "average 0.9"]


def test_only_weights_that_were_saved_count(tmp_path: Path) -> None:
    """A run with --init-from may begin better than it ever gets on the new text."""
    result = compare(save(tmp_path / "tuned.jsonl", [1.0, 3.0, 4.0], {"seed": 1}))
    assert re.search(r"^tuned +8\.0 +1 of 2 ", result.stdout, re.MULTILINE), result.stdout


def test_the_curves_are_in_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[tuple[float, ...]]] = {}
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **style: drawn.update({style["label"]: [x, y]}))
    monkeypatch.setattr(Axes, "legend", lambda self, **_: None)
    monkeypatch.setenv("MPLBACKEND", "module://of.a.notebook")
    paths = [save(tmp_path / "a.jsonl", [3.0, 2.0], {"seed": 1}), save(tmp_path / "b.jsonl", [3.0, 2.5], {"seed": 2})]
    out = tmp_path / "new folder" / "picture.png"
    assert comparison.main([*map(str, paths), "--out", str(out), "--x", "tokens", "--y", "loss"]) == 0
    assert drawn == {"a: seed 1": [(0, 100), (3.0, 2.0)], "b: seed 2": [(0, 100), (3.0, 2.5)]}
    assert out.exists()


def test_a_run_that_was_trained(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, log_every=3)).returncode == 0
    result = compare(out.with_suffix(".jsonl"))
    best = min(row["validation_perplexity"] for row in metrics(out))
    assert result.returncode == 0 and f" {best:,.1f} " in result.stdout, result.stderr


def test_files_of_a_release_without_the_configuration(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "step": 0, "tokens": 0, "validation_loss": 2.0, "validation_perplexity": 7.4, "seconds": 0.0}]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = save(tmp_path / "new.jsonl", [3.0], {"seed": 1})
    result = compare(tmp_path / "old.jsonl", new)
    assert result.returncode == 0 and "seed" not in result.stdout  # one run has nothing to differ from


def test_files_of_the_same_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [save(tmp_path / folder / "model.jsonl", [3.0]) for folder in ("a", "b")]
    result = compare(*paths)
    assert all(str(path) in result.stdout for path in paths)


def test_files_that_are_no_metrics(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jsonl", [3.0])
    refused(compare(good, tmp_path / "none.jsonl"), 2, "none.jsonl", "No such file")
    refused(compare(tmp_path), 2, str(tmp_path), "directory")
    for content in (b"", b"\xff\xfe\0", b"[1]\n", b'{"event": "config"}\n', b'{"epoch": "x", "validation_loss": []}\n'):
        (tmp_path / "bad.jsonl").write_bytes(content)
        refused(compare(good, tmp_path / "bad.jsonl"), 2, "bad.jsonl has no evaluation")
    refused(compare(), 2, "metrics")
    refused(compare(good, "--out", tmp_path), 1, str(tmp_path))


def test_without_matplotlib_the_table_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.jsonl", [3.0])
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = compare(good)
    refused(result, 1, "matplotlib", "none here")
    assert "good" in result.stdout
