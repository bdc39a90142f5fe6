"""What the steps of a run read, brought to a GPU in one copy for each step.

The copy is made from page-locked memory while the GPU still computes the steps before. Neither side waits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rnnlm.arrays import F32
from rnnlm.regularization import Candidates
from rnnlm.training.trainer import Chunk

Array = npt.NDArray[Any]

_ALIGNMENT = 64  # bytes; enough for every type


def arrays_of(chunk: Chunk, candidates: int | None = None) -> dict[str, Array]:
    """Return by name what a step on `chunk` reads, with ids as torch wants them.

    candidates: fill a sampled softmax up to so many, so that all steps have the same shapes. What is added has
    probability 0.
    """
    x, y, rate, regularization = chunk
    arrays: dict[str, Array | None] = {
        "x": x.astype(np.int64),
        "targets": y.astype(np.int64),
        "learning_rate": np.array(rate, dtype=np.float32),
        "input_mask": regularization.input_mask,
        "output_mask": regularization.output_mask,
        "dropped_words": regularization.dropped_words,
    }
    if (sample := regularization.candidates) is not None:
        arrays["targets"] = sample.targets.astype(np.int64)
        arrays["ids"], arrays["correction"] = _filled(sample, candidates or sample.ids.size)
    return {name: array for name, array in arrays.items() if array is not None}


def _filled(candidates: Candidates, size: int) -> tuple[Array, F32]:
    """Return the ids (size,) and the corrections (size,); those that are added are -inf."""
    ids, correction = np.zeros(size, dtype=np.int64), np.full(size, -np.inf, dtype=np.float32)
    ids[: candidates.ids.size], correction[: candidates.ids.size] = candidates.ids, candidates.correction
    return ids, correction


class Place(NamedTuple):
    """Where an array lies in the memory of a layout."""

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Layout:
    """Memory on the device for arrays of certain names, types and shapes, and for as many copies of it on the host.

    tensors: by name, on the device. They stay where they are: `put` replaces their contents.
    """

    def __init__(self, like: Mapping[str, Array], device: torch.device, ahead: int) -> None:
        """ahead: how many contents may be under way. The caller waits for the device after as many, at the latest."""
        places, size = {}, 0
        for name, array in like.items():
            places[name] = Place(size, size + array.nbytes, array.shape, array.dtype)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        is_locked = device.type == "cuda"
        self._hosts = [torch.empty(size, dtype=torch.uint8, pin_memory=is_locked) for _ in range(ahead)]
        self._views = [{name: _view(host.numpy(), place) for name, place in places.items()} for host in self._hosts]
        self._next = 0
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self.tensors = {name: self._tensor(place) for name, place in places.items()}

    def _tensor(self, place: Place) -> torch.Tensor:
        dtype = torch.from_numpy(np.empty(0, place.dtype)).dtype
        return self._device[place.start : place.stop].view(dtype).view(place.shape)

    def put(self, arrays: Mapping[str, Array]) -> None:
        """Replace the contents."""
        for name, view in self._views[self._next].items():
            view[...] = arrays[name]
        self._device.copy_(self._hosts[self._next], non_blocking=True)
        self._next = (self._next + 1) % len(self._hosts)


def _view(memory: Array, place: Place) -> Array:
    return memory[place.start : place.stop].view(place.dtype).reshape(place.shape)


def shapes(arrays: Mapping[str, Array]) -> Hashable:
    """Return what two sets of arrays have in common if they fit into the same layout."""
    return tuple((name, array.shape, array.dtype.str) for name, array in arrays.items())
