"""Compare runs: `python -m rnnlm.compare weights/*.jsonl`. The code is in rnnlm/training/comparison.py."""

import sys

from rnnlm.training.comparison import main

if __name__ == "__main__":
    sys.exit(main())
