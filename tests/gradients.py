"""Compute the same loss and gradients twice: with the C library, and with torch's autograd in float64."""

from __future__ import annotations

import numpy as np
import torch

from rnnlm.binding import Workspace
from rnnlm.checkpoint import Weights
from rnnlm.regularization import NO_REGULARIZATION, CandidateSampler, Regularization, Regularizer
from rnnlm.training.torch_loss import StepLoss
from torch_rnn import RNN

Gradients = tuple[float, dict[str, np.ndarray], np.ndarray]  # summed loss, by name in our layout, last state (B, H)


def chunk(vocab: int, hidden: int, steps: int, batch: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return random x, y (T, B) and state (B, H)."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, vocab, (2, steps, batch), dtype=np.int32)
    return x, y, rng.uniform(-1, 1, (batch, hidden)).astype(np.float32)


def some_regularization(
    vocab: int, embed: int, hidden: int, y: np.ndarray, sampled: int, seed: int = 0
) -> Regularization:
    counts = np.random.default_rng(seed).integers(1, 1000, vocab)
    sampler = CandidateSampler(counts, sampled) if sampled else None
    rates = {"dropout": 0.4, "input_dropout": 0.2, "word_dropout": 0.3}
    regularizer = Regularizer(
        seed=seed, input_size=embed, hidden_size=hidden, vocab_size=vocab, sampler=sampler, **rates
    )
    return regularizer.draw(3, y)


def by_torch(
    weights: Weights,
    x: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    regularization: Regularization = NO_REGULARIZATION,
) -> Gradients:
    model = RNN(weights).double()
    logits, hidden = model(torch.tensor(x, dtype=torch.long), torch.tensor(state).double().unsqueeze(0), regularization)
    targets = regularization.candidates.targets if regularization.candidates else y
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets, dtype=torch.long).flatten(), reduction="sum"
    )
    return _gradients(model, loss, hidden)


def by_torch_rounded(
    weights: Weights, x: np.ndarray, y: np.ndarray, state: np.ndarray, regularization: Regularization
) -> Gradients:
    """As by_torch, in float32 and with the operands of all products rounded to bfloat16."""
    model = RNN(weights)
    targets = regularization.candidates.targets if regularization.candidates else y
    loss, hidden = StepLoss(model, is_rounded=True)(
        torch.tensor(x, dtype=torch.long),
        torch.tensor(state).unsqueeze(0),
        torch.tensor(targets, dtype=torch.long),
        regularization,
    )
    return _gradients(model, loss, hidden)


def _gradients(model: RNN, loss: torch.Tensor, hidden: torch.Tensor) -> Gradients:
    loss.backward()
    grads = {
        name: (tensor.grad.T if transposed else tensor.grad).numpy()
        for name, (tensor, transposed) in model._matrices().items()
        if name != "embeddings"
    }
    return loss.item(), grads, hidden[0].detach().numpy()


def by_c(
    weights: Weights,
    x: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    regularization: Regularization = NO_REGULARIZATION,
    *,
    scale: float = 1.0,
    threads: int = 2,
    precision: str = "float32",
) -> Gradients:
    dims = weights.vocab_size, weights.embed_size, weights.hidden_size
    most = min(dims[0], regularization.candidates.ids.size) if regularization.candidates else 0
    chunk = {"max_steps": x.shape[0], "max_batch": x.shape[1], "max_candidates": most}
    work = Workspace(*dims, **chunk, threads=threads, precision=precision)
    params, state, candidates = weights.flat_parameters(), state.copy(), regularization.candidates
    if candidates:
        params = by_words(params, dims[0], dims[2])
    # Gradients are overwritten, not accumulated.
    grads = np.full(work.gradient_count(candidates), np.nan, dtype=np.float32)
    loss = work.loss_grad(params, weights.embeddings, x, y, state, grads, scale, regularization)
    if candidates:
        head = grads.size - candidates.ids.size * (dims[2] + 1)
        columns = np.zeros((dims[2] + 1, dims[0]), dtype=np.float32)
        columns[:, candidates.ids] = grads[head:].reshape(-1, dims[2] + 1).T
        grads = np.concatenate([grads[:head], columns.ravel()])
    return loss, Weights.from_flat(weights.embeddings, grads, dims[2]).parameters(), state


def by_words(params: np.ndarray, vocab: int, hidden: int) -> np.ndarray:
    """Lay flat parameters out by words, as rnnlib.h says."""
    head = params.size - vocab * (hidden + 1)
    return np.concatenate([params[:head], params[head:].reshape(hidden + 1, vocab).T.ravel()])
