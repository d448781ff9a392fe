"""HTTP/1.1 on one connection: heads, bodies and the framing of answers, read as RFC 9112 says and no more leniently.

Whoever stands in front of us may read ambiguous bytes in another way, and a request could hide in the difference. So
what is malformed is refused, by an answer like any other of ours, and nothing that comes behind it is read. Tornado
carries the bytes (its ``IOStream``); its own parser would accept some of this, and refuse the rest with a bare 400.
"""

import asyncio
import contextlib
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tornado import httputil
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.netutil import ssl_wrap_socket

from crew_wsgi.budget import Budget
from crew_wsgi.headers import is_token
from crew_wsgi.problems import CROWDED, Problem, bad_request, plain
from crew_wsgi.sockets import Acceptor, answer_at_once

__all__ = ['Connection', 'Context', 'Delegate', 'Exchange', 'HttpServer', 'Malformed', 'Times', 'parse_head']

log = logging.getLogger(__name__)

#: How much is read from a connection at once.
PIECE = 64 * 1024

#: RFC 9112 §7.1.1: a server ought to limit what it reads of chunk extensions, which carry nothing for it.
MAX_CHUNK_LINE = 1024
MAX_EXTENSIONS = 16 * 1024

#: So many pieces or chunks that are there already are taken before others have their turn.
TURN = 8
CHUNKS_PER_TURN = 256

#: Digits of the longest Content-Length that is looked at.
COUNTABLE = 18

#: A connection that has been idle for so long may be closed for another's sake, in seconds.
SETTLED = 0.5

_END = re.compile(rb'\n\r?\n')
_CONTROL = re.compile(rb'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]')
_REQUEST_LINE = re.compile(rb'([^ ]+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])')
_DIGITS = re.compile(r'[0-9]+')
_CHUNK = re.compile(rb'0*([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?')
# RFC 3986 §3.2.2, without what only a URI's userinfo may have.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_LINE_END = re.compile('[\r\n]')


class Malformed(Exception):
    """Raised for a request that must not be understood.

    Args:
        detail: why, in one sentence for the client.
        status: the HTTP status.
    """

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.problem = bad_request(detail, status)


@dataclass(frozen=True, slots=True)
class Times:
    """How long a connection may take, in seconds.

    Args:
        idle: without a request.
        head: from the first byte of a head to its last; one that comes a byte at a time would hold us for ever.
        linger: for reading the answer after a refusal. Closing at once would reset the connection, and the client would
            lose the answer (RFC 9112 §9.6).
    """

    idle: float = 75.0
    head: float = 20.0
    linger: float = 5.0


