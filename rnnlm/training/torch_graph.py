"""A training step on a GPU as a CUDA graph: recorded once, then started as one piece.

A step is some 300 kernels of a few microseconds. Python starts them more slowly than the GPU runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

WARM_UPS = 2  # so that libraries have loaded what they need, and the optimizer has its state
MOST_STEPS = 10_000  # of a chunk; a longer one keeps the GPU busy, and its graph would be large


class Graph:
    """A step that reads and writes the same memory each time."""

    def __init__(self, step: Callable[[], torch.Tensor], state: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Record `step`. It is also run a few times before, and what it did is undone.

        state: returns all tensors that a step changes. Those that the first step creates start as zeros.
        """
        before = {id(tensor): tensor.detach().clone() for tensor in state()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # not the default stream, as recording demands
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = step()
        with torch.no_grad():
            for tensor in state():
                if id(tensor) in before:
                    tensor.copy_(before[id(tensor)])
                else:
                    tensor.zero_()

    def replay(self) -> torch.Tensor:
        """Start the step. Returns its result, which the next step overwrites."""
        self._graph.replay()
        return self._result
