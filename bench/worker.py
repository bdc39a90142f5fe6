"""Run one side of a comparison in a process of its own, for bench.py.

    python bench/worker.py '{"engine": "c", "task": "train", "vocab": 31266, ...}'

Prints "ready" once everything is warm. Then it runs one sample for each line that it reads, and prints a line of JSON:
seconds, tokens, the processor seconds of the fastest step, and the process's peak memory. Between samples it waits in a
read and uses no processor time.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

SAMPLE_SECONDS = 0.5  # a sample repeats its task for this long
LEARNING_RATE = 1e-3


def random_weights(vocab: int, embed: int, hidden: int) -> Any:
    from rnnlm.training.initial import initial_weights

    embeddings = np.random.default_rng(0).standard_normal((vocab, embed), dtype=np.float32)
    return initial_weights(embeddings, hidden, seed=0)


def train(spec: dict[str, Any]) -> Callable[[], int]:
    """Return a whole training step as the trainers take it: regularization, forward, BPTT, clipping, update.

    preset: whose regularization, optimizer and average it has; without one, plain SGD.
    """
    from rnnlm.training.config import PRESETS, TrainConfig

    options = {
        **PRESETS.get(spec.get("preset"), {}),
        "batch_size": spec["batch"],
        "threads": spec["threads"],
        "hidden_size": spec["hidden"],
        "reduction": "mean",
        "clip": 1.0,
        "learning_rate": LEARNING_RATE,
        "device": "cpu",
        "precision": "bfloat16" if spec["engine"] == "bfloat16" else "float32",
    }
    config = TrainConfig(**options)
    if spec["engine"] in ("c", "bfloat16"):
        from main import Trainer
    elif spec["engine"] == "ours":
        from torch_rnn import trainer_class

        Trainer = trainer_class()
    else:
        import torch
        from plain_torch import PlainTrainer as Trainer

        torch.set_num_threads(spec["threads"])
        if spec["engine"] == "medium":
            torch.set_float32_matmul_precision("medium")

    trainer = Trainer(random_weights(spec["vocab"], spec["embed"], spec["hidden"]), config)
    if spec["engine"] == "compile":
        trainer.model.forward = torch.compile(trainer.model.forward)
    x, y, regularizer = text(spec, config)
    steps = itertools.count()

    def step() -> int:
        trainer.train_step(x, y, LEARNING_RATE, regularizer.draw(next(steps), y))
        return x.size

    return step


def text(spec: dict[str, Any], config: Any) -> tuple[Any, Any, Any]:
    """Return a chunk x, y (T, B) of random words, and what draws the regularization that `config` asks for."""
    from rnnlm.regularization import CandidateSampler, Regularizer

    shape, rng = (2, spec["steps"], spec["batch"]), np.random.default_rng(1)
    x, y = rng.integers(0, spec["vocab"], shape, dtype=np.int32)
    sampler = None
    if config.is_sampled(spec["vocab"]):  # as many different words in a chunk as in a text, by Zipf's law
        counts = np.maximum(1, 2_000_000 // np.arange(1, spec["vocab"] + 1))
        x, y = rng.choice(spec["vocab"], shape, p=counts / counts.sum()).astype(np.int32)
        sampler = CandidateSampler(counts, config.sampled_softmax)
    regularizer = Regularizer(
        seed=0,
        input_size=spec["embed"],
        hidden_size=spec["hidden"],
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        word_dropout=config.word_dropout,
        vocab_size=spec["vocab"],
        sampler=sampler,
    )
    return x, y, regularizer


def generate(spec: dict[str, Any]) -> Callable[[], int]:
    """Return a step of n sequences that advance together: one token each, sampled at temperature 1."""
    weights = random_weights(spec["vocab"], spec["embed"], spec["hidden"])
    sequences = spec["sequences"]
    rng = np.random.default_rng(2)
    if spec["engine"] == "c":
        from rnnlm.binding import Decoder, Model, sampling_rows

        model = Model(weights, precision=spec.get("precision", "float32"), threads=spec["threads"])
        decoder = Decoder(model, max_sequences=sequences, threads=spec["threads"])
        tokens = np.zeros(sequences, dtype=np.int32)
        states = np.zeros((sequences, spec["hidden"]), dtype=np.float32)
        logprobs = np.empty(sequences, dtype=np.float32)
        sampling = sampling_rows(sequences)

        def step() -> int:
            sampling["u"] = rng.random(sequences)
            decoder.decode(tokens, sampling, states, tokens, logprobs)
            return sequences

        return step

    import torch

    from torch_rnn import RNN

    torch.set_num_threads(spec["threads"])
    network = RNN(weights).eval()
    if spec["engine"] == "compile":
        network.forward = torch.compile(network.forward)
    x, hidden = torch.zeros(1, sequences, dtype=torch.long), network.zero_state(sequences)

    @torch.inference_mode()
    def torch_step() -> int:
        nonlocal x, hidden
        logits, hidden = network(x, hidden)
        x = torch.multinomial(torch.softmax(logits[0], -1), 1).T
        return sequences

    return torch_step


def load(spec: dict[str, Any]) -> Callable[[], int]:
    """Return a load of a weights file up to its first token; file and libraries are already in memory."""
    from rnnlm import language_model  # noqa: F401  (what both sides import, before the clock starts)

    if spec["engine"] == "c":
        from rnn import RNN
    else:
        from torch_rnn import RNN

    def step() -> int:
        RNN.load(spec["path"]).generate("first", max_tokens=1)
        return 1

    return step


def peak_megabytes() -> float:
    """Return the process's peak resident memory in MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


def main() -> None:
    spec = json.loads(sys.argv[1])
    step = {"train": train, "generate": generate, "load": load}[spec["task"]](spec)
    start = time.perf_counter()
    step()
    if time.perf_counter() - start < 2.0:  # even the slowest step is warm after one
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start, tokens, fastest = time.perf_counter(), 0, float("inf")
        while time.perf_counter() - start < SAMPLE_SECONDS:
            used = time.process_time()
            tokens += step()
            fastest = min(fastest, time.process_time() - used)
        sample = {"seconds": time.perf_counter() - start, "tokens": tokens, "fastest_step": fastest}
        print(json.dumps(sample | {"megabytes": peak_megabytes()}), flush=True)


if __name__ == "__main__":
    main()
