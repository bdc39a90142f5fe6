"""Measure the torch trainer on a GPU: tokens per second, where a step's time goes, and how far the card's limits are.

    python bench/gpu.py [--only best] [--seconds 1.5]                                             about two minutes

A row is a case in one precision. "plain" is PyTorch as its layers make it (plain_torch.py), on the same card. The parts
of a step are recorded as CUDA graphs of their own, and timed by the card's clock. The floor is the larger of two times:
the operations of the mathematics at the rate of a large matrix product, measured in that precision, and the bytes that
the parameters and the optimizer's state must move, at the rate of a large copy. The table is in docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import figures
import torch
from plain_torch import PlainTrainer
from tables import GPU_PRECISIONS, gpu_head, gpu_line
from worker import LEARNING_RATE, random_weights, text

from bench import flops
from rnnlm.training.config import PRESETS, TrainConfig
from rnnlm.training.torch_inputs import arrays_of
from rnnlm.training.torch_loss import rounded, softmax_loss, unrounded
from rnnlm.training.torch_trainer import regularization_of
from rnnlm.training.trainer import Chunk
from torch_rnn import trainer_class

WIKITEXT2 = {"vocab": 31_266, "embed": 300, "hidden": 100, "preset": None, "task": "train"}
CASES: dict[str, dict[str, Any]] = {
    "best, 32 x 35, H=300": {"batch": 32, "steps": 35, "hidden": 300, "preset": "best"},
    "best, 32 x 35, H=100": {"batch": 32, "steps": 35, "preset": "best"},
    "full softmax, 32 x 35, H=100": {"batch": 32, "steps": 35},
    "full softmax, 64 x 35, H=100": {"batch": 64, "steps": 35},
    "full softmax, 1 x 250, H=100": {"batch": 1, "steps": 250},
    "full softmax, 32 x 35, H=300": {"batch": 32, "steps": 35, "hidden": 300},
    "full softmax, 32 x 35, H=1000": {"batch": 32, "steps": 35, "hidden": 1000},
}


def seconds_of(work: Callable[[], object], repeat: int = 20) -> float:
    """Return the seconds of one `work` on the card, without the time that Python takes to start it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return seconds_of_graph(graph, repeat)


def seconds_of_graph(graph: Any, repeat: int = 20, rounds: int = 5) -> float:
    """Return the seconds of one replay, the median of the rounds."""
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeat):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / repeat)
    return statistics.median(times)


def limits() -> dict[str, float]:
    """Measure operations per second by precision, and bytes per second of a copy, read and written."""
    a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    found = {}
    for precision in GPU_PRECISIONS:
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
        x, y = (a.bfloat16(), b.bfloat16()) if precision == "bfloat16" else (a, b)
        found[precision] = 2 * 8192.0**3 / seconds_of(lambda x=x, y=y: x @ y, repeat=3)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return found | {"copy": 2 * (1 << 30) / seconds_of(lambda: target.copy_(source), repeat=3)}


def config_of(case: dict[str, Any], precision: str) -> TrainConfig:
    shared = {"reduction": "mean", "clip": 1.0, "device": "cuda"}
    sizes = {"batch_size": case["batch"], "bptt": case["steps"], "hidden_size": case["hidden"]}
    return TrainConfig(**PRESETS.get(case["preset"], {}) | shared | sizes | {"precision": precision})


def rate_of(step: Callable[[], int], seconds: float) -> float:
    """Return the tokens per second of `step`, which returns how many it has learned from."""
    step()
    torch.cuda.synchronize()
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        tokens += step()
    torch.cuda.synchronize()
    return tokens / (time.perf_counter() - start)


