"""How worker processes end: the exit codes by which their supervisor knows why."""

import atexit
import logging
import os
import sys
from typing import NoReturn

__all__ = ['CANNOT_START', 'GAVE_UP', 'CannotStart', 'end']

#: Exit code: a task would not end, or there was no memory left, so the process ended.
GAVE_UP = 70

#: Exit code: what this process was told to run cannot be had, and the reason has been printed.
CANNOT_START = 4


class CannotStart(Exception):
    """Raised by a loader when there is nothing to run; its text is one line that says what to do."""


def end(code: int) -> NoReturn:
    """End this process with ``code``, after the usual exit handlers unless a task may still be running.

    Never returns, whatever fails: a forked child must not go on in its parent's frames.
    """
    try:
        if code == 0:
            atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
