"""Tries a weights file in a process of its own: `python -m service.trial FILE [BACKEND ...]`.

So a file from outside can harm nobody, whatever it makes a library do, and a service that runs only the C model need
not load torch to find out whether torch can run the file.

Exit codes: 0, the file is good; 2, the file is at fault; 5, the model is too large for the service; 4, memory ran out;
3, something else failed. With 2 and 5, stdout has the reason in one line that the sender may read. stderr is for this
machine's log only: libraries write there, and paths.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rnnlm import checkpoint
from rnnlm.data.text import TextError, Vocabulary
from rnnlm.errors import UserError
from rnnlm.language_model import LanguageModel, Sampling
from rnnlm.library import PRECISIONS, RNNNonFiniteError
from service.capacity import MB, Capacity


class Overflow(UserError):
    """The model's numbers are finite, but its results are not."""


THE_FILES_FAULT = (checkpoint.CheckpointError, checkpoint.VocabularyError, TextError, RNNNonFiniteError, Overflow)


OUT_OF_MEMORY = 4
TOO_LARGE = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="service.trial", description="Try a weights file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("backends", nargs="*", choices=checkpoint.BACKENDS)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="how the C model keeps Why")
    parser.add_argument("--memory-mb", type=int, help="how much memory of its own the trial may use")
    parser.add_argument("--service-bytes", type=int, help="how much memory the service has to hold the model")
    parser.add_argument("--copies", action="store_true", help="the service copies its files instead of mapping them")
    options = parser.parse_args(arguments)
    path = options.file
    try:
        if options.memory_mb:
            _limit_memory(options.memory_mb * MB)
        source = checkpoint.load(path)
        if options.service_bytes:
            capacity = Capacity(options.service_bytes, tuple(options.backends), options.precision, options.copies)
            sizes = source.weights.vocab_size, source.weights.hidden_size, source.weights.embed_size
            if objection := capacity.objection(*sizes):
                sys.stdout.write(objection + "\n")
                return TOO_LARGE
        checkpoint.check_finite(source.weights, path)
        vocabulary = Vocabulary(source.vocabulary, source.tokenizer)
        for backend in options.backends:
            _generate_one(_model(backend, source, vocabulary, options.precision))
    except THE_FILES_FAULT as error:
        sys.stdout.write(" ".join(str(error).removeprefix(f"{path}: ").split()) + "\n")
        return 2
    except Exception as error:
        traceback.print_exc()
        return OUT_OF_MEMORY if _is_memory(error) else 3
    return 0


def _limit_memory(size: int) -> None:
    """Bound the memory that this process may still take, mapped files aside; go first if the machine's runs out."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(
        OSError, StopIteration
    ):  # not on Linux; the memory in use counts as well there, some 30 MB
        lines = Path("/proc/self/status").read_text().splitlines()
        size += next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _is_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out, as Python, the C library, torch or the system's loader (ImportError) report it."""
    found = isinstance(error, MemoryError) or any(word in str(error) for word in ("alloc", "memory", "failed to map"))
    return error is not None and (found or _is_memory(error.__cause__))


def _model(backend: str, source: checkpoint.Checkpoint, vocabulary: Vocabulary, precision: str) -> LanguageModel:
    if backend == "c":
        import rnn

        return rnn.RNN(source, vocabulary=vocabulary, precision=precision)
    import torch

    import torch_rnn

    torch.set_num_threads(1)
    return torch_rnn.RNN.mapped(source.weights, vocabulary)


def _generate_one(model: LanguageModel) -> None:
    sequence = model.open_sequence([], Sampling(temperature=1.0))
    token, logprob = sequence.step(model.vocabulary.eos, 0.5)
    if not (0 <= token < len(model.vocabulary) and np.isfinite(logprob)):
        raise Overflow("its numbers are so large that the results overflow: the model cannot write a word")


if __name__ == "__main__":
    sys.exit(main())
