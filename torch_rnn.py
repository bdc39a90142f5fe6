"""The same model in PyTorch: an nn.Module with autograd, and greedy generation.

    model = torch_rnn.RNN.load("weights/demo-torch.safetensors")
    print(model.generate("The prime minister").text)

    python torch_rnn.py --preset demo                            trains; --help lists the options
    python torch_rnn.py --generate WEIGHTS "The prime minister"  generates; with the options of rnn.py

It reads and writes the same weights file as the C model, and never loads the C library. What trains it is
rnnlm/training/torch_trainer.py.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C while the rest is imported ends it at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from rnnlm import packages

    for package in ("numpy", "torch"):
        packages.require(package, "torch_rnn.py")

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from rnnlm import openmp

openmp.wait_briefly()

import torch
from torch import nn

from rnnlm import checkpoint, command_line
from rnnlm.arguments import check_type
from rnnlm.arrays import F32, I32, float_array
from rnnlm.checkpoint import Weights
from rnnlm.data.text import Vocabulary
from rnnlm.inspection import Matrices
from rnnlm.language_model import EVALUATION_STEPS, LanguageModel, OpenSequence
from rnnlm.library import RNNInputError, RNNNonFiniteError, require_shape
from rnnlm.regularization import NO_REGULARIZATION, Candidates, Regularization
from rnnlm.sampling import Biases, Sampling, second_number

openmp.survive_fork(torch._C.__file__)

if TYPE_CHECKING:
    from rnnlm.training.trainer import Trainer

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

    nn.RNN and nn.Linear keep their matrices as (out, in), the weights file as (in, out). `load_weights` and `weights`
    are the only places that transpose them. nn.RNN has two biases where the model has one: `bias_hh_l0` is frozen at
    zero, or plain SGD would move their sum twice as fast.

    vocabulary: needed to read prompts and to write words, not to train.
    """

    default_temperature = 0.0  # greedy

    def __init__(self, weights: Weights, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        check_type("weights", weights, Weights, "RNN.load(path) reads a weights file")
        if vocabulary is not None:
            check_type("vocabulary", vocabulary, Vocabulary)
            self.vocabulary = vocabulary
        # From a tensor, because nn.Embedding would draw random numbers in vain. On the device "meta" that would make
        # torch import its compiler, which costs a second, 70 MB, and needs a folder that can be written to.
        self.embedding = nn.Embedding.from_pretrained(torch.empty(weights.vocab_size, weights.embed_size))
        self.rnn = nn.RNN(weights.embed_size, weights.hidden_size, nonlinearity="tanh")
        self.rnn.bias_hh_l0.requires_grad_(False)
        self.output = nn.Linear(weights.hidden_size, weights.vocab_size)
        self.load_weights(weights)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Load a weights file. Raises CheckpointError (missing, damaged, NaN or infinity in the weights)."""
        source = checkpoint.load(path)
        checkpoint.check_finite(source.weights, path)
        return cls(source.weights, Vocabulary(source.vocabulary, source.tokenizer)).to(device).eval()

    @classmethod
    def mapped(cls, weights: Weights, vocabulary: Vocabulary) -> Self:
        """Return a model to serve, whose parameters are `weights` themselves: both back ends share one copy.

        The arrays may be a read-only map of a file, so the parameters cannot be trained.
        """
        with torch.device("meta"):  # parameters without memory, replaced below
            model = cls(weights, vocabulary)
        for name, (path, transposed) in _MATRICES.items():
            array = torch.from_dlpack(getattr(weights, name))  # torch.from_numpy warns if an array is read-only
            model._put(path, array.T if transposed else array)
        model._put("rnn.bias_hh_l0", torch.zeros(weights.hidden_size))
        return model.eval()

    def extra_repr(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        V, E = self.embedding.weight.shape
        return f"V={V:,}, E={E:,}, H={self.rnn.hidden_size:,}, precision={dtype!r}"

    def _put(self, path: str, tensor: torch.Tensor) -> None:
        owner, _, name = path.rpartition(".")
        setattr(self.get_submodule(owner), name, nn.Parameter(tensor, requires_grad=False))

    def _matrices(self) -> dict[str, tuple[torch.Tensor, bool]]:
        """Return by our name of each parameter: (torch's tensor, whether it is transposed)."""
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

        embeddings: (V, E), used instead of a copy if given; they are frozen, so the caller may still have them.
        """
        given = {} if embeddings is None else {"embeddings": embeddings}
        layout = {"device": "cpu", "dtype": torch.float32, "copy": True, "memory_format": torch.contiguous_format}
        copies = {
            name: (tensor.T if transposed else tensor).detach().to(**layout).numpy()
            for name, (tensor, transposed) in self._matrices().items()
            if name not in given
        }
        return Weights(**given | copies)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (T, B, V) and the last hidden state (1, B, H) for ids x (T, B) and hidden (1, B, H).

        regularization: dropout masks, and the candidates of a sampled softmax: the logits are then theirs, (T, B, C).
        """
        states, hidden = self.rnn(self.vectors_of(x, regularization), hidden)
        states = self.masked(states, regularization.output_mask)
        weight, bias = self.output_layer(regularization.candidates)
        return nn.functional.linear(states, weight, bias), hidden

    def output_layer(self, candidates: Candidates | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights (V, H) and the biases (V) of the output layer, or those of the candidates (C, H), (C)."""
        if candidates is None:
            return self.output.weight, self.output.bias
        ids = torch.as_tensor(candidates.ids, device=self.device)
        # index_select: its gradient is one addition of rows; that of indexing sorts the ids first.
        weight, bias = self.output.weight.index_select(0, ids), self.output.bias.index_select(0, ids)
        return weight, bias + torch.as_tensor(candidates.correction, device=self.device, dtype=self.dtype)

    def vectors_of(self, x: torch.Tensor, regularization: Regularization) -> torch.Tensor:
        """Return the vectors (T, B, E) of ids x (T, B) as the hidden layer gets them."""
        vectors = self.masked(self.embedding(x), regularization.input_mask)
        if regularization.dropped_words is None:
            return vectors
        dropped = torch.as_tensor(regularization.dropped_words, device=self.device)
        return vectors.masked_fill(dropped[x].unsqueeze(-1), 0.0)

    def masked(self, values: torch.Tensor, mask: F32 | torch.Tensor | None) -> torch.Tensor:
        """Return `values` (T, B, N) times a dropout mask (B, N), if there is one."""
        return values if mask is None else values * torch.as_tensor(mask, device=self.device, dtype=self.dtype)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters: float32, unless the module was turned into another (`.double()`)."""
        return self.output.weight.dtype

    def tensor(self, array: F32) -> torch.Tensor:
        """Copy an array to the device and the type of the parameters."""
        return torch.tensor(array, device=self.device, dtype=self.dtype)

    def zero_state(self, batch: int = 1) -> torch.Tensor:
        """Return the hidden state (1, B, H) before the first token."""
        return torch.zeros(1, batch, self.rnn.hidden_size, device=self.device, dtype=self.dtype)

    def open_sequence(self, prefix: list[int], sampling: Sampling) -> OpenSequence:
        return _Sequence(self, prefix, sampling)

    @torch.inference_mode()
    def log_probabilities(self, ids: I32, state: F32 | None = None) -> F32:
        ids, hidden = self.token_ids(ids), self._before(state)
        if ids.size < 2:
            raise RNNInputError(-2, f"a score needs 2 tokens or more, got {ids.size}")
        parts = self.predictions(ids, hidden)
        losses = [nn.functional.cross_entropy(logits, y, reduction="none") for logits, y in parts]
        if state is not None:
            state[:] = _float32(hidden.flatten())
        return -_float32(torch.cat(losses))

    def predictions(self, ids: I32, state: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield logits (T, V) with the tokens that they predict (T,), along the text `ids` (N,).

        T is EVALUATION_STEPS, but for the last.
        state: (1, 1, H), the one before ids[0]; it is replaced by the one before ids[N - 1].
        """
        state = self.zero_state() if state is None else state
        for start in range(0, ids.size - 1, EVALUATION_STEPS):
            part = torch.tensor(ids[start : start + EVALUATION_STEPS + 1], dtype=torch.long, device=self.device)
            logits, following = self(part[:-1].unsqueeze(1), state)
            state.copy_(following)
            yield logits.flatten(0, 1), part[1:]

    @torch.inference_mode()
    def hidden_states(self, ids: Sequence[int], state: F32 | None = None) -> F32:
        before = self._before(None if state is None else float_array("state", state))
        x = torch.tensor(self.token_ids(ids), dtype=torch.long, device=self.device).unsqueeze(1)
        if not len(x):
            return np.empty((0, self.rnn.hidden_size), dtype=np.float32)
        return _float32(self.rnn(self.embedding(x), before)[0].squeeze(1))

    def _before(self, state: F32 | None) -> torch.Tensor:
        """Return the state (H,) as (1, 1, H); None: zeros. Raises as the C model: RNNInputError, RNNNonFiniteError."""
        if state is None:
            return self.zero_state()
        require_shape("state", state, (self.rnn.hidden_size,))
        _check_finite("state", state)
        return self.tensor(state).view(1, 1, -1)

    def matrices(self) -> Matrices:
        views = {name: tensor.T if transposed else tensor for name, (tensor, transposed) in self._matrices().items()}
        return Matrices(**{name: _float32(view) for name, view in views.items()})

    @torch.inference_mode()
    def logits(self, states: F32) -> F32:
        states = float_array("states", states)
        require_shape("states", states, (len(states), self.rnn.hidden_size))
        _check_finite("states", states)
        if not states.size:
            raise RNNInputError(-2, "logits need 1 state or more, got 0")
        if np.abs(states).max() > 1.0:
            raise RNNInputError(-6, "states must be in -1..1")
        return _float32(self.output(self.tensor(states)))


def _float32(tensor: torch.Tensor) -> F32:
    """Return a tensor as an array: a view, if it is in the processor's memory and of that type."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def _check_finite(name: str, states: F32) -> None:
    if not np.isfinite(states).all():
        raise RNNNonFiniteError(-5, f"{name} must be finite numbers, got NaN or infinity")


class _Sequence(OpenSequence):
    """One sequence being generated."""

    @torch.inference_mode()
    def __init__(self, model: RNN, prefix: list[int], sampling: Sampling) -> None:
        self._model, self._sampling = model, sampling
        self._biases = Biases(sampling)
        self._hidden = model.zero_state()
        if prefix:
            x = torch.tensor(prefix, device=model.device).unsqueeze(1)
            _, self._hidden = model.rnn(model.embedding(x), self._hidden)

    @torch.inference_mode()
    def step(self, token: int, u: float) -> tuple[int, float]:
        logits, self._hidden = self._model(torch.tensor([[token]], device=self._model.device), self._hidden)
        logits = logits.flatten().double()
        drawn = draw(logits, self._sampling, u, self._model.vocabulary.unk, self._biases.rows)
        self._biases.drawn(drawn)
        return drawn, float(torch.log_softmax(logits, 0)[drawn])


def draw(
    logits: torch.Tensor,
    sampling: Sampling,
    u: float,
    banned: int | None = None,
    biases: npt.NDArray[Any] | None = None,
) -> int:
    """Draw a token id from logits (V,) float64, by the rule that csrc/rnnlib.h gives for `rnn_sampling`.

    u: uniform in [0, 1).   biases: (n,) of dtype sampling.BIAS.
    """
    if biases is not None and biases.size:  # added in float32, as the C library does: equal logits are then equal there
        tokens = torch.tensor(biases["token"].astype(np.int64), device=logits.device)
        values = torch.tensor(biases["value"], device=logits.device)
        logits = logits.float().index_add(0, tokens, values).double()
    if banned is not None:
        logits = logits.index_fill(0, torch.tensor(banned, device=logits.device), -torch.inf)
    temperature, top_p = (float(np.float32(value)) for value in (sampling.temperature, sampling.top_p))  # as C has them
    if temperature == 0.0:
        return int(torch.argmax(logits))
    # The largest becomes 0 first: divided by the smallest temperatures, it would be infinite.
    weights = torch.exp((logits - logits.max()) / temperature)
    kept = min(sampling.top_k, len(logits)) or len(logits)
    if kept == len(logits) and top_p == 1.0:
        return _inverse_cdf(weights, u)
    order = torch.sort(logits, descending=True, stable=True).indices  # of equal ones, the lowest ids first
    weights[order[kept:]] = 0.0
    drawn = _inverse_cdf(weights, u)
    if top_p < 1.0:
        cumulative = torch.cumsum(weights[order[:kept]], 0)
        last = int(torch.searchsorted(cumulative, top_p * cumulative[-1]))
        weights[order[last + 1 :]] = 0.0
        if weights[drawn] == 0.0:
            drawn = _inverse_cdf(weights, second_number(u))
    return drawn


def _inverse_cdf(weights: torch.Tensor, u: float) -> int:
    """Return the first token at which the running sum of the weights (V,) exceeds u times their total."""
    cumulative = torch.cumsum(weights, 0)
    drawn = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    # Where rounding lifts u * total to the total itself, the last token that has a probability is meant.
    return drawn if drawn < len(weights) else int(weights.nonzero()[-1])


def trainer_class() -> type[Trainer]:
    """Return what trains `RNN` in rnnlm/training/loop.py."""
    from rnnlm.training.torch_trainer import TorchTrainer  # here: serving imports this file, and nothing of training

    class RNNTrainer(TorchTrainer):
        model_class = RNN

    return RNNTrainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or with --generate do what rnn.py does, as the command line asks. Returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if "--generate" not in given:
        from rnnlm.training import cli

        return cli.main(trainer_class(), given)
    given.remove("--generate")

    def load(options: argparse.Namespace) -> RNN:
        torch.set_num_threads(options.threads)
        return RNN.load(options.weights)

    return command_line.main("torch_rnn.py --generate", load, given, temperature=RNN.default_temperature)


if __name__ == "__main__":
    sys.exit(main())
