"""Two worker processes on one folder."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from serving import StartServer, needs_library, until

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_two_workers_share_weights_token_and_uploads(start: StartServer, server_folder: Path) -> None:
    server = start("--workers", "2", RNN_ADMIN_TOKEN="")
    said = until(
        lambda: (found := re.findall("admin token is ([0-9a-f]{64})", server.text())) and len(found) == 2 and found
    )
    assert said[0] == said[1]
    raw = (server_folder / "demo.safetensors").read_bytes()
    answered = set()
    for index in range(12):  # each on a connection of its own: both workers get some
        headers = {"authorization": f"Bearer {said[0]}"}
        name = f"new{index}"
        assert server.post("/weights", files={"file": (name, raw)}, headers=headers).status_code == 201
        for _ in range(3):
            reply = server.post("/generate/c", json={"prompt": "waa", "weights": name, "max_tokens": 2, "seed": 1})
            assert reply.status_code == 200
            answered.add(reply.json()["choices"][0]["text"])
        if len({line for line in server.text().splitlines() if '"loaded new' in line}) >= 4:
            break
    assert len(answered) == 1
    assert server.delete_weights("new0", said[0]) == 204
    assert all(
        server.post("/generate/c", json={"prompt": "waa", "weights": "new0"}).status_code == 404 for _ in range(6)
    )
    assert server.terminate() == 0


def test_two_workers_let_go_of_a_deleted_file_and_tell_of_each_other(
    start: StartServer, server_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "metrics").mkdir()
    server = start(
        *("--workers", "2", "--log-config", "service/logging.json"),
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "metrics"),
        RNN_WATCH_SECONDS="0.2",
        RNN_PRELOAD="c",
    )
    path = server_folder / "demo.safetensors"

    def workers() -> set[int]:
        return {line["process"] for line in server.lines() if "loaded demo" in line["message"]}

    def mapping() -> set[int]:
        return {pid for pid in workers() if str(path) in Path(f"/proc/{pid}/maps").read_text()}

    def told() -> set[int]:
        text = server.get("/metrics").text
        return set(map(int, re.findall(r'process_resident_memory_bytes{pid="(\d+)"}', text)))

    assert len(until(lambda: len(workers()) == 2 and workers())) == 2
    assert mapping() == workers() == until(lambda: told() == workers() and told())
    for _ in range(4):
        assert (
            server.post("/generate/c", json={"prompt": "waa", "max_tokens": 5, "ignore_eos": True}).status_code == 200
        )
    assert server.metric("rnn_tokens_total") == 20  # whichever workers wrote them
    path.unlink()
    until(lambda: not mapping())
    killed = next(iter(workers()))
    os.kill(killed, signal.SIGKILL)  # with its gauges as they are
    until(lambda: killed not in told() and len(told()) == 2)
    assert not list((tmp_path / "metrics").glob(f"gauge_live*_{killed}.db"))
    until(lambda: server.metric("rnn_requests_in_flight") == 1)  # the last one may still be on its way out
    assert server.terminate() == 0
    assert not list((tmp_path / "metrics").glob("gauge_live*.db"))
