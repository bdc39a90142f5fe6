"""The loss of a training step in torch, with a backward pass of its own: few launches, little memory.

The module torch_rnn.RNN is what autograd differentiates; this computes the same loss and the same gradients. Its output
layer never holds the logits of a whole chunk: it goes through them a few megabytes at a time, and has the gradient of
each piece while the piece is still in the cache. The recurrence is one node of autograd instead of one for each step.

With `--precision bfloat16` both operands of every product are rounded to bfloat16, forward and backward, as in the C
library (csrc/output_bfloat16.c), and the products are summed in float32. The two back ends round the same numbers.
"""

from __future__ import annotations

import functools
import math
import shutil
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from rnnlm.regularization import Regularization

# Logits that are in memory at a time. A GPU needs more of them to be busy.
PIECE = {"cpu": 8 << 20, "cuda": 64 << 20}

Rounding = Callable[[torch.Tensor], torch.Tensor]


def unrounded(values: torch.Tensor) -> torch.Tensor:
    return values


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16, to nearest even; the result is float32 again."""
    return values.bfloat16().float()


class _Linear(torch.autograd.Function):
    """x W^T + b with x (T, B, in), W (out, in), b (out)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, operand: Rounding) -> torch.Tensor:
        ctx.operand, operand_of_x = operand, operand(x)
        ctx.save_for_backward(operand_of_x)
        return nn.functional.linear(operand_of_x, operand(weight), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, x = (tensor.flatten(0, 1) for tensor in (ctx.operand(grad), *ctx.saved_tensors))
        return None, grad.T @ x, grad.sum(0), None  # the word vectors are frozen


class _Recurrence(torch.autograd.Function):
    """The states (T, B, H) of h_t = tanh(projected_t + h_(t-1) W^T), with projected (T, B, H), h_-1 (B, H), W (H, H).

    The gradient does not flow into h_-1: back-propagation is truncated there.
    """

    @staticmethod
    def forward(
        ctx: Any, projected: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, operand: Rounding
    ) -> torch.Tensor:
        weight = operand(weight)
        states = torch.cat([before.unsqueeze(0), projected])
        if kernels := _one_kernel(states):
            kernels.forward(states, weight, operand is rounded)
        else:
            for step in range(projected.shape[0]):
                states[step + 1].addmm_(operand(states[step]), weight.T).tanh_()
        ctx.save_for_backward(states, weight)
        ctx.operand = operand
        return states[1:]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        operand, steps = ctx.operand, grad.shape[0]
        grads = grad.clone()  # of the states first, then of what tanh was applied to
        if kernels := _one_kernel(states):
            kernels.backward(grads, states, weight, operand is rounded)
        else:
            for step in range(steps - 1, -1, -1):
                if step < steps - 1:
                    grads[step].addmm_(operand(grads[step + 1]), weight)
                torch.ops.aten.tanh_backward.grad_input(grads[step], states[step + 1], grad_input=grads[step])
        d_weight = operand(grads).flatten(0, 1).T @ operand(states[:-1]).flatten(0, 1)
        return grads, None, d_weight, None


def _one_kernel(states: torch.Tensor) -> types.ModuleType | None:
    """Return torch_recurrence, if it can go through these states, and is faster.

    In plain float32 it is not faster: without the matrix units, one block of the GPU has too much to do.
    """
    has_matrix_units = states.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    kernels = _kernels() if has_matrix_units and states.dtype == torch.float32 else None
    return kernels if kernels and states.shape[2] <= kernels.MOST_HIDDEN else None


@functools.cache
def _kernels() -> types.ModuleType | None:
    """Return torch_recurrence; None without triton, as in torch's build for Windows, or the C compiler it calls."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return None
    try:
        from rnnlm.training import torch_recurrence
    except ImportError:
        return None
    return torch_recurrence


class _SoftmaxLoss(torch.autograd.Function):
    """`scale` times the summed cross entropy of logits h W^T + b, with h (N, H), W (V, H), b (V) and targets (N)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        scale: float,
        operand: Rounding,
        is_trained: bool,
    ) -> torch.Tensor:
        loss = _rounded_loss if operand is rounded else _exact_loss
        grads = [torch.empty_like(tensor) for tensor in (hidden, weight, bias)] if is_trained else None
        weight = operand(weight)
        losses = []
        for rows in pieces(len(hidden), len(weight), hidden.device.type):
            part = Gradients(grads[0][rows], *grads[1:], kept=float(bool(losses))) if grads else None
            losses.append(loss(hidden[rows], weight, bias, targets[rows], scale, part))
        ctx.grads = grads
        return torch.stack(losses).sum() * scale

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if grad.device.type != "cpu" or grad != 1.0:  # comparing on a GPU would mean waiting for it
            ctx.grads = [part.mul_(grad) for part in ctx.grads]
        return *ctx.grads, None, None, None, None


def softmax_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    scale: float = 1.0,
    operand: Rounding = unrounded,
) -> torch.Tensor:
    """Return `scale` times the summed cross entropy of logits h W^T + b: h (N, H), W (V, H), b (V), targets (N)."""
    is_trained = torch.is_grad_enabled()  # within the function it is not
    return _SoftmaxLoss.apply(hidden, weight, bias, targets, scale, operand, is_trained)


