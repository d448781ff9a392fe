"""Bytes on an HTTP connection: however they are cut, the same requests come out, with the bodies that another reads.

The answers are read by a strict client: one for each request, in order, and nothing that is none. They are the same
whether the client takes them at once or slowly.
"""

import asyncio
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import h11
from tornado import httputil

from crew_wsgi import connections
from crew_wsgi.budget import Budget
from crew_wsgi.connections import TURN, Connection, Context, Exchange, HttpServer, Times
from crew_wsgi.http1 import End, Head, Malformed, Reader
from crew_wsgi.problems import Problem, respond
from tests.fuzzing.bounds import assert_line, quick
from tests.fuzzing.choices import Choices
from tests.fuzzing.world.loops import Clock, Loop

__all__ = ['check', 'seeds']

MAX_HEAD = 400

#: What a client may send ahead here: inputs are short.
AHEAD = 50

#: How requests are answered: before their bodies, and then to the end, or by a delegate that takes bodies slowly, with
#: a length, or some time after they were read.
EARLY, SLOWLY, LENGTH, TO_THE_END, LATE = 1, 2, 4, 8, 64

#: How the client is: it takes answers slowly; it speaks TLS, which has no half that could end first; it never hangs up.
SLUGGISH, TLS, STAYS = 16, 32, 128

HEADS = [b'GET / HTTP/1.1\r\nHost: h\r\n\r\n', b'POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello']
HEADS += [b'POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n', b'GET / HTTP/1.0\r\n\r\n']
HEADS += [b'HEAD /c HTTP/1.1\r\nHost: h\r\n\r\n', b'POST / HTTP/1.1\r\nHost: h\r\n', b'Content-Length: 3\r\n']
HEADS += [b'Transfer-Encoding: chunked\r\n', b'Connection: close\r\n', b'Connection: keep-alive\r\n', b'\r\n']
HEADS += [b'Expect: 100-continue\r\n', b'GET / HTTP/1.1\r\nA: ' + b'a' * MAX_HEAD]

BODIES = [b'5\r\nhello\r\n', b'0\r\n\r\n', b'abc', b'3;a=b\r\nabc\r\n', b'3;a="\r\n', b'0\r\nT: u\r\n\r\n', b'00A\r\n']
BODIES += [b'0;x\r\nContent-Length: 9\r\n\r\n', b'0123456789\r\n', b'\n', b'\r', b'\r\n\r\n', b'1\nx\r\n']
BODIES += [b'1\r\nxy\r\n', b'0x1\r\nx\r\n', b'-1\r\n', b' 1\r\n', b'x' * 200, b'\0', b'g\r\n', b'1 \r\n']
BODIES += [b'1\r\nx\n\r\n', b'1\r\nx\r\n', b'7fffffffffffffff\r\n', b'10000000000000000\r\n', b'1 x\r\nx\r\n']
BODIES += [b'1\r\nxy\n', b'1\rx\r\nx\r\n', b'1\r\nx\r\r\n', b'0\r\n: x\r\n\r\n', b'0\r\nA : x\r\n\r\n']
BODIES += [b'0\r\n A: x\r\n\r\n', b'0\r\nA: \0\r\n\r\n', b'0\r\nA\r\n\r\n', b'0\r\nA: \rx\r\n\r\n']

FRAGMENTS = [*HEADS, *BODIES]


def check(data: bytes) -> None:
    """Send the bytes as one piece, and in others."""
    choices = Choices(data)
    manner = choices.byte()
    sizes = [1 + choices.below(64) for _ in range(1 + choices.below(4))]
    sent = _made(choices)
    cut, bytewise = _cut(sent, sizes), _cut(sent, [1])
    read = _read([sent])
    _assert_read_alike(read, _read(cut))
    _assert_read_alike(read, _read(bytewise))
    # RFC 9112 §2.2: empty lines before a request are passed over.
    _assert_read_alike(read, _read([b'\r\n\r\n', sent]))
    left = sent[len(sent) - read.rest[0] :]
    assert read.rest[1] == (left not in (b'', b'\r')), 'half of an empty line is no beginning'
    whole = Wire([sent], manner)
    _assert_same(whole, Wire(cut, manner))
    _assert_same(whole, Wire(bytewise, manner))
    _assert_same(whole, Wire(cut, manner ^ SLUGGISH))
    _assert_taken(whole, read)
    _check_answers(whole)
    if not manner & EARLY:
        _compare(sent, whole)


