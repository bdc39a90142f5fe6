"""The training configuration: one frozen dataclass, from which cli.py derives the command line.

An option is defined once, as a field of `TrainConfig`. A preset is a named set of fields. The command line overrides
the preset, and the preset overrides the field's default.
"""

from __future__ import annotations

import builtins
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rnnlm.arguments import check_type
from rnnlm.arrays import MAX_EMBED, MAX_HIDDEN, MAX_THREADS
from rnnlm.container import SUFFIX
from rnnlm.errors import UserError
from rnnlm.training import interval


class ConfigError(UserError, ValueError):
    """A training option is out of its range."""


def option(default: Any, help_text: str, choices: Sequence[str] | None = None) -> Any:
    """Return a field that becomes a command-line option."""
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training run. The defaults are those of the `reference` preset."""

    preset: str = "reference"

    # Data
    corpus: str = option(
        "wikitext-2-v1",
        "wikitext-103-v1, wikitext-2-v1, OWNER/NAME:CONFIG on the hub, FOLDER:CONFIG, a text file, a folder of them, "
        "- for standard input, or demo",
    )
    validation: str | None = option(None, "a text file to evaluate on; default: what the corpus has, or its last tenth")
    test: str | None = option(None, "a text file for the test split; default: what the corpus has")
    tokenizer: str | None = option(
        None,
        "what a word is: plain, letters A to Z; unicode, letters of any script; wikitext, the tokens of text that "
        "is already tokenized; default: what suits WikiText and demo, unicode for other text",
        ("plain", "unicode", "wikitext"),
    )
    lowercase: bool = option(False, "turn all words into lower case")
    vocab_size: int | None = option(None, "keep the N most frequent words, <EOS> and <UNK> included; default: all")
    max_tokens: int | None = option(None, "train on the first N tokens of the training split; default: all")
    validation_tokens: int = option(250_000, "evaluate on at most the first N tokens of the validation split")
    embeddings: str = option(
        "word2vec-google-news-300", "a name of gensim's downloader, a file of vectors, train, or random"
    )
    embedding_size: int | None = option(None, "size E of the vectors; default: the file's; 300 for train and random")
    vector_lengths: str = option(
        "given",
        "root: each as long as the square root of the given length, so that rare words, whose vectors are short, count",
        ("given", "root"),
    )

    init_from: str | None = option(
        None, "a weights file to start from: its words, vectors and sizes are kept, and new words are added"
    )

    # Model
    hidden_size: int = option(100, "hidden units H")
    init: str = option(
        "uniform",
        "how the output bias starts: uniform, like all other weights; unigram, at the log frequencies of the words",
        ("uniform", "unigram"),
    )

    # Training
    epochs: int = option(600, "passes over the training tokens")
    batch_size: int = option(1, "batch rows B: the text is cut into B pieces that are trained side by side")
    bptt: int | None = option(None, "steps T of truncated back-propagation through time; default: the whole batch row")
    reduction: str = option("sum", "take the gradient of a chunk's summed loss, or of its mean", ("sum", "mean"))
    optimizer: str = option("sgd", "the optimizer", ("sgd", "adamw"))
    learning_rate: float = option(1e-5, "step size")
    momentum: float = option(0.0, "momentum of sgd")
    weight_decay: float = option(0.0, "decoupled weight decay of adamw, of the matrices; the biases do not decay")
    epsilon: float = option(1e-8, "what adamw adds to its divisor; more of it slows the weights with small gradients")
    dropout: float = option(0.0, "dropout of the hidden state on its way to the output layer")
    input_dropout: float = option(0.0, "dropout of the word vectors on their way to the hidden layer")
    word_dropout: float = option(0.0, "share of the vocabulary whose vectors a step reads as zeros")
    sampled_softmax: int = option(
        0, "train with a softmax over N sampled words and those of the chunk; 0: over the whole vocabulary"
    )
    average: float = option(
        0.0, "decay of an exponential average of the weights, which is then evaluated and saved; 0: no average"
    )
    clip: float = option(0.0, "clip the gradient to this norm; 0: no clipping")
    schedule: str = option(
        "constant",
        "of the learning rate: constant; cosine, decaying to 1%% of the peak; plateau, halved when an evaluation is no "
        "better than the best, which is then restored",
        ("constant", "cosine", "plateau"),
    )
    warmup_steps: int = option(0, "steps over which the learning rate rises from 0")
    patience: int = option(0, "stop after N evaluations in a row without a better perplexity; 0: never")
    evaluate_every: str | int | float = option(
        1, "evaluate on the validation split every N epochs, such as 2 or 0.25, or N steps, such as 500steps"
    )
    log_every: int | None = option(
        None,
        "write loss, gradient norm, rate and tokens/s to the metrics and TensorBoard every N steps; default: to "
        "TensorBoard only, each step",
    )
    precision: str = option(
        "float32",
        "bfloat16: round the operands of every product, faster on processors with instructions for it; tf32: the same "
        "with 10 bits instead of 7, by the matrix units of a GPU (torch_rnn.py)",
        ("float32", "bfloat16", "tf32"),
    )
    exchange: str = option(
        "float32",
        "what several processes send of their gradients; bfloat16: half the bytes, each number rounded",
        ("float32", "bfloat16"),
    )
    seed: int = option(1, "seed of the initial weights, of made-up vectors and of the regularization")

    # Machine and files
    threads: int | None = option(None, "threads; default: OMP_NUM_THREADS, or one for each processor")
    device: str = option("auto", "where the torch model runs; auto: on a GPU if there is one", ("auto", "cpu", "cuda"))
    out: str | None = option(None, "the weights file; default: weights/PRESET.safetensors, with -torch for torch")
    prompt: str = option("The", "the prompt of the sample at the end")
    tensorboard: bool = option(False, "also write event files for TensorBoard")

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, (first, *others) = getattr(self, spec.name), spec.type.split(" | ")
            if not (value is None and "None" in others) and type(value).__name__ not in others:
                check_type(spec.name, value, getattr(builtins, first))

        def require(condition: bool, name: str, limit: str) -> None:
            if not condition:
                got = str(getattr(self, name)).encode(errors="backslashreplace").decode()
                raise ConfigError(f"--{name.replace('_', '-')} must be {limit}, got {got}")

        for name in ("vocab_size", "bptt", "threads", "embedding_size", "log_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "1 or more")
        for name in ("hidden_size", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, "1 or more")
        every = interval.parse(self.evaluate_every)
        limit = "a number of epochs above 0, such as 2 or 0.25, or of steps, such as 500steps"
        require(every is not None, "evaluate_every", limit)
        object.__setattr__(self, "evaluate_every", every)
        require(self.max_tokens is None or self.max_tokens >= 2, "max_tokens", "2 or more")  # one to predict the other
        require(self.validation_tokens >= 2, "validation_tokens", "2 or more")
        for name in ("warmup_steps", "patience", "seed", "sampled_softmax"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name, limit in (("embedding_size", MAX_EMBED), ("hidden_size", MAX_HIDDEN)):
            require((getattr(self, name) or 1) <= limit, name, f"at most {limit:,}")
        require(math.isfinite(self.learning_rate) and self.learning_rate > 0, "learning_rate", "a number above 0")
        for name in ("momentum", "dropout", "input_dropout", "word_dropout", "average"):
            require(0.0 <= getattr(self, name) < 1.0, name, "from 0 to below 1")
        for name in ("learning_rate", "weight_decay", "epsilon", "clip"):
            require(getattr(self, name) < 3.4e38, name, "below 3.4e38, the largest float32")
        require(self.epsilon >= 1.2e-38, "epsilon", "at least 1.2e-38, the smallest normal float32")  # it divides
        for name in ("weight_decay", "clip"):
            require(math.isfinite(getattr(self, name)) and getattr(self, name) >= 0, name, "a number, 0 or more")
        require(self.threads is None or self.threads <= MAX_THREADS, "threads", f"at most {MAX_THREADS:,}")
        for spec in fields(self):
            value = getattr(self, spec.name)
            require(not isinstance(value, int) or value < 1 << 63, spec.name, "below 2^63")
            require(not isinstance(value, str) or is_text(value), spec.name, "text in UTF-8")
            choices = spec.metadata.get("choices")
            require(not choices or value is None or value in choices, spec.name, f"one of {', '.join(choices or ())}")
        require(self.preset in PRESETS, "preset", f"one of {', '.join(PRESETS)}")
        require(self.momentum == 0 or self.optimizer == "sgd", "momentum", "0 unless --optimizer is sgd")
        require(self.weight_decay == 0 or self.optimizer == "adamw", "weight_decay", "0 unless --optimizer is adamw")
        require(self.epsilon == 1e-8 or self.optimizer == "adamw", "epsilon", "1e-08 unless --optimizer is adamw")

    def is_sampled(self, vocab_size: int) -> bool:
        """Return whether the softmax is sampled: a sample of all words is the full one."""
        return 0 < self.sampled_softmax < vocab_size

    def weights_path(self, backend: str) -> Path:
        """Return where the run of `backend` ("c" or "torch") saves its weights. Raises ConfigError."""
        if self.out:
            path = Path(self.out)
            if not path.name or path.name == ".." or os.path.isdir(path) or self.out.endswith(("/", "\\")):
                raise ConfigError(
                    f"--out must name a file, got {self.out}: add a name, such as {self.out.rstrip('/')}/model"
                )
            return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
        return Path("weights", self.preset + ("-torch" if backend == "torch" else "") + SUFFIX)

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name, as the weights file and the resume file keep them."""
        return asdict(self)


