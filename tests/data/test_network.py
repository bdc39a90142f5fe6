"""The network probe: what counts as a reply, and that it never takes long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rnnlm.data.network import why_unreachable


@contextmanager
def server(status: int) -> Iterator[str]:
    """Run a server on this machine that answers every request with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(200, None), (401, None), (404, None), (407, "HTTP 407"), (500, "HTTP 500"), (503, "HTTP 503")],
)
def test_what_counts_as_an_answer(status: int, reason: str | None) -> None:
    with server(status) as url:
        assert why_unreachable(url) == reason


def test_nothing_listens() -> None:
    assert why_unreachable("http://127.0.0.1:9/") == "Connection refused"


def test_an_unknown_name() -> None:
    assert why_unreachable("http://name.invalid/")  # RFC 2606: never resolves


@pytest.mark.parametrize("url", ["huggingface.co", "", "http://[::1", "gopher://example.org/"])
def test_what_is_no_address(url: str) -> None:
    assert why_unreachable(url)


def test_a_silent_server_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nothing answers
        begun = time.monotonic()
        reason = why_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.2)
        assert reason in ("timed out", "no answer within 0.2 s")  # whichever timeout comes first
        assert time.monotonic() - begun < 20  # a hang, not a measurement


def test_a_slow_name_server_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def look_up(*_: object, **__: object) -> list:
        released.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        assert why_unreachable("http://name.invalid/", timeout_s=0.2) == "no answer within 0.2 s"
    finally:
        released.set()
        for thread in threading.enumerate():
            if thread.name == "network-probe":
                thread.join()


def test_proxies_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        assert why_unreachable("http://name.invalid/") is None