# What is read, without a connection


@dataclass(slots=True)
class Read:
    """What a reader makes of bytes.

    Args:
        requests: the head and the body of each whole request.
        head: of the request that is not whole; None: there is none.
        body: what there is of its body.
        refusal: why nothing more is read.
        rest: what has come and is not read: its size, and whether it begins a request.
    """

    requests: list[tuple[Any, bytes]] = field(default_factory=list)
    head: Any = None
    body: bytes = b''
    refusal: str | None = None
    rest: tuple[int, bool] = 0, False


def _read(pieces: list[bytes]) -> Read:
    """Let a reader read what comes in these pieces."""
    reader, read = Reader(MAX_HEAD), Read()
    with quick(2.0):
        for piece in pieces:
            reader.feed(piece)
            try:
                while (event := reader.read()) is not None:
                    if isinstance(event, Head):
                        assert read.head is None, 'a head came in the middle of a request'
                        line = event.start_line
                        fields = list(event.section.fields)
                        read.head = [line.method, line.path, fields], line.version, event.section.closes
                    elif isinstance(event, End):
                        assert read.head is not None, 'an end came without a head'
                        read.requests.append((read.head, read.body))
                        read.head, read.body = None, b''
                    else:
                        assert event and read.head is not None, 'nothing came, or without a head'
                        read.body += event
            except Malformed as error:
                assert_line(error)
                assert 400 <= error.problem.status < 600
                read.refusal = f'{error.problem.status} {error} {reader.guess() if read.head is None else ""}'
                return read
        read.rest = reader.size, reader.begun
    return read


def _assert_read_alike(one: Read, other: Read) -> None:
    """Fail if how the bytes were cut has made a difference to a reader."""
    both = f'{one} {other}'
    assert (one.requests, one.head, one.refusal) == (other.requests, other.head, other.refusal), both
    assert one.rest == other.rest, both
    if one.refusal is None:
        assert one.body == other.body, both
    else:
        # What is malformed may have been handed over up to there, or not.
        assert one.body.startswith(other.body) or other.body.startswith(one.body), both


# What comes of it on a connection


def _assert_same(one: 'Wire', other: 'Wire') -> None:
    """Fail if how the bytes were cut, or how fast answers were taken, has made a difference."""
    both = f'{one.requests} {other.requests}'
    assert len(one.requests) == len(other.requests), f'cut otherwise, they are more or fewer: {both}'
    for this, that in zip(one.requests, other.requests, strict=True):
        # After an answer that was whole before, it is all the same whether more of the request was looked at.
        done = one.ends_early
        assert this[:3] == that[:3] and (done or this[4] == that[4]), f'cut otherwise, it is another: {both}'
        if this[4] == 'whole':
            assert this[3] == that[3], f'cut otherwise, it has another body: {both}'
        else:
            # What is malformed may have been handed over up to there, or not.
            assert this[3].startswith(that[3]) or that[3].startswith(this[3]), both
    assert one.written == other.written, f'cut otherwise, it is answered otherwise: {one.written!r} {other.written!r}'


def _assert_taken(wire: 'Wire', read: Read) -> None:
    """Fail if a connection has made something else of what a reader reads, or has left something out."""
    requests = [*read.requests, *([] if read.head is None else [(read.head, read.body)])]
    for number, (method, target, fields, body, end) in enumerate(wire.requests):
        if not method:
            assert number == len(requests) and end == 'refused', 'a head was refused that can be read'
            continue
        (start, _, closes), theirs = requests[number]
        assert start == [method, target, fields]
        if end == 'whole':
            assert number < len(read.requests), 'it is not whole'
            assert wire.manner & EARLY or body == theirs, 'it has another body'
        elif not wire.ends_early:
            assert number == len(read.requests) and (end == 'refused') <= (read.refusal is not None)
        if closes or wire.ends_early:
            assert number == len(wire.requests) - 1, 'a request was read behind the last one'
            return
    # A client that stays is refused in the end if its head is not whole.
    late = wire.manner & STAYS and read.head is None and read.rest[1]
    refused = read.head is None and (read.refusal is not None or late)
    assert len(wire.requests) == len(requests) + bool(refused), 'a request got lost'


