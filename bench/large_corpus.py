"""Measure memory and start-up time on a corpus of WikiText-103's size.

    python bench/large_corpus.py                       80 million tokens of 200,000 words, in a temporary folder
    python bench/large_corpus.py --tokens 2000000      a quick look
    python bench/large_corpus.py --keep FOLDER         keeps the text and the cache there

The words of the text follow Zipf's law; its first half is a single line. main.py starts on it twice, first with an
empty cache and then with a full one. Its address space is limited to 3 GB (prlimit), and it is stopped some steps
later. Prints what it measured, and without options writes it to bench/results/large_corpus.jsonl and
docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3 << 30
EMBED = 100


def names(count: int) -> list[str]:
    """Return distinct words of the letters a to z, short ones first."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words: list[str] = []
    for number in range(count):
        word = ""
        while number >= 0:
            word, number = letters[number % 26] + word, number // 26 - 1
        words.append(word)
    return words


def write_text(path: Path, tokens: int, words: list[str]) -> int:
    """Write words by Zipf's law, each at least once, in sentences of 20. Returns the file's size."""
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(1.0 / np.arange(1, len(words) + 1))
    table = np.array(words, dtype=object)
    written = 0
    with open(path, "w", encoding="ascii") as file:
        while written < tokens:
            count = min(1 << 20, tokens - written)
            ids = np.searchsorted(cumulative, rng.random(count) * cumulative[-1])
            if written == 0:
                ids[: len(words)] = np.arange(len(words))[: len(ids)]
            end = ". " if written < tokens // 2 else ".\n"
            chunk = table[ids]
            file.write("".join(" ".join(chunk[i : i + 19]) + end for i in range(0, count, 19)))
            written += count + -(-count // 19)  # a sentence's end is a token
    return path.stat().st_size


def write_vectors(path: Path, words: list[str]) -> None:
    """Write a word2vec file: training vectors would take an hour, and the tokens do not depend on them."""
    rows = np.random.default_rng(1).standard_normal((len(words), EMBED), dtype=np.float32)
    with open(path, "wb") as file:
        file.write(b"%d %d\n" % rows.shape)
        for word, row in zip(words, rows, strict=True):
            file.write(word.encode() + b" " + row.tobytes() + b"\n")


def start(folder: Path, text: Path, vectors: Path) -> tuple[float, float, float, str, int]:
    """Run main.py and stop it when it estimates how long the run will take, after its first steps.

    Returns the seconds until the tokens were ready and until the first step, the processor seconds until then, the
    estimate, and the peak of its resident memory in bytes.
    """
    arguments = [
        *("--preset", "best", "--corpus", str(text), "--embeddings", str(vectors), "--out", str(folder / "model")),
        *("--hidden-size", "100", "--sampled-softmax", "2000", "--validation-tokens", "5000", "--threads", "2"),
        "--overwrite",
    ]
    begun = time.monotonic()
    process = subprocess.Popen(
        ["prlimit", f"--as={LIMIT}", sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=ROOT,
        env=os.environ | {"RNN_CACHE_DIR": str(folder / "cache")},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr
    tokens = ready = used = 0.0
    lines, estimate = [""], ""
    for line in process.stderr:
        lines.append(line.strip())
        if "words in the vocabulary" in line:
            tokens = time.monotonic() - begun
        if line.startswith("epoch 0/"):
            ready, used = time.monotonic() - begun, processor_seconds(process.pid)
        if " left: " in line:
            estimate = line.strip()
            process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 130:
        sys.exit(lines[-1])
    return tokens, ready, used, estimate, usage.ru_maxrss * 1024


def processor_seconds(process: int) -> float:
    """Return the processor time that a running process has taken so far, in user and system mode (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=80_000_000)
    parser.add_argument("--words", type=int, default=200_000)
    parser.add_argument("--keep", type=Path, help="a folder for the text and the cache; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text, vectors = folder / "zipf.txt", folder / "zipf.bin"
        words = names(options.words)
        if not text.exists():
            size = write_text(text, options.tokens, words)
            write_vectors(vectors, words)
            print(f"{options.tokens:,} tokens, {options.words:,} words, {size / 1e6:,.0f} MB of text", flush=True)
        rows = []
        for name in ("first start", "second start"):
            tokens, ready, used, estimate, peak = start(folder, text, vectors)
            print(
                f"{name:<13} tokens after {tokens:.1f} s, first step after {ready:.1f} s ({used:.1f} s of processor "
                f"time), peak {peak / 1e6:,.0f} MB"
            )
            print(f"{'':<13} {estimate}", flush=True)
            rows.append(
                {
                    "start": name,
                    "tokens_seconds": round(tokens, 1),
                    "ready_seconds": round(ready, 1),
                    "processor_seconds": round(used, 1),
                    "peak_mb": round(peak / 1e6),
                }
            )
    figures.save("large_corpus", rows, whole=vars(options) == vars(parser.parse_args([])))


if __name__ == "__main__":
    main()
