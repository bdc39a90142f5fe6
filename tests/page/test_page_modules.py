"""The page's modules: which view needs which."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import ROOT

JS = ROOT / "service" / "web" / "js"
VIEWS = ("generate", "score", "inside", "weights")


def imports(path: Path) -> set[str]:
    return set(re.findall(r'^import .*?"\./([\w-]+)\.js";', path.read_text(), re.MULTILINE | re.DOTALL))


def needed(name: str) -> set[str]:
    """A module and all that it imports."""
    found: set[str] = set()
    rest = {name}
    while rest:
        found |= rest
        rest = {other for module in rest for other in imports(JS / f"{module}.js")} - found
    return found


def test_all_modules_of_a_view_are_asked_for_at_once() -> None:
    listed = dict(re.findall(r'(\w+): "([\w -]+)"', (JS / "first.js").read_text()))
    page = needed("app")
    assert listed["page"].split() == sorted(page - {"app"})
    for view in VIEWS:
        assert listed[view].split() == sorted(needed(view) - page), view
