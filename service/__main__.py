"""Starts the service: `python -m service`. HOST and PORT say where it listens; settings are RNN_* variables."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Sequence

from rnnlm import packages

if __name__ == "__main__":
    packages.require("uvicorn", "service")

import uvicorn

from rnnlm.errors import ArgumentParser
from service.settings import CANNOT_START, listing


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    port = options.port
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        return _refuse(f"PORT must be a number from 1 to 65535, got {port!r}")
    if problem := _objection(options.host, int(port)):
        return _refuse(problem)
    uvicorn.run(
        "api:app",
        host=options.host,
        port=int(port),
        root_path=options.root_path,
        http="h11",
        access_log=False,
        server_header=False,
    )
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m service",
        description="Serve the models over HTTP.",
        epilog=f"Settings are environment variables, with their defaults in brackets:\n\n{listing()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", default=os.environ.get("HOST") or "127.0.0.1", help="address to listen on; HOST, or %(default)s"
    )
    parser.add_argument("--port", default=os.environ.get("PORT") or "8000", help="port; PORT, or %(default)s")
    parser.add_argument(
        "--root-path", default="", metavar="PATH", help="path under which a proxy serves this, such as /rnn"
    )
    return parser


def _objection(host: str, port: int) -> str:
    """Return why the service cannot listen there, and what to do; "" if it can.

    uvicorn would find out, too, but only after the start, and without a remedy.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"HOST {host!r} is no address of this machine: {error.strerror or error}"
    foreign = 0
    for family, kind, protocol, _, address in places:
        try:
            with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"port {port} is taken by another program: stop it, or choose another port "
                    f"(PORT={port % 65535 + 1} python -m service, make serve PORT={port % 65535 + 1})"
                )
            if error.errno == errno.EACCES:
                return f"port {port} needs more rights than this user has: choose one from 1024 on (PORT=8000)"
            foreign += error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # ::1 of localhost, where IPv6 is off
    if foreign == len(places):
        return f"HOST {host!r} is no address of this machine: listen on 127.0.0.1, or on 0.0.0.0 for all its addresses"
    return ""


def _refuse(message: str) -> int:
    sys.stderr.write(f"service: {message}\n")
    return CANNOT_START


if __name__ == "__main__":
    sys.exit(main())
