"""Starts the service: `python -m service`. HOST and PORT say where it listens; settings are RNN_* variables."""

from __future__ import annotations

import os
import sys

import uvicorn


def main() -> int:
    text = os.environ.get("PORT") or "8000"
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535):
        sys.stderr.write(f"service: PORT must be a number from 1 to 65535, got {text!r}\n")
        return 3  # as for any other setting, see api.py
    uvicorn.run(
        "api:app",
        host=os.environ.get("HOST") or "127.0.0.1",
        port=int(text),
        http="h11",
        access_log=False,
        server_header=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
