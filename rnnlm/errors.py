"""Errors that the user can act on. Everything else is a bug and keeps its traceback.

    UserError           exit code 2: the input is wrong; the message names the value, the limit and the remedy
     +-- Failure        exit code 1: the input was right, but something else failed (a full disk, a diverged loss)
          +-- Interrupted  exit code 130: Ctrl-C or another signal ended the work

Modules derive their own types from these. Only a `main()` turns them into one line and an exit code.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

_SHOWN_CHARS = 40


class UserError(Exception):
    """The input cannot be used. `str(error)` is one line for the user."""

    exit_code = 2


class Failure(UserError):
    """The input was right, but the work could not be done. `str(error)` is one line for the user."""

    exit_code = 1


class Interrupted(Failure):
    """Ctrl-C, SIGTERM or SIGHUP ended the work."""

    exit_code = 130  # as shells report SIGINT


class ArgumentParser(argparse.ArgumentParser):
    """Parse a command line; an error is one line. Options cannot be abbreviated, so a misspelt one is an error.

    Options may stand before, between and after the other arguments.   extra: advice to who gives too many of these.
    """

    def __init__(self, *, extra: str = "", **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._extra = extra

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse a command line, and exit with an error if anything of it is left over."""
        # argparse takes an optional argument, such as a prompt, as missing if an option stands before it. Intermixed
        # parsing does not, but Python 3.11 then loses a `--` that follows the first options.
        options, left_over = self.parse_known_args(args, namespace)
        if left_over:
            options, left_over = self.parse_known_intermixed_args(args, namespace)
        if left_over:
            self.error(f"unrecognized arguments: {' '.join(left_over)}{self._advice(left_over)}")
        return options

    def _advice(self, left_over: Sequence[str]) -> str:
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        misspelt = [argument.lstrip("-").split("=")[0] for argument in left_over if argument.startswith("-")]
        for name in misspelt:
            if option := meant(name, known):
                return f" (do you mean --{option}?)"
        return f": {self._extra}" if self._extra and not misspelt else ""

    def error(self, message: str) -> NoReturn:
        self.exit(UserError.exit_code, f"{name_of(self.prog)}: {message}: --help lists the options\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help, also if its reader stops."""
        try:
            print(self.format_help(), end="", file=file, flush=True)
        except (OSError, UnicodeError) as error:
            self.exit(output_lost(self.prog, error))


def meant(name: str, known: Iterable[str]) -> str:
    """Return the known name that a misspelt or shortened one may stand for; "" if there is none."""
    known = list(known)
    longer = [other for other in known if len(name) > 2 and other.startswith(name)]
    near = longer or difflib.get_close_matches(name, known, 1, cutoff=0.7)
    return near[0] if near else ""


def name_of(program: str) -> str:
    """Return the name with which a program's messages begin.   program: as a user starts it."""
    return program.removeprefix("python -m ").split()[0]


def exit_code_of(program: str, work: Callable[[], None]) -> int:
    """Do the work of a program that prints its result, and return its exit code. An error is one line on stderr.

    program: as a user starts it.
    """
    try:
        work()
        sys.stdout.flush()
    except UserError as error:
        print(f"{name_of(program)}: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, UnicodeError) as error:
        return output_lost(program, error)
    return 0


def output_lost(program: str, error: OSError | UnicodeError) -> int:
    """Handle a standard output that cannot be written, and return the exit code.

    A reader that stopped (`... | head -1`) is no failure; a full disk is, and gets a line on stderr. So does an
    encoding that takes no text at all.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the output has nowhere to go either
    if isinstance(error, BrokenPipeError):
        return 0
    print(f"{name_of(program)}: the output cannot be written: {reason(error)}", file=sys.stderr)
    return Failure.exit_code


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and what it counts, for a message: 1 word, 31,266 words."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shortened(text: str) -> str:
    """Return a text for a message, without the end of a long one: a word may have as many letters as a book."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def show_path(path: str | os.PathLike[str]) -> str:
    """Return the path as given, quoted if it would break the line."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def reason(error: Exception) -> str:
    """Return what the operating system says, without the error number and the path."""
    return getattr(error, "strerror", None) or str(error)
