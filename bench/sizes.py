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

from rnnlm.errors import Failure, exit_code_of
from rnnlm.library import library_path

TORCH = ("sh", "-c", "du --summarize --apparent-size --block-size=1 /opt/venv/lib/python*/site-packages/torch")
COMMANDS = {  # of deploy/with_buildah.py, whose first word of output is the number of bytes
    "rnn:serve": ("size", "serve"),
    "rnn:slim": ("size", "slim"),
    "torch": ("run", "serve", "--port", "9", "--", *TORCH),
}


def measured_before() -> dict[str, figures.Row]:
    """Return the rows of the results file, each with its date; none if there is no file."""
    if not (figures.RESULTS / "sizes.jsonl").exists():
        return {}
    first, rows = figures.read("sizes")
    return {row["what"]: {"measured": first["measured"], **row} for row in rows}


def work() -> None:
    before = measured_before()
    rows = []
    for what, arguments in COMMANDS.items():
        command = [sys.executable, "deploy/with_buildah.py", *arguments]
        done = subprocess.run(command, cwd=figures.ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            rows.append({"what": what, "bytes": int(done.stdout.split()[0])})
        elif what not in before:
            raise Failure(f"{what} cannot be measured (make test-image builds it): {done.stderr.strip()}")
        else:
            print(f"sizes.py: {what} as of {before[what]['measured']}: {done.stderr.strip()}", file=sys.stderr)
            rows.append(before[what])
    rows.append({"what": "library", "bytes": library_path().stat().st_size})
    print(sizes({}, rows))
    figures.save("sizes", rows)


if __name__ == "__main__":
    sys.exit(exit_code_of("sizes.py", work))
