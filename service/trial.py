"""Tries a weights file out, in a process of its own: `python -m service.trial FILE [BACKEND ...]`.

What comes from outside can so harm nobody, whatever it makes a library do, and a service that runs the C model only
need not load torch to find out whether torch can run the file.

Exit code 0; or 2, where the file is at fault, with the reason on stdout, one line that its sender may read; or 3, where
something else is. stderr is for this machine's log only: libraries write there too, and paths.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import checkpoint
from errors import UserError
from language_model import LanguageModel, Sampling
from rnnlib import RNNNonFiniteError
from text import TextError, Vocabulary


class Overflow(UserError):
    """A model whose numbers are finite, and what it makes of them is not."""


THE_FILES_FAULT = (checkpoint.CheckpointError, checkpoint.VocabularyError, TextError, RNNNonFiniteError, Overflow)


def main(arguments: Sequence[str]) -> int:
    path, backends = Path(arguments[0]), arguments[1:]
    try:
        source = checkpoint.load(path)
        checkpoint.check_finite(source.weights, path)
        vocabulary = Vocabulary(source.vocabulary)
        for backend in backends:
            _generate_one(_model(backend, source, vocabulary))
    except THE_FILES_FAULT as error:
        sys.stdout.write(" ".join(str(error).removeprefix(f"{path}: ").split()) + "\n")
        return 2
    except Exception:
        traceback.print_exc()
        return 3
    return 0


def _model(backend: str, source: checkpoint.Checkpoint, vocabulary: Vocabulary) -> LanguageModel:
    if backend == "c":
        import rnn

        return rnn.RNN(source, vocabulary=vocabulary)
    import torch_rnn

    return torch_rnn.RNN.mapped(source.weights, vocabulary)


def _generate_one(model: LanguageModel) -> None:
    stream = model.open_stream([], Sampling(temperature=1.0))
    token, logprob = stream.step(model.vocabulary.eos, 0.5)
    if not (0 <= token < len(model.vocabulary) and np.isfinite(logprob)):
        raise Overflow("the numbers are so large that they overflow: the model cannot write a word")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
