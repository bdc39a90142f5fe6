"""Products of bfloat16 operands in torch: what `--precision bfloat16` means for the torch model.

As in the C library (csrc/output_bfloat16.c), both operands of every product are rounded to bfloat16, forward and
backward, and the products are summed in float32. The two back ends round the same numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from rnnlm.regularization import Regularization


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16, to nearest even; the result is float32 again."""
    return values.bfloat16().float()


class _Linear(torch.autograd.Function):
    """x W^T + b with x (N, in), W (out, in), b (out)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x, weight = rounded(x), rounded(weight)
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight = ctx.saved_tensors
        grad = rounded(grad)
        return grad @ weight, grad.T @ x, grad.sum(0)


class _SoftmaxLoss(torch.autograd.Function):
    """The summed cross entropy of logits h W^T + b, with h (N, H), W (V, H), b (V) and targets (N).

    The exponentials are relative to a whole power of two, which does not change how they are rounded. The target's own
    share of the gradient is not: near a probability of 1, rounding costs more than the gradient is worth.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        operand, weight = rounded(hidden), rounded(weight)
        logits = operand @ weight.T + bias
        powers = torch.ceil(logits.max(1, keepdim=True).values * math.log2(math.e))
        exponentials = torch.exp2(logits * math.log2(math.e) - powers)
        sums = exponentials.sum(1, keepdim=True)
        log_sums = (powers + torch.log2(sums)) * math.log(2.0)
        losses = log_sums - logits.gather(1, targets.unsqueeze(1))
        exponentials = rounded(exponentials).scatter_(1, targets.unsqueeze(1), 0.0)
        ctx.save_for_backward(hidden, operand, weight, targets, exponentials, sums, -torch.expm1(-losses))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, operand, weight, targets, exponentials, sums, missing = ctx.saved_tensors
        factor, own = grad / sums, grad * missing
        d_hidden = factor * (exponentials @ weight) - own * weight[targets]
        d_weight = (exponentials.T @ rounded(factor * hidden)).index_add_(0, targets, -own * operand)
        d_bias = (exponentials.T @ rounded(factor)).index_add_(0, targets, -own).squeeze(1)
        return d_hidden, d_weight, d_bias, None


class RoundedLoss(nn.Module):
    """The summed loss of a model, a torch_rnn.RNN, with products of bfloat16 operands."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor, regularization: Regularization
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the last hidden state (1, B, H) for x, targets (T, B) and hidden (1, B, H)."""
        rnn, output, state = self.model.rnn, self.model.output, hidden[0]
        inputs = self.model.vectors_of(x, regularization)
        states = []
        for step in inputs:
            projected = _Linear.apply(step, rnn.weight_ih_l0, rnn.bias_ih_l0)
            state = torch.tanh(projected + _Linear.apply(state, rnn.weight_hh_l0, rnn.bias_hh_l0))
            states.append(state)
        seen = self.model.masked(torch.stack(states), regularization.output_mask).flatten(0, 1)
        weight, bias = output.weight, output.bias
        if regularization.candidates is not None:
            ids = torch.tensor(regularization.candidates.ids, dtype=torch.long, device=x.device)
            correction = torch.tensor(regularization.candidates.correction, device=x.device)
            weight, bias = weight[ids], bias[ids] + correction
        return _SoftmaxLoss.apply(seen, weight, bias, targets.flatten()), state.unsqueeze(0)
