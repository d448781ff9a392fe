"""The sockets under pika on an asyncio loop: one read for much, one write for all that a turn of the loop produced.

pika hands every frame to its stream on its own: three for a publish, one for an ack, and its own streams make a system
call of each. Here they are collected and leave together when the turn ends; never on a timer, so nothing waits for
company (docs/architecture.md, Speed). Everything else is asyncio's own socket and TLS code.
"""

import asyncio
import contextlib
import math
import os
import socket
import ssl
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from pika.adapters.utils import nbio_interface

from crew.transports.tls import SpeaksTls
from crew.transports.unread import Unread

__all__ = ['AsyncioServices']

# RFC 8446 §5.1, §6: the record with which a TLS server turns down what is not TLS. No AMQP answer begins so.
TLS_ALERT = b'\x15\x03'

#: The most that is read at once, in bytes: also a message with all that a front reads at once of a body, and its head.
READ = 320 * 1024

#: How many turns of the loop the end of a connection that was never made may take.
CLOSED_WITHIN = 10


# While a forked child holds a connection open, the broker does not notice that its owner has died.
_sockets: 'weakref.WeakSet[socket.socket]' = weakref.WeakSet()


def _drop_sockets() -> None:
    for sock in list(_sockets):
        # Only our end of the number, without a word: the connection is the parent's.
        with contextlib.suppress(OSError):
            os.close(sock.detach())
    _sockets.clear()


os.register_at_fork(after_in_child=_drop_sockets)


class AsyncioServices(nbio_interface.AbstractIOServices):
    """What pika wants of a loop (its ``AbstractIOServices``), given by asyncio."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._made: _Stream | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a stream; not while TLS is still being agreed on."""
        return self._made is not None and self._made.connected

    @property
    def failure(self) -> Exception | None:
        """What TLS ended the stream for, which pika only guesses at."""
        reason = self._made.reason if self._made is not None else None
        return reason if isinstance(reason, (ssl.SSLError, SpeaksTls)) else None

    @property
    def heard(self) -> float:
        """When something last came from the broker, on the loop's clock."""
        return self._made.heard if self._made is not None else -math.inf

    def abort(self, reason: str = 'we gave it up') -> None:
        """Cut the stream, whatever its other end does."""
        if self._made is not None:
            self._made.cut(ConnectionAbortedError(reason))

    def get_native_ioloop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def close(self) -> None:
        """Do nothing: the loop belongs to whoever made it."""

    def run(self) -> None:
        """Do nothing: the loop is run by whoever made it."""

    def stop(self) -> None:
        """Do nothing: the loop is stopped by whoever runs it."""

    def add_callback_threadsafe(self, callback: Callable[[], None]) -> None:
        """Call back in the loop's thread. pika calls this from there, so no wake-up through a socket is needed."""
        self._loop.call_soon(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back after ``delay`` seconds."""
        return self._loop.call_later(delay, callback)

    def getaddrinfo(
        self,
        host: str,
        port: int,
        on_done: Callable[[Any], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> '_Task':
        """Resolve a name; ``on_done`` gets the addresses or an exception."""
        return _Task(self._loop, self._getaddrinfo(host, port, family, socktype, proto, flags), on_done)

    def connect_socket(
        self, sock: socket.socket, resolved_addr: Any, on_done: Callable[[BaseException | None], None]
    ) -> '_Task':
        """Connect a non-blocking socket; ``on_done`` gets None or an exception."""
        return _Task(self._loop, self._loop.sock_connect(sock, resolved_addr), on_done)

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        on_done: Callable[[Any], None],
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> '_Task':
        """Make a stream of a connected socket; ``on_done`` gets ``(stream, protocol)`` or an exception."""

        def hand_over(result: Any) -> None:
            on_done(result)
            if self._made is not None and not isinstance(result, BaseException):
                self._made.hand_over()

        return _Task(self._loop, self._stream(protocol_factory, sock, ssl_context, server_hostname), hand_over)

    async def _getaddrinfo(self, host: str, port: int, family: int, type: int, proto: int, flags: int) -> Any:
        try:
            # An address needs no resolver, and so no thread.
            return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            return await self._loop.getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)

    async def _stream(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str | None,
    ) -> tuple['_Stream', Any]:
        stream = self._made = _Stream(self._loop, protocol_factory())
        name = server_hostname if ssl_context else None
        _sockets.add(sock)
        try:
            await self._loop.create_connection(lambda: stream, sock=sock, ssl=ssl_context, server_hostname=name)
        except BaseException:
            # asyncio closes the socket some turns of the loop later, and there may be none.
            for _ in range(CLOSED_WITHIN):
                if sock.fileno() < 0:
                    break
                await asyncio.sleep(0)
            raise
        return stream, stream.get_protocol()


class _Task(nbio_interface.AbstractIOReference):
    """A coroutine whose outcome, value or exception, goes to a callback."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], on_done: Callable[[Any], None]
    ) -> None:
        self._task = loop.create_task(work)
        self._on_done = on_done
        self._task.add_done_callback(self._done)

    def _done(self, task: 'asyncio.Task[Any]') -> None:
        if not task.cancelled():
            self._on_done(task.exception() or task.result())

    def cancel(self) -> bool:
        """Cancel the work; return False if it was done already."""
        return self._task.cancel()


