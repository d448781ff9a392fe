"""One timer of the loop for many deadlines, so that a call that ends in time costs the loop nothing."""

import asyncio
from collections.abc import Callable

__all__ = ['Alarm']

# Moving a timer costs more than waking up a moment early.
SLACK = 0.001


class Alarm:
    """Calls back when the earliest deadline that it was told of is due.

    Args:
        loop: whose clock the deadlines are on.
        ring: called when it is time; sets the alarm again if there is more to come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        """Ring at ``due`` or before; an alarm set for an earlier time stays."""
        if self._timer is not None:
            if self._timer.when() <= due + SLACK:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._rung)

    def stop(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rung(self) -> None:
        self._timer = None
        self._ring()
