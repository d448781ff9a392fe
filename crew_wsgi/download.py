"""The body of an answer on its way to the client, as fast as the client takes it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from crew.exceptions import ProtocolError
from crew.messages import Chunk
from crew.streams import Receiver
from crew_wsgi.budget import Budget
from crew_wsgi.patience import Patience
from crew_wsgi.tcp import bytes_acked
from crew_wsgi.timer import Timer

__all__ = ['Download']

#: How much of a response is handed on at once.
PIECE = 64 * 1024


class Download:
    """The body of one answer.

    Args:
        exchange: where the answer is written (:class:`crew_wsgi.http1.Exchange`).
        budget: bounds what is left of all answers that no worker has more of.
        patience: with the client, while there is something that it could take.
        on_credit: called with the offset up to which the worker may send more.
        on_moved: called when it may have become another's turn: the client's, or the worker's.
        on_gone: called when the client has hung up.
        on_stalled: called when that is over.
        on_written: called when all has been handed to the connection.
        on_crowded: called when what is left is to give way.

    Attributes:
        written: how many bytes have been handed to the connection.
    """

    def __init__(
        self,
        exchange: Any,
        budget: Budget,
        patience: Patience,
        *,
        on_credit: Callable[[int], None],
        on_moved: Callable[[], None],
        on_gone: Callable[[], None],
        on_stalled: Callable[[], None],
        on_written: Callable[[], None],
        on_crowded: Callable[[], None],
    ) -> None:
        self.written = 0
        self._exchange = exchange
        self._stream = exchange.stream
        self._budget = budget
        self._patience = patience
        self._on_credit = on_credit
        self._on_moved = on_moved
        self._on_gone = on_gone
        self._on_stalled = on_stalled
        self._on_written = on_written
        self._on_crowded = on_crowded
        self._receiver: Receiver | None = None
        self._rest: deque[memoryview] = deque()
        self._taken = 0
        self._remaining: int | None = None
        self._whole = False
        self._awaiting = False
        self._acked: int | None = None
        self._timer = Timer()

    def begin(self, start_line: Any, headers: Any, body: bytes, *, whole: bool, length: int | None) -> None:
        """Write the head, and what there is of the body.

        Args:
            start_line: the status line.
            headers: the header fields.
            body: what there is of the body.
            whole: whether that is all.
            length: how long the body is, if that is known and it is not whole.
        """
        self._exchange.write_headers(start_line, headers, body[:PIECE])
        self.written = min(len(body), PIECE)
        self._whole = whole
        self._remaining = length
        if not whole:
            self._receiver = Receiver()
        if len(body) > PIECE:
            self._rest.append(memoryview(body)[PIECE:])
        self._pump()

    def take(self, chunk: Chunk) -> None:
        """Take a part of the body from the worker.

        Raises:
            ProtocolError: it is not what was to come.
        """
        if self._receiver is None:
            raise ProtocolError('a chunk came without the beginning of an answer')
        data = self._receiver.receive(chunk)
        if self._remaining is not None:
            self._remaining -= len(data)
            if self._remaining < 0 or (chunk.last and self._remaining):
                raise ProtocolError('the body is not as long as its Content-Length')
        if data:
            self._rest.append(memoryview(data))
        self._whole = chunk.last
        self._pump()

    @property
    def held_up(self) -> bool:
        """Whether there is something that the client has not taken."""
        return bool(self._rest)

    def give_way(self) -> None:
        """Give up an answer that the client has not taken: together they take too much."""
        self._on_crowded()

    def await_client(self, then: Callable[[], None]) -> None:
        """Go on when all that was written has left, or the connection is closed, as that of a client that stalls is."""
        self._awaiting = True
        if self._acked is None:
            self._acked = bytes_acked(self._stream.socket)
        self._patience.wait(time.monotonic())
        self._check()
        self._stream.write(b'').add_done_callback(lambda _: then())

    def clear(self) -> None:
        """Forget what was not written."""
        self._rest.clear()
        self._budget.release(self)

    def stop(self) -> None:
        """Stop the clock."""
        self._patience.stop(time.monotonic())
        self._timer.stop()

    def _check(self) -> None:
        """Look how much the client has taken meanwhile: one kernel may hold megabytes that the other takes slowly."""
        deadline, now = self._patience.deadline, time.monotonic()
        if deadline is None:
            return
        if deadline <= now and not self._stream.closed():
            self._count(now)
            deadline = self._patience.deadline or now
        if deadline > now:
            self._timer.start(deadline - now, self._check)
        else:
            self._on_stalled()

    def _count(self, now: float) -> None:
        acked = bytes_acked(self._stream.socket)
        if acked is not None and self._acked is not None:
            self._patience.moved(acked - self._acked, now)
            self._acked = acked

    def _pump(self) -> None:
        """Write what there is for as long as the client takes it."""
        if self._awaiting:
            self._hold()
            return
        if self._stream.closed():
            # Tornado does not say so while it still reads the request, or would.
            self._on_gone()
            return
        while self._rest and not self._stream.closed():
            if self._stream.writing():
                self._hold()
                self._on_moved()
                self.await_client(self._pump_on)
                return
            piece = self._rest.popleft()
            if len(piece) > PIECE:
                self._rest.appendleft(piece[PIECE:])
                piece = piece[:PIECE]
            self._exchange.write(bytes(piece))
            self.written += len(piece)
            self._credit(len(piece))
        self._on_moved()
        if self._whole and not self._rest:
            self._budget.release(self)
            self._on_written()

    def _hold(self) -> None:
        if self._whole:
            # The worker has done its part, and the number of workers bounds no more what is here.
            self._budget.hold(self, sum(map(len, self._rest)))

    def _pump_on(self) -> None:
        self._awaiting = False
        if self._acked is None:
            # Only whole pieces are seen to leave.
            self._patience.moved(PIECE, time.monotonic())
        elif not self._stream.closed():
            self._count(time.monotonic())
        self.stop()
        self._pump()

    def _credit(self, size: int) -> None:
        """Let the worker send more when the client has taken some."""
        self._taken += size
        if self._receiver is not None:
            credit = self._receiver.consumed(self._taken)
            if credit is not None:
                self._on_credit(credit)
