"""The two trainers, as main.py and torch_rnn.py plug them into the loop, and a small run that has not begun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import make_weights

import torch_rnn
from main import Trainer as CTrainer
from rnnlm.data.corpus import Corpus
from rnnlm.data.text import Vocabulary
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.run import Run
from rnnlm.training.trainer import Trainer

TorchTrainer = torch_rnn.trainer_class()
TRAINERS: dict[str, type[Trainer]] = {"c": CTrainer, "torch": TorchTrainer}


def small_run(trainer_class: type[Trainer], folder: Path, group: Group | None = None, **changed: object) -> Run:
    """A run on 100 random tokens of 11 words: 7 steps an epoch."""
    weights = make_weights(11, 4, 5)
    words = ("<EOS>", *"abcdefghij")
    chosen = {"batch_size": 2, "bptt": 8, "optimizer": "adamw", "reduction": "mean", "epochs": 3, "threads": 1}
    chosen |= changed
    config = TrainConfig(**{"learning_rate": 0.1, "hidden_size": 5, "out": str(folder / "small")} | chosen)
    ids = np.random.default_rng(0).integers(0, 11, 100, dtype=np.int32)
    corpus = Corpus("small", "plain", Vocabulary(words), np.ones(11, dtype=np.int64), ids, ids, ids, None, {})
    return Run(config, corpus, trainer_class(weights, config), weights.embeddings, group or Group())


def take_step(one: Run, index: int) -> None:
    """Learn from the chunk `index` of an epoch, and nothing else: the progress stays as it is."""
    one.trainer.train_step(*one.batches.chunk(index), 0.1)
