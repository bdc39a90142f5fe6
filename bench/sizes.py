"""Measure the sizes of what is shipped: both images, torch in one of them, and the C library.

    python bench/sizes.py                    seconds

The images are those that `make test-image` built last, as root; without them, the sizes measured before stay. Prints
the table, and writes it to bench/results/sizes.jsonl and docs/deploying.md.
"""

from __future__ import annotations

import subprocess
import sys

import figures
from tables import sizes

from rnnlm.library import library_path

TORCH = ("sh", "-c", "du --summarize --apparent-size --block-size=1 /opt/venv/lib/python*/site-packages/torch")
COMMANDS = {  # of deploy/with_buildah.py, whose first word of output is the number of bytes
    "rnn:serve": ("size", "serve"),
    "rnn:slim": ("size", "slim"),
    "torch": ("run", "serve", "--port", "9", "--", *TORCH),
}


def main() -> None:
    before = {
        row["what"]: {"measured": first["measured"], **row} for first, rows in [figures.read("sizes")] for row in rows
    }
    rows = []
    for what, arguments in COMMANDS.items():
        command = [sys.executable, "deploy/with_buildah.py", *arguments]
        done = subprocess.run(command, cwd=figures.ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            rows.append({"what": what, "bytes": int(done.stdout.split()[0])})
        else:
            print(f"sizes.py: {what} as of {before[what]['measured']}: {done.stderr.strip()}", file=sys.stderr)
            rows.append(before[what])
    rows.append({"what": "library", "bytes": library_path().stat().st_size})
    print(sizes({}, rows))
    figures.save("sizes", rows)


if __name__ == "__main__":
    main()
