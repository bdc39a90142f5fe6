"""The format of the resume file: a safetensors file (see container.py) with the state of a training run.

Raises the errors of checkpoint.py.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnlm import container
from rnnlm.container import Kind
from rnnlm.files import digest
from rnnlm.strict_json import Invalid, decode_json, encode_json

AFRESH = "train without --resume, with another --out or --overwrite"
_KIND = Kind("rnn-resume", "3", "resume file", remedy=AFRESH, instead=AFRESH)


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write the state of a training run: named arrays, and JSON values. Atomic, as checkpoint.save is.

    arrays: float32, float64, int32, int64 or uint8, not empty, at most container.MAX_TENSORS.
    keep: the new name of the file that was at `path`, once the new one is whole.
    Raises SaveError; ValueError for an array or a value that the file cannot hold.
    """
    text = encode_json("state", dict(metadata))
    container.write(path, _KIND, {"state": text, "sha256": _digest(text, arrays)}, arrays, keep)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays (new and writable) and the values of a resume file. Raises CheckpointError, OtherVersion."""
    with container.opened(path, _KIND) as file:
        text = file.metadata("state")
        state = decode_json("state", text)
        if not isinstance(state, dict):
            raise Invalid("state must be a JSON object")
        arrays = {name: file.read(name) for name in file.entries}
        if _digest(text, arrays) != file.metadata("sha256"):
            raise Invalid("is damaged: it does not hold what was saved")
        return arrays, state


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the digest of a resume file's content: the JSON text, and each array's name, type, shape and numbers."""
    heads = [[name, container.DTYPE_CODES.get(array.dtype), array.shape] for name, array in arrays.items()]
    return digest(json.dumps([text, heads]).encode(), *arrays.values())