class Delegate(Protocol):
    """What becomes of a request: Tornado's ``HTTPMessageDelegate``, and what is told to who sends a malformed one."""

    def headers_received(self, start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
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
        self._connections: dict[Connection, asyncio.Future[None]] = {}
        # Since when they have been idle; who has been for longest comes first.
        self._idle: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

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
            await asyncio.wait(self._connections.values(), timeout=timeout)

    def close_idle(self) -> None:
        """Close all connections that have no request."""
        for connection in list(self._idle):
            connection.stream.close()

    async def close_all_connections(self) -> None:
        """Close all connections, whatever happens on them."""
        for connection in self._connections:
            connection.stream.close()
        await asyncio.gather(*self._connections.values(), return_exceptions=True)

    # Accepting

    def _accepted(self, connected: socket.socket, address: Any) -> None:
        if len(self._connections) >= self._max_connections and not self._make_room():
            log.warning('refusing a connection of %s: all %d are busy', _name(address), self._max_connections)
            answer_at_once(connected, b'' if self._tls is not None else plain(CROWDED))
            return
        stream = self._stream(connected)
        if stream is None:
            return
        connection = Connection(self, stream, Context(address, 'https' if self._tls is not None else 'http'))
        serving = asyncio.ensure_future(connection.serve())
        self._connections[connection] = serving
        serving.add_done_callback(lambda _: self._connections.pop(connection, None))

    def _stream(self, connected: socket.socket) -> IOStream | None:
        if self._tls is None:
            return IOStream(connected)
        try:
            return SSLIOStream(ssl_wrap_socket(connected, self._tls, server_side=True, do_handshake_on_connect=False))
        except OSError:
            # It was reset while it waited to be accepted.
            connected.close()
            return None

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest; return whether there was one."""
        connection, since = next(iter(self._idle.items()), (None, 0.0))
        # The request of one that has just come may be on its way.
        if connection is None or asyncio.get_running_loop().time() < since + SETTLED:
            return False
        self.not_idle(connection)
        self._connections.pop(connection, None)
        connection.stream.close()
        return True

    # Idle connections

    def idle(self, connection: 'Connection') -> None:
        """Take note that a connection has no request."""
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.times.idle, self._close_late)

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
            connection.stream.close()


class Connection:
    """A connection: one request after the other.

    Args:
        server: where it was accepted.
        stream: carries the bytes.
        context: who is connected.
    """

    def __init__(self, server: HttpServer, stream: IOStream, context: Context) -> None:
        self.server = server
        self.stream = stream
        self.context = context
        #: What has been read and no request has taken yet.
        self.buffer = bytearray()

    async def serve(self) -> None:
        """Serve requests until the connection is closed."""
        # Each answer leaves in as few writes as can be.
        self.stream.set_nodelay(True)
        try:
            while True:
                if not await self._begins() or not await Exchange(self).run():
                    return
                # Requests that are there already must not keep others waiting.
                await asyncio.sleep(0)
        finally:
            self.stream.close()

    async def _begins(self) -> bool:
        """Wait for the first bytes of a request; return whether they have come."""
        self._skip_empty_lines()
        if not self._has_nothing:
            return True
        self.server.idle(self)
        try:
            while self._has_nothing:
                self.buffer += await self.stream.read_bytes(PIECE, partial=True)
                self._skip_empty_lines()
        except StreamClosedError:
            return False
        finally:
            self.server.not_idle(self)
        return True

    @property
    def _has_nothing(self) -> bool:
        # Half of an empty line is no beginning either.
        return len(self.buffer) < 2 and bytes(self.buffer) in (b'', b'\r')

    def _skip_empty_lines(self) -> None:
        # RFC 9112 §2.2: some clients send one behind a body.
        while self.buffer.startswith(b'\r\n'):
            del self.buffer[:2]


class Exchange(httputil.HTTPConnection):
    """A request and its answer; what a delegate writes the answer to.

    Args:
        connection: where both travel.

    Attributes:
        stream: carries the bytes.
        context: who is connected.
    """

    def __init__(self, connection: Connection) -> None:
        self.stream = connection.stream
        self.context = connection.context
        self._server = connection.server
        self._buffer = connection.buffer
        self._delegate: Delegate | None = None
        self._start_line = httputil.RequestStartLine('-', '-', 'HTTP/1.1')
        self._timer: asyncio.TimerHandle | None = None
        # The request.
        self._pending = bytearray()
        self._told = False
        self._refused = False
        self._read = False
        self._turn = 0
        # The answer.
        self._closing = False
        self._chunked = False
        self._remaining: int | None = None
        self._written = False
        self._last_write: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._close_callback: Callable[[], None] | None = None
        self._watched = False

    async def run(self) -> bool:
        """Read the request, and wait until it is answered; return whether the connection is good for another."""
        delegate = self._delegate = self._server.begin(self)
        try:
            await self._receive(delegate)
            await self._answered()
        except StreamClosedError:
            if self._refused:
                delegate.finish()
            elif self._told and not self._read:
                delegate.on_connection_close()
            return False
        except Exception:
            log.exception('the request %s of %s failed', ' '.join(self._start_line), self.context.remote_ip)
            self.stream.close()
            if self._told:
                delegate.on_connection_close()
            return False
        finally:
            self._stop_timer()
            self._server.budget.release(self)
            if self._watched:
                self.stream.set_close_callback(None)
        return not self._closing and not self.stream.closed()

    # The request

    async def _receive(self, delegate: Delegate) -> None:
        try:
            head = await self._read_head()
            self._start_line = _guessed(head)
            start_line, headers = parse_head(head)
            chunked, length = framing(start_line, headers)
            self._start_line = start_line
            tokens = {token.strip().lower() for token in headers.get('Connection', '').split(',')}
            self._closing = 'close' in tokens or (start_line.version == 'HTTP/1.0' and 'keep-alive' not in tokens)
            self._told = True
            delegate.headers_received(start_line, headers)
            if chunked:
                await self._read_chunks()
            else:
                await self._read_length(length)
        except Malformed as error:
            self._refuse(error)
            # Whatever comes now is thrown away, until the client hangs up.
            await self._fill()
        self._read = True
        if not self._written:
            delegate.finish()

    def _refuse(self, error: Malformed) -> None:
        assert self._delegate is not None
        self._stop_timer()
        self._refused = self._closing = True
        self._server.budget.release(self)
        self._buffer.clear()
        self._delegate.refuse(error.problem, self._start_line)
        self._timer = asyncio.get_running_loop().call_later(self._server.times.linger, self.stream.close)
        if not self.stream.closed():
            self.stream.write(b'').add_done_callback(self._end_our_half)

    def _end_our_half(self, _: 'asyncio.Future[None]') -> None:
        """Show the client that this was all, so that it need not wait for the end of our patience."""
        if not self.stream.closed() and not isinstance(self.stream, SSLIOStream):
            with contextlib.suppress(OSError):
                self.stream.socket.shutdown(socket.SHUT_WR)

    async def _read_head(self) -> bytes:
        buffer, server = self._buffer, self._server
        loop = asyncio.get_running_loop()
        seen = 0
        while (end := _END.search(buffer, max(seen - 2, 0))) is None and len(buffer) <= server.max_head:
            if self._timer is None:
                self._timer = loop.call_later(server.times.head, self._head_late)
            seen = len(buffer)
            server.budget.hold(self, seen)
            await self._fill()
        self._stop_timer()
        server.budget.release(self)
        if end is None or end.end() > server.max_head:
            self._start_line = _guessed(buffer)
            raise Malformed(f'The head of the request is longer than {server.max_head} bytes.', 431)
        return self._taken(end.end())

    def _head_late(self) -> None:
        self._start_line = _guessed(self._buffer)
        self._refuse(Malformed('The head of the request did not come in time.', 408))

    def give_way(self) -> None:
        """Give up a head that is not whole: many are not, and together they take too much."""
        self._start_line = _guessed(self._buffer)
        self._refuse(Malformed('The head of the request comes slowly, and there is no room for it now.', 408))

    async def _read_length(self, length: int) -> None:
        while length:
            data = await self._some(length)
            length -= len(data)
            await self._deliver(data)

    async def _read_chunks(self) -> None:
        """Read a chunked body (RFC 9112 §7.1); its extensions and trailers are checked and dropped."""
        total = extensions = chunks = 0
        while True:
            line = await self._line(MAX_CHUNK_LINE, 'The beginning of a chunk')
            match = _CHUNK.fullmatch(line)
            if match is None:
                raise Malformed('A chunk does not begin with its size.')
            size = int(match[1], 16)
            total += size
            extensions += len(line) - len(match[1])
            if extensions > MAX_EXTENSIONS + total:
                raise Malformed('There is more of chunk extensions than of the body.')
            if not size:
                break
            await self._read_chunk(size)
            chunks += 1
            if chunks % CHUNKS_PER_TURN == 0:
                await asyncio.sleep(0)
        await self._read_trailers()
        await self._deliver_pending()

    async def _read_chunk(self, size: int) -> None:
        # Where chunks begin and end means nothing; small ones are put together, for as long as nobody waits for them.
        while size:
            data = await self._some(size)
            size -= len(data)
            if not self._pending and len(data) >= PIECE:
                await self._deliver(data)
            else:
                self._pending += data
                if len(self._pending) >= PIECE:
                    await self._deliver_pending()
        while len(self._buffer) < 2:
            await self._fill()
        if self._taken(2) != b'\r\n':
            raise Malformed('A chunk is longer than its size.')

    async def _read_trailers(self) -> None:
        left = self._server.max_head
        while line := await self._line(left, 'The trailer section'):
            left -= len(line) + 2
            _field(line)

    async def _line(self, limit: int, what: str) -> bytes:
        """Return the next line, without its end."""
        seen = 0
        while (end := self._buffer.find(b'\n', seen)) < 0 and len(self._buffer) <= limit:
            seen = len(self._buffer)
            await self._fill()
        if not 0 <= end <= limit:
            raise Malformed(f'{what} is too long.')
        line = self._taken(end + 1)
        if not line.endswith(b'\r\n') or line.count(b'\r') > 1:
            raise Malformed(f'{what} has a line that does not end with CR LF.')
        return line[:-2]

    def _taken(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _some(self, most: int) -> bytes:
        """Return bytes of the body, as many as are there."""
        if self._buffer:
            return self._taken(most)
        return await self._received(min(most, PIECE))

    async def _fill(self) -> None:
        """Wait for bytes; after a refusal they are thrown away, until the connection ends."""
        data = await self._received(PIECE)
        while self._refused:
            data = await self._received(PIECE)
        self._buffer += data

    async def _received(self, most: int) -> bytes:
        if self._pending:
            await self._deliver_pending()
        self._turn += 1
        if self._turn % TURN == 0:
            await asyncio.sleep(0)
        return await self.stream.read_bytes(most, partial=True)

    async def _deliver_pending(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        if data:
            await self._deliver(data)

    async def _deliver(self, data: bytes) -> None:
        assert self._delegate is not None
        if self._written or self._refused:
            return
        held = self._delegate.data_received(data)
        if held is not None:
            # Nothing is read meanwhile, so nothing else would tell that the client hangs up.
            self._watched = True
            self.stream.set_close_callback(self._delegate.on_connection_close)
            await held
            self.stream.set_close_callback(None)

    # The answer

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` when the client hangs up after its request was read and before it is answered."""
        self._close_callback = callback

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> 'asyncio.Future[None]':
        """Write the head of the answer, and perhaps the beginning of its body."""
        assert isinstance(start_line, httputil.ResponseStartLine)
        old = self._start_line.version == 'HTTP/1.0'
        bodiless = self._start_line.method == 'HEAD' or start_line.code in (204, 304)
        self._chunked = not old and not bodiless and 'Content-Length' not in headers
        if self._chunked:
            headers['Transfer-Encoding'] = 'chunked'
        if bodiless:
            self._remaining = 0
        elif 'Content-Length' in headers:
            self._remaining = int(headers['Content-Length'])
        if headers.get('Connection') == 'close':
            self._closing = True
        elif self._closing and not old:
            headers['Connection'] = 'close'
        elif old and not self._closing:
            headers['Connection'] = 'Keep-Alive'
        lines = [f'HTTP/1.1 {start_line.code} {start_line.reason}']
        lines.extend(f'{name}: {value}' for name, value in headers.get_all())
        for line in lines:
            if _LINE_END.search(line):
                raise ValueError(f'a header has more than one line: {line!r}')
        head = '\r\n'.join([*lines, '', '']).encode('latin-1')
        return self._write(head + self._framed(chunk or b''))

    def write(self, chunk: bytes) -> 'asyncio.Future[None]':
        """Write more of the body."""
        return self._write(self._framed(chunk))

    def finish(self) -> None:
        """End the answer."""
        if self._remaining and not self.stream.closed():
            self.stream.close()
            raise httputil.HTTPOutputError(f'{self._remaining} bytes less than Content-Length were written')
        if self._chunked:
            self._write(b'0\r\n\r\n')
        self._written = True
        if not self._read:
            # The rest of the request is not wanted, and its end cannot be known without reading it.
            self._closing = True
        if self._last_write is None or self._last_write.done():
            self._left(None)
        else:
            self._last_write.add_done_callback(self._left)

    def _framed(self, chunk: bytes) -> bytes:
        if self._remaining is not None:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                self.stream.close()
                raise httputil.HTTPOutputError('more bytes than Content-Length were written')
        return b'%x\r\n%b\r\n' % (len(chunk), chunk) if self._chunked and chunk else chunk

    def _write(self, data: bytes) -> 'asyncio.Future[None]':
        if self.stream.closed():
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(StreamClosedError())
            failed.exception()
            return failed
        self._last_write = self.stream.write(data)
        return self._last_write

    def _left(self, _: 'asyncio.Future[None] | None') -> None:
        """Take note that all of the answer is the kernel's."""
        if self._closing:
            self.stream.close()
        if not self._over.done():
            self._over.set_result(None)

    async def _answered(self) -> None:
        """Wait until the answer has left, or the client hung up."""
        if self._over.done():
            return
        if self.stream.closed():
            self._hung_up()
        else:
            self._watched = True
            self.stream.set_close_callback(self._hung_up)
        await self._over

    def _hung_up(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None and not self._written:
            callback()
        if not self._over.done():
            self._over.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


# Heads


def parse_head(head: bytes) -> tuple[httputil.RequestStartLine, httputil.HTTPHeaders]:
    """Return the request line and the header fields of a head that ends with an empty line.

    Raises:
        Malformed: it is not what RFC 9112 says.
    """
    ends = head.count(b'\r\n')
    if head.count(b'\n') != ends or head.count(b'\r') != ends:
        raise Malformed('The head of the request has a line that does not end with CR LF.')
    if _CONTROL.search(head):
        raise Malformed('The head of the request has control characters.')
    first, *lines = head.removesuffix(b'\r\n\r\n').split(b'\r\n')
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise Malformed('The request line is malformed.')
    method, target = match[1].decode('latin-1'), match[2].decode('latin-1')
    if match[3] != b'1':
        raise Malformed('Only HTTP/1.1 and HTTP/1.0 are spoken here.')
    if not is_token(method):
        raise Malformed('The method is not a token.')
    _check_target(target)
    headers = httputil.HTTPHeaders()
    for line in lines:
        headers.add(*_field(line))
    if not all(_HOST.fullmatch(host) for host in headers.get_list('Host')):
        raise Malformed('The Host header is not a host.')
    # RFC 9110 §2.5: a later minor version is understood as the latest that we know.
    version = 'HTTP/1.0' if match[4] == b'0' else 'HTTP/1.1'
    return httputil.RequestStartLine(method, target, version), headers


def _check_target(target: str) -> None:
    if '#' in target:
        raise Malformed('The request target has a fragment.')
    scheme, separator, rest = target.partition('://')
    if separator and scheme.lower() in ('http', 'https'):
        host = re.split('[/?]', rest, maxsplit=1)[0].rpartition('@')[2]
        if not host or host.startswith(':') or not _HOST.fullmatch(host):
            raise Malformed('The request target does not name a host.')


def _field(line: bytes) -> tuple[str, str]:
    """Return name and value of a header field (RFC 9112 §5)."""
    name, colon, value = line.decode('latin-1').partition(':')
    if line.startswith((b' ', b'\t')):
        raise Malformed('A header is folded.')
    if not colon or not is_token(name):
        raise Malformed('A header has no name, or one that is not a token.')
    if _CONTROL.search(line):
        raise Malformed('A header has control characters.')
    return name, value.strip(' \t')


def framing(start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> tuple[bool, int]:
    """Return whether the body is chunked, and its length if not (RFC 9112 §6.3).

    A ``Content-Length`` that is said several times is put right in ``headers``.

    Raises:
        Malformed: it cannot be said for sure.
    """
    lengths = [length.strip(' \t') for value in headers.get_list('Content-Length') for length in value.split(',')]
    if 'Transfer-Encoding' in headers:
        if lengths:
            raise Malformed('There are both Content-Length and Transfer-Encoding.')
        if start_line.version == 'HTTP/1.0':
            raise Malformed('There is no Transfer-Encoding in HTTP/1.0.')
        codings = [coding.strip(' \t').lower() for coding in headers['Transfer-Encoding'].split(',')]
        if codings[-1] != 'chunked' or 'chunked' in codings[:-1] or '' in codings:
            raise Malformed('The Transfer-Encoding does not end with chunked, once.')
        if len(codings) > 1:
            raise Malformed('No Transfer-Encoding but chunked is understood here.', 501)
        return True, 0
    if not lengths:
        return False, 0
    if len(set(lengths)) > 1 or not _DIGITS.fullmatch(lengths[0]):
        raise Malformed('The Content-Length is not one number.')
    digits = lengths[0].lstrip('0') or '0'
    if len(digits) > COUNTABLE:
        raise Malformed('The body of the request is longer than anybody can take.', 413)
    headers['Content-Length'] = digits
    return False, int(digits)


def _name(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else 'unix'


def _guessed(head: bytes | bytearray) -> httputil.RequestStartLine:
    """Return what a malformed head seems to begin with, fit for a log."""
    line = bytes(head[:200].split(b'\n', 1)[0].rstrip(b'\r'))
    method = 'HEAD' if line.startswith(b'HEAD ') else '-'
    shown = line.decode('latin-1').encode('unicode_escape').decode()
    return httputil.RequestStartLine(method, shown, '-')
