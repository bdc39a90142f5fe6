"""Asks the service on this machine whether it is up: `python -m service.health` exits with 0 if it is, else with 1."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
import urllib.request

SECONDS = 4.0


def address() -> str:
    """Return where this machine reaches the service, from the HOST and PORT that `python -m service` reads."""
    host, port = os.environ.get("HOST") or "127.0.0.1", os.environ.get("PORT") or "8000"
    with contextlib.suppress(ValueError):  # a name
        if ipaddress.ip_address(host).is_unspecified:  # a service that listens everywhere is reached here
            host = "::1" if ":" in host else "127.0.0.1"  # asyncio lets :: take no IPv4
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/health"


def main() -> int:
    url = address()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy: it could not reach this machine
    try:
        with opener.open(url, timeout=SECONDS) as reply:
            return 0 if reply.status == 200 else 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
