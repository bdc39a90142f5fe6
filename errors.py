"""The errors that a person can act on. Everything else is a bug and keeps its traceback.

    UserError           exit code 2: the input is wrong; the message names the value, the limit and the remedy
     +-- Failure        exit code 1: the input was right, and it failed all the same (a full disk, a diverged loss)

Modules derive their own types from these; `main()` alone turns them into one line and an exit code.
"""


class UserError(Exception):
    """The input cannot be used. `str(error)` is one line for the user."""

    exit_code = 2


class Failure(UserError):
    """The input was right, but the work could not be done. `str(error)` is one line for the user."""

    exit_code = 1
