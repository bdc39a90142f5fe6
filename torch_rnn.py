"""The same model in PyTorch: an nn.Module with autograd, its training, and greedy generation.

    model = torch_rnn.RNN.load("weights/demo-torch.safetensors")
    print(model.generate("The prime minister").text)

    python torch_rnn.py --preset demo           trains
    python torch_rnn.py --help                  lists the options

It reads and writes the same weights file as the C model, and never needs the C library.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C while the rest is imported ends it at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rnnlm import openmp

openmp.wait_briefly()

import torch
from torch import nn

from rnnlm import checkpoint
from rnnlm.checkpoint import Weights
from rnnlm.data.text import Vocabulary
from rnnlm.inspection import Matrices
from rnnlm.language_model import LanguageModel, Sampling, StepStream
from rnnlm.regularization import NO_REGULARIZATION, Regularization
from rnnlm.training import distributed
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group, TorchGroup

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

EVALUATION_STEPS = 512  # tokens of one forward pass; the result does not depend on it

_MATRICES = {  # our name of each parameter: (where torch keeps it, whether it is transposed)
    "embeddings": ("embedding.weight", False),
    "Wxh": ("rnn.weight_ih_l0", True),
    "Whh": ("rnn.weight_hh_l0", True),
    "bh": ("rnn.bias_ih_l0", False),
    "Why": ("output.weight", True),
    "by": ("output.bias", False),
}


class RNN(nn.Module, LanguageModel):
    """The Elman network.

    nn.RNN and nn.Linear keep their matrices as (out, in); `load_weights` and `weights` turn the (in, out) of the
    weights file to that and back, here alone. nn.RNN has two biases where the model has one: `bias_hh_l0` is frozen at
    zero, or plain SGD would move their sum twice as fast.

    vocabulary: needed to read prompts and to write words, not to train.
    """

    default_temperature = 0.0  # greedy

    def __init__(self, weights: Weights, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        if vocabulary is not None:
            self.vocabulary = vocabulary
        # From a tensor, frozen: nn.Embedding would draw numbers for nothing, and on "meta", without memory, that makes
        # torch import its compiler: a second, 70 MB, and a folder that it must be able to write to.
        self.embedding = nn.Embedding.from_pretrained(torch.empty(weights.vocab_size, weights.embed_size))
        self.rnn = nn.RNN(weights.embed_size, weights.hidden_size, nonlinearity="tanh")
        self.rnn.bias_hh_l0.requires_grad_(False)
        self.output = nn.Linear(weights.hidden_size, weights.vocab_size)
        self.load_weights(weights)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """The model of a weights file. Raises CheckpointError (missing, damaged, NaN or infinity in the weights)."""
        source = checkpoint.load(path)
        checkpoint.check_finite(source.weights, path)
        return cls(source.weights, Vocabulary(source.vocabulary, source.tokenizer)).to(device).eval()

    @classmethod
    def mapped(cls, weights: Weights, vocabulary: Vocabulary) -> Self:
        """A model to serve whose parameters *are* `weights`, which may be a read-only map: they cannot be trained.

        So one copy of a weights file serves both back ends, and all processes.
        """
        with torch.device("meta"):  # parameters without memory, to be put in place
            model = cls(weights, vocabulary)
        for name, (path, transposed) in _MATRICES.items():
            array = torch.from_dlpack(getattr(weights, name))  # torch.from_numpy warns of what is read-only
            model._put(path, array.T if transposed else array)
        model._put("rnn.bias_hh_l0", torch.zeros(weights.hidden_size))
        return model.eval()

    def _put(self, path: str, tensor: torch.Tensor) -> None:
        owner, _, name = path.rpartition(".")
        setattr(self.get_submodule(owner), name, nn.Parameter(tensor, requires_grad=False))

    def _matrices(self) -> dict[str, tuple[torch.Tensor, bool]]:
        """Our name of each parameter: (torch's, whether it is transposed)."""
        return {name: (self.get_parameter(path), transposed) for name, (path, transposed) in _MATRICES.items()}

    @torch.no_grad()
    def load_weights(self, weights: Weights) -> None:
        """Copy `weights` in."""
        self.rnn.bias_hh_l0.zero_()
        for name, (tensor, transposed) in self._matrices().items():
            array = torch.tensor(getattr(weights, name))  # a copy: the array may be a read-only map
            tensor.copy_(array.T if transposed else array)

    def weights(self, embeddings: F32 | None = None) -> Weights:
        """Copy the weights out, in the layout of the weights file.

        embeddings: where the caller has them, to be shared instead of copied: they are frozen.
        """
        given = {} if embeddings is None else {"embeddings": embeddings}
        layout = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
        copies = {
            name: (tensor.T if transposed else tensor).detach().to(**layout).numpy()
            for name, (tensor, transposed) in self._matrices().items()
            if name not in given
        }
        return Weights(**given | copies)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (T, B, V) and the last hidden state (1, B, H) for ids x (T, B) and hidden (1, B, H).

        regularization: dropout, and the candidates of a sampled softmax; the logits are then theirs, (T, B, C).
        """
        states, hidden = self.rnn(self._drop(self.embedding(x), regularization.input_mask), hidden)
        states = self._drop(states, regularization.output_mask)
        if regularization.candidates is None:
            return self.output(states), hidden
        ids = torch.tensor(regularization.candidates.ids, dtype=torch.long, device=self.device)
        correction = torch.tensor(regularization.candidates.correction, device=self.device)
        return nn.functional.linear(states, self.output.weight[ids], self.output.bias[ids] + correction), hidden

    def _drop(self, values: torch.Tensor, mask: F32 | None) -> torch.Tensor:
        return values if mask is None else values * torch.tensor(mask, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    def zero_state(self, batch: int = 1) -> torch.Tensor:
        return torch.zeros(1, batch, self.rnn.hidden_size, device=self.device)

    def open_stream(self, prefix: list[int], sampling: Sampling) -> StepStream:
        return _Stream(self, prefix, sampling)

    @torch.inference_mode()
    def log_probabilities(self, ids: I32) -> F32:
        losses = [nn.functional.cross_entropy(logits, y, reduction="none") for logits, y in self.predictions(ids)]
        return -torch.cat(losses).cpu().numpy()

    def predictions(self, ids: I32) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of one long text ids (N,): logits (T, V) and the tokens they are for (T,), EVALUATION_STEPS at a time."""
        hidden = self.zero_state()
        for start in range(0, ids.size - 1, EVALUATION_STEPS):
            part = torch.tensor(ids[start : start + EVALUATION_STEPS + 1], dtype=torch.long, device=self.device)
            logits, hidden = self(part[:-1].unsqueeze(1), hidden)
            yield logits.flatten(0, 1), part[1:]

    @torch.inference_mode()
    def hidden_states(self, ids: Sequence[int], state: F32 | None = None) -> F32:
        before = self.zero_state() if state is None else torch.tensor(state, device=self.device).view(1, 1, -1)
        x = torch.tensor(ids, dtype=torch.long, device=self.device).unsqueeze(1)
        return self.rnn(self.embedding(x), before)[0].squeeze(1).cpu().numpy()

    def matrices(self) -> Matrices:
        views = {name: tensor.T if transposed else tensor for name, (tensor, transposed) in self._matrices().items()}
        return Matrices(**{name: view.detach().cpu().numpy() for name, view in views.items()})

    @torch.inference_mode()
    def logits(self, states: F32) -> F32:
        return self.output(torch.tensor(states, device=self.device)).cpu().numpy()


class _Stream(StepStream):
    """One sequence being written."""

    @torch.inference_mode()
    def __init__(self, model: RNN, prefix: list[int], sampling: Sampling) -> None:
        self._model, self._sampling = model, sampling
        self._hidden = model.zero_state()
        if prefix:
            x = torch.tensor(prefix, device=model.device).unsqueeze(1)
            _, self._hidden = model.rnn(model.embedding(x), self._hidden)

    @torch.inference_mode()
    def step(self, token: int, u: float) -> tuple[int, float]:
        logits, self._hidden = self._model(torch.tensor([[token]], device=self._model.device), self._hidden)
        logits = logits.flatten().double()
        drawn = draw(logits, self._sampling, u, self._model.vocabulary.unk)
        return drawn, float(torch.log_softmax(logits, 0)[drawn])


def draw(logits: torch.Tensor, sampling: Sampling, u: float, banned: int | None = None) -> int:
    """A token id from logits (V,) float64, by the rule that csrc/rnnlib.h gives for `rnn_sampling`."""
    if banned is not None:
        logits = logits.index_fill(0, torch.tensor(banned, device=logits.device), -torch.inf)
    if sampling.temperature == 0.0:
        return int(torch.argmax(logits))
    # The largest becomes 0 first: divided by the smallest temperatures, it would be infinite.
    probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, 0)
    if 0 < sampling.top_k < len(logits):  # a stable sort: of equal probabilities, the lowest ids stay
        cut = torch.sort(logits, descending=True, stable=True).indices[sampling.top_k :]
        probabilities[cut] = 0.0
    cumulative = torch.cumsum(probabilities, 0)
    drawn = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    # Where rounding lifts u * total to the total itself, the last token that has a probability is meant.
    return drawn if drawn < len(logits) else int(probabilities.nonzero()[-1])


