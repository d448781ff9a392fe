"""How other threads wake up a loop, for one purpose, at the least cost."""

import asyncio
import os
from collections.abc import Callable

__all__ = ['Bell']


class Bell:
    """Has one callback called on a loop, from any thread.

    What ``call_soon_threadsafe`` does for any callback takes a handle, a byte through a pair of sockets, and two reads
    of it, the last in vain; an eventfd(2) is one write and one read. To be made in the loop's thread.

    Args:
        loop: whose thread is to be woken up.
        rung: called there, perhaps once for all that rang meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rung: Callable[[], None]) -> None:
        self._loop = loop
        self._rung = rung
        self._descriptor: int | None = None
        if hasattr(os, 'eventfd'):
            descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                loop.add_reader(descriptor, self._answer)
                self._descriptor = descriptor
            except NotImplementedError:  # not every loop has readers
                os.close(descriptor)

    def ring(self) -> None:
        """Have it called soon; in any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self._descriptor is None:
            self._loop.call_soon_threadsafe(self._rung)
        elif self._loop.is_closed():
            raise RuntimeError('the loop is closed')
        else:
            os.eventfd_write(self._descriptor, 1)

    def silence(self) -> None:
        """Have nothing called any more; in the loop's thread."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)

    def _answer(self) -> None:
        assert self._descriptor is not None
        os.eventfd_read(self._descriptor)
        self._rung()

    def __del__(self) -> None:
        # Not before: whoever rings late would write into what has got its number meanwhile.
        if self._descriptor is not None:
            os.close(self._descriptor)
