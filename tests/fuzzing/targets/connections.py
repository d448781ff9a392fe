"""Bytes on an HTTP connection: however they are cut, the same requests come out, with the bodies that another reads.

The answers are read by a strict client: one for each request, in order, and nothing that is none.
"""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable
from typing import Any

import h11
from tornado import httputil
from tornado.iostream import StreamClosedError

from crew_wsgi.budget import Budget
from crew_wsgi.http1 import Connection, Context, Exchange, HttpServer, Times
from crew_wsgi.problems import Problem, respond
from tests.fuzzing.bounds import quick
from tests.fuzzing.choices import Choices
from tests.fuzzing.world.loops import Clock, Loop

__all__ = ['check', 'seeds']

MAX_HEAD = 400

FRAGMENTS = [b'GET / HTTP/1.1\r\nHost: h\r\n\r\n', b'POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello']
FRAGMENTS += [b'POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n', b'5\r\nhello\r\n', b'0\r\n\r\n']
FRAGMENTS += [b'GET / HTTP/1.0\r\n\r\n', b'HEAD /c HTTP/1.1\r\nHost: h\r\n\r\n', b'POST / HTTP/1.1\r\nHost: h\r\n']
FRAGMENTS += [b'Content-Length: 3\r\n', b'Transfer-Encoding: chunked\r\n', b'\r\n', b'Connection: close\r\n', b'abc']
FRAGMENTS += [b'3;a=b\r\nabc\r\n', b'3;a="\r\n', b'0\r\nT: u\r\n\r\n', b'0;x\r\nContent-Length: 9\r\n\r\n', b'00A\r\n']
FRAGMENTS += [
    b'0123456789\r\n',
    b'\n',
    b'\r',
    b'\r\n\r\n',
    b'1\nx\r\n',
    b'1\r\nxy\r\n',
    b'0x1\r\nx\r\n',
    b'-1\r\n',
    b' 1\r\n',
]
FRAGMENTS += [
    b'Expect: 100-continue\r\n',
    b'GET / HTTP/1.1\r\nA: ' + b'a' * MAX_HEAD,
    b'x' * 200,
    b'\0',
    b'g\r\n',
    b'1 \r\n',
]
FRAGMENTS += [b'7fffffffffffffff\r\n', b'10000000000000000\r\n', b'1\r\nx\n\r\n', b'Connection: keep-alive\r\n']


def check(data: bytes) -> None:
    """Send the bytes as one piece, and in others."""
    choices = Choices(data)
    manner = choices.byte()
    sizes = [1 + choices.below(64) for _ in range(1 + choices.below(4))]
    sent = _made(choices)
    whole = Wire([sent], manner)
    cut = Wire(_cut(sent, sizes), manner)
    _assert_same(whole, cut)
    _assert_same(whole, Wire([sent[at : at + 1] for at in range(len(sent))], manner))
    _check_answers(whole)
    if not manner & 3:
        _compare(sent, whole)


def _assert_same(one: 'Wire', other: 'Wire') -> None:
    """Fail if how the bytes were cut has made a difference."""
    both = f'{one.requests} {other.requests}'
    assert len(one.requests) == len(other.requests), f'cut otherwise, they are more or fewer: {both}'
    for this, that in zip(one.requests, other.requests, strict=True):
        assert (this[:3], this[4]) == (that[:3], that[4]), f'cut otherwise, it is another: {both}'
        if this[4] == 'whole':
            assert this[3] == that[3], f'cut otherwise, it has another body: {both}'
        else:
            # What is malformed may have been handed over up to there, or not.
            assert this[3].startswith(that[3]) or that[3].startswith(this[3]), both
    assert one.written == other.written, f'cut otherwise, it is answered otherwise: {one.written!r} {other.written!r}'


