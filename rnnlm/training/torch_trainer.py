"""Trains the torch model, by autograd and torch's optimizers, on the processor or a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rnnlm import openmp
from rnnlm.arrays import I32
from rnnlm.checkpoint import Weights
from rnnlm.regularization import NO_REGULARIZATION, Candidates, Regularization
from rnnlm.training import distributed, schedule, torch_evaluation
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group, TorchGroup
from rnnlm.training.torch_graph import MOST_STEPS, Graph
from rnnlm.training.torch_inputs import Layout, arrays_of, shapes
from rnnlm.training.torch_loss import StepLoss
from rnnlm.training.trainer import Chunk

STEPS_AHEAD = 64  # on a GPU; some 50 ms, after which Ctrl-C is noticed


class TorchTrainer:
    """Trains the torch model.

    DistributedDataParallel takes the mean of the gradients of several processes, while the backward pass still runs.
    With a sampled softmax most rows of the output layer's gradient are zero, and only those of the candidates travel:
    then, and with `--exchange bfloat16`, the gradients are added up after the backward pass.
    """

    backend = "torch"
    model_class: ClassVar[Any]  # torch_rnn.RNN, which torch_rnn.py sets: this file does not import it

    @staticmethod
    def check(config: TrainConfig) -> str:
        kind = _device(config.device, distributed.local_rank()).type
        if config.precision == "tf32" and kind == "cpu":
            raise ConfigError("--precision tf32 needs a GPU (--device cuda); a processor has float32 and bfloat16")
        return kind

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None:
        self.config, self.group = config, group or Group()
        self.embeddings = weights.embeddings
        if config.threads or openmp.threads_asked() or self.group.size > 1:
            torch.set_num_threads(self.group.threads(config.threads))
        self.device = _device(config.device, self.group.local_rank)
        if self.device.type == "cuda":
            # bfloat16 operands are also TF32's: their products are exact there, and no slower.
            torch.set_float32_matmul_precision("highest" if config.precision == "float32" else "high")
        with _plain_errors(self.group), self.group.exchange():
            self.model = self.model_class(weights).to(self.device)
            self.loss = StepLoss(self.model, is_rounded=config.precision == "bfloat16")
            by_itself = config.is_sampled(weights.vocab_size) or config.exchange == "bfloat16"
            self.is_averaging = self.group.size > 1 and by_itself
            self.step_loss = self.loss if self.group.size == 1 or by_itself else _data_parallel(self.loss)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(parameters, config)
        self.parameters = parameters
        self.averages = [parameter.detach().clone() for parameter in parameters] if config.average else []
        self.updates, self.average_every = 0, schedule.AVERAGE_EVERY
        self.hidden = self.model.zero_state(config.batch_size)
        self.layouts: dict[Hashable, Layout] = {}
        self.graphs: dict[Hashable, Graph] = {}
        self.steps_ahead = 1 if self.device.type == "cpu" else STEPS_AHEAD
        self.outcomes = torch.zeros(self.steps_ahead, 2, device=self.device)  # of the steps that were begun

    def set_average_interval(self, updates: int) -> None:
        self.average_every = updates

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        return self.train_steps([Chunk(x, y, learning_rate, regularization)])[0]

    def train_steps(self, chunks: Iterable[Chunk]) -> list[tuple[float, float]]:
        with _plain_errors(self.group), self.group.exchange():
            if self.device.type == "cpu":
                return [self._step(chunk) for chunk in chunks]
            for count, chunk in enumerate(chunks, start=1):
                self.outcomes[count - 1].copy_(self._begin_step(chunk))
            return [(loss, norm) for loss, norm in self.outcomes[:count].tolist()]

    def _step(self, chunk: Chunk) -> tuple[float, float]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays_of(chunk).items()}
        loss, norm = self._gradients(tensors).tolist()
        # With several processes only the norm counts: it is the same on all, so all stop at the same step.
        if not np.isfinite([norm if self.group.size > 1 else loss, norm]).all():
            raise FloatingPointError(f"loss {loss}, gradient norm {norm}")
        self.update(chunk.learning_rate)
        self._update_averages()
        return loss, norm

    def _begin_step(self, chunk: Chunk) -> torch.Tensor:
        """Start a step on the GPU. Returns its loss and norm (2,), which the next step overwrites."""
        most = self.config.sampled_softmax + chunk.x.size * self.group.size
        arrays = arrays_of(chunk, min(most, self.model.output.out_features))
        shape = shapes(arrays)
        if shape not in self.layouts:
            self.layouts[shape] = Layout(arrays, self.device, self.steps_ahead)
        layout = self.layouts[shape]
        layout.put(arrays)

        def step() -> torch.Tensor:
            outcome = self._gradients(layout.tensors)
            self.update(layout.tensors["learning_rate"])
            return outcome

        if self.group.size > 1 or len(chunk.x) > MOST_STEPS:
            outcome = step()
        else:
            if shape not in self.graphs:
                self.graphs[shape] = Graph(step, self._changing)
            outcome = self.graphs[shape].replay()
        self._update_averages()
        return outcome

    def _changing(self) -> Iterator[torch.Tensor]:
        """Yield all tensors that a step changes, but for the averages."""
        yield from (self.hidden, *self.parameters)
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if value is not None)

    def _gradients(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the gradients of the parameters. Returns the mean loss and the norm of the gradient, (2,)."""
        x = tensors["x"]
        # The processes take the mean of their gradients, whatever the reduction.
        scale = 1.0 / x.numel() if self.config.reduction == "mean" else float(self.group.size)
        regularization = regularization_of(tensors)
        loss, hidden = self.step_loss(x, self.hidden, tensors["targets"], regularization, scale)
        self.optimizer.zero_grad()
        loss.backward()
        if self.is_averaging:
            self._average_gradients(tensors.get("ids"))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        self.hidden.copy_(hidden)  # truncated BPTT: the state is carried over, the gradient is not
        return torch.stack([loss.detach() / (scale * x.numel()), norm])

    def update(self, learning_rate: float | torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    @torch.no_grad()
    def _average_gradients(self, candidates: torch.Tensor | None) -> None:
        """Replace the gradients by their mean over the processes. candidates: (C,), the same ids on all of them."""
        assert isinstance(self.group, TorchGroup)
        chosen = slice(None) if candidates is None else candidates
        output = list(self.model.output.parameters())
        whole = [p.grad for p in self.parameters if p.grad is not None and not any(p is other for other in output)]
        rows = [p.grad for p in output if p.grad is not None]
        parts = whole + [grad[chosen] for grad in rows]
        flat = torch.cat([part.flatten() for part in parts]) / self.group.size
        self.group.sum_tensor(flat, self.config.exchange)
        means = flat.split([part.numel() for part in parts])
        for grad, mean in zip(whole, means, strict=False):
            grad.copy_(mean.view_as(grad))
        for grad, mean in zip(rows, means[len(whole) :], strict=True):
            grad[chosen] = mean.view(-1, *grad.shape[1:])

    @torch.no_grad()
    def _update_averages(self) -> None:
        self.updates += 1
        decay = schedule.average_decay(self.config, self.updates, self.average_every)
        if decay < 1.0:
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                average.lerp_(parameter, 1.0 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the model has the averages for parameters, if they are kept."""
        current = [parameter.data for parameter in self.parameters]
        try:
            for parameter, average in zip(self.parameters, self.averages or current, strict=True):
                parameter.data = average
            yield
        finally:
            for parameter, data in zip(self.parameters, current, strict=True):
                parameter.data = data

    def evaluate(self, ids: I32, advance: Callable[[int], object] = lambda count: None, start: int = 0) -> float:
        with _plain_errors(self.group), self.averaged():
            return self._evaluate(ids, advance, start)

    def _evaluate(self, ids: I32, advance: Callable[[int], object], start: int) -> float:
        total, pieces = 0.0, 16 if self.device.type == "cpu" else 128
        for loss, count in torch_evaluation.losses(self.loss, self._ids(ids), pieces, start):
            total += loss
            advance(count)
        if not np.isfinite(total):
            raise FloatingPointError(f"loss {total}")
        return total / (ids.size - 1 - start)

    def reset_state(self) -> None:
        self.hidden.zero_()

    def weights(self) -> Weights:
        with self.averaged():
            return self.model.weights(self.embeddings)

    def load_weights(self, weights: Weights) -> None:
        self.model.load_weights(weights)
        with torch.no_grad():
            for average, parameter in zip(self.averages, self.parameters, strict=False):  # none, or one for each
                average.copy_(parameter)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        tensors: dict[str, torch.Tensor] = {"hidden": self.hidden[0]}
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index}"] = parameter
            for name, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"{name}.{index}"] = value
        for index, average in enumerate(self.averages):
            tensors[f"average.{index}"] = average
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return arrays | ({"updates": np.array([self.updates], dtype=np.int64)} if self.averages else {})

    @torch.no_grad()
    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self.optimizer.state.clear()
        self.graphs.clear()  # they update the state that was there
        for name, array in state.items():
            kind, _, index = name.partition(".")
            value = torch.tensor(array)
            if kind == "hidden":
                self.hidden.copy_(value)
            elif kind == "updates":
                self.updates = int(value)
            elif kind == "average":
                self.averages[int(index)].copy_(value)
            elif kind == "parameter":
                self.parameters[int(index)].copy_(value)
            else:
                self.optimizer.state[self.parameters[int(index)]][kind] = value.to(self.device)

    def _ids(self, ids: I32) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)


def regularization_of(tensors: dict[str, torch.Tensor]) -> Regularization:
    """Return the regularization of a step, with tensors in the place of arrays."""
    names = ("input_mask", "output_mask", "dropped_words")
    candidates = Candidates(tensors["ids"], tensors["correction"], tensors["targets"]) if "ids" in tensors else None
    return Regularization(*(tensors.get(name) for name in names), candidates)


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.learning_rate, momentum=config.momentum, fused=True)
    # The output bias holds how common each word is, which decay would take away.
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    biases = [parameter for parameter in parameters if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    is_recorded = parameters[0].device.type == "cuda"  # in a CUDA graph, so the count of its steps must be there too
    return torch.optim.AdamW(groups, config.learning_rate, eps=config.epsilon, fused=True, capturable=is_recorded)


def _data_parallel(model: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, gradient_as_bucket_view=True)


@contextlib.contextmanager
def _plain_errors(group: Group) -> Iterator[None]:
    """Turn torch's RuntimeError into MemoryError if memory ran out, into PeerLost if another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise MemoryError(str(error).split("\n")[0].partition("] ")[2] or str(error).split("\n")[0]) from error
        if isinstance(group, TorchGroup):
            group.raise_lost(error)
        raise


def _device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that `name` means: with "cuda" or "auto", the GPU of this process's rank on its machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu, or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
            "start fewer processes (--nproc-per-node), or use --device cpu"
        )
    return torch.device("cuda", local_rank)
