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
    loss_sum: float = 0.0  # nats, over the tokens of those steps
    norm_max: float = 0.0  # the largest gradient norm of those steps
    seconds: float = 0.0  # spent in training steps
    evaluation_seconds: float = 0.0
    rate_scale: float = 1.0  # what the plateau schedule multiplies the learning rate by
    best_epoch: int = 0  # 0: no weights were saved yet
    best_loss: float | None = None
    stale: int = 0  # evaluations since the best
    history: list[Row] = field(default_factory=list)
