"""Measure what a smaller copy of Why costs in perplexity and gains in speed.

python bench/precision.py weights/results/c.safetensors ../shared/wikitext:wikitext-2-v1

Prints a table, and writes it to bench/results/precision.jsonl and docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import figures
from tables import PRECISION_HEAD, precision_line

from rnn import RNN
from rnnlm.data.corpus import load_corpus
from rnnlm.errors import UserError, exit_code_of
from rnnlm.language_model import perplexity
from rnnlm.library import PRECISIONS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a weights file that was trained on the corpus")
    parser.add_argument("corpus", help="a corpus with a test split, as main.py's --corpus takes it")
    options = parser.parse_args()

    return exit_code_of("precision.py", lambda: compare(options.weights, options.corpus))


def compare(weights: str, name: str) -> None:
    """Print the table. Raises UserError."""
    corpus = load_corpus(name)
    models = {precision: RNN.load(weights, precision=precision) for precision in PRECISIONS}
    if models["float32"].vocabulary.words != corpus.vocabulary.words or corpus.test is None:
        raise UserError(f"{weights} was not trained on {name}, or it has no test split")
    print(PRECISION_HEAD)
    rows: list[dict[str, Any]] = []
    for precision, model in models.items():
        reached = perplexity(-model.log_probabilities(corpus.test).mean(dtype=float))
        start, tokens = time.perf_counter(), 0
        for token in model.stream("The", max_tokens=2000, seed=1, ignore_eos=True):
            tokens += token.id >= 0
        rate = tokens / (time.perf_counter() - start)
        rows.append({"precision": precision, "test_perplexity": round(reached, 4), "tokens_per_second": round(rate)})
        print(precision_line(rows[-1], rows[0]["test_perplexity"]), flush=True)
    figures.save("precision", rows)


if __name__ == "__main__":
    sys.exit(main())
