"""HTTP/1.1 connections on an asyncio loop, which is Tornado's: what :mod:`crew_wsgi.http1` reads becomes requests.

One request of a connection is in hand at a time. Nothing more is read than somebody takes: while a request waits for
its answer, what the client sends ahead stays in the kernel beyond one buffer.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio.trsock import TransportSocket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from tornado import httputil

from crew_wsgi.budget import Budget
from crew_wsgi.fields import Fields
from crew_wsgi.headers import HeaderPairs
from crew_wsgi.http1 import END, Answer, Head, Malformed, Reader
from crew_wsgi.problems import CROWDED, Problem, plain
from crew_wsgi.sockets import Acceptor, answer_at_once

__all__ = ['Connection', 'Context', 'Delegate', 'Exchange', 'HttpServer', 'Times']

log = logging.getLogger(__name__)

#: What a client may send ahead of an answer before it is read no more.
AHEAD = 64 * 1024

#: So many pieces that are there already are taken before others have their turn.
TURN = 8

#: What is logged of a request line that cannot be read.
UNREAD = httputil.RequestStartLine('-', '-', 'HTTP/1.1')

#: A connection that has been idle for so long may be closed for another's sake, in seconds.
SETTLED = 0.5


@dataclass(frozen=True, slots=True)
class Times:
    """How long a connection may take, in seconds.

    Args:
        idle: without a request.
        head: from the first byte of a head to its last; one that comes a byte at a time would hold us for ever.
        linger: for reading the last answer, where the client sends more than is read. Closing at once would reset the
            connection, and the client would lose the answer (RFC 9112 §9.6).
    """

    idle: float = 75.0
    head: float = 20.0
    linger: float = 5.0


class Delegate(Protocol):
    """What becomes of a request: Tornado's ``HTTPMessageDelegate``, and what is told to who sends a malformed one."""

    def headers_received(self, start_line: httputil.RequestStartLine, headers: Fields) -> None:
        """Take the head."""

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body; the next is read when what is returned is done."""

    def finish(self) -> None:
        """Take the end of the request, or after :meth:`refuse` that of the connection."""

    def on_connection_close(self) -> None:
        """Take note that the client hung up in the middle of the request."""

    def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
        """Answer that the request is malformed.

        Args:
            problem: the answer.
            start_line: what could be read of it, where :meth:`headers_received` was not called.
        """


@dataclass(frozen=True, slots=True)
class Context:
    """Who is connected.

    Args:
        address: of the socket's other end.
        protocol: ``http`` or ``https``.
    """

    address: Any
    protocol: str

    @property
    def remote_ip(self) -> str:
        """The address without a port, for logs."""
        return _name(self.address)


class HttpServer:
    """Accepts connections.

    Args:
        begin: makes the delegate of each request.
        max_head: the longest request line and header section together, in bytes.
        max_connections: how many may be open. When there are more, that one is closed which has been idle for longest;
            if none is, the new one is answered 503.
        times: see :class:`Times`.
        budget: bounds what all heads that are not whole may take.
        tls: for HTTPS.
    """

    def __init__(
        self,
        begin: 'Callable[[Exchange], Delegate]',
        *,
        max_head: int,
        max_connections: int,
        times: Times,
        budget: Budget,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.begin = begin
        self.max_head = max_head
        self.times = times
        self.budget = budget
        self._max_connections = max_connections
        self._tls = tls
        self._acceptor = Acceptor(self._accepted, self._make_room)
        self._connections: set[Connection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        # Since when they have been idle; who has been for longest comes first.
        self._idle: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None

    def add_sockets(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections at these sockets."""
        for listening in sockets:
            self._acceptor.add(listening)

    def stop(self) -> None:
        """Accept no more connections."""
        self._acceptor.close()

    async def wait_closed(self, timeout: float) -> None:
        """Wait until no connection is open, for at most ``timeout`` seconds."""
        if self._connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._emptied}, timeout=timeout)

    def close_idle(self) -> None:
        """Close all connections that have no request."""
        for connection in list(self._idle):
            connection.close()

    async def close_all_connections(self) -> None:
        """Close all connections, whatever happens on them."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.abort()
        # They are told in the next turn of the loop.
        await asyncio.sleep(0)

    # Accepting

    def _accepted(self, connected: socket.socket, address: Any) -> None:
        if len(self._connections) >= self._max_connections and not self._make_room():
            log.warning('refusing a connection of %s: all %d are busy', _name(address), self._max_connections)
            answer_at_once(connected, b'' if self._tls is not None else plain(CROWDED))
            return
        connection = Connection(self, Context(address, 'https' if self._tls is not None else 'http'))
        self._connections.add(connection)
        handshake = asyncio.ensure_future(self._shake_hands(connection, connected))
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: 'Connection', connected: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            within = None if self._tls is None else self.times.head
            await loop.connect_accepted_socket(
                lambda: connection, connected, ssl=self._tls, ssl_handshake_timeout=within
            )
        except OSError as error:
            # It was reset while it waited to be accepted, or speaks no TLS.
            log.debug('a connection of %s came to nothing: %s', connection.context.remote_ip, error)
            self.lost(connection)

    def lost(self, connection: 'Connection') -> None:
        """Take note that a connection is no more."""
        self._connections.discard(connection)
        self.not_idle(connection)
        if not self._connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest; return whether there was one."""
        connection, since = next(iter(self._idle.items()), (None, 0.0))
        # The request of one that has just come may be on its way.
        if connection is None or asyncio.get_running_loop().time() < since + SETTLED:
            return False
        self.lost(connection)
        connection.abort()
        return True

    # Idle connections

    def idle(self, connection: 'Connection') -> None:
        """Take note that a connection has no request."""
        self._idle[connection] = connection.loop.time()
        if self._timer is None:
            self._timer = connection.loop.call_later(self.times.idle, self._close_late)

    def not_idle(self, connection: 'Connection') -> None:
        """Take note that a connection has a request, or is closed."""
        self._idle.pop(connection, None)

    def _close_late(self) -> None:
        """Close who has been idle for too long. One timer for all: most have a request long before."""
        self._timer = None
        loop = asyncio.get_running_loop()
        for connection, since in list(self._idle.items()):
            late = since + self.times.idle - loop.time()
            if late > 0:
                self._timer = loop.call_later(late, self._close_late)
                return
            self.not_idle(connection)
            connection.close()


