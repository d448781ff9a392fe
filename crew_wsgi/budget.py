"""How much of what comes slowly may be held at once. Who has held some of it for the longest gives way."""

from typing import Protocol

__all__ = ['Budget', 'Holder']


class Holder(Protocol):
    """Holds bytes that have come, until the rest has come too."""

    def give_way(self) -> None:
        """Give up, and forget them."""


class Budget:
    """A bound on what many holders hold together.

    Whoever comes quickly holds for a moment only; so it is the slow ones that a flood of slow ones displaces.

    Args:
        size: how many bytes they may hold.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self._holders: dict[Holder, int] = {}

    def hold(self, holder: Holder, size: int) -> None:
        """Take note of how many bytes somebody holds now, and let others give way if that is too much."""
        self.held += size - self._holders.get(holder, 0)
        self._holders[holder] = size
        while self.held > self.size:
            slowest = next(iter(self._holders))
            self.release(slowest)
            slowest.give_way()

    def release(self, holder: Holder) -> None:
        """Take note that somebody holds nothing any more."""
        self.held -= self._holders.pop(holder, 0)
