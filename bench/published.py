"""Train `best` on the published tokens of WikiText-2, and print perplexities that can be compared with published ones.

python bench/published.py                                               the dataset hub's WikiText-2
python bench/published.py --corpus ../shared/wikitext:wikitext-2-v1     a local copy of it

There a token is whatever white space separates, numbers, punctuation and <unk> included, and an <eos> after each line,
even an empty one: 2,088,628 for training, 217,646 for validation, 245,569 for the test. The programs read words of
letters only, so each token is spelt in letters: the same text, under other names. An empty line gets a token of its
own, which is one more to predict; the sum of all log-probabilities is divided by the published number of tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import datasets

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rnn import RNN
from rnnlm.data import hub
from rnnlm.data.corpus import load_corpus

EMPTY = "empty"  # stands for an empty line; no token is spelt so


def spelt(number: int) -> str:
    """Return a word of lower-case letters for a token's number; no two numbers have the same."""
    letters = ""
    while True:
        number, letter = divmod(number, 26)
        letters = chr(ord("a") + letter) + letters
        if not number:
            return "w" + letters


def spell(lines: Iterable[str], names: dict[str, str]) -> tuple[str, int]:
    """Return the text of `lines` in letters, and its published number of tokens. names: of each token; it grows."""
    text, tokens = [], 0
    for line in lines:
        words = line.split()
        tokens += len(words) + 1
        text.append(" ".join(names.setdefault(word, spelt(len(names))) for word in words) or EMPTY)
    return "\n".join(text) + "\n", tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="wikitext-2-v1", help="wikitext-2-v1 or FOLDER:wikitext-2-v1")
    parser.add_argument("--folder", type=Path, default=ROOT / "weights" / "published", help="for text and weights")
    parser.add_argument("options", nargs="*", help="more options of main.py, after --")
    options = parser.parse_args()

    name, config = hub.NAMES.get(options.corpus) or options.corpus.rpartition(":")[::2]
    if not name:
        parser.error(f"no corpus {options.corpus!r}: it is wikitext-2-v1, or FOLDER:wikitext-2-v1")
    splits, names, published = datasets.load_dataset(name, config), {}, {}
    text = options.folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        written, published[split] = spell(splits[split]["text"], names)
        (text / f"{split}.txt").write_text(written)
    print(f"{len(names):,} kinds of tokens; {', '.join(f'{split} {count:,}' for split, count in published.items())}")

    out = options.folder / "best.safetensors"
    command = [sys.executable, "main.py", "--preset", "best", "--corpus", str(text), "--tokenizer", "wikitext"]
    command += ["--embeddings", "train", "--out", str(out), "--resume", *options.options]
    subprocess.run(command, cwd=ROOT, check=True)

    corpus, model = load_corpus(str(text), tokenizer="wikitext", vocab_size=None), RNN.load(out)
    reached = {}
    for split, ids in (("validation", corpus.validation), ("test", corpus.test)):
        reached[split] = math.exp(-float(model.log_probabilities(ids).sum()) / published[split])
    print(json.dumps({f"published {split} perplexity": round(value, 1) for split, value in reached.items()}))


if __name__ == "__main__":
    main()
