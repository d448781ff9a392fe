"""The two ends of a run's long bodies: what its task reads of the call, and what it writes of the answer.

Each end is used by two threads. The task's thread blocks in it; the one that owns the connection feeds it, and never
blocks. They share no lock, because the task's thread may be interrupted anywhere (:mod:`crew.worker.threads`): what
passes between them are deques, integers that only one of them writes, and a signal.
"""

import io
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from crew.messages import Chunk, Reply
from crew.streams import WINDOW, Receiver, Sender

__all__ = ['Input', 'Output', 'Signal']


class Signal(Protocol):
    """What one thread waits for and another sets."""

    def wait(self) -> None:
        """Return when it has been set since the last wait; in the task's thread."""

    def set(self) -> None:
        """Wake who waits; in any thread."""


class Input(io.RawIOBase):
    """The body of a call, as a raw file that its task reads: what has come with the call, then chunks on demand.

    Args:
        signal: how the task's thread is woken.
        want: called in the task's thread with the offset up to which it has read, whenever it needs more, and with
            whether it cannot go on without.
    """

    def __init__(self, signal: Signal, want: Callable[[int, bool], None]) -> None:
        super().__init__()
        # Nothing comes before it is wanted: a task that does not read costs no upload.
        self.receiver = Receiver(credit=0)
        self._pieces: deque[memoryview] = deque()
        self._signal = signal
        self._want = want
        self._read = 0
        # The credit that was asked for.
        self._asked = 0
        self._whole = False
        self._error: Exception | None = None

    # In the task's thread

    def prepend(self, data: bytes) -> None:
        """Put bytes that came with the call itself before all others; to be called before anything is read."""
        if data:
            self._pieces.appendleft(memoryview(data))
            self._read -= len(data)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, waiting for the first; 0 at the end.

        Raises:
            OSError: the rest will not come: the client is gone.
        """
        if not self._await():
            return 0
        piece = self._pieces[0]
        size = min(len(piece), len(buffer))
        buffer[:size] = piece[:size]
        if size == len(piece):
            self._pieces.popleft()
        else:
            self._pieces[0] = piece[size:]
        self._count(size)
        return size

    def readall(self) -> bytes:
        """Read all that is still to come: piece by piece as it comes, and not in small parts as :mod:`io` would.

        Raises:
            OSError: the rest will not come: the client is gone.
        """
        read: list[memoryview] = []
        while self._await():
            piece = self._pieces.popleft()
            read.append(piece)
            self._count(len(piece))
        return b''.join(read)

    def _await(self) -> bool:
        """Wait until there is something; return False at the end."""
        while True:
            # Looked at before the pieces are: if the end has come by now, so have they.
            whole, error = self._whole, self._error
            if self._pieces:
                return True
            if whole:
                return False
            if error is not None:
                raise OSError(f'the rest of the body will not come: {error}') from error
            self._want(self._read, True)
            self._signal.wait()

    def _count(self, size: int) -> None:
        """Take note that so much was read."""
        self._read += size
        # When all has come, too: whoever reads makes progress, and its caller should know. But once: until it is heard,
        # much may be read, and each word wakes the other thread.
        if max(self.receiver.credit, self._asked) - self._read < WINDOW // 2:
            self._asked = self._read + WINDOW
            self._want(self._read, False)

    # In the connection's thread

    def feed(self, chunk: Chunk) -> None:
        """Take a chunk.

        Raises:
            ProtocolError: it does not follow the one before, or goes beyond the credit.
        """
        data = self.receiver.receive(chunk)
        if data:
            self._pieces.append(memoryview(data))
        self._whole = self.receiver.ended
        self._signal.set()

    def fail(self, error: Exception) -> None:
        """Let whoever reads know that no more will come."""
        self._error = error
        self._signal.set()


class Output:
    """The answer of a run, as its task writes it in parts.

    Args:
        correlation_id: the call's.
        signal: how the task's thread is woken.
        wake: called in the task's thread when there is something to send.
        wanted: whether anybody takes it. If not, what is written is dropped: who writes must not wait for ever.
    """

    def __init__(self, correlation_id: str, signal: Signal, wake: Callable[[], None], *, wanted: bool = True) -> None:
        self._wanted = wanted
        self.reply: Reply | None = None
        self.sender = Sender(correlation_id)
        self._signal = signal
        self._wake = wake
        self._pieces: deque[bytes] = deque()
        self._written = 0
        self._whole = False
        self._granted = WINDOW
        self._error: Exception | None = None

    # In the task's thread

    def begin(self, reply: Reply) -> None:
        """Begin the answer with a reply that says there is more."""
        self.reply = reply
        self._wake()

    def write(self, data: bytes) -> None:
        """Send bytes, waiting while a window of them is on its way.

        Raises:
            BrokenPipeError: nobody takes them any more.
        """
        self._check()
        if not self._wanted:
            return
        self._written += len(data)
        self._pieces.append(data)
        self._wake()
        while self._error is None and self._written > self._granted:
            self._signal.wait()
        self._check()

    def end(self) -> None:
        """Let the end follow what was written, although the run goes on; nothing more is written."""
        self._whole = True
        self._wake()

    def _check(self) -> None:
        if self._error is not None:
            raise BrokenPipeError(f'nobody takes the answer any more: {self._error}') from self._error

    # In the connection's thread

    def collect(self, *, ended: bool = False) -> list[Chunk]:
        """Return the chunks that may go now.

        Args:
            ended: whether the task has written all.
        """
        # Looked at before the pieces are: if the end has come by now, so have they.
        whole = ended or self._whole
        while self._pieces:
            self.sender.write(self._pieces.popleft())
        if whole:
            self.sender.end()
        return self.sender.take()

    def grant(self, offset: int) -> bool:
        """Take the caller's word for how far bytes may go; return whether it is news."""
        # The same once more is how a caller looks whether the worker is still there.
        if not self.sender.grant(offset):
            return False
        self._granted = max(self._granted, offset)
        self._signal.set()
        return True

    def fail(self, error: Exception) -> None:
        """Let whoever writes know that nobody takes it any more."""
        self._error = error
        self._signal.set()
