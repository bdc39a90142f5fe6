"""Train the C model: `python main.py --preset demo`. The options: `python main.py --help`.

The training itself is in rnnlm/training: loop.py is the loop, c_trainer.py what the C library does in it.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C while the rest is imported ends it at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from rnnlm import packages

    packages.require("numpy", "main.py")

import sys

from rnn import RNN
from rnnlm.training import cli
from rnnlm.training.c_trainer import CTrainer


class Trainer(CTrainer):
    """Trains `rnn.RNN`."""

    model_class = RNN


if __name__ == "__main__":
    sys.exit(cli.main(Trainer))
