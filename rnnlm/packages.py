"""Says in one line that a package is missing, before an import says it in many. Needs none itself."""

import importlib.util
import sys


def require(package: str, program: str) -> None:
    """End the program if this Python has no such package, which is so outside the virtual environment."""
    if importlib.util.find_spec(package) is None:
        sys.exit(
            f"{program}: {sys.executable} has no package {package}: source .venv/bin/activate (make train creates it), "
            "or pip install -r requirements.txt"
        )
