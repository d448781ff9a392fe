"""A body too long for one message: chunks one way, credit the other, so that never more than a window is on its way.

Sans-IO: bytes and messages come in, messages and bytes go out. What a body's first message carries itself is not
counted; the rest follows in :class:`Chunk` messages, each with the offset of its first byte, from 0 on. The receiver
grants credit as the offset up to which it will take bytes, so a credit that is late is made good by the next.
"""

from collections import deque

from crew.exceptions import ProtocolError
from crew.messages import Chunk

__all__ = ['CHUNK', 'WINDOW', 'Receiver', 'Sender']

#: The most bytes of a chunk: with its head it fills one AMQP frame, and larger ones are hardly faster.
CHUNK = 128_000

#: How many bytes of one body are on their way at most, in bytes.
WINDOW = 1024 * 1024


class Sender:
    """The sending end.

    Args:
        correlation_id: whose body it is.
        reply_to: the caller's reply queue, if the body goes to a worker.
        credit: up to which offset bytes may go; with 0 nothing goes before the first credit, not even the end, for
            until then nobody has said where to.

    Attributes:
        sent: up to which offset bytes have gone.
        finished: whether the last chunk has gone.
    """

    def __init__(self, correlation_id: str, reply_to: str = '', *, credit: int = WINDOW) -> None:
        self.sent = 0
        self.finished = False
        self._correlation_id = correlation_id
        self._reply_to = reply_to
        self._credit = credit
        self._pending: deque[memoryview] = deque()
        self._pending_size = 0
        self._ended = False

    @property
    def pending(self) -> int:
        """How many bytes wait here for credit."""
        return self._pending_size

    @property
    def stalled(self) -> bool:
        """Whether bytes wait here, and only for credit."""
        return self._pending_size > 0 and self.sent >= self._credit

    @property
    def wanted(self) -> bool:
        """Whether the receiver would take more than there is."""
        return self.sent < self._credit

    def write(self, data: bytes) -> None:
        """Take bytes of the body."""
        if data:
            self._pending.append(memoryview(data))
            self._pending_size += len(data)

    def end(self) -> None:
        """Take note that there are no more."""
        self._ended = True

    def grant(self, offset: int) -> bool:
        """Take the receiver's word for how far bytes may go; return whether it is news and not one that came late."""
        news = offset > self._credit
        self._credit = max(self._credit, offset)
        return news

    def take(self) -> list[Chunk]:
        """Return the chunks that may go now."""
        chunks = []
        while self._pending and self.sent < self._credit:
            data = self._cut(min(CHUNK, self._credit - self.sent))
            self._pending_size -= len(data)
            last = self._ended and not self._pending
            chunks.append(self._chunk(data, last))
        if self._ended and not self._pending and not self.finished and self._credit:
            chunks.append(self._chunk(b'', True))
        return chunks

    def _chunk(self, data: bytes, last: bool) -> Chunk:
        chunk = Chunk(
            correlation_id=self._correlation_id, reply_to=self._reply_to, offset=self.sent, last=last, body=data
        )
        self.sent += len(data)
        self.finished = self.finished or last
        return chunk

    def _cut(self, size: int) -> bytes:
        """Take up to ``size`` bytes off the front, joined."""
        parts = []
        while size and self._pending:
            part = self._pending.popleft()
            if len(part) > size:
                self._pending.appendleft(part[size:])
                part = part[:size]
            size -= len(part)
            parts.append(part)
        return b''.join(parts)


class Receiver:
    """The receiving end.

    Args:
        credit: what the sender may believe beforehand.
        window: how many bytes may be on their way or lie here unread.

    Attributes:
        received: up to which offset bytes have come.
        credit: up to which offset they may.
        ended: whether all have come.
    """

    def __init__(self, *, credit: int = WINDOW, window: int = WINDOW) -> None:
        self.received = 0
        self.credit = credit
        self.ended = False
        self._window = window

    def receive(self, chunk: Chunk) -> bytes:
        """Take a chunk; return its bytes.

        Raises:
            ProtocolError: it does not follow the one before, or goes beyond the credit.
        """
        if self.ended or chunk.offset != self.received:
            raise ProtocolError(f'a chunk at {chunk.offset} came where {self.received} was due')
        if chunk.offset + len(chunk.body) > self.credit:
            raise ProtocolError(f'a chunk goes beyond the credit of {self.credit}')
        self.received += len(chunk.body)
        self.ended = chunk.last
        return chunk.body

    def consumed(self, offset: int) -> int | None:
        """Take note that everything up to ``offset`` has been read; return a new credit if it is time to grant one.

        When all has come, too: it says that the receiver still reads.
        """
        credit = offset + self._window
        # Not for every byte: half a window on, so that the sender has not run dry meanwhile.
        if credit - self.credit < self._window // 2:
            return None
        self.credit = credit
        return credit
