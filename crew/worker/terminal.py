"""The terminal that a program was started on: whether a SIGHUP tells of its end, or is somebody's order."""

import os

__all__ = ['Terminal']

#: A hang-up's signal comes at once, an order by ``kill -HUP`` at any time.
HUNG_UP_WITHIN = 2.0


class Terminal:
    """The controlling terminal of this process, if it has one; made while that is there.

    SIGHUP alone says nothing: the kernel sends it when a terminal closes, and shells pass it on as anybody might send
    it. But when that happens the process has just lost its terminal. One that lost it long ago, such as a job left
    behind in the background, was told nothing then.
    """

    def __init__(self) -> None:
        self._there = _has_terminal()
        self._lost: float | None = None

    def look(self, now: float) -> None:
        """Look whether it is still there; to be called often. ``now`` is the time on any clock, in seconds."""
        if self._there and not _has_terminal():
            self._there = False
            self._lost = now

    def has_just_gone(self, now: float) -> bool:
        """Return whether it was lost a moment ago."""
        self.look(now)
        return self._lost is not None and now < self._lost + HUNG_UP_WITHIN


def _has_terminal() -> bool:
    try:
        os.close(os.open('/dev/tty', os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
