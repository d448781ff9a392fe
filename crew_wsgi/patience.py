"""How long a client is waited for that sends or reads too slowly.

Sans-IO: the time is an argument. Patience runs out while a client is waited for, and every byte makes some of it good:
so a client that is silent is given up after ``limit`` seconds, one that is slower than ``rate`` after some more, and
one that is as fast as that never.
"""

__all__ = ['Patience']


class Patience:
    """What is left of the patience with one client.

    Args:
        limit: how long it may be silent, in seconds.
        rate: how many bytes make good for a second.
    """

    def __init__(self, limit: float, rate: float) -> None:
        self._limit = limit
        self._rate = rate
        self._left = limit
        self._since: float | None = None

    @property
    def waits(self) -> bool:
        """Whether the client is waited for."""
        return self._since is not None

    @property
    def deadline(self) -> float | None:
        """When it is over, on the clock of :meth:`wait`; None while the client is not waited for."""
        return None if self._since is None else self._since + self._left

    def wait(self, now: float) -> None:
        """Begin to wait for the client, if that has not begun."""
        if self._since is None:
            self._since = now

    def moved(self, size: int, now: float) -> None:
        """Take note of so many bytes that the client has sent or read meanwhile."""
        if self._since is not None:
            self._left -= now - self._since
            self._since = now
        self._left = min(self._limit, self._left + size / self._rate)

    def renew(self, now: float) -> None:
        """Take note that the client did something that makes all of it good."""
        self._left = self._limit
        if self._since is not None:
            self._since = now

    def stop(self, now: float) -> None:
        """Wait for the client no more."""
        self.moved(0, now)
        self._since = None