def measure(name: str, case: dict[str, Any], precision: str, seconds: float, top: dict[str, float]) -> dict[str, Any]:
    config = config_of(case, precision)
    weights = random_weights(case["vocab"], case["embed"], case["hidden"])
    x, y, regularizer = text(case, config)
    row: dict[str, Any] = {"case": name, "precision": precision, **case}
    if precision == "float32":
        row["plain_tokens_per_second"] = plain(weights, config, x, y, regularizer, seconds)
    gc.collect()  # the graphs of the case before keep their memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer = trainer_class()(weights, config)
    drawn = 0

    def chunks() -> Iterator[Chunk]:
        nonlocal drawn
        for _ in range(trainer.steps_ahead):
            drawn += 1
            yield Chunk(x, y, LEARNING_RATE, regularizer.draw(drawn, y))

    row["tokens_per_second"] = rate_of(lambda: x.size * len(trainer.train_steps(chunks())), seconds)
    row["megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    graph = next(iter(trainer.graphs.values()), None)
    row |= parts(trainer, x, y, regularizer, config)
    row["step_seconds"] = seconds_of_graph(graph) if graph else None
    parameters = sum(parameter.numel() for parameter in trainer.parameters)
    moved = (24 if config.optimizer == "adamw" else 8) * parameters
    words = min(case["vocab"], config.sampled_softmax + x.size) if config.sampled_softmax else case["vocab"]
    row["floor_arithmetic_seconds"] = flops(case | {"vocab": words}) * x.size / top[precision]
    row["floor_memory_seconds"] = moved / top["copy"]
    return row


def plain(weights: Any, config: TrainConfig, x: Any, y: Any, regularizer: Any, seconds: float) -> float | None:
    """Return the tokens per second of PyTorch's own layers; None if the card's memory is too small for them."""
    try:
        trainer = PlainTrainer(weights, config, "cuda")
        drawn = iter(range(1 << 60))

        def step() -> int:
            trainer.train_step(x, y, LEARNING_RATE, regularizer.draw(next(drawn), y))
            return x.size

        return rate_of(step, seconds)
    except torch.OutOfMemoryError:
        return None


def parts(trainer: Any, x: Any, y: Any, regularizer: Any, config: TrainConfig) -> dict[str, float]:
    """Return the seconds of the hidden layer, of the output layer, and of clipping and update, each recorded apart."""
    most = min(trainer.model.output.out_features, config.sampled_softmax + x.size)
    arrays = arrays_of(Chunk(x, y, LEARNING_RATE, regularizer.draw(0, y)), most)
    tensors = {key: torch.from_numpy(array).cuda() for key, array in arrays.items()}
    regularization = regularization_of(tensors)
    hidden = trainer.hidden.clone()
    states = trainer.loss.states(tensors["x"], hidden, regularization).detach()
    seen, grad = states.flatten(0, 1).requires_grad_(), torch.randn_like(states)
    operand = rounded if config.precision == "bfloat16" else unrounded

    def hidden_layer() -> None:
        trainer.loss.states(tensors["x"], hidden, regularization).backward(grad)

    def output_layer() -> None:
        weight, bias = trainer.model.output_layer(regularization.candidates)
        softmax_loss(seen, weight, bias, tensors["targets"].flatten(), 1.0 / x.size, operand).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
        trainer.update(tensors["learning_rate"])

    found = {}
    for work in (hidden_layer, output_layer, update):
        trainer.optimizer.zero_grad()
        if work is update:
            for parameter in trainer.parameters:
                parameter.grad = torch.randn_like(parameter)
        found[f"{work.__name__}_seconds"] = seconds_of(work)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run only the cases whose names start with this")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement of tokens/s (%(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: torch finds no CUDA device here", file=sys.stderr)
        return 2
    top = limits()
    card = torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}\n{gpu_head({'limits': top})}")
    rows = []
    for name, changed in CASES.items():
        if not name.startswith(options.only):
            continue
        for precision in GPU_PRECISIONS:
            row = measure(name, WIKITEXT2 | changed, precision, options.seconds, top)
            rows.append(row)
            print(gpu_line(row), flush=True)
    whole = options == parser.parse_args([])
    figures.save("gpu", rows, whole=whole, processor=card, cores=None, torch=torch.__version__, limits=top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