class Wire:
    """One connection, from its first byte to its end.

    Args:
        pieces: what the client sends, in the pieces in which it comes.
        manner: how requests are answered: 1, before their bodies; 2, slowly; 4, with a length.

    Attributes:
        requests: what came out: method, target, fields, body, and whether that was all, refused, or neither.
        written: what was answered.
    """

    def __init__(self, pieces: list[bytes], manner: int) -> None:
        self.requests: list[list[Any]] = []
        self.manner = manner
        clock = Clock()
        self.loop = Loop(clock)
        with self.loop.running():
            stream = Stream(pieces)
            server = HttpServer(
                lambda exchange: Recorder(self, exchange),
                max_head=MAX_HEAD,
                max_connections=10,
                times=Times(),
                budget=Budget(10**9),
            )
            connection: Any = Connection(server, stream, Context(('192.0.2.1', 9), 'http'))  # type: ignore[arg-type]
            serving = self.loop.create_task(connection.serve())
        with quick(2.0):
            for _ in range(50 * len(pieces) + 2000):
                if not self.loop.turn():
                    if serving.done():
                        break
                    if not stream.pieces and not stream.closed():
                        stream.hang_up()
                        continue
                    # Whoever waits does so for time to pass.
                    due = self.loop.due()
                    assert due is not None, 'it waits for nothing'
                    clock.now = max(clock.now, due)
        assert serving.done(), 'it does not end'
        serving.result()
        assert not self.loop.errors, self.loop.errors
        assert stream.closed() and server.budget.held == 0 and not server._idle
        self.written = bytes(stream.written)
        assert not self.loop._tasks


class Stream:
    """What carries the bytes, in Tornado's place."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = deque(piece for piece in pieces if piece)
        self.written = bytearray()
        self._closed = False
        self._ended = False
        self._waiting: tuple[asyncio.Future[bytes], int] | None = None
        self._on_close: Any = None
        self.socket = self

    def shutdown(self, how: int) -> None:
        """Stand in for the socket's."""

    def set_nodelay(self, value: bool) -> None:
        """Do nothing."""

    def closed(self) -> bool:
        return self._closed

    def writing(self) -> bool:
        return False

    def set_close_callback(self, callback: Any) -> None:
        self._on_close = callback

    async def read_bytes(self, size: int, partial: bool = False) -> bytes:
        assert partial and size > 0 and self._waiting is None
        if self._closed:
            raise StreamClosedError
        if self.pieces:
            # As a socket, on which some time passes between pieces.
            await asyncio.sleep(0)
            if self._closed:
                raise StreamClosedError
            piece = self.pieces.popleft()
            if len(piece) > size:
                self.pieces.appendleft(piece[size:])
            return piece[:size]
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting = future, size
        return await future

    def write(self, data: bytes) -> 'asyncio.Future[None]':
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert not self._closed
        self.written += data
        future.set_result(None)
        return future

    def hang_up(self) -> None:
        """Let the client's end be seen."""
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._waiting is not None and not self._waiting[0].done():
            self._waiting[0].set_exception(StreamClosedError())
        if self._on_close is not None:
            self._on_close()