class Trainer:
    """The torch model in training: plugs into the loop of training/, as main.py's Trainer does for C."""

    backend = "torch"

    @staticmethod
    def check(config: TrainConfig) -> str:
        return _device(config.device, distributed.local_rank()).type

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None:
        self.config, self.group = config, group or Group()
        self.embeddings = weights.embeddings
        if config.threads or self.group.size > 1:
            torch.set_num_threads(self.group.threads(config.threads))
        self.device = _device(config.device, self.group.local_rank)
        with _plain_errors(self.group):
            self.model = RNN(weights).to(self.device)
            self.step_model = self.model if self.group.size == 1 else _data_parallel(self.model)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, config.learning_rate, momentum=config.momentum)
        else:
            self.optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        self.parameters = parameters
        self.hidden = self.model.zero_state(config.batch_size)

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        with _plain_errors(self.group):
            return self._train_step(x, y, learning_rate, regularization)

    def _train_step(self, x: I32, y: I32, learning_rate: float, regularization: Regularization) -> tuple[float, float]:
        logits, hidden = self.step_model(self._ids(x), self.hidden, regularization)
        targets = self._ids(regularization.candidates.targets if regularization.candidates else y)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=self.config.reduction)
        self.optimizer.zero_grad()
        # DistributedDataParallel gives the mean over the processes, also of sums.
        (loss * (self.group.size if self.config.reduction == "sum" else 1)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        value = loss.item() / (1 if self.config.reduction == "mean" else x.size)
        # Of several processes one may have found it; the norm is the same on all, and so is what they do now.
        if not np.isfinite([norm.item() if self.group.size > 1 else value, norm.item()]).all():
            raise FloatingPointError(f"loss {value}, gradient norm {norm.item()}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.hidden = hidden.detach()  # truncated BPTT: the state is carried over, the gradient is not
        return value, norm.item()

    def evaluate(self, ids: I32) -> float:
        with _plain_errors(self.group):
            return self._evaluate(ids)

    @torch.inference_mode()
    def _evaluate(self, ids: I32) -> float:
        losses = (nn.functional.cross_entropy(*part, reduction="sum") for part in self.model.predictions(ids))
        total = sum(loss.item() for loss in losses)
        if not np.isfinite(total):
            raise FloatingPointError(f"loss {total}")
        return total / (ids.size - 1)

    def reset_state(self) -> None:
        self.hidden = torch.zeros_like(self.hidden)

    def weights(self) -> Weights:
        return self.model.weights(self.embeddings)

    def load_weights(self, weights: Weights) -> None:
        self.model.load_weights(weights)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        tensors: dict[str, torch.Tensor] = {"hidden": self.hidden[0]}
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index}"] = parameter
            for name, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"{name}.{index}"] = value
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self.optimizer.state.clear()
        for name, array in state.items():
            kind, _, index = name.partition(".")
            value = torch.tensor(array)
            if kind == "hidden":
                self.hidden = value.unsqueeze(0).to(self.device)
            elif kind == "parameter":
                self.parameters[int(index)].copy_(value)
            else:  # torch keeps AdamW's step count on the processor
                device = "cpu" if kind == "step" else self.device
                self.optimizer.state[self.parameters[int(index)]][kind] = value.to(device)

    def _ids(self, ids: I32) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)


def _data_parallel(model: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, gradient_as_bucket_view=True)


@contextlib.contextmanager
def _plain_errors(group: Group) -> Iterator[None]:
    """torch raises RuntimeError where memory runs out and where another process is gone: errors that say which."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise MemoryError(str(error).split("\n")[0].partition("] ")[2] or str(error).split("\n")[0]) from error
        if isinstance(group, TorchGroup):
            group.raise_lost(error)
        raise


def _device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `name` means. Of the processes of a machine each takes the GPU of its number."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu, or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own, for there are {torch.cuda.device_count()}: "
            "start fewer processes (--nproc-per-node), or use --device cpu"
        )
    return torch.device("cuda", local_rank)


if __name__ == "__main__":
    from rnnlm.training import cli  # here, for who serves this model needs nothing that training does

    sys.exit(cli.main(Trainer, RNN))
