"""Compare the models' perplexity on WikiText-2: a table, and a picture of perplexity over seconds.

python bench/results.py                                               the dataset hub's WikiText-2
python bench/results.py --corpus ../shared/wikitext:wikitext-2-v1     a local copy of it

Trains the models that are not in --folder, resumes those that were stopped, and evaluates all of them. The validation
perplexity selects a model, and the test perplexity is that of the selected one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ngram import KneserNey

from rnn import RNN
from rnnlm import checkpoint
from rnnlm.data.corpus import Corpus, load_corpus
from rnnlm.language_model import perplexity
from rnnlm.training.curve import new_figure

ORDER = 5  # words of the n-grams


H100 = ("--hidden-size", "100", "--dropout", "0.2", "--epochs", "8")


@dataclass(frozen=True)
class Model:
    """A model to train: its name in the table, the program, a preset, and the options that differ from it."""

    name: str
    program: str
    preset: str
    options: tuple[str, ...] = ()

    def train(self, path: Path, corpus: str, threads: list[str]) -> None:
        """Train a model, resume it, or find it finished: --resume does all three, and refuses a different recipe."""
        arguments = [
            "--preset",
            self.preset,
            "--corpus",
            corpus,
            "--embeddings",
            "train",
            "--out",
            str(path),
            "--resume",
        ]
        subprocess.run([sys.executable, self.program, *arguments, *self.options, *threads], cwd=ROOT, check=True)


MODELS = {
    "reference": Model("reference", "main.py", "reference"),
    "c-100": Model("best, H = 100, C", "main.py", "best", H100),
    "torch-100": Model("best, H = 100, torch", "torch_rnn.py", "best", H100),
    "c": Model("best, C", "main.py", "best"),
}


def metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def yardsticks(corpus: Corpus) -> list[tuple[str, float]]:
    """Return the validation perplexities of the n-gram models."""
    vocab = len(corpus.vocabulary)
    return [
        ("unigram", KneserNey(corpus.train, vocab, 1).perplexity(corpus.validation)),
        (f"Kneser-Ney {ORDER}-gram", KneserNey(corpus.train, vocab, ORDER).perplexity(corpus.validation)),
    ]


def draw(path: Path, runs: list[tuple[str, list[dict[str, float]]]], yardstick: tuple[str, float]) -> None:
    figure, axes = new_figure()
    for name, rows in runs:
        axes.plot(
            [row["seconds"] / 60 for row in rows[1:]],
            [row["validation_perplexity"] for row in rows[1:]],
            marker="o",
            markersize=3,
            linewidth=1.5,
            label=name,
        )
    axes.axhline(yardstick[1], color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        f"{yardstick[0]}, {yardstick[1]:.1f}",
        (1, yardstick[1]),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="0.4",
    )
    axes.set(xlabel="minutes of training", ylabel="validation perplexity", xlim=(0, None))
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="wikitext-2-v1", help="where WikiText-2 is (default: the dataset hub)")
    parser.add_argument("--folder", type=Path, default=ROOT / "weights" / "results", help="folder of the weights files")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to compare (default: all)"
    )
    parser.add_argument("--threads", type=int, help="threads of each training (default: one per processor)")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "results.png", help="the PNG to write")
    options = parser.parse_args()

    threads = ["--threads", str(options.threads)] if options.threads else []
    paths = {name: options.folder / f"{name}.safetensors" for name in options.models}
    for name, path in paths.items():
        MODELS[name].train(path, options.corpus, threads)
    corpus = load_corpus(options.corpus, vocab_size=None)
    counted = yardsticks(corpus)
    best = {name: min(metrics(path), key=lambda row: row["validation_loss"]) for name, path in paths.items()}
    chosen = min(best, key=lambda name: best[name]["validation_loss"])
    print(f"\n{'model':<22}{'hidden':>7}{'epochs':>8}{'minutes':>9}{'validation':>12}{'test':>8}   perplexity")
    for name, reached in counted:
        print(f"{name:<22}{'':>24}{reached:>12.1f}")
    for name, path in paths.items():
        config = checkpoint.load(path).config
        test = ""
        if name == chosen and corpus.test is not None:
            test = f"{perplexity(-np.mean(RNN.load(path).log_probabilities(corpus.test))):.1f}"
        print(
            f"{MODELS[name].name:<22}{config['hidden_size']:>7}{best[name]['epoch']:>4.0f}/{config['epochs']:<3}"
            f"{metrics(path)[-1]['seconds'] / 60:>9.1f}{best[name]['validation_perplexity']:>12.1f}{test:>8}"
        )
    runs = [(MODELS[name].name, metrics(path)) for name, path in paths.items() if name != "reference"]
    if runs:
        draw(options.picture, runs, counted[-1])
        print(f"\n{options.picture}")


if __name__ == "__main__":
    main()