class Wire:
    """One connection, from its first byte to its end.

    Args:
        pieces: what the client sends, in the pieces in which it comes.
        manner: how requests are answered, and how the client is; see above.

    Attributes:
        requests: what came out: method, target, fields, body, and whether that was all, refused, or neither.
        recorders: who have taken them.
        written: what was answered.
    """

    def __init__(self, pieces: list[bytes], manner: int) -> None:
        self.requests: list[list[Any]] = []
        self.recorders: list[Recorder] = []
        self.manner = manner
        self.failures: list[BaseException | None] = []
        clock = Clock()
        self.loop = Loop(clock)
        with ExitStack() as stack:
            stack.enter_context(patch.object(connections, 'AHEAD', AHEAD))
            # What goes wrong in a delegate ends its connection and is logged, here as everywhere.
            stack.enter_context(patch.object(connections.log, 'exception', self._failed))
            stack.enter_context(quick(2.0))
            with self.loop.running():
                server = HttpServer(
                    lambda exchange: Recorder(self, exchange),
                    max_head=MAX_HEAD,
                    max_connections=10,
                    times=Times(),
                    budget=Budget(10**9),
                )
                self.connection = Connection(server, Context(('192.0.2.1', 9), 'http'))
                server._connections.add(self.connection)
                self.transport = Transport(self, pieces)
            self._run(clock, 50 * len(pieces) + 10_000)
        assert self.refused <= (not self.connection._reader.size), 'what is thrown away is kept'
        assert self.connection.closed and server.budget.held == 0 and not server._idle and not server._connections
        self.written = bytes(self.transport.taken)
        assert not self.loop._tasks
        left = [handle for _, _, handle in self.loop._timers if not handle.cancelled() and handle is not server._timer]
        assert not left, left

    @property
    def ends_early(self) -> bool:
        """Whether answers are whole before the bodies of their requests have been read."""
        return self.manner & (EARLY | TO_THE_END) == EARLY | TO_THE_END

    def _run(self, clock: Clock, turns: int) -> None:
        transport = self.transport
        for _ in range(turns):
            if self.loop.turn():
                assert not self.failures and not self.loop.errors, (self.failures, self.loop.errors)
                continue
            if transport.lost:
                return
            due = self.loop.due()
            if transport.idle and (due is None or not self.manner & STAYS):
                self._hang_up()
                continue
            # Whoever waits does so for time to pass.
            assert due is not None, 'it waits for nothing'
            clock.now = max(clock.now, due)
        raise AssertionError('it does not end')

    @property
    def refused(self) -> bool:
        """Whether the last request is malformed."""
        return bool(self.requests) and self.requests[-1][4] == 'refused'

    def _hang_up(self) -> None:
        """Let the client's end be seen, when it has sent all that it wanted, and has taken what came."""
        # Who stays is closed, but for one in the middle of a body, which is for the delegate to say.
        assert not self.manner & STAYS or (self.requests and not self.requests[-1][4]), 'it may stay for ever'
        if self.refused and not self.manner & TLS:
            assert self.transport.ended, 'nobody tells who was refused that this was all'
        with self.loop.running():
            self.transport.hang_up()

    def _failed(self, text: str, *arguments: Any) -> None:
        self.failures.append(sys.exc_info()[1])


