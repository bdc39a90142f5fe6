"""Write a model as an ONNX file: `python -m rnnlm.export weights/demo.safetensors demo.onnx` (pip install onnx).

    ids (T, B) int64, hidden (1, B, H)  ->  logits (T, B, V), last (1, B, H)

What is not an id is float32. The graph does what torch_rnn.RNN does; its metadata has the words, in id order and one a
line, as `vocabulary`, and the `tokenizer`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rnnlm import packages

if __name__ == "__main__":
    packages.require("numpy", "python -m rnnlm.export")

import numpy as np

from rnnlm import checkpoint, terminal
from rnnlm.checkpoint import Checkpoint
from rnnlm.errors import ArgumentParser, UserError, exit_code_of, show_path
from rnnlm.files import atomic_write

MAX_BYTES = (2 << 30) - (16 << 20)  # of the weights: an ONNX file is a protobuf, which ends at 2 GiB


def onnx_model(source: Checkpoint) -> bytes:
    """Return the model as the bytes of an ONNX file. Raises UserError (no package onnx, too large a model)."""
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise UserError(f"the export needs a package that is not there ({error}): pip install onnx") from error
    weights = source.weights
    size = weights.embeddings.nbytes + sum(array.nbytes for array in weights.parameters().values())
    if size > MAX_BYTES:
        raise UserError(
            f"the model takes {size:,} bytes, more than the {MAX_BYTES:,} of an ONNX file: train one with a smaller "
            "--vocab-size"
        )
    constants = {
        "embeddings": weights.embeddings,
        "W": weights.Wxh.T[np.newaxis],  # (1, H, E): ONNX keeps (out, in), for each direction
        "R": weights.Whh.T[np.newaxis],  # (1, H, H)
        "B": np.concatenate([weights.bh, np.zeros_like(weights.bh)])[np.newaxis],  # (1, 2 H): ONNX has two
        "Why": weights.Why,
        "by": weights.by,
        "direction": np.array([1], dtype=np.int64),  # the axis of the states (T, 1, B, H) that is not needed
    }
    nodes = [
        helper.make_node("Gather", ["embeddings", "ids"], ["vectors"]),
        helper.make_node(
            "RNN", ["vectors", "W", "R", "B", "", "hidden"], ["states", "last"], hidden_size=weights.hidden_size
        ),
        helper.make_node("Squeeze", ["states", "direction"], ["h"]),
        helper.make_node("MatMul", ["h", "Why"], ["product"]),
        helper.make_node("Add", ["product", "by"], ["logits"]),
    ]
    hidden = [1, "B", weights.hidden_size]
    graph = helper.make_graph(
        nodes,
        "rnn",
        inputs=[
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["T", "B"]),
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, hidden),
        ],
        outputs=[
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", "B", weights.vocab_size]),
            helper.make_tensor_value_info("last", TensorProto.FLOAT, hidden),
        ],
        initializer=[numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"vocabulary": "\n".join(source.vocabulary), "tokenizer": source.tokenizer})
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the command line asks. Returns the exit code; an error is one line on stderr."""
    terminal.prepare()
    parser = ArgumentParser(prog="python -m rnnlm.export", description="Write a model as an ONNX file.")
    parser.add_argument("weights", help="a weights file, such as weights/demo.safetensors")
    parser.add_argument("out", help="the file to write, replaced if it exists; its name ends in .onnx")
    options = parser.parse_args(arguments)

    def work() -> None:
        if Path(options.out).suffix != ".onnx":
            raise UserError(f"the name of the output must end in .onnx, got {show_path(options.out)}")
        source = checkpoint.load(options.weights)
        checkpoint.check_finite(source.weights, options.weights)
        atomic_write(options.out, onnx_model(source))
        weights = source.weights
        sizes = f"V={weights.vocab_size:,}, E={weights.embed_size:,}, H={weights.hidden_size:,}"
        print(f"{show_path(options.out)}: {sizes}")

    return exit_code_of(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