class Recorder:
    """Writes down what comes of a request, and answers it."""

    def __init__(self, wire: Wire, exchange: Exchange) -> None:
        self.wire = wire
        self.exchange = exchange
        self.answered = False
        self.over = False
        self.request: list[Any] = ['', '', [], b'', '']

    def headers_received(self, start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        assert not self.request[0]
        self.request[:3] = [start_line.method, start_line.path, list(headers.get_all())]
        self.wire.requests.append(self.request)
        if self.wire.manner & 1:
            self.answer()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        assert chunk and not self.request[4], 'a body went on after its end'
        if not self.answered:
            self.request[3] += chunk
        return self._slowly() if self.wire.manner & 2 else None

    async def _slowly(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    def finish(self) -> None:
        if self.request[4] in ('refused', ''):
            self.request[4] = self.request[4] or 'whole'
            if not self.answered:
                self.answer()
            if not self.over:
                self.over = True
                if not self.exchange.stream.closed():
                    self.exchange.finish()

    def on_connection_close(self) -> None:
        self.request[4] = self.request[4] or 'lost'

    def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
        assert self.request[4] == ''
        self.request[4] = 'refused'
        if not self.request[0]:
            self.wire.requests.append(self.request)
        if not self.answered:
            response = respond(problem, '')
            self.answered = True
            headers = httputil.HTTPHeaders()
            for name, value in response.headers:
                headers.add(name, value)
            line = httputil.ResponseStartLine('HTTP/1.1', response.code, response.reason)
            body = b'' if start_line.method == 'HEAD' else response.body
            self.exchange.write_headers(line, headers, body)

    def answer(self) -> None:
        """Answer with what tells whose answer it is."""
        self.answered = True
        if self.exchange.stream.closed():
            return
        body = f'{len(self.wire.requests)} {self.request[1]}'.encode('latin-1')
        headers = httputil.HTTPHeaders()
        if self.wire.manner & 4:
            headers['Content-Length'] = str(len(body))
        head = self.request[0] == 'HEAD'
        self.exchange.write_headers(httputil.ResponseStartLine('HTTP/1.1', 200, 'OK'), headers, b'' if head else body)


def _check_answers(wire: Wire) -> None:
    """Fail unless a strict client reads one answer for each request that was read or refused."""
    client = h11.Connection(h11.CLIENT)
    if wire.written:
        client.receive_data(wire.written)
    for number, request in enumerate(wire.requests, 1):
        method, _, _, _, end = request
        if end == 'lost' and not wire.manner & 1:
            assert not client.trailing_data[0]
            break
        last = number == len(wire.requests)
        client.send(h11.Request(method=method or 'GET', target='/', headers=[('Host', 'h')]))
        client.send(h11.EndOfMessage())
        event = client.next_event()
        assert isinstance(event, h11.Response), event
        early = wire.manner & 1 and method
        assert (event.status_code == 200) == bool(end != 'refused' or early), (request, event)
        body = b''
        while True:
            try:
                event = client.next_event()
            except h11.RemoteProtocolError:
                assert last and early and end != 'whole', 'an answer was cut'
                return
            if isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA:
                assert last, 'an answer has no end, and another follows'
                client.receive_data(b'')
            else:
                break
        if isinstance(event, h11.EndOfMessage) and end == 'whole' and method != 'HEAD':
            assert body == f'{number} {request[1]}'.encode('latin-1'), 'the answer of another request'
        if not last:
            assert client.their_state is h11.DONE, 'it goes on after the last answer'
            client.start_next_cycle()
    else:
        assert not client.trailing_data[0], f'more was answered than asked: {client.trailing_data[0]!r}'


def _compare(sent: bytes, wire: Wire) -> None:
    """Fail if h11 reads other requests than we do, as far as it reads."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    server.receive_data(sent)
    for request in wire.requests:
        if request[4] != 'whole':
            return
        theirs: list[Any] = ['', '', b'']
        while True:
            try:
                event = server.next_event()
            except h11.RemoteProtocolError as error:
                # That there is one Host is looked at elsewhere; and it does not pass over empty lines before a request.
                assert re.search('Host|no request line', str(error)), 'it refuses what we have read'
                return
            if isinstance(event, h11.Request):
                theirs[:2] = [event.method.decode(), event.target.decode('latin-1')]
            elif isinstance(event, h11.Data):
                theirs[2] += bytes(event.data)
            else:
                break
        assert isinstance(event, h11.EndOfMessage), f'we have read all of a request, and it has not: {event!r}'
        assert theirs == [request[0], request[1], request[3]], f'it has read another request: {theirs} {request}'
        server.send(h11.Response(status_code=200, headers=[('Content-Length', '0')]))
        server.send(h11.EndOfMessage())
        if server.our_state is not h11.DONE or server.their_state is not h11.DONE:
            assert request is wire.requests[-1], 'it would close the connection here'
            return
        server.start_next_cycle()


def _made(choices: Choices) -> bytes:
    if choices.byte() % 4 == 3:
        return choices.rest()
    parts = []
    while choices and len(parts) < 40:
        parts.append(choices.short() if choices.rarely() else choices.pick(FRAGMENTS))
    return b''.join(parts)


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


def seeds() -> list[bytes]:
    """Return requests that follow each other."""
    return [
        bytes([0, 3, 1, 7, 9, 0, 0, 1, 2, 3, 4, 0]),
        bytes([4, 0, 0, 0, 6, 1, 13, 2, 15, 5]),
        bytes([3, 0, 0, 0, 2, 3, 4]),
    ]
