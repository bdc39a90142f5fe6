"""The C model as a Python class.

    model = rnn.RNN.load("weights/demo.safetensors")
    print(model.generate("The prime minister", seed=7).text)

    python rnn.py weights/demo.safetensors "The prime minister"            generates
    python rnn.py weights/demo.safetensors "The prime minister" --score    scores
    python rnn.py weights/demo.safetensors --evaluate FILE                 gives the perplexity of a whole text

The C library does the work, through rnnlm/binding.py, and rnnlm/command_line.py reads the options. main.py trains.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # so that Ctrl-C during the imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from rnnlm import packages

    packages.require("numpy", "rnn.py")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from rnnlm import checkpoint, command_line
from rnnlm.arguments import check_type
from rnnlm.arrays import F32, I32, float_array
from rnnlm.binding import Decoder, Model, sampling_rows, set_biases
from rnnlm.checkpoint import Checkpoint
from rnnlm.data.text import Vocabulary
from rnnlm.inspection import Matrices
from rnnlm.language_model import LanguageModel, OpenSequence
from rnnlm.library import PRECISIONS, RNNError, RNNInputError, RNNLibraryError, RNNMemoryError, RNNNonFiniteError
from rnnlm.sampling import Biases, Sampling

__all__ = ["RNN", "RNNError", "RNNInputError", "RNNLibraryError", "RNNMemoryError", "RNNNonFiniteError"]


class RNN(LanguageModel):
    """The C model, ready to generate and score. Read-only, and safe to share between threads.

    precision: how Why is stored, one of library.PRECISIONS.  threads: how many threads one call may use.
    vocabulary: that of the checkpoint, if it exists already.
    """

    default_temperature = 1.0

    def __init__(
        self,
        source: Checkpoint,
        *,
        precision: str = "float32",
        threads: int = 1,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        check_type("source", source, Checkpoint, "RNN.load(path) reads a weights file")
        check_type("precision", precision, str)
        check_type("threads", threads, int)
        if vocabulary is not None:
            check_type("vocabulary", vocabulary, Vocabulary)
        self.vocabulary = vocabulary or Vocabulary(source.vocabulary, source.tokenizer)
        self.threads = threads
        self.model = Model(source.weights, precision=precision, threads=threads)

    @classmethod
    def load(cls, path: str | Path, *, precision: str = "float32", threads: int = 1) -> Self:
        """Load the model of a weights file. Raises CheckpointError (missing, damaged), RNNNonFiniteError."""
        return cls(checkpoint.load(path), precision=precision, threads=threads)

    def __repr__(self) -> str:
        model = self.model
        sizes = f"V={model.vocab:,}, E={model.embed:,}, H={model.hidden:,}"
        return f"{type(self).__name__}({sizes}, precision={model.precision!r}, threads={self.threads})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle has: the weights, from which `__setstate__` prepares a model of its own."""
        return self.__dict__ | {"model": (self.model.weights, self.model.precision)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights, precision = state["model"]
        self.__dict__.update(state, model=Model(weights, precision=precision, threads=state["threads"]))

    def open_sequence(self, prefix: list[int], sampling: Sampling) -> OpenSequence:
        return _Sequence(Decoder(self.model, threads=self.threads), prefix, sampling, self.vocabulary.unk)

    def log_probabilities(self, ids: I32, state: F32 | None = None) -> F32:
        return Decoder(self.model, threads=self.threads).score(self.token_ids(ids), state)

    def hidden_states(self, ids: Sequence[int], state: F32 | None = None) -> F32:
        state = None if state is None else float_array("state", state)
        return Decoder(self.model, threads=self.threads).hidden_states(self.token_ids(ids), state)

    def logits(self, states: F32) -> F32:
        return Decoder(self.model, threads=self.threads).logits(float_array("states", states))

    def matrices(self) -> Matrices:
        weights = self.model.weights
        return Matrices(weights.embeddings, **weights.parameters())


class _Sequence(OpenSequence):
    """One sequence, with a decoder of its own."""

    def __init__(self, decoder: Decoder, prefix: list[int], sampling: Sampling, banned: int | None) -> None:
        self._decoder = decoder
        self._state = np.zeros((1, decoder.model.hidden), dtype=np.float32)
        self._sampling = sampling_rows(
            1, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, banned=banned
        )
        self._biases = Biases(sampling)
        self._token = np.empty(1, dtype=np.int32)
        self._following = np.empty(1, dtype=np.int32)
        self._logprob = np.empty(1, dtype=np.float32)
        decoder.prefill(prefix, self._state[0])

    def step(self, token: int, u: float) -> tuple[int, float]:
        self._token[0], self._sampling["u"] = token, u
        set_biases(self._sampling, self._biases.rows)
        self._decoder.decode(self._token, self._sampling, self._state, self._following, self._logprob)
        following = int(self._following[0])
        self._biases.drawn(following)
        return following, float(self._logprob[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, or score, as the command line asks. Returns the exit code."""

    def load(options: argparse.Namespace) -> RNN:
        return RNN.load(options.weights, precision=options.precision, threads=options.threads)

    return command_line.main(
        "rnn.py", load, arguments, temperature=RNN.default_temperature, precisions=tuple(PRECISIONS)
    )


if __name__ == "__main__":
    sys.exit(main())