def pieces(rows: int, width: int, device: str) -> Iterator[slice]:
    """Yield the rows of a matrix of so many rows and columns, PIECE numbers at a time."""
    most = max(1, PIECE[device] // width)
    for start in range(0, rows, most):
        yield slice(start, start + most)


class Gradients(NamedTuple):
    """Where the gradients of a piece go: to hidden (N, H), and on top of `kept` times weight (V, H) and bias (V)."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    kept: float  # 0.0: for the first piece. There is nothing to add to, and no pass to fill it with zeros


def _exact_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
    grads: Gradients | None,
) -> torch.Tensor:
    """Return the summed loss of hidden (N, H). Adds the gradients of `scale` times this loss."""
    log_probabilities = torch.log_softmax(torch.addmm(bias, hidden, weight.T), 1)
    own = log_probabilities.gather(1, targets.unsqueeze(1))
    if grads:
        # expm1: near a probability of 1, the target's own share of the gradient is a small difference.
        errors = log_probabilities.exp_().scatter_(1, targets.unsqueeze(1), torch.expm1(own))
        grads.hidden.addmm_(errors, weight, beta=0.0, alpha=scale)
        grads.weight.addmm_(errors.T, hidden, beta=grads.kept, alpha=scale)
        grads.bias.addmv_(errors.T, torch.ones_like(own.squeeze(1)), beta=grads.kept, alpha=scale)
    return -own.sum()


def _rounded_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
    grads: Gradients | None,
) -> torch.Tensor:
    """As _exact_loss, of rounded operands; weight (V, H) is rounded already.

    The exponentials are relative to a whole power of two, which does not change how they are rounded. The target's own
    share of the gradient is not: near a probability of 1, rounding costs more than the gradient is worth.
    """
    operand, targets = rounded(hidden), targets.unsqueeze(1)
    logits = torch.addmm(bias, operand, weight.T)
    powers = torch.ceil(logits.max(1, keepdim=True).values * math.log2(math.e))
    own = logits.gather(1, targets)
    exponentials = torch.add(-powers, logits, alpha=math.log2(math.e), out=logits).exp2_()
    sums = exponentials.sum(1, keepdim=True)
    losses = (powers + torch.log2(sums)) * math.log(2.0) - own
    if grads:
        ids, exponentials = targets.squeeze(1), _short(exponentials).scatter_(1, targets, 0.0)
        factor, own = scale / sums, scale * torch.expm1(-losses)  # of the errors; the target's own
        grads.hidden.copy_(factor * _product(exponentials, _short(weight)) + own * weight[ids])
        columns = _product(exponentials.T, _short(torch.cat([factor * hidden, factor], 1)))
        for grad, part, errors in (
            (grads.weight, columns[:, :-1], own * operand),
            (grads.bias, columns[:, -1], own.squeeze(1)),
        ):
            torch.add(part, grad, alpha=grads.kept, out=grad) if grads.kept else grad.copy_(part)
            # index_put_: unlike index_add_, it adds rows of the same word in a fixed order on a GPU too.
            grad.index_put_((ids,), errors, accumulate=True)
    return losses.sum()


def _short(values: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16, and leave it so on a GPU, whose matrix units read it."""
    return values.bfloat16() if values.is_cuda else rounded(values)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product, in float32, of what _short has made."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a @ b


class StepLoss(nn.Module):
    """The loss of a model, a torch_rnn.RNN.

    is_rounded: whether the operands of the products are rounded to bfloat16.
    """

    def __init__(self, model: Any, *, is_rounded: bool = False) -> None:
        super().__init__()
        self.model, self.operand = model, rounded if is_rounded else unrounded

    def forward(
        self,
        x: torch.Tensor,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        regularization: Regularization,
        scale: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `scale` times the summed loss, and the last hidden state (1, B, H).

        x (T, B); hidden (1, B, H).  targets (T, B): token ids, or of a sampled softmax the positions in its candidates.
        """
        states = self.states(x, hidden, regularization)
        seen = self.model.masked(states, regularization.output_mask).flatten(0, 1)
        weight, bias = self.model.output_layer(regularization.candidates)
        loss = softmax_loss(seen, weight, bias, targets.flatten(), scale, self.operand)
        return loss, states[-1:].detach()

    def states(self, x: torch.Tensor, hidden: torch.Tensor, regularization: Regularization) -> torch.Tensor:
        """Return the hidden states (T, B, H) of ids x (T, B), from hidden (1, B, H) on."""
        return self.recurrence(self.projected(x, regularization), hidden[0])

    def projected(self, x: torch.Tensor, regularization: Regularization) -> torch.Tensor:
        """Return Wxh e + bh (T, B, H) of the vectors e of ids x (T, B)."""
        rnn = self.model.rnn
        vectors = self.model.vectors_of(x, regularization)
        return _Linear.apply(vectors, rnn.weight_ih_l0, rnn.bias_ih_l0, self.operand)

    def recurrence(self, projected: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Return the hidden states (T, B, H) that follow on `before` (B, H)."""
        return _Recurrence.apply(projected, before, self.model.rnn.weight_hh_l0, self.operand)
