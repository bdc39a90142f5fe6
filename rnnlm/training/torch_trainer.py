"""Trains the torch model, by autograd and torch's optimizers, on the processor or a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rnnlm import openmp
from rnnlm.arrays import I32
from rnnlm.checkpoint import Weights
from rnnlm.language_model import EVALUATION_STEPS
from rnnlm.regularization import NO_REGULARIZATION, Regularization
from rnnlm.training import distributed, schedule
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group, TorchGroup
from rnnlm.training.torch_rounded import RoundedLoss


class TorchTrainer:
    """Trains the torch model.

    DistributedDataParallel takes the mean of the gradients of several processes, while the backward pass still runs.
    With a sampled softmax most rows of the output layer's gradient are zero, and only those of the candidates travel.
    """

    backend = "torch"
    model_class: ClassVar[Any]  # torch_rnn.RNN, which torch_rnn.py sets: this file does not import it

    @staticmethod
    def check(config: TrainConfig) -> str:
        return _device(config.device, distributed.local_rank()).type

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None:
        self.config, self.group = config, group or Group()
        self.embeddings = weights.embeddings
        if config.threads or openmp.threads_asked() or self.group.size > 1:
            torch.set_num_threads(self.group.threads(config.threads))
        self.device = _device(config.device, self.group.local_rank)
        with _plain_errors(self.group), self.group.exchange():
            self.model = self.model_class(weights).to(self.device)
            self.rounded = RoundedLoss(self.model) if config.precision == "bfloat16" else None
            step_model = self.rounded or self.model
            self.is_sampled = 0 < config.sampled_softmax < weights.vocab_size
            is_alone = self.group.size == 1 or self.is_sampled
            self.step_model = step_model if is_alone else _data_parallel(step_model)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, config.learning_rate, momentum=config.momentum)
        else:
            rate, epsilon, decay = config.learning_rate, config.epsilon, config.weight_decay
            self.optimizer = torch.optim.AdamW(parameters, rate, eps=epsilon, weight_decay=decay)
        self.parameters = parameters
        self.averages = [parameter.detach().clone() for parameter in parameters] if config.average else []
        self.updates = 0
        self.hidden = self.model.zero_state(config.batch_size)

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        with _plain_errors(self.group), self.group.exchange():
            return self._train_step(x, y, learning_rate, regularization)

    def _train_step(self, x: I32, y: I32, learning_rate: float, regularization: Regularization) -> tuple[float, float]:
        targets = self._ids(regularization.candidates.targets if regularization.candidates else y)
        if self.rounded is not None:
            loss, hidden = self.step_model(self._ids(x), self.hidden, targets, regularization)
            loss = loss / (x.size if self.config.reduction == "mean" else 1)
        else:
            logits, hidden = self.step_model(self._ids(x), self.hidden, regularization)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=self.config.reduction)
        self.optimizer.zero_grad()
        # The processes take the mean of their gradients, whatever the reduction.
        (loss * (self.group.size if self.config.reduction == "sum" else 1)).backward()
        if regularization.candidates and isinstance(self.group, TorchGroup):
            self._average_gradients(self.group, torch.tensor(regularization.candidates.ids, device=self.device))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        value = loss.item() / (1 if self.config.reduction == "mean" else x.size)
        # With several processes only the norm counts: it is the same on all, so all stop at the same step.
        if not np.isfinite([norm.item() if self.group.size > 1 else value, norm.item()]).all():
            raise FloatingPointError(f"loss {value}, gradient norm {norm.item()}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.update_averages()
        self.hidden = hidden.detach()  # truncated BPTT: the state is carried over, the gradient is not
        return value, norm.item()

    @torch.no_grad()
    def _average_gradients(self, group: TorchGroup, candidates: torch.Tensor) -> None:
        """Replace the gradients by their mean over the processes. candidates: (C,), the same ids on all of them."""
        output = list(self.model.output.parameters())
        whole = [p.grad for p in self.parameters if p.grad is not None and not any(p is other for other in output)]
        rows = [p.grad for p in output if p.grad is not None]
        parts = whole + [grad[candidates] for grad in rows]
        flat = torch.cat([part.flatten() for part in parts])
        group.sum_tensor(flat)
        flat /= group.size
        means = flat.split([part.numel() for part in parts])
        for grad, mean in zip(whole, means, strict=False):
            grad.copy_(mean.view_as(grad))
        for grad, mean in zip(rows, means[len(whole) :], strict=True):
            grad[candidates] = mean.view(candidates.numel(), *grad.shape[1:])

    @torch.no_grad()
    def update_averages(self) -> None:
        self.updates += 1
        decay = schedule.average_decay(self.config, self.updates)
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

    def evaluate(self, ids: I32, advance: Callable[[int], object] = lambda count: None) -> float:
        with _plain_errors(self.group), self.averaged():
            return self._evaluate(ids, advance)

    @torch.inference_mode()
    def _evaluate(self, ids: I32, advance: Callable[[int], object]) -> float:
        total = 0.0
        for loss, count in self._losses(ids):
            total += loss.item()
            advance(count)
        if not np.isfinite(total):
            raise FloatingPointError(f"loss {total}")
        return total / (ids.size - 1)

    def _losses(self, ids: I32) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the summed loss and the number of tokens of each part of a text."""
        if self.rounded is None:
            for logits, targets in self.model.predictions(ids):
                yield nn.functional.cross_entropy(logits, targets, reduction="sum"), len(targets)
            return
        hidden = self.model.zero_state()
        for start in range(0, ids.size - 1, EVALUATION_STEPS):
            part = self._ids(ids[start : start + EVALUATION_STEPS + 1]).unsqueeze(1)
            loss, hidden = self.rounded(part[:-1], hidden, part[1:], NO_REGULARIZATION)
            yield loss, len(part) - 1

    def reset_state(self) -> None:
        self.hidden = torch.zeros_like(self.hidden)

    def weights(self) -> Weights:
        with self.averaged():
            return self.model.weights(self.embeddings)

    def load_weights(self, weights: Weights) -> None:
        self.model.load_weights(weights)
        self.averages = [parameter.detach().clone() for parameter in self.parameters] if self.averages else []

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
        for name, array in state.items():
            kind, _, index = name.partition(".")
            value = torch.tensor(array)
            if kind == "hidden":
                self.hidden = value.unsqueeze(0).to(self.device)
            elif kind == "updates":
                self.updates = int(value)
            elif kind == "average":
                self.averages[int(index)].copy_(value)
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
