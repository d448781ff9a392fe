"""Bytes as choices, taken one after the other; when they are used up, every choice is the first."""

from collections.abc import Sequence
from typing import TypeVar

__all__ = ['Choices']

T = TypeVar('T')


class Choices:
    """What some bytes choose.

    Args:
        data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Return whether there is more to choose from."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """Choose a number from 0 to 255."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, limit: int) -> int:
        """Choose a number from 0 to less than ``limit``, which is at most 256."""
        return self.byte() % limit

    def flag(self) -> bool:
        """Choose yes or no."""
        return bool(self.byte() & 1)

    def rarely(self) -> bool:
        """Choose yes or no, and mostly no."""
        return self.byte() % 16 == 15

    def pick(self, values: Sequence[T]) -> T:
        """Choose one of at most 256 values."""
        return values[self.below(len(values))]

    def integer(self) -> int:
        """Choose a number of up to 72 bits, small ones and those around powers of two more often than others."""
        kind = self.byte()
        if kind < 128:
            return kind - 16
        if kind < 192:
            return (1 << (kind & 63)) + self.below(5) - 2
        return int.from_bytes(self.take(1 + kind % 9), 'big', signed=True)

    def take(self, size: int) -> bytes:
        """Take up to ``size`` bytes as they are."""
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data

    def short(self) -> bytes:
        """Take a string of bytes whose length comes first, in a byte; mostly short ones."""
        size = self.byte()
        return self.take(size if size >= 240 else size % 16)

    def text(self) -> str:
        """Take a short text of any characters."""
        return self.short().decode('utf-8', 'replace')

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(len(self._data) - self._at)
