"""The body of an answer on its way to the client, as fast as the client takes it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from crew.exceptions import ProtocolError
from crew.messages import Chunk
from crew.streams import Receiver
from crew_wsgi.budget import Budget
from crew_wsgi.connections import Exchange
from crew_wsgi.messages import Response
from crew_wsgi.patience import Patience
from crew_wsgi.tcp import bytes_acked
from crew_wsgi.timer import Timer

__all__ = ['PIECE', 'Download', 'Downloader']

#: How much of a response is handed on at once.
PIECE = 64 * 1024


class Downloader(Protocol):
    """Whose answer it is."""

    def credit(self, offset: int) -> None:
        """Let the worker send up to this offset."""

    def mind_clock(self) -> None:
        """Take note that it may have become another's turn: the client's, or the worker's."""

    def answer_late(self) -> None:
        """Take note that the client has been too slow."""

    def answer_written(self) -> None:
        """Take note that all has been handed to the connection."""

    def answer_crowded(self) -> None:
        """Take note that what is left has to give way to others'."""

    def on_connection_close(self) -> None:
        """Take note that the client has hung up."""


class Download:
    """The body of one answer.

    Args:
        owner: hears of what it cannot decide itself.
        exchange: where the answer is written (:class:`crew_wsgi.connections.Exchange`).
        budget: bounds what is left of all answers that no worker has more of.
        patience: with the client, while there is something that it could take.

    Attributes:
        written: how many bytes have been handed to the connection.
    """

    def __init__(self, owner: Downloader, exchange: Exchange, budget: Budget, patience: Patience) -> None:
        self.written = 0
        self._exchange = exchange
        self._connection = exchange.connection
        self._budget = budget
        self._patience = patience
        self._owner = owner
        self._receiver: Receiver | None = None
        self._rest: deque[memoryview] = deque()
        self._taken = 0
        self._remaining: int | None = None
        self._whole = False
        self._awaiting = False
        self._acked: int | None = None
        self._timer = Timer()

    def begin(
        self, response: Response, added: str, body: bytes, *, whole: bool, length: int | None, closes: bool
    ) -> None:
        """Write the head, and what there is of the body.

        Args:
            response: the answer.
            added: more header fields, as lines.
            body: what there is of the body.
            whole: whether that is all.
            length: how long the body is, if that is known and it is not whole.
            closes: whether the connection ends with it.
        """
        self._exchange.write_headers(
            response.code, response.reason, response.headers, body[:PIECE], closes=closes, added=added
        )
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
        self._owner.answer_crowded()

    def await_client(self, then: Callable[[], None]) -> None:
        """Go on when all that was written has left, or the connection is closed, as that of a client that stalls is."""
        self._awaiting = True
        if self._acked is None:
            self._acked = bytes_acked(self._connection.socket)
        self._patience.wait(time.monotonic())
        self._check()
        self._connection.when_drained(then)

    def clear(self) -> None:
        """Forget what was not written."""
        self._rest.clear()
        self._budget.release(self)

    def stop(self) -> None:
        """Stop the clock."""
        if self._patience.waits:
            self._patience.stop(time.monotonic())
        self._timer.stop()

    def _check(self) -> None:
        """Look how much the client has taken meanwhile: one kernel may hold megabytes that the other takes slowly."""
        deadline, now = self._patience.deadline, time.monotonic()
        if deadline is None:
            return
        if deadline <= now and not self._connection.closed:
            self._count(now)
            deadline = self._patience.deadline or now
        if deadline > now:
            self._timer.start(deadline - now, self._check)
        else:
            self._owner.answer_late()

    def _count(self, now: float) -> None:
        acked = bytes_acked(self._connection.socket)
        if acked is not None and self._acked is not None:
            self._patience.moved(acked - self._acked, now)
            self._acked = acked

    def _pump(self) -> None:
        """Write what there is for as long as the client takes it."""
        if self._awaiting:
            self._hold()
            return
        if self._connection.closed:
            self._owner.on_connection_close()
            return
        while self._rest and not self._connection.failing:
            if self._connection.writing:
                self._hold()
                self._owner.mind_clock()
                self.await_client(self._pump_on)
                return
            piece = self._rest.popleft()
            if len(piece) > PIECE:
                self._rest.appendleft(piece[PIECE:])
                piece = piece[:PIECE]
            self._exchange.write(piece)
            self.written += len(piece)
            self._credit(len(piece))
        self._owner.mind_clock()
        if self._whole and not self._rest:
            self._budget.release(self)
            self._owner.answer_written()

    def _hold(self) -> None:
        if self._whole:
            # The worker has done its part, and the number of workers bounds no more what is here.
            self._budget.hold(self, sum(map(len, self._rest)))

    def _pump_on(self) -> None:
        self._awaiting = False
        if self._acked is None:
            # Only whole pieces are seen to leave.
            self._patience.moved(PIECE, time.monotonic())
        elif not self._connection.closed:
            self._count(time.monotonic())
        self.stop()
        self._pump()

    def _credit(self, size: int) -> None:
        """Let the worker send more when the client has taken some."""
        self._taken += size
        if self._receiver is not None:
            credit = self._receiver.consumed(self._taken)
            if credit is not None:
                self._owner.credit(credit)
