"""Run the service on one processor with one gigabyte: `python bench/small.py --help`.

Starts the service under `taskset -c 0 prlimit --data=1073741824`, with random weights of two sizes in turn. 16 clients
stream generations, half from each back end; halfway, an upload replaces the weights. Every request must be answered, or
refused with 429, 503, 504 or 507. Prints the server's peak resident memory (VmHWM), rates and times, and how much
service/capacity.py says that the model needs, and writes them to bench/results/small.jsonl and docs/performance.md;
with any option, to bench/results/partial.jsonl. Exits with 1 if a request failed, or the memory exceeded that or 1 GiB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import figures
from load import make_weights
from servers import end_in_order, free_port, started
from tables import small_lines

from service.capacity import Capacity

LIMIT = 1 << 30
SIZES = ([31_266, 300, 100], [200_000, 300, 100])  # V, E, H: WikiText-2's, and the largest
TOKEN = secrets.token_urlsafe()
POLITE = {200, 201, 429, 503, 504, 507}  # 504 may also come as an event, after a stream has started
STARTUP_SECONDS = 120.0


@contextlib.contextmanager
def server(weights: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the service within the limits, and yield it and its port once it answers."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RNN_")}
    environment |= {
        "PORT": str(port),
        "RNN_WEIGHTS_DIR": str(weights.parent),
        "RNN_DEFAULT_WEIGHTS": weights.stem,
        "RNN_ADMIN_TOKEN": TOKEN,
        "RNN_LOG_LEVEL": "warning",
        "MALLOC_ARENA_MAX": "2",  # as in the Dockerfile
    }
    held = ["taskset", "-c", "0", "prlimit", f"--data={LIMIT}"]
    command = [*held, sys.executable, "-m", "service"]
    with log.open("wb") as file, started(command, cwd=ROOT, env=environment, stderr=file) as process:
        end = time.monotonic() + STARTUP_SECONDS
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"small.py: the server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield process, port


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
        return True
    return False


class Peak(threading.Thread):
    """Watches the memory of a process and its children together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.together = 0  # bytes of their own (RssAnon): the system can drop mapped files
        self.running = True

    def run(self) -> None:
        while self.running:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
            try:
                pids = [self.pid, *map(int, children.read_text().split())]
                self.together = max(self.together, sum(status(pid)["RssAnon"] for pid in pids))
            except (OSError, KeyError):
                continue  # a child has just ended
            time.sleep(0.02)


def status(pid: int) -> dict[str, int]:
    """Return the sizes in /proc/PID/status, in bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in lines if words[-1] == "kB"}


async def client(index: int, port: int, until: float, tokens: int, tally: dict[str, Any]) -> None:
    """Stream one generation after the other."""
    backend = ("c", "torch")[index % 2]
    raw = json.dumps(
        {"prompt": "waaaa", "max_tokens": tokens, "temperature": 1.0, "ignore_eos": True, "stream": True}
    ).encode()
    head = f"POST /generate/{backend} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    while time.monotonic() < until:
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        code = int((await reader.readuntil(b"\r\n")).split()[1])
        body, first = b"", 0.0
        while piece := await reader.read(65536):
            body += piece
            first = first or (time.monotonic() - started if b'"logprob"' in body else 0.0)
        writer.close()
        if code == 200 and b"[DONE]" not in body:
            code = 504 if b'"status": 504' in body else 0  # 0: ended early, without an error
        tally["answers"][code] += 1
        tally["tokens"][backend] += body.count(b'"logprob":')
        tally["seconds"].append(time.monotonic() - started)
        if first:
            tally["first"].append(first)
        if code != 200:
            await asyncio.sleep(0.2)


def upload(port: int, file: Path) -> tuple[int, float, str]:
    """Replace the weights. Returns the status, the seconds and the reply."""
    boundary = b"small-boundary"
    parts = [(b"name", b"small"), (b"overwrite", b"true")]
    body = b"".join(
        b'--%s\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, *part) for part in parts
    )
    body += b'--%s\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n' % boundary
    body += file.read_bytes() + b"\r\n--%s--\r\n" % boundary
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    started = time.monotonic()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/weights", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.status, time.monotonic() - started, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, time.monotonic() - started, error.read().decode()


async def load(port: int, clients: int, seconds: float, tokens: int, replacement: Path) -> dict[str, Any]:
    tally: dict[str, Any] = {"answers": Counter(), "tokens": Counter(), "first": [], "seconds": []}
    until = time.monotonic() + seconds
    running = [asyncio.create_task(client(i, port, until, tokens, tally)) for i in range(clients)]
    await asyncio.sleep(seconds / 2)
    tally["upload"] = await asyncio.to_thread(upload, port, replacement)
    await asyncio.gather(*running)
    return tally


def measure(size: Sequence[int], clients: int, seconds: float, tokens: int) -> dict[str, Any]:
    """Run once. Raises AssertionError if a request fails or the memory exceeds the limit."""
    with tempfile.TemporaryDirectory(prefix="rnn-small-") as scratch:
        folder = Path(scratch) / "weights"
        folder.mkdir()
        weights = folder / "small.safetensors"
        make_weights(weights, *size)
        replacement = Path(scratch) / "replacement.safetensors"
        make_weights(replacement, *size)
        with server(weights, Path(scratch) / "log") as (process, port):
            peak = Peak(process.pid)
            peak.start()
            try:
                tally = asyncio.run(load(port, clients, seconds, tokens, replacement))
                highest = status(process.pid)["VmHWM"]
            finally:
                peak.running = False
        upload_status, upload_seconds, reply = tally["upload"]
        vocab, embedding, hidden = size
        needs = Capacity(LIMIT, ("c", "torch")).needs(vocab, hidden, embedding)
        result = {
            "size": list(size),
            "file_mb": round(weights.stat().st_size / 1e6),
            "clients": clients,
            "answers": {str(code): count for code, count in tally["answers"].items()},
            "tokens_per_second": {name: round(count / seconds) for name, count in sorted(tally["tokens"].items())},
            "first_token_p50_ms": round(1000 * float(np.median(tally["first"]))),
            "request_p99_s": round(float(np.percentile(tally["seconds"], 99)), 2),
            "upload_status": upload_status,
            "upload_seconds": round(upload_seconds, 1),
            "peak_mb": round(highest / 1e6),
            "peak_own_with_trial_mb": round(peak.together / 1e6),
            "needs_mb": round(needs / 1e6),
        }
        assert set(tally["answers"]) <= POLITE and upload_status in POLITE, (result, reply)
        assert tally["answers"][200] > 0 and set(tally["tokens"]) == {"c", "torch"}, result
        assert highest < LIMIT and peak.together < needs, result
        return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="small.py", description="The service on one processor with one gigabyte.")
    parser.add_argument("--size", nargs=3, type=int, metavar=("V", "E", "H"), help="one size (default: two)")
    parser.add_argument("--clients", type=int, default=16, help="number of clients (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the run (%(default)s)")
    parser.add_argument("--tokens", type=int, default=50, help="tokens per generation (%(default)s)")
    options = parser.parse_args()
    end_in_order()
    rows = []
    for size in [options.size] if options.size else SIZES:
        try:
            rows.append(measure(size, options.clients, options.seconds, options.tokens))
        except AssertionError as error:
            print(f"small.py: {error}", file=sys.stderr)
            return 1
        print(small_lines(rows[-1]), flush=True)
    figures.save("small", rows, whole=vars(options) == vars(parser.parse_args([])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
