"""The errors that a person can act on. Everything else is a bug and keeps its traceback.

    UserError           exit code 2: the input is wrong; the message names the value, the limit and the remedy
     +-- Failure        exit code 1: the input was right, and it failed all the same (a full disk, a diverged loss)

Modules derive their own types from these; `main()` alone turns them into one line and an exit code.
"""

import argparse
import os
import sys
from typing import Any, NoReturn


class UserError(Exception):
    """The input cannot be used. `str(error)` is one line for the user."""

    exit_code = 2


class Failure(UserError):
    """The input was right, but the work could not be done. `str(error)` is one line for the user."""

    exit_code = 1


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no option by the beginning of its name: a misspelt one is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(UserError.exit_code, f"{self.prog}: {message}: --help lists what there is\n")


def output_lost(program: str, error: OSError) -> int:
    """Standard output cannot be written: nobody reads on (`... | head -1`), or a disk is full. The exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to come cannot be written either
    if isinstance(error, BrokenPipeError):
        return 0
    print(f"{program}: the output cannot be written: {error.strerror}", file=sys.stderr)
    return Failure.exit_code


def show_path(path: str | os.PathLike[str]) -> str:
    """The path as given, unless it would break the line."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def reason(error: Exception) -> str:
    """The operating system's words without its number and the path, which the message already has."""
    return getattr(error, "strerror", None) or str(error)
