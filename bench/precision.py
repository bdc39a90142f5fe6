"""Measure what a smaller copy of Why costs in perplexity and gains in speed.

python bench/precision.py weights/best.safetensors ../shared/wikitext:wikitext-2-v1
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
    exact = math.nan
    models = {precision: RNN.load(weights, precision=precision) for precision in PRECISIONS}
    if models["float32"].vocabulary.words != corpus.vocabulary.words or corpus.test is None:
        raise UserError(f"{weights} was not trained on {name}, or it has no test split")
    print(f"{'precision':<10} {'test perplexity':>16} {'change':>9} {'tokens/s of one sequence':>24}")
    for precision, model in models.items():
        reached = perplexity(-model.log_probabilities(corpus.test).mean(dtype=float))
        exact = reached if precision == "float32" else exact
        start, tokens = time.perf_counter(), 0
        for token in model.stream("The", max_tokens=2000, seed=1, ignore_eos=True):
            tokens += token.id >= 0
        rate = tokens / (time.perf_counter() - start)
        print(f"{precision:<10} {reached:>16.3f} {reached / exact - 1:>9.3%} {rate:>24,.0f}")


if __name__ == "__main__":
    sys.exit(main())
