"""bench/load.py, which starts the servers that it measures."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from serving import until

SMALL = ["--systems", "c", "--clients", "1", "--size", "60", "8", "4", "--tokens", "5"]


def load(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "bench/load.py", *SMALL, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_it_measures_its_own_server() -> None:
    """And not whoever answers at the port that it once used."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    asked: list[str] = []
    try:
        stranger = ThreadingHTTPServer(("127.0.0.1", 8765), Stranger)
    except OSError:
        pytest.skip("something listens at port 8765 already")
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    try:
        out, errors = load("--seconds", "0.5").communicate(timeout=60)
    finally:
        stranger.shutdown()
        stranger.server_close()
    line = next(line for line in out.splitlines() if line.startswith("c  "))
    assert float(line.split("|")[2]) > 0 and "refused" not in line, out + errors
    assert not asked


def test_ended_by_a_signal_it_leaves_no_server() -> None:
    process = load("--seconds", "60")
    servers = until(lambda: children_of(process.pid))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{pid}").exists() for pid in servers)


def test_a_signal_just_after_the_start_leaves_no_process() -> None:
    """When the process is there, and nobody has it in hand yet."""
    code = """
import os, signal, subprocess, sys
sys.path.insert(0, "bench")
import servers
start = subprocess.Popen
def interrupted(*arguments, **options):
    process = start(*arguments, **options)
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    return process
subprocess.Popen = interrupted
servers.end_in_order()
with servers.started(["sleep", "60"]):
    print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()
