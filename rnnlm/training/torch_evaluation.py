"""The loss of a whole text, read as one sequence, and still many tokens at a time.

The hidden state cannot be computed side by side: each needs the one before. But it forgets. So a text is cut into
pieces, which are all read from a zero state; then each is read again from the state in which the piece before it ended,
until it comes to a state that it has been in before, and would only repeat itself. If the network does not forget, this
is done again until every piece began in the right state: the result is that of one sequence in any case.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rnnlm.regularization import NO_REGULARIZATION
from rnnlm.training.torch_loss import StepLoss, softmax_loss

STEPS = 512  # of a piece, at most
LEAST = 64  # of a piece; and the steps from one look at the state to the next
SAME = 1e-6  # states, which lie between -1 and 1, are the same if they are as close as this


@torch.no_grad()
def losses(loss: StepLoss, ids: torch.Tensor, pieces: int, first: int = 0) -> Iterator[tuple[float, int]]:
    """Yield the summed losses, in nats, of the parts of a text `ids` (N,), and the number of tokens of each.

    first: what comes before it only goes through the hidden layer, and is in no part.
    """
    state, output = loss.model.zero_state()[0], loss.model.output
    for part, count in parts(0, first, pieces):
        state = side_by_side(loss, ids[part].view(count, -1).T, state)[-1, -1:].clone()
    for part, count in parts(first, len(ids) - 1, pieces):
        states = side_by_side(loss, ids[part].view(count, -1).T, state)
        state = states[-1, -1:].clone()
        y = ids[part.start + 1 : part.stop + 1].view(count, -1).T
        total = softmax_loss(states.flatten(0, 1), output.weight, output.bias, y.flatten(), operand=loss.operand)
        yield total.item(), y.numel()


def parts(start: int, end: int, pieces: int) -> Iterator[tuple[slice, int]]:
    """Yield the parts of a text from `start` to `end`, and into how many pieces of the same length to cut each."""
    while start < end:
        left = min(end - start, pieces * STEPS)
        count = max(1, min(pieces, left // LEAST))
        used = left // count * count
        yield slice(start, start + used), count
        start += used


def side_by_side(loss: StepLoss, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return the states (T, P, H) of P pieces x (T, P) of a text, each the continuation of the one before.

    before: (1, H), the state before the first.
    """
    steps, pieces = x.shape
    projected = loss.projected(x, NO_REGULARIZATION)
    starts = torch.cat([before, before.new_zeros(pieces - 1, before.shape[1])])
    states = loss.recurrence(projected, starts)
    for _ in range(pieces - 1):
        starts = torch.cat([before, states[-1, :-1]])
        for start in range(0, steps, LEAST):
            part = slice(start, start + LEAST)
            again = loss.recurrence(projected[part], starts)
            change = (again[-1] - states[part][-1]).abs().max()
            states[part], starts = again, again[-1]
            if change <= SAME:
                break
        else:
            continue  # a piece ended in another state than before, where the next one has to begin
        break
    return states
