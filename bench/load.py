"""Measure a real server process under load: `make load`, or `python bench/load.py --help`.

Each client keeps one connection open and requests one streamed generation after the other. For several numbers of
clients the script measures requests and tokens per second, and the median and 99th percentile of the time to the first
token and of the time between two tokens: of the C model, the torch model, a plain FastAPI route around the torch model
(bench/plain_service.py), and, if the packages that it needs are installed, llama.cpp's server with a model of the same
size (bench/llama_service.py). If several tokens arrive in one piece, all but the first count as 0 apart.

Only one server runs at a time, in a process of its own, and the clients run in another: on two processors they have one
each. Prints a table, and writes bench/results/load.jsonl and the table of docs/performance.md; with any option, what it
measured goes to bench/results/partial.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import figures
from servers import end_in_order, free_port, started
from tables import LOAD_HEAD, load_end, load_line, load_start
from worker import random_weights

from rnnlm import checkpoint
from rnnlm.data.text import EOS

SYSTEMS = ("c", "torch", "plain", "llama")
STARTUP_SECONDS = 120.0


def can_run(system: str) -> bool:
    """Return whether what a system needs is installed."""
    return system != "llama" or all(importlib.util.find_spec(package) for package in ("xllamacpp", "gguf"))


@dataclass
class Tally:
    """What the clients saw in one round; times in seconds."""

    requests: int = 0
    tokens: int = 0
    refused: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


# ---- Servers ---------------------------------------------------------------------------------------------------------


def make_weights(path: Path, vocab: int, embed: int, hidden: int) -> None:
    """Write random weights of a real size: speed does not depend on what the model has learned."""
    weights = random_weights(vocab, embed, hidden)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = (EOS, *("w" + "".join(letters[i // 26**k % 26] for k in range(4)) for i in range(vocab - 1)))
    checkpoint.save(path, checkpoint.Checkpoint(weights, words, "plain", "c", {}, []))


@contextlib.contextmanager
def server(system: str, weights: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a server process, and yield it and its port once it answers."""
    port = free_port()
    if system == "llama":
        command = [sys.executable, "bench/llama_service.py", "--port", str(port)]
    else:
        app = "bench.plain_service:app" if system == "plain" else "api:app"
        command = [sys.executable, "-m", "uvicorn", app, "--http", "h11", "--port", str(port), "--no-access-log"]
    environment = {
        **os.environ,
        "RNN_WEIGHTS_DIR": str(weights.parent),
        "RNN_DEFAULT_WEIGHTS": weights.stem,
        "RNN_PRELOAD": system if system in ("c", "torch") else "",
        "RNN_LOG_LEVEL": "warning",
        "RNN_PLAIN_WEIGHTS": str(weights),
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(command, cwd=ROOT, env=environment, **quiet) as process:
        end = time.monotonic() + STARTUP_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"load.py: the server of {system} did not start; try: {' '.join(command)}")
            time.sleep(0.05)
        yield process, port


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
        return True
    return False


# ---- Clients ---------------------------------------------------------------------------------------------------------


def route_and_body(system: str, tokens: int, top_p: float) -> tuple[str, dict[str, Any]]:
    """Return where to ask a system for a streamed generation, and how."""
    body = {"prompt": "waaaa", "temperature": 1.0, "ignore_eos": True}
    if system == "llama":
        ways = ["top_p", "temperature"] if top_p < 1 else ["temperature"]
        return "/completion", {**body, "n_predict": tokens, "stream": True, "samplers": ways, "top_p": top_p}
    body["max_tokens"] = tokens
    if system == "plain":
        return "/generate", body
    return f"/generate/{system}", {**body, "stream": True, "top_p": top_p}


