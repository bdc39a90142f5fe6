"""Compare runs: `python -m rnnlm.compare weights/*.jsonl`. The code is in rnnlm/training/comparison.py."""

import sys

from rnnlm import packages

if __name__ == "__main__":
    packages.require("numpy", "python -m rnnlm.compare")

    from rnnlm.training.comparison import main

    sys.exit(main())