class Connection(asyncio.Protocol):
    """A connection: one request after the other.

    Args:
        server: where it was accepted.
        context: who is connected.

    Attributes:
        loop: where it lives.
        address: the address that the client has connected to, as sockets name it.
        socket: for looking at and for setting options.
        closed: whether it is closed, or will be as soon as the kernel has what was written.
        writing: whether something that was written has not reached the kernel.
    """

    __slots__ = (
        '__weakref__',
        '_advancing',
        '_drained',
        '_exchange',
        '_held',
        '_lingering',
        '_made',
        '_paused',
        '_reader',
        '_server',
        '_timer',
        '_transport',
        'address',
        'closed',
        'context',
        'loop',
        'socket',
        'writing',
    )

    def __init__(self, server: HttpServer, context: Context) -> None:
        self.context = context
        self._server = server
        self.loop = asyncio.get_running_loop()
        self._reader = Reader(server.max_head)
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._made = self._advancing = self._paused = self._lingering = self._held = False
        self._drained: list[Callable[[], None]] = []
        self.closed = self.writing = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note that somebody has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self.address: Any = transport.get_extra_info('sockname')
        self.socket: TransportSocket = transport.get_extra_info('socket')
        self._made = True
        # All that the kernel does not take at once is waited for; with 0, asyncio's TLS would wait for nothing at all.
        self._transport.set_write_buffer_limits(high=1)
        if self.closed:
            # All were closed while hands were shaken.
            self._transport.abort()
        else:
            self._server.idle(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self._lingering or self.closed:
            # Whatever comes now is thrown away, until the client hangs up.
            return
        self._reader.feed(data)
        self._advance()

    def eof_received(self) -> None:
        """Take note that the client sends no more; whoever does that is taken for gone."""
        self.close()

    def pause_writing(self) -> None:
        """Take note that the kernel has not taken all that was written."""
        self.writing = True

    def resume_writing(self) -> None:
        """Take note that it has."""
        self.writing = False
        drained, self._drained = self._drained, []
        for callback in drained:
            # In the next turn: a transport of asyncio's that is closed in the middle of this is lost twice.
            self.loop.call_soon(callback)

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that the connection is no more."""
        self.closed = True
        self._stop_timer()
        self._server.budget.release(self)
        self._server.lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(refused=self._lingering)
            exchange.let_go()
        self.writing = False
        drained, self._drained = self._drained, []
        for callback in drained:
            callback()

    # For exchanges

    @property
    def unread(self) -> int:
        """How many bytes have come that nobody has taken."""
        return self._reader.size

    @property
    def failing(self) -> bool:
        """Whether it takes nothing more: it is closed, or a write has failed, which others hear in the next turn."""
        return self.closed or self._transport.is_closing()

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes; nothing happens if the connection is closed."""
        if not self.closed:
            self._transport.write(data)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call back when the kernel has all that was written, or the connection is lost."""
        if self.writing:
            self._drained.append(callback)
        else:
            self.loop.call_soon(callback)

    def close(self) -> None:
        """Close it when the kernel has all that was written."""
        if not self.closed:
            self.closed = True
            if self._made:
                self._transport.close()

    def end(self) -> None:
        """Close it behind its last answer, whose request was read to its end."""
        if not self.closed and self._reader.begun:
            self._linger()
            self._end_our_half()
        else:
            self.close()

    def abort(self) -> None:
        """Close it now, whatever has been written."""
        self.closed = True
        if self._made:
            self._transport.abort()

    def answered(self, exchange: 'Exchange') -> None:
        """Go on with the next request."""
        if exchange is self._exchange and exchange.read:
            self._exchange = None
            exchange.let_go()
            if not self.closed:
                if self._reader.size:
                    self._advance()
                else:
                    self._throttle()
                if self._exchange is None and not self._reader.begun and not self._lingering:
                    self._server.idle(self)

    # Reading

    def _advance(self) -> None:
        """Read on for as long as somebody takes what is read."""
        if self._advancing:
            return
        self._advancing = True
        try:
            for _ in range(TURN):
                if self.closed or self._held or self._lingering or (self._exchange is not None and self._exchange.read):
                    break
                if not self._step():
                    break
            else:
                # Others have their turn first; who takes a piece of a body just now lets go by itself.
                if not self._held:
                    self._hold()
                    self.loop.call_soon(self._release)
        except Malformed as error:
            self._refuse(error)
        except Exception:
            log.exception('a request of %s failed', self.context.remote_ip)
            self.abort()
        finally:
            self._advancing = False
        self._throttle()

    def _step(self) -> bool:
        """Read one thing, and return whether there may be another."""
        event = self._reader.read()
        if event is None:
            # Not for an empty line: nothing would be waited for then, and for ever.
            if self._exchange is None and self._reader.begun:
                self._server.not_idle(self)
                self._await_head()
            return False
        if isinstance(event, Head):
            self._server.not_idle(self)
            if self._timer is not None:
                self._stop_timer()
                self._server.budget.release(self)
            exchange = self._exchange = Exchange(self, self._server.begin)
            exchange.begin(event)
        elif self._exchange is None:
            raise AssertionError('a body came without a head')
        elif event is END:
            self._exchange.end()
        elif (held := self._exchange.receive(cast(bytes, event))) is not None:
            self._hold()
            asyncio.ensure_future(held).add_done_callback(lambda _: self._release())
        return True

    def _hold(self) -> None:
        self._held = True

    def _release(self) -> None:
        self._held = False
        self._advance()

    def _throttle(self) -> None:
        """Read from the kernel only what somebody takes."""
        waits = self._exchange is not None and self._exchange.read
        pause = self._held or (waits and self._reader.size >= AHEAD)
        if pause != self._paused and not self.closed:
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._server.times.head, self._head_late)
        self._server.budget.hold(self, self._reader.size)

    def give_way(self) -> None:
        """Give up a head that is not whole: many are not, and together they take too much."""
        self._refuse(Malformed('The head of the request comes slowly, and there is no room for it now.', 408))

    def _head_late(self) -> None:
        self._refuse(Malformed('The head of the request did not come in time.', 408))

    def _refuse(self, error: Malformed) -> None:
        self._stop_timer()
        self._server.budget.release(self)
        start_line = self._reader.guess() if self._exchange is None else self._exchange.start_line
        self._linger()
        if self._exchange is None:
            self._exchange = Exchange(self, self._server.begin)
        self._exchange.refuse(error.problem, start_line)
        self.when_drained(self._end_our_half)

    def _linger(self) -> None:
        """Throw away what still comes, until the client hangs up or its time is over."""
        # Nobody may close it meanwhile because it has no request.
        self._server.not_idle(self)
        self._lingering = True
        self._reader.clear()
        self._timer = self.loop.call_later(self._server.times.linger, self.close)

    def _end_our_half(self) -> None:
        """Show the client that this was all, so that it need not wait for the end of our patience."""
        if not self.closed and self._transport.can_write_eof():
            # Who has reset the connection meanwhile is heard of in the next turn only.
            with contextlib.suppress(OSError):
                self._transport.write_eof()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Exchange:
    """A request and its answer; what a delegate writes the answer to.

    Args:
        connection: where both travel.
        begin: makes the delegate.

    Attributes:
        connection: carries the bytes.
        start_line: the request line.
        read: whether all of the request has been read.
    """

    __slots__ = ('_answer', '_close_callback', '_delegate', '_over', '_written', 'connection', 'read', 'start_line')

    def __init__(self, connection: Connection, begin: 'Callable[[Exchange], Delegate]') -> None:
        self.connection = connection
        self.start_line = UNREAD
        self.read = False
        self._answer: Answer | None = None
        self._written = self._over = False
        self._close_callback: Callable[[], None] | None = None
        self._delegate = begin(self)

    @property
    def context(self) -> Context:
        """Who is connected."""
        return self.connection.context

    # From the connection

    def begin(self, head: Head) -> None:
        """Take the head."""
        self.start_line = head.start_line
        self._answer = Answer(head.start_line, closes=head.section.closes)
        self._delegate.headers_received(head.start_line, head.section.fields)

    def receive(self, data: bytes) -> Awaitable[None] | None:
        """Take a piece of the body; no more is read before what is returned is done."""
        return None if self._written else self._delegate.data_received(data)

    def end(self) -> None:
        """Take the end of the request."""
        self.read = True
        if not self._written:
            self._delegate.finish()
        if self._over:
            self.connection.answered(self)

    def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
        """Let the delegate answer that the request is malformed."""
        self.start_line = start_line
        if self._answer is None:
            self._answer = Answer(start_line, closes=True)
        self._answer.closes = True
        self._delegate.refuse(problem, start_line)

    def lost(self, *, refused: bool) -> None:
        """Take note that the connection is no more."""
        if refused:
            self._delegate.finish()
        elif not self.read:
            self._delegate.on_connection_close()
        elif self._close_callback is not None and not self._written:
            self._close_callback()

    def let_go(self) -> None:
        """Take note that nothing more will happen, so that exchange and delegate need not keep each other."""
        self._close_callback = None
        del self._delegate

    # From the delegate

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` when the client hangs up after its request was read and before it is answered."""
        self._close_callback = callback

    def write_headers(
        self, code: int, reason: str, headers: HeaderPairs, chunk: bytes, *, closes: bool, added: str = ''
    ) -> None:
        """Write the head of the answer, and the beginning of its body; see :meth:`crew_wsgi.http1.Answer.head`."""
        assert self._answer is not None
        self._answer.closes = self._answer.closes or closes
        self.connection.write(self._answer.head(code, reason, headers, chunk, added))

    def write(self, chunk: bytes | memoryview) -> None:
        """Write more of the body."""
        assert self._answer is not None
        try:
            data = self._answer.piece(chunk)
        except httputil.HTTPOutputError:
            self.connection.abort()
            raise
        self.connection.write(data)

    def finish(self) -> None:
        """End the answer."""
        assert self._answer is not None
        try:
            data = self._answer.end()
        except httputil.HTTPOutputError:
            self.connection.abort()
            raise
        if data:
            self.connection.write(data)
        self._written = True
        if not self.read:
            # The rest of the request is not wanted, and its end cannot be known without reading it.
            self._answer.closes = True
        if self.connection.writing:
            self.connection.when_drained(self._left)
        else:
            self._left()

    def _left(self) -> None:
        """Take note that all of the answer is the kernel's."""
        assert self._answer is not None
        self._over = True
        if self._answer.closes:
            if self.read:
                self.connection.end()
            else:
                self.connection.close()
        self.connection.answered(self)


def _name(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else 'unix'