class Transport(asyncio.Transport):
    """What carries the bytes, in asyncio's place.

    Args:
        wire: whose it is.
        pieces: what the client sends, in the pieces in which it comes.

    Attributes:
        taken: what the client has taken.
        ended: whether our half has ended.
        lost: whether the connection is no more.
    """

    def __init__(self, wire: Wire, pieces: list[bytes]) -> None:
        super().__init__()
        self.taken = bytearray()
        self.ended = self.lost = False
        self._wire = wire
        self._loop = wire.loop
        self._protocol = wire.connection
        self._pieces = deque(piece for piece in pieces if piece)
        self._left = bytearray()
        self._high, self._low = 64 * 1024, 16 * 1024
        self._closing = self._paused = self._delivering = self._draining = self._full = self._ends = False
        self._protocol.connection_made(self)
        self._deliver_soon()

    # From the client

    @property
    def idle(self) -> bool:
        """Whether the client has sent all that it wanted, and has taken all that came."""
        return not (self._pieces or self._left or self._paused or self._closing)

    @property
    def untaken(self) -> int:
        """How much of what was written the client has not taken."""
        return len(self._left)

    def hang_up(self) -> None:
        """Let the client's end be seen."""
        if not self._protocol.eof_received():  # type: ignore[func-returns-value]
            self.close()

    def _deliver_soon(self) -> None:
        # As a socket, on which some time passes between pieces.
        if self._pieces and not (self._delivering or self._paused or self._closing):
            self._delivering = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        if self._paused or self._closing:
            return
        last = self._wire.recorders[-1] if self._wire.recorders else None
        if last is not None:
            assert not last.busy, 'more is read than somebody takes'
            waits = last.request[4] == 'whole' and self._protocol._exchange is last.exchange
            assert not waits or self._protocol._reader.size < AHEAD, 'more is read ahead than somebody waits for'
        self._protocol.data_received(self._pieces.popleft())
        self._deliver_soon()

    # To the client

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes to the client, at once or in small pieces."""
        assert data and not self._closing and not self.ended and not self._ends, 'it writes behind the end'
        if not self._wire.manner & SLUGGISH:
            self.taken += data
            return
        if not self._left:
            self.taken += data[:11]
            data = data[11:]
        self._left += data
        self._drain_soon()
        if len(self._left) > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def _drain_soon(self) -> None:
        if not self._left or self._draining:
            return
        self._draining = True
        # Sometimes time has to pass.
        if len(self.taken) % 4:
            self._loop.call_soon(self._drain)
        else:
            self._loop.call_later(0.01, self._drain)

    def _drain(self) -> None:
        self._draining = False
        self.taken += self._left[:7]
        del self._left[:7]
        if self._full and len(self._left) <= self._low:
            self._full = False
            self._protocol.resume_writing()
        if self._left:
            self._drain_soon()
        elif self._closing:
            self._lose_soon()
        elif self._ends:
            self.ended = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set from how much on who writes is to wait, as asyncio understands it."""
        assert high is not None
        self._high, self._low = high, high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return not self._wire.manner & TLS

    def write_eof(self) -> None:
        assert self.can_write_eof() and not self._closing
        self._ends = True
        self.ended = not self._left

    # The connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return nothing, of what a connection keeps for others: nobody is to need it here."""
        assert name in ('sockname', 'socket')

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._deliver_soon()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close it when the client has taken all."""
        if not self._closing:
            self._closing = True
            if not self._left:
                self._lose_soon()

    def abort(self) -> None:
        """Close it now."""
        raise AssertionError('nobody has a reason to cut this connection')

    def _lose_soon(self) -> None:
        self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        # asyncio's own fail as well, if they are closed while they say that writing may go on.
        assert not self.lost, 'it is lost twice'
        self.lost = True
        self._protocol.connection_lost(None)


class Recorder:
    """Writes down what comes of a request, and answers it.

    Attributes:
        busy: whether it has not taken a piece of the body yet.
        answered: whether the head of the answer was written.
        over: whether the answer was written to its end.
    """

    def __init__(self, wire: Wire, exchange: Exchange) -> None:
        self.wire = wire
        self.exchange = exchange
        self.busy = self.answered = self.over = False
        self.request: list[Any] = ['', '', [], b'', '']
        assert all(recorder.over for recorder in wire.recorders), 'a request came before the answer to another'
        assert wire.connection is exchange.connection and not wire.connection.writing
        assert wire.transport.untaken < 2, 'a request came before another’s answer was taken'
        wire.recorders.append(self)

    def headers_received(self, start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        assert not self.request[0]
        self.request[:3] = [start_line.method, start_line.path, list(headers)]
        self.wire.requests.append(self.request)
        if self.wire.manner & EARLY:
            self.answer()
            if self.wire.ends_early:
                self.end()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        assert chunk and not self.request[4], 'a body went on after its end'
        assert not self.busy and not self.over, 'it has not taken the last piece yet, or has done with it'
        if not self.answered:
            self.request[3] += chunk
        if not self.wire.manner & SLOWLY:
            return None
        self.busy = True
        return self._turns_later(self._have_taken)

    async def _turns_later(self, then: Callable[[], None]) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        then()

    def _have_taken(self) -> None:
        self.busy = False

    def finish(self) -> None:
        if self.request[4] == 'refused':
            self.over = True
            assert self.exchange.connection.closed, 'nobody waits until who was refused has read the answer'
            return
        assert not self.request[4] and not self.busy and not self.over, 'it ends twice, or in the middle'
        self.request[4] = 'whole'
        if self.wire.manner & LATE:
            self.exchange.set_close_callback(self._gone)
            self.wire.loop.create_task(self._turns_later(self.end))
        else:
            self.end()

    def on_connection_close(self) -> None:
        if not self.over:
            assert not self.request[4]
            self.request[4] = 'lost'
            self.over = True

    def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
        assert self.request[4] == '' and not self.exchange.connection._server.budget.held
        self.request[4] = 'refused'
        if not self.request[0]:
            self.wire.requests.append(self.request)
        if not self.answered:
            response = respond(problem, '')
            self.answered = True
            body = b'' if start_line.method == 'HEAD' else response.body
            self.exchange.write_headers(response.code, response.reason, response.headers, body, closes=False)

    def answer(self) -> None:
        """Answer with what tells whose answer it is."""
        assert not self.exchange.connection.closed
        self.answered = True
        body = f'{len(self.wire.requests)} {self.request[1]}'.encode('latin-1')
        headers = [('Content-Length', str(len(body)))] if self.wire.manner & LENGTH else []
        head = self.request[0] == 'HEAD'
        self.exchange.write_headers(200, 'OK', headers, b'' if head else body, closes=False)

    def end(self) -> None:
        """Answer, if that has not happened, and end the answer."""
        if not self.answered:
            self.answer()
        assert not self.over
        self.over = True
        self.exchange.finish()

    def _gone(self) -> None:
        raise AssertionError('the client is patient, and was taken for gone')


def _check_answers(wire: Wire) -> None:
    """Fail unless a strict client reads one answer for each request that was read or refused."""
    client = h11.Connection(h11.CLIENT)
    if wire.written:
        client.receive_data(wire.written)
    for number, request in enumerate(wire.requests, 1):
        method, _, _, _, end = request
        last = number == len(wire.requests)
        if end == 'lost' and not wire.manner & EARLY:
            assert last and not client.trailing_data[0]
            break
        client.send(h11.Request(method=method or 'GET', target='/', headers=[('Host', 'h')]))
        client.send(h11.EndOfMessage())
        event = client.next_event()
        assert isinstance(event, h11.Response), event
        early = wire.manner & EARLY and method
        assert (event.status_code == 200) == bool(end != 'refused' or early), (request, event)
        # Where a request that is malformed, or not read to its end, has its end, nobody knows: nothing follows it.
        assert last or (end == 'whole' and not wire.ends_early), 'what follows was read as a request'
        assert early or end != 'refused' or (b'connection', b'close') in event.headers
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
    """Return each piece of a body in the middle of one, requests that follow each other, and each manner."""
    chunked, end = HEADS[2], BODIES[1]
    requests = [HEADS[0], HEADS[1], HEADS[0], chunked, BODIES[0], end, HEADS[4], HEADS[0]]
    manners = [0, *(1 << bit for bit in range(8)), EARLY | TO_THE_END, EARLY | TO_THE_END | SLUGGISH, SLUGGISH | LATE]
    malformed = [chunked, BODIES[0], b'1\r\nxy\r\n', HEADS[0]]
    return [
        *(_chosen([chunked, BODIES[0], body, end, HEADS[0]]) for body in BODIES),
        *(_chosen([*before * [HEADS[0]], HEADS[1], HEADS[0]], SLOWLY) for before in range(TURN)),
        *(_chosen([*before, empty], STAYS) for before in ([], [HEADS[0]]) for empty in (b'\r', b'\r\n')),
        *(_chosen(12 * [HEADS[0]], SLUGGISH | manner) for manner in (0, LATE)),
        *(_chosen(each, manner) for manner in manners for each in (requests, malformed)),
    ]


def _chosen(fragments: list[bytes], manner: int = 0) -> bytes:
    """Return the bytes that choose these."""
    return bytes([manner, 0, 4, 0, *(byte for each in fragments for byte in (0, FRAGMENTS.index(each)))])