async def client(port: int, system: str, options: argparse.Namespace, tally: Tally, until: float) -> None:
    """Request streamed generations, one after the other, on one connection; replies that end in time count."""
    path, body = route_and_body(system, options.tokens, options.top_p)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    mark = b'"stop":false' if system == "llama" else b'"logprob":'  # once in every token's event
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        while time.perf_counter() < until:
            started = last = time.perf_counter()
            writer.write(head.encode() + raw)
            try:
                status = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionResetError):  # llama.cpp closes it after some requests
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
                continue
            if b" 200 " not in status.split(b"\r\n", 1)[0]:
                tally.refused += 1
                length = int(status.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await asyncio.sleep(0.1)
                continue
            seen = 0
            while size := int(await reader.readuntil(b"\r\n"), 16):
                count = (await reader.readexactly(size + 2)).count(mark)
                now = time.perf_counter()
                if count:
                    (tally.between if seen else tally.first).append(now - (last if seen else started))
                    tally.between.extend([0.0] * (count - 1))
                    seen, last = seen + count, now
                    tally.tokens += count if now < until else 0
            await reader.readexactly(2)
            tally.requests += time.perf_counter() < until
    finally:
        writer.close()


async def round_of(clients: int, port: int, system: str, options: argparse.Namespace, seconds: float) -> Tally:
    tally = Tally()
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, system, options, tally, until) for _ in range(clients)))
    return tally


def row(system: str, clients: int, seconds: float, tally: Tally) -> dict[str, Any]:
    def ms(times: list[float], percentile: float) -> float:
        return round(1000 * float(np.percentile(times, percentile)), 2) if times else float("nan")

    return {
        "system": system,
        "clients": clients,
        "requests_per_second": round(tally.requests / seconds, 1),
        "tokens_per_second": round(tally.tokens / seconds),
        "first_token_p50_ms": ms(tally.first, 50),
        "first_token_p99_ms": ms(tally.first, 99),
        "token_p50_ms": ms(tally.between, 50),
        "token_p99_ms": ms(tally.between, 99),
        "refused": tally.refused,
    }


# ---- The start ------------------------------------------------------------------------------------------------------


def measure_start(weights: Path) -> dict[str, Any]:
    """Measure processor time and memory of a server from its start to the first token of the C model."""
    with server("cold", weights) as (process, port):
        body = json.dumps({"prompt": "waaaa", "max_tokens": 1}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/generate/c", body, {"content-type": "application/json"}
        )
        urllib.request.urlopen(request).read()
        status = Path(f"/proc/{process.pid}/status").read_text()
        used = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Rss")}
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "cpu_seconds": round((int(used[11]) + int(used[12])) / ticks, 2),
        "anonymous_mb": round(kilobytes["RssAnon"] * 1024 / 1e6),
        "mapped_mb": round(kilobytes["RssFile"] * 1024 / 1e6),
        "weights_mb": round(weights.stat().st_size / 1e6),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="load.py", description="Measure the service under load.")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="systems to measure (all that are installed)")
    parser.add_argument(
        "--clients", nargs="+", type=int, default=[1, 8, 32, 128], help="numbers of clients (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round (%(default)s)")
    parser.add_argument("--tokens", type=int, default=50, help="tokens per generation (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the sampling, but for plain (%(default)s)")
    parser.add_argument("--weights", type=Path, help="a weights file (default: random weights of --size)")
    parser.add_argument("--size", nargs=3, type=int, default=[31_266, 300, 100], metavar=("V", "E", "H"))
    options = parser.parse_args(arguments)
    end_in_order()
    if missing := [system for system in options.systems or () if not can_run(system)]:
        parser.error(f"{missing[0]} needs two packages more: pip install xllamacpp gguf")
    if not options.systems and not can_run("llama"):
        print("load.py: without llama, whose rows will be missing: pip install xllamacpp gguf", file=sys.stderr)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        weights = options.weights
        if weights is None:
            weights = Path(scratch) / "random.safetensors"
            make_weights(weights, *options.size)
        start = measure_start(weights.absolute())
        print(f"{load_start(start)}\n\n{LOAD_HEAD}")
        for system in options.systems or filter(can_run, SYSTEMS):
            ours = []
            with server(system, weights.absolute()) as (_, port):
                warm = asyncio.run(round_of(1, port, system, options, 1.0))
                if warm.refused and not warm.tokens:
                    sys.exit(f"load.py: the server of {system} refuses every request")
                for clients in options.clients:
                    tally = asyncio.run(round_of(clients, port, system, options, options.seconds))
                    ours.append(row(system, clients, options.seconds, tally))
                    print(load_line(ours[-1]), flush=True)
            print(f"{load_end(ours)}\n")
            rows += ours
    figures.save("load", rows, whole=vars(options) == vars(parser.parse_args([])), start=start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
