"""Draw validation perplexity over the seconds of training, for C, torch and the faster-rnnlm of Yandex.

python bench/peer.py PROGRAM                                               the dataset hub's WikiText-2
python bench/peer.py PROGRAM --corpus ../shared/wikitext:wikitext-2-v1     a local copy of it

PROGRAM is the `rnnlm` that github.com/yandex/faster-rnnlm builds. All have 100 hidden units and one thread, so that
wall-clock seconds are processor seconds where nothing else runs. Evaluations do not count. The peer learns its own word
vectors; ours are given theirs, and the time that it took to make them is drawn as well.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from results import H100, metrics

from rnnlm.data.corpus import load_corpus
from rnnlm.data.embeddings import load_embeddings
from rnnlm.training.curve import new_figure

PEERS = {  # name in the picture: its options
    "faster-rnnlm": (),
    "faster-rnnlm, maximum entropy": ("-direct", "100", "-direct-order", "3"),
}
OURS = {"C": "main.py", "torch": "torch_rnn.py"}
EPOCH = re.compile(r"entropy \(bits\) valid: *([\d.]+) +elapsed: ([\d.]+)s")

Curve = list[tuple[float, float]]  # seconds of training, validation perplexity


def write_sentences(path: Path, words: np.ndarray, ids: np.ndarray, eos: int) -> None:
    """Write a split as the peer reads it: a sentence a line, without its <EOS>, which the peer adds."""
    pieces = np.split(ids, np.flatnonzero(ids == eos) + 1)
    path.write_text("".join(" ".join(words[piece[piece != eos]]) + "\n" for piece in pieces if piece.size))


def of_peer(program: Path, options: tuple[str, ...], folder: Path) -> Curve:
    """Train the peer with one thread until it stops by itself."""
    command = [str(program), "-rnnlm", str(folder / "model"), "-threads", "1", "-hidden", "100"]
    command += ["-train", str(folder / "train.txt"), "-valid", str(folder / "validation.txt"), *options]
    for old in folder.glob("model*"):  # it would go on with it
        old.unlink()
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, curve = 0.0, []
    for bits, elapsed in EPOCH.findall(output.stdout + output.stderr):
        seconds += float(elapsed)
        curve.append((seconds, 2.0 ** float(bits)))
    if not curve:
        sys.exit(f"{program} printed no epoch: {output.stderr[-300:]}")
    return curve


def of_ours(program: str, corpus: str, folder: Path) -> Curve:
    """Train `best` with 100 units and one thread, evaluated after every epoch; resume it, or find it finished."""
    out = folder / f"peer-{Path(program).stem}.safetensors"
    command = [sys.executable, program, "--preset", "best", *H100, "--evaluate-every", "1", "--threads", "1"]
    command += ["--corpus", corpus, "--embeddings", "train", "--out", str(out), "--resume"]
    subprocess.run(command, cwd=ROOT, check=True)
    return [(line["seconds"], line["validation_perplexity"]) for line in metrics(out)[1:]]


def seconds_of_vectors(corpus: str) -> float:
    """Train the word vectors, and return the processor seconds of it."""
    text = load_corpus(corpus, vocab_size=None)
    before = os.environ.get("RNN_CACHE_DIR")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["RNN_CACHE_DIR"] = empty
        try:
            started = time.process_time()
            load_embeddings("train", text, seed=1)
            return time.process_time() - started
        finally:
            os.environ.pop("RNN_CACHE_DIR")
            if before is not None:
                os.environ["RNN_CACHE_DIR"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="the rnnlm of faster-rnnlm")
    parser.add_argument("--corpus", default="wikitext-2-v1", help="where WikiText-2 is (default: the dataset hub)")
    parser.add_argument("--ours", nargs="+", choices=OURS, default=list(OURS), help="our models (default: both)")
    parser.add_argument("--folder", type=Path, default=ROOT / "weights" / "results", help="folder of the weights files")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "peer.png", help="the PNG to write")
    options = parser.parse_args()
    if not options.program.is_file():
        parser.error(f"there is no program {options.program}: build github.com/yandex/faster-rnnlm, and give its rnnlm")

    options.folder.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(options.corpus, vocab_size=None)
    words = np.array(corpus.vocabulary.words, dtype=object)
    curves: dict[str, Curve] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, ids in (("train", corpus.train), ("validation", corpus.validation)):
            write_sentences(Path(scratch) / f"{name}.txt", words, ids, corpus.vocabulary.eos)
        for name, chosen in PEERS.items():
            curves[name] = of_peer(options.program, chosen, Path(scratch))
    for name in options.ours:
        curves[name] = of_ours(OURS[name], options.corpus, options.folder)
    vectors = seconds_of_vectors(options.corpus)

    figure, axes = new_figure()
    for name, curve in curves.items():
        seconds, perplexities = np.array(curve).T
        (line,) = axes.plot(seconds, perplexities, marker="o", markersize=3, linewidth=1.5, label=name)
        if name in OURS:
            label = f"{name}, with the {vectors:.0f} s of its word vectors"
            axes.plot(
                seconds + vectors, perplexities, linestyle=":", linewidth=1.5, color=line.get_color(), label=label
            )
        print(f"{name:<30} {len(curve):>3} epochs  {seconds[-1]:>7.1f} s  {min(perplexities):>7.1f}")
    print(f"{'word vectors':<30} {'':>11} {vectors:>7.1f} s")
    axes.set(xlabel="seconds of training, one thread", ylabel="validation perplexity", ylim=(200, 800), xlim=(0, None))
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False)
    figure.savefig(options.picture)


if __name__ == "__main__":
    main()
