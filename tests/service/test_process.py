"""A real server process: streams as they happen, and clients that disconnect or do not read."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path

import pytest
from serving import ENDLESS, ENDLESS_BODY, LARGE_BODY, UNLIMITED, StartServer, needs_library, read_until, until

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


@pytest.mark.parametrize(
    ("backend", "stream"),
    [("c", False), ("c", True), ("torch", True), pytest.param("torch", False, marks=pytest.mark.slow)],
)
def test_a_client_that_goes_away_stops_its_work(start: StartServer, backend: str, stream: bool) -> None:
    server = start(RNN_BACKENDS="c,torch", RNN_PRELOAD=backend, **UNLIMITED)
    connection = server.send_json(f"/generate/{backend}", {**ENDLESS_BODY, "stream": stream})
    until(lambda: server.metric("rnn_tokens_total") > 3)
    if stream:
        read_until(connection, b"data: ")
    connection.close()
    until(lambda: server.metric("rnn_sequences_running") == 0)
    assert server.metric("rnn_sequences_cancelled_total") == 1
    made = server.metric("rnn_tokens_total")
    assert made < ENDLESS
    time.sleep(0.1)
    assert server.metric("rnn_tokens_total") == made
    line = until(lambda: [line for line in server.lines() if "generate" in line["message"]])[0]
    assert line["httpRequest"]["status"] == (200 if stream else 499) and line["severity"] == "INFO"


def test_tokens_come_as_they_are_made_and_comments_in_silence(start: StartServer) -> None:
    server = start(RNN_MAX_SEQUENCES="1", RNN_MAX_WAITING="64", RNN_COMMENT_SECONDS="0.05", **UNLIMITED)
    first = server.send_json("/generate/c", {**ENDLESS_BODY, "stream": True})
    head = read_until(first, b"data: ")  # long before its last token
    assert b"HTTP/1.1 200" in head and b"content-type: text/event-stream" in head
    second = server.send_json("/generate/c", {**ENDLESS_BODY, "max_tokens": 2, "stream": True})
    waiting = read_until(second, b": still working")
    assert b"data:" not in waiting
    first.close()
    assert b"[DONE]" in read_until(second, b"[DONE]")
    second.close()


def test_a_slow_reader_holds_nobody_back(start: StartServer) -> None:
    server = start(**UNLIMITED)
    slow = server.send_json("/generate/c", {**LARGE_BODY, "stream": True})
    reply = server.post("/generate/c", json={**ENDLESS_BODY, "max_tokens": 50, "seed": 1})
    assert reply.status_code == 200 and len(reply.json()["choices"][0]["tokens"]) == 50
    until(lambda: server.metric("rnn_sequences_running") == 0)  # the slow one's tokens are made, and wait for it
    text = read_until(slow, b"[DONE]")
    slow.close()
    whole = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", text)  # without the bounds of chunks, which may cut a token in two
    assert whole.count(b'"token":') == 4000


def test_who_never_reads_keeps_no_connection(start: StartServer) -> None:
    server = start(app="impatient:app", RNN_REQUEST_SECONDS="6", **UNLIMITED)

    def open_sockets() -> int:
        count = 0
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += "socket:" in os.readlink(link)
        return count

    until(lambda: server.metric("rnn_requests_in_flight") == 1)  # only the one that asks
    before = open_sockets()
    # Each is more than the system takes in for a connection whose client has so little room. The whole reply is made
    # long before its time is over, also on a busy machine.
    big = {**ENDLESS_BODY, "max_tokens": ENDLESS // 4, "top_logprobs": 20}
    whole = server.send_json("/generate/c", {**big, "max_tokens": 1000}, room=4096)
    read_until(whole, b"HTTP/1.1 200")
    streamed = server.send_json("/generate/c", {**big, "stream": True}, room=4096)
    read_until(streamed, b"data: ")
    assert open_sockets() > before
    until(lambda: server.metric("rnn_requests_in_flight") == 1)
    until(lambda: open_sockets() <= before)
    until(lambda: server.metric("rnn_sequences_running") == 0)
    assert not [line for line in server.lines() if line["severity"] == "ERROR"]
    streamed.close()
    whole.close()


def test_a_large_reply_arrives_whole(start: StartServer) -> None:
    server = start(RNN_REQUEST_SECONDS="60", **UNLIMITED)
    body = {**ENDLESS_BODY, "max_tokens": 3000, "top_logprobs": 20, "seed": 1}
    reply = server.post("/generate/c", json=body, headers={"accept-encoding": "identity"})
    assert len(reply.content) > 1_000_000 and int(reply.headers["content-length"]) == len(reply.content)
    assert len(reply.json()["choices"][0]["tokens"]) == 3000


def test_many_streams_at_once_each_get_their_own_text(start: StartServer) -> None:
    server = start(RNN_MAX_SEQUENCES="8")
    bodies = [{"prompt": "waa", "max_tokens": 30, "seed": seed, "ignore_eos": True} for seed in range(24)]
    alone = [server.post("/generate/c", json=body).json()["choices"][0]["text"] for body in bodies]
    together: dict[int, str] = {}

    def ask(index: int) -> None:
        together[index] = server.post("/generate/c", json=bodies[index]).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(24)] == alone
