"""A training step as PyTorch's own layers make it: what the trainers of this project are compared with.

nn.RNN, nn.Linear and cross_entropy with autograd, torch.optim, and a loss that is read after each step.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from rnnlm.arrays import I32
from rnnlm.checkpoint import Weights
from rnnlm.regularization import Regularization
from rnnlm.training import schedule
from rnnlm.training.config import TrainConfig
from torch_rnn import RNN


class PlainTrainer:
    """Trains torch_rnn.RNN, a module of nn.RNN and nn.Linear, without the project's own trainer."""

    def __init__(self, weights: Weights, config: TrainConfig, device: str = "cpu") -> None:
        self.config = config
        self.model = RNN(weights).to(device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.parameters, config.learning_rate, momentum=config.momentum)
        else:
            rate, epsilon, decay = config.learning_rate, config.epsilon, config.weight_decay
            biases = [parameter for parameter in self.parameters if parameter.ndim == 1]  # which do not decay
            matrices = [parameter for parameter in self.parameters if parameter.ndim > 1]
            groups = [{"params": matrices}, {"params": biases, "weight_decay": 0.0}]
            self.optimizer = torch.optim.AdamW(groups, rate, eps=epsilon, weight_decay=decay)
        self.averages = [parameter.detach().clone() for parameter in self.parameters] if config.average else []
        self.hidden, self.updates = self.model.zero_state(config.batch_size), 0

    def train_step(self, x: I32, y: I32, learning_rate: float, regularization: Regularization) -> float:
        """Learn from a chunk x, y (T, B). Returns its mean loss."""
        targets = regularization.candidates.targets if regularization.candidates else y
        logits, hidden = self.model(self._ids(x), self.hidden, regularization)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self._ids(targets).flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.updates += 1
        if (decay := schedule.average_decay(self.config, self.updates)) < 1.0:
            with torch.no_grad():
                for average, parameter in zip(self.averages, self.parameters, strict=True):
                    average.lerp_(parameter, 1.0 - decay)
        self.hidden = hidden.detach()
        return loss.item()

    def _ids(self, ids: I32) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.model.device)
