"""llama.cpp's server with a random model of WikiText-2's size, for bench/load.py to compare with.

The model is a Llama of one layer, 200 wide: 12.9 million float32 parameters, where an RNN of 31,266 words with E = 300
and H = 100 has 12.6. Needs two packages that nothing else here uses: pip install xllamacpp gguf

    python bench/llama_service.py --port 8765
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

VOCAB, WIDTH, FORWARD, HEADS = 31_266, 200, 400, 4
CONTEXT = 256  # tokens of one sequence
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of token


def write_model(path: Path) -> None:
    """Write a model whose weights are random: speed does not depend on what it has learned."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FORWARD)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    count = VOCAB - len(special)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["\u2581w" + "".join(letters[i // 26**k % 26] for k in range(4)) for i in range(count)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *words])
    writer.add_token_scores([0.0] * len(special) + [-float(i) for i in range(count)])
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * count])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        **{"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH)},
        **{f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        **{"blk.0.ffn_gate": (FORWARD, WIDTH), "blk.0.ffn_up": (FORWARD, WIDTH), "blk.0.ffn_down": (WIDTH, FORWARD)},
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (rng.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llama_service.py", description="Serve a random Llama with llama.cpp.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--sequences", type=int, default=32, help="that advance together (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "random.gguf"
        write_model(path)
        params = xllamacpp.CommonParams()
        params.model.path = os.fspath(path)
        params.hostnames = ["127.0.0.1"]
        params.port = options.port
        params.n_parallel = options.sequences
        params.n_ctx = CONTEXT * options.sequences
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # as the other systems have it
        server = xllamacpp.Server(params)
    while server:
        time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
