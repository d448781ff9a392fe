"""One thing that is to happen later on the running loop, unless it is stopped before."""

import asyncio
from collections.abc import Callable

__all__ = ['Timer']


class Timer:
    """Calls back once."""

    __slots__ = ('_handle',)

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, delay: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in so many seconds, and forget what was to be called before."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(delay, callback)

    def stop(self) -> None:
        """Call nothing."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