def is_text(value: str) -> bool:
    """Return False for bytes that the command line could not decode: they can be neither saved nor printed."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


PRESETS: dict[str, dict[str, Any]] = {
    # The documented recipe: plain SGD on the summed loss over one sequence of 5,000 tokens, full BPTT, no clipping.
    "reference": {"max_tokens": 5000, "evaluate_every": 20},
    # The lowest validation perplexity for the time: truncated BPTT (Mikolov et al. 2011) with the state carried over, a
    # sampled softmax; and against memorizing two million tokens: dropout, weight decay and an average of the weights.
    "best": {
        "vector_lengths": "root",
        "hidden_size": 300,
        "init": "unigram",
        "batch_size": 32,
        "bptt": 35,
        "reduction": "mean",
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.2,
        "epsilon": 1e-5,
        "dropout": 0.5,
        "word_dropout": 0.1,
        "average": 0.999,
        "sampled_softmax": 1000,
        "clip": 1.0,
        "schedule": "cosine",
        "warmup_steps": 200,
        "epochs": 40,
        "evaluate_every": 4,
        "precision": "bfloat16",
    },
    # A minute on two cores and no network: the news corpus that gensim ships, with vectors trained on it.
    "demo": {
        "corpus": "demo",
        "vocab_size": 4000,
        "embeddings": "train",
        "embedding_size": 100,
        "batch_size": 16,
        "bptt": 32,
        "reduction": "mean",
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "clip": 1.0,
        "schedule": "plateau",
        "epochs": 12,
        "patience": 4,
    },
}


# The documented recipes of the two models differ in one option: the C model is trained on the larger corpus.
DOCUMENTED: dict[str, dict[str, Any]] = {"c": {"corpus": "wikitext-103-v1"}, "torch": {}}