class _Stream(asyncio.BufferedProtocol, nbio_interface.AbstractStreamTransport):
    """asyncio's protocol on one side, pika's transport on the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any) -> None:
        self._loop = loop
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        # One for all reads: asyncio would map and unmap 256 KiB for each, however little comes.
        self._unread = Unread(READ)
        self._pending: list[bytes | memoryview] = []
        self._late: list[Callable[[], None]] = []
        self._flushing = False
        self._handed_over = False
        self._lost = False
        self.heard = -math.inf
        self.reason: Exception | None = None

    @property
    def connected(self) -> bool:
        return self._transport is not None

    # From the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._unread.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._unread.take(nbytes)
        first, self.heard = self.heard == -math.inf, self._loop.time()
        if first and self._unread.data.startswith(TLS_ALERT):
            self.cut(SpeaksTls('the peer speaks TLS'))
            return
        try:
            self._protocol.data_received(self._unread)
        except Exception as error:
            # Bytes that are not AMQP: what follows cannot be understood either.
            self.cut(error)

    def cut(self, reason: Exception) -> None:
        """End the stream for a reason that pika does not know of."""
        self.reason = reason
        self.abort()

    def eof_received(self) -> bool:
        return bool(self._protocol.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pending.clear()
        self._late.clear()
        self.reason = self.reason or exc
        self._lost = True
        if self._handed_over:
            self._protocol.connection_lost(self.reason)

    def hand_over(self) -> None:
        """Take note that pika listens now: told of a loss before, it would go on waiting for an answer."""
        self._handed_over = True
        if self._lost:
            self._protocol.connection_lost(self.reason)

    # To the socket

    def write(self, data: bytes) -> None:
        if not self._flushing:
            self._flush_soon()
        self._pending.append(data)

    def write_pieces(self, first: bytes, rest: list[bytes | memoryview]) -> None:
        """Write a message of many pieces."""
        if not self._flushing:
            self._flush_soon()
        self._pending.append(first)
        self._pending += rest

    def flush_later(self, work: Callable[[], None]) -> None:
        """Have something called that writes, when this turn of the loop ends."""
        if not self._flushing:
            self._flush_soon()
        self._late.append(work)

    def _flush_soon(self) -> None:
        self._flushing = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        late, self._late = self._late, []
        try:
            for work in late:
                work()
        finally:
            self._flushing = False
        if self._transport is not None and self._pending:
            data = b''.join(self._pending)
            self._pending.clear()
            self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        unsent = self._transport.get_write_buffer_size() if self._transport else 0
        return unsent + sum(map(len, self._pending))

    def get_protocol(self) -> Any:
        return self._protocol

    def abort(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.abort()
