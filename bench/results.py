"""Compare the models on WikiText-2: perplexity, processor time, memory, and a picture of perplexity over minutes.

python bench/results.py                                               the dataset hub's WikiText-2
python bench/results.py --corpus ../shared/wikitext:wikitext-2-v1     a local copy of it

Trains the models that are not in --folder, resumes those that were stopped, evaluates all of them, and writes
bench/results/results.jsonl, and the tables and the picture of the documents. Stopped, the same command goes on. The
validation perplexity selects the weights of a run, and each run reads the test split once, at its end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import figures
from ngram import KneserNey
from tables import results

from rnn import RNN
from rnnlm import checkpoint
from rnnlm.data.corpus import Corpus, load_corpus
from rnnlm.files import digest
from rnnlm.language_model import perplexity
from rnnlm.training.curve import new_figure

ORDER = 5  # words of the n-grams

H100 = (
    *("--hidden-size", "100", "--dropout", "0.15", "--weight-decay", "0.1", "--learning-rate", "4e-3"),
    *("--epochs", "32", "--evaluate-every", "8"),  # 4 min 30 s with two quiet threads, the word vectors included
)


@dataclass
class Cost:
    """What the processes of one model took, added up over all that were needed: a stopped run takes several.

    processor_seconds: of all threads, user and system, word vectors and evaluations included.  peak_bytes: resident.
    """

    processor_seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, usage: resource.struct_rusage) -> None:
        self.processor_seconds += usage.ru_utime + usage.ru_stime
        self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)

    @classmethod
    def load(cls, path: Path) -> Cost:
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Model:
    """A model to train: its name in the table, the program, a preset, and the options that differ from it."""

    name: str
    program: str
    preset: str
    options: tuple[str, ...] = ()

    def train(self, path: Path, corpus: str, threads: list[str]) -> Cost:
        """Train a model, resume it, or find it finished: --resume does all three, and refuses a different recipe.

        Returns what it took so far.
        """
        arguments = [self.program, "--preset", self.preset, "--corpus", corpus, "--embeddings", "train"]
        arguments += ["--out", str(path), "--resume", *self.options, *threads]
        costs, before = path.with_suffix(".cost.json"), state_of(path)
        cost = Cost.load(costs)
        own_cache = {"RNN_CACHE_DIR": str(path.with_suffix(".cache"))}  # so that it trains its own word vectors
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=os.environ | own_cache)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:  # the program has had its Ctrl-C too, and saves its state
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if state_of(path) != before:  # one that was finished already costs nothing
            cost.add(usage)
            cost.save(costs)
        if process.returncode:
            sys.exit(f"{path.name}: {self.program} ended with status {process.returncode}; the same command goes on")
        return cost


def state_of(path: Path) -> int:
    """Return when the state of a run was last saved, in nanoseconds; 0: never."""
    state = path.with_suffix(".resume")
    return state.stat().st_mtime_ns if state.exists() else 0


SEEDS = (1, 2, 3, 4)  # of the members of the ensemble; each has its own word vectors
MEMBER = (  # less regularized than `best`, so that the members differ more
    *("--weight-decay", "0.1", "--word-dropout", "0.05", "--sampled-softmax", "500"),
    *("--epochs", "36", "--evaluate-every", "36"),
)


def train_ensemble(path: Path, corpus: str, text: Corpus) -> dict[str, Any]:
    """Train the members, two at a time with one thread each, and return the row of their ensemble."""
    members = [path.with_name(f"member-{seed}.safetensors") for seed in SEEDS]

    def train(seed: int, member: Path) -> Cost:
        model = Model(member.stem, "main.py", "best", ("--seed", str(seed), *MEMBER))
        return model.train(member, corpus, ["--threads", "1"])

    try:
        with ThreadPoolExecutor(2) as pool:
            costs = list(pool.map(train, SEEDS, members))
    except KeyboardInterrupt:  # each program received it too, and saved its state
        sys.exit("stopped; the same command goes on")
    command = [sys.executable, "-m", "rnnlm.ensemble", *map(str, members), "--out", str(path), "--overwrite"]
    subprocess.run(command, cwd=ROOT, check=True)
    model = RNN.load(path)
    reached = {
        split: perplexity(-np.mean(model.log_probabilities(ids)))
        for split, ids in (("validation", text.validation), ("test", text.test))
        if ids is not None
    }
    total = Cost(sum(cost.processor_seconds for cost in costs), 2 * max(cost.peak_bytes for cost in costs))
    seconds = sum(metrics(member)[-1]["seconds"] for member in members)
    config = checkpoint.load(members[0]).config
    return row(
        f"an ensemble of {len(SEEDS)} models like `best`, C",
        total,
        reached["validation"],
        hidden=f"{len(SEEDS)} x {config['hidden_size']}",
        epochs=f"{len(SEEDS)} x {config['epochs']}",
        minutes=round(seconds / 60 / 2, 1),
        **({"test": round(reached["test"], 2)} if "test" in reached else {}),
    )


MODELS = {
    "reference": Model("`reference`: 5,000 tokens, rate 1e-5", "main.py", "reference"),
    "c-100": Model("`best` with 100 units, C", "main.py", "best", H100),
    "torch-100": Model("`best` with 100 units, torch", "torch_rnn.py", "best", H100),
    "c": Model("`best`, C", "main.py", "best"),
    "torch": Model("`best`, torch", "torch_rnn.py", "best"),
}


def metrics(path: Path, event: str = "evaluation") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def count(order: int, corpus: str, answer: SimpleQueue[tuple[float, float, int]]) -> None:
    """Answer with the validation perplexity of an n-gram model, its processor seconds, and its peak of bytes."""
    text = load_corpus(corpus, vocab_size=None)
    started = time.process_time()
    reached = KneserNey(text.train, len(text.vocabulary), order).perplexity(text.validation)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.put((reached, time.process_time() - started, peak))


def counted(order: int, corpus: str, text: Corpus, folder: Path) -> tuple[float, Cost]:
    """Return the validation perplexity of an n-gram model, and what it took. A process of its own counts, once."""
    known = folder / f"{order}-gram-{digest(text.train, text.validation)[:16]}.json"
    if not known.exists():
        spawn = multiprocessing.get_context("spawn")
        answer: SimpleQueue[tuple[float, float, int]] = spawn.SimpleQueue()
        process = spawn.Process(target=count, args=(order, corpus, answer))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"counting {order}-grams ended with status {process.exitcode}")
        known.write_text(json.dumps(answer.get()))
    reached, seconds, peak = json.loads(known.read_text())
    return reached, Cost(seconds, peak)


def row(name: str, cost: Cost, validation: float, **more: Any) -> dict[str, Any]:
    """Return a row of the results file."""
    processor = {"processor_minutes": round(cost.processor_seconds / 60, 2), "megabytes": round(cost.peak_bytes / 1e6)}
    return {"model": name, **more, **processor, "validation": round(validation, 2)}


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
    parser.add_argument("--models", nargs="+", choices=[*MODELS, "ensemble"], help="models to compare (default: all)")
    parser.add_argument("--threads", type=int, help="threads of each training (default: one per processor)")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "results.png", help="the PNG to write")
    parser.add_argument(
        "--results", type=Path, default=figures.RESULTS, help="folder of results.jsonl; elsewhere no document quotes it"
    )
    options = parser.parse_args()

    threads = ["--threads", str(options.threads)] if options.threads else []
    options.folder.mkdir(parents=True, exist_ok=True)
    text = load_corpus(options.corpus, vocab_size=None)
    rows, yardstick = [], (f"Kneser-Ney {ORDER}-gram", 0.0)
    for name, order in (("unigram", 1), (f"interpolated Kneser-Ney {ORDER}-gram", ORDER)):
        reached, cost = counted(order, options.corpus, text, options.folder)
        rows.append(row(name, cost, reached))
        yardstick = yardstick[0], reached
    chosen = options.models or [*MODELS, "ensemble"]
    paths = {name: options.folder / f"{name}.safetensors" for name in chosen if name in MODELS}
    costs = {name: MODELS[name].train(path, options.corpus, threads) for name, path in paths.items()}
    for name, path in paths.items():
        config = checkpoint.load(path).config
        lines = metrics(path)
        best = min(lines, key=lambda line: line["validation_loss"])
        more: dict[str, Any] = {
            "hidden": config["hidden_size"],
            "epochs": f"{best['epoch']:.0f} of {config['epochs']}",
            "minutes": round(lines[-1]["seconds"] / 60, 1),
        }
        if test := metrics(path, "test"):
            more["test"] = round(test[-1]["test_perplexity"], 2)
        rows.append(row(MODELS[name].name, costs[name], best["validation_perplexity"], **more))
    if "ensemble" in chosen:
        rows.append(train_ensemble(options.folder / "ensemble.safetensors", options.corpus, text))
    print(f"\n{results({}, rows)}")
    pictures = []
    if runs := [(MODELS[name].name, metrics(path)) for name, path in paths.items() if name != "reference"]:
        draw(options.picture, [(name.replace("`", ""), lines) for name, lines in runs], yardstick)
        pictures.append(options.picture)
    note = (
        f"Threads: {options.threads or os.cpu_count()}, the members of the ensemble one each, word2vec two. "
        "Processor minutes and memory include word vectors and evaluations."
    )
    figures.save("results", rows, folder=options.results, pictures=pictures, note=note)


if __name__ == "__main__":
    main()
