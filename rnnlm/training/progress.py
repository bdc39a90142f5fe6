"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]  # one evaluation: a line of the metrics file


@dataclass
class Progress:
    """What the loop itself needs to continue. It is saved as JSON in the resume file."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed within the current epoch
    loss_sum: float = 0.0  # nats, of the steps since the last evaluation or the start of the epoch
    loss_tokens: int = 0  # the tokens of those steps
    norm_max: float = 0.0  # the largest gradient norm of those steps
    seconds: float = 0.0  # spent in training steps
    evaluation_seconds: float = 0.0
    rate_scale: float = 1.0  # what the plateau schedule multiplies the learning rate by
    best_epoch: float = 0  # 0: no weights were saved yet
    best_loss: float | None = None
    stale: int = 0  # evaluations since the best
    history: list[Row] = field(default_factory=list)

    def add(self, loss_sum: float, tokens: int, norm: float) -> None:
        """Add the losses of one step."""
        self.loss_sum += loss_sum
        self.loss_tokens += tokens
        self.norm_max = max(self.norm_max, norm)

    def forget_losses(self) -> None:
        """Start to add up losses again."""
        self.loss_sum, self.loss_tokens, self.norm_max = 0.0, 0, 0.0

    @property
    def mean_loss(self) -> float | None:
        """Nats per token of the steps that were added up; None if there are none."""
        return self.loss_sum / self.loss_tokens if self.loss_tokens else None

    @property
    def best_row(self) -> Row:
        """The line of the history that belongs to the best weights."""
        return next(row for row in self.history if row["epoch"] == self.best_epoch)
