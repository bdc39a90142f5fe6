"""The recurrence on a GPU as one kernel instead of two for each step, in Triton, which comes with torch's CUDA build.

A step is a product of (B, H) with (H, H), so small that starting it takes longer than computing it. Here a block of the
GPU keeps the weights and the states of 16 batch rows, and goes through all steps of a chunk. It multiplies with the
matrix units, so this is for --precision tf32 and bfloat16. Networks of more than MOST_HIDDEN units do not fit, and use
a product for each step (torch_loss.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 16  # the least that tl.dot takes
MOST_HIDDEN = 128


def forward(states: torch.Tensor, weight: torch.Tensor, is_rounded: bool) -> None:
    """Turn states (T + 1, B, H), the one before and what is projected for each step, into the states. weight (H, H)."""
    _launch(_forward, states, states, weight, is_rounded)


def backward(grads: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, is_rounded: bool) -> None:
    """Turn grads (T, B, H) of the states, which `forward` has made, into those of what tanh was applied to."""
    _launch(_backward, grads, states, weight, is_rounded)


def _launch(
    kernel: triton.JITFunction, values: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, is_rounded: bool
) -> None:
    batch, hidden = states.shape[1:]
    kernel[(triton.cdiv(batch, ROWS),)](
        values,
        states,
        weight,
        batch,
        hidden,
        STEPS=len(states) - 1,
        IS_ROUNDED=is_rounded,
        ROWS=ROWS,
        WIDTH=max(16, triton.next_power_of_2(hidden)),
    )


@triton.jit
def operand(x, IS_ROUNDED: tl.constexpr):
    """Return x, or rounded to bfloat16: what the matrix units then multiply as TF32 is exact."""
    return x.to(tl.bfloat16).to(tl.float32) if IS_ROUNDED else x


@triton.jit
def _forward(
    values, states, weight, batch, hidden,
    STEPS: tl.constexpr, IS_ROUNDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, WIDTH)[None, :]
    inside = (rows < batch) & (cols < hidden)
    k = tl.arange(0, WIDTH)[:, None]
    w = tl.load(weight + cols * hidden + k, mask=(k < hidden) & (cols < hidden), other=0.0)  # transposed
    w = operand(w, IS_ROUNDED)
    at = states + rows * hidden + cols
    h = tl.load(at, mask=inside, other=0.0)
    for _ in range(STEPS):
        at += batch * hidden
        projected = tl.load(at, mask=inside, other=0.0)
        product = tl.dot(operand(h, IS_ROUNDED), w, input_precision="tf32")
        h = 2.0 * tl.sigmoid(2.0 * (projected + product)) - 1.0  # tanh, to 1e-7
        tl.store(at, h, mask=inside)


@triton.jit
def _backward(
    values, states, weight, batch, hidden,
    STEPS: tl.constexpr, IS_ROUNDED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, WIDTH)[None, :]
    inside = (rows < batch) & (cols < hidden)
    k = tl.arange(0, WIDTH)[:, None]
    w = tl.load(weight + k * hidden + cols, mask=(k < hidden) & (cols < hidden), other=0.0)
    w = operand(w, IS_ROUNDED)
    offset = rows * hidden + cols
    at = values + (STEPS - 1) * batch * hidden + offset
    state = states + STEPS * batch * hidden + offset
    d = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for _ in range(STEPS):
        grad = tl.load(at, mask=inside, other=0.0)
        h = tl.load(state, mask=inside, other=0.0)
        product = tl.dot(operand(d, IS_ROUNDED), w, input_precision="tf32")
        d = (grad + product) * (1.0 - h * h)
        tl.store(at, d, mask=inside)
        at -= batch * hidden
        state -= batch * hidden
