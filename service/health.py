"""Asks the service of this machine whether it is up: `python -m service.health` ends with 0 if so, else with 1."""

from __future__ import annotations

import os
import sys
import urllib.request

SECONDS = 4.0


def main() -> int:
    url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is no way to oneself
    try:
        with opener.open(url, timeout=SECONDS) as reply:
            return 0 if reply.status == 200 else 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
