"""Which signals supervisor and worker processes handle, and how: as bytes in a pipe."""

import os
import signal
from collections.abc import Iterable

__all__ = ['OURS', 'SIGNALS', 'signal_pipe']

#: Signals that a worker process handles, and nobody else in it.
OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Signals that supervisor and worker processes handle; blocked from a fork until the child has its own handlers.
SIGNALS = {*OURS, signal.SIGCHLD}


def signal_pipe(numbers: Iterable[signal.Signals]) -> int:
    """Let signals do nothing but be written into a pipe, as bytes of their numbers; return the end to read."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        # Not SIG_IGN, which programs that this process starts would inherit.
        signal.signal(number, lambda *_: None)
    return reading
