"""Put mixed load on a real server for many minutes and replace its weights every 5 s: `make soak SOAK_MINUTES=20`.

Clients generate with both back ends, by every rule of drawing, streamed or not, score, look inside the model, speak
OpenAI's protocol, list weights, send invalid requests, and hang up, while one uploads. The test fails if a reply is 5xx
or missing, if the server's memory in the last quarter differs by more than 5% from the first quarter after the warm-up,
or if more files are open than then. It prints a line a minute and a summary, which docs/reliability.md quotes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent), str(Path(__file__).resolve().parent.parent)]

import httpx2
from serving import ADMIN, Server, save_tiny

CLIENTS = 8
REPLACE_SECONDS = 5.0
SAMPLE_SECONDS = 2.0
TOLERANCE = 0.05
PATIENCE_SECONDS = 600.0  # timeout of clients and server: a busy machine may stand still for a while


@dataclass
class Soak:
    """What the test saw. samples: (seconds since the start, resident bytes, open files)."""

    server: Server
    until: float
    started: float = field(default_factory=time.monotonic)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    replaced: int = 0
    hung_up: int = 0
    versions: set[str] = field(default_factory=set)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def sample(self) -> None:
        process = Path(f"/proc/{self.server.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        self.samples.append(
            (
                time.monotonic() - self.started,
                pages * os.sysconf("SC_PAGE_SIZE"),
                len(os.listdir(process / "fd")),
            )
        )


# ---- What the clients do --------------------------------------------------------------------------------------------


def request_of(random: random.Random) -> tuple[str, str, Any]:
    """Return (method, path, body) of a random request, valid or not."""
    prompt = " ".join(random.choice(["waa", "wab", "wcc", "unknown", "end."]) for _ in range(random.randint(1, 8)))
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": random.randint(1, 60), "ignore_eos": random.random() < 0.5}
    if random.random() < 0.5:
        body |= {"temperature": random.choice([0, 0.5, 1.0, 2.0]), "top_k": random.choice([0, 5, 40])}
    if random.random() < 0.5:
        body |= {"top_p": random.uniform(0.1, 1.0), "frequency_penalty": random.choice([0, 0.5])}
        body |= {"logit_bias": {str(random.randrange(650)): random.uniform(-100, 100) for _ in range(3)}}
    if random.random() < 0.3:
        body |= {"top_logprobs": random.randint(1, 5), "n": random.randint(1, 3), "stop": ["wab"]}
    streamed = body | {"stream": True}
    drawn = {name: body[name] for name in ("max_tokens", "top_p", "frequency_penalty", "logit_bias") if name in body}
    completion = {"model": "c/demo", "prompt": prompt, "logprobs": 2, **drawn}
    chat = {
        "model": random.choice(["c/demo", "torch/demo"]),
        "messages": [{"role": "user", "content": prompt}],
        **drawn,
    }
    inspected = {"text": f"waa {prompt}", "backend": random.choice(["c", "torch"])}
    about = f"/weights/demo/{random.choice(['spectrum', 'units/3', 'neighbours?word=waa'])}"
    return random.choice(
        [
            *[("POST", "/generate/c", body)] * 4,
            *[("POST", "/generate/c", streamed)] * 4,
            ("POST", "/generate/torch", body),
            ("POST", "/generate/torch", streamed),
            ("POST", "/score", {"text": f"waa {prompt}"}),
            ("POST", "/v1/completions", completion),
            ("POST", "/v1/completions", completion | {"stream": True}),
            ("POST", "/v1/chat/completions", chat),
            ("POST", "/v1/chat/completions", chat | {"stream": True}),
            ("POST", "/v1/embeddings", {"model": "c/demo", "input": [f"waa {prompt}", "wab"]}),
            ("POST", "/inspect", inspected),
            ("POST", "/inspect", inspected | {"state": True, "spectrum": True, "other": "wab wac"}),
            ("POST", "/candidates", inspected | {"top_p": 0.9, "temperature": 0.5}),
            ("GET", about, None),
            ("GET", "/weights", None),
            ("GET", "/metrics", None),
            ("GET", "/", None),
            ("POST", "/generate/c", body | {"max_tokens": -1}),
            ("POST", "/generate/c", {"prompt": "x" * 20_000}),
            ("POST", "/generate/c", body | {"weights": "../demo"}),
            ("GET", "/nothing", None),
        ]
    )


async def client(soak: Soak, http: httpx2.AsyncClient, seed: int) -> None:
    generator = random.Random(seed)
    while soak.goes_on:
        method, path, body = request_of(generator)
        hangs_up = generator.random() < 0.1
        shown = path.partition("?")[0]
        try:
            async with http.stream(method, path, json=body) as response:
                soak.statuses[shown, response.status_code] += 1
                if hangs_up:
                    soak.hung_up += 1
                    continue
                text = (await response.aread()).decode()
            if response.status_code >= 500 or "event: error" in text:
                soak.failures.append(f"{method} {path} {response.status_code}: {text[-300:]}")
            elif body and body.get("stream") and response.status_code == 200 and "[DONE]" not in text:
                soak.failures.append(f"{path}: a stream ended early: {text[-300:]}")
            elif path == "/generate/c" and response.status_code == 200 and not body.get("stream"):
                soak.versions.add(response.json()["weights"]["sha256"])
        except httpx2.TransportError as error:
            soak.failures.append(f"{method} {path}: {error!r}")


async def replace(soak: Soak, folder: Path, files: Sequence[bytes]) -> None:
    """Replace the weights every few seconds as a trainer does, by renaming a file."""
    while soak.goes_on:
        (folder / ".next").write_bytes(files[soak.replaced % len(files)])
        os.replace(folder / ".next", folder / "demo.safetensors")
        soak.replaced += 1
        await asyncio.sleep(REPLACE_SECONDS)


async def upload(soak: Soak, http: httpx2.AsyncClient, files: Sequence[bytes]) -> None:
    """Replace the weights by uploads, one after the other; the service tries each of them on both back ends."""
    while soak.goes_on:
        form = {"file": ("demo", files[(soak.replaced + 1) % len(files)])}
        response = await http.post("/weights", files=form, data={"overwrite": "true"}, headers=ADMIN)
        soak.statuses["/weights (upload)", response.status_code] += 1
        if response.status_code != 201:
            soak.failures.append(f"upload: {response.status_code}: {response.text}")
        await asyncio.sleep(REPLACE_SECONDS)


async def observe(soak: Soak) -> None:
    told = 0
    while soak.goes_on:
        soak.sample()
        seconds, memory, files = soak.samples[-1]
        if seconds >= 60 * told:
            told += 1
            print(
                f"{seconds:6.0f} s  {sum(soak.statuses.values()):9,} requests  {soak.replaced:4} replacements  "
                f"{memory / 2**20:7.1f} MB  {files:3} files  {len(soak.failures)} failures",
                flush=True,
            )
        await asyncio.sleep(SAMPLE_SECONDS)


async def run(soak: Soak, folder: Path, files: Sequence[bytes]) -> None:
    limits = httpx2.Limits(max_keepalive_connections=4)
    async with httpx2.AsyncClient(base_url=soak.server.url, timeout=PATIENCE_SECONDS, limits=limits) as http:
        clients = [client(soak, http, seed) for seed in range(CLIENTS)]
        await asyncio.gather(observe(soak), replace(soak, folder, files), upload(soak, http, files), *clients)


# ---- The verdict ----------------------------------------------------------------------------------------------------


def verdict(soak: Soak, seconds: float) -> list[str]:
    """Print the summary, and return what is wrong."""
    warm = [sample for sample in soak.samples if sample[0] > min(60.0, seconds / 4)]
    quarter = max(1, len(warm) // 4)

    def mean(samples: Sequence[tuple[float, int, int]], column: int) -> float:
        return sum(sample[column] for sample in samples) / len(samples)

    first, last = mean(warm[:quarter], 1), mean(warm[-quarter:], 1)
    files_first = max(sample[2] for sample in warm[:quarter])
    files_end = soak.samples[-1][2]  # after the clients have left
    print(
        f"{sum(soak.statuses.values()):,} requests in {seconds / 60:.1f} minutes; clients hung up on {soak.hung_up:,}"
    )
    for (path, status), count in sorted(soak.statuses.items()):
        print(f"    {path:27} {status}  {count:9,}")
    print(f"{soak.replaced} replacements by renaming; replies came from {len(soak.versions)} versions")
    change = f"{100 * (last / first - 1):+.1f}%"
    print(f"memory: {first / 2**20:.1f} MB in the first quarter, {last / 2**20:.1f} MB in the last ({change})")
    print(f"open files: {files_first} in the first quarter, {files_end} at the end, without load")
    wrong = soak.failures[:10]
    if len(soak.failures) > 10:
        wrong.append(f"and {len(soak.failures) - 10} more failures")
    if abs(last / first - 1) > TOLERANCE:
        wrong.append(f"memory changed by more than {TOLERANCE:.0%}")
    if files_end > files_first:
        wrong.append("files were left open")
    if len(soak.versions) < 2 and soak.replaced > 4:
        wrong.append("no reply came from replaced weights")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak.py", description="Mixed load while weights are replaced every 5 s.")
    parser.add_argument("--minutes", type=float, default=20.0, help="duration (%(default)s)")
    options = parser.parse_args(arguments)
    seconds = 60.0 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        folder.mkdir()
        files = [
            save_tiny(Path(scratch), f"version{seed}", vocab=650, embed=50, hidden=100, seed=seed).read_bytes()
            for seed in range(3)
        ]
        (folder / "demo.safetensors").write_bytes(files[0])
        log = Path(scratch) / "log"
        limits = {"RNN_REQUEST_SECONDS": f"{PATIENCE_SECONDS}", "RNN_UPLOAD_SECONDS": f"{PATIENCE_SECONDS}"}
        server = Server(folder, log, RNN_BACKENDS="c,torch", RNN_PRELOAD="c,torch", RNN_LOG_LEVEL="warning", **limits)
        try:
            soak = Soak(server, until=time.monotonic() + seconds)
            asyncio.run(run(soak, folder, files))
            deadline = time.monotonic() + 30
            while server.metric("rnn_requests_in_flight") > 1 and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(1)
            in_flight = server.metric("rnn_requests_in_flight")
            soak.sample()
            wrong = verdict(soak, seconds)
            if in_flight != 1:
                wrong.append(f"{in_flight - 1:.0f} requests are still in flight")
            if "Traceback" in log.read_text():
                wrong.append(f"the log has a traceback: {log.read_text()[-2000:]}")
        finally:
            with contextlib.suppress(OSError):
                server.close()
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    print("failed" if wrong else "passed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
