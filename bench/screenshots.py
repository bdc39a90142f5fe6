"""Take the pictures of the page again: docs/page-*.png and docs/inside.webp. `make screenshots` runs it.

    python bench/screenshots.py                    two minutes; needs Chromium

Their sizes go to bench/results/screenshots.jsonl, with the date; the test that takes them checks what they show.
"""

from __future__ import annotations

import subprocess
import sys
import time

import figures

TEST = "tests/page/test_page_screenshots.py"


def main() -> None:
    started = time.time()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "page and slow", TEST], cwd=figures.ROOT)
    pictures = [*sorted(figures.ROOT.glob("docs/page-*.png")), figures.ROOT / "docs" / "inside.webp"]
    if done.returncode or any(path.stat().st_mtime < started for path in pictures):
        sys.exit("screenshots.py: not every picture was taken: see above; without Chromium: apt-get install chromium")
    rows = [{"picture": path.name, "bytes": path.stat().st_size} for path in pictures]
    figures.save("screenshots", rows, pictures=pictures)


if __name__ == "__main__":
    main()
