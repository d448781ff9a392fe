"""What came from a socket and is not understood yet. It stays where the kernel has put it until it is. Sans-IO."""

__all__ = ['Unread']


class Unread:
    """One buffer for all reads.

    Args:
        size: how much may be read at once, in bytes.

    Attributes:
        data: holds what came, and behind it what nobody must look at.
        begin: where what is not understood begins.
        end: where it ends.
        total: how many bytes have come in all.
    """

    __slots__ = ('_view', 'begin', 'data', 'end', 'total')

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self._view = memoryview(self.data)
        self.begin = self.end = self.total = 0

    def room(self) -> memoryview:
        """Return where the next bytes are to be put; it is never empty."""
        size = len(self.data)
        # Not each time: what comes in small pieces would be moved with each of them.
        if self.begin and size - self.end < size // 2:
            left = self.end - self.begin
            self._view[:left] = self._view[self.begin : self.end]
            self.begin, self.end = 0, left
        if self.end == size:
            # A frame that is larger; whoever reads frames knows how large one may be.
            data = bytearray(2 * size)
            data[:size] = self.data
            self.data, self._view = data, memoryview(data)
        return self._view[self.end :]

    def take(self, size: int) -> None:
        """Take note that so many bytes have been put there."""
        self.end += size
        self.total += size

    def understand(self, offset: int) -> None:
        """Forget what is before ``offset``."""
        self.begin = offset
        if offset == self.end:
            self.begin = self.end = 0

    def copy(self, begin: int, end: int) -> bytes:
        """Return some of it."""
        return bytes(self._view[begin:end])
