"""HTTP/1.1 as bytes, without a socket: however a request is cut into pieces, the same is read of it.

At the end a few connections, with one.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado import httputil

from crew_wsgi.budget import Budget
from crew_wsgi.connections import Delegate, Exchange, HttpServer, Times
from crew_wsgi.download import PIECE, Download
from crew_wsgi.http1 import END, Answer, End, Head, Malformed, Reader
from crew_wsgi.messages import Response
from crew_wsgi.patience import Patience
from crew_wsgi.problems import Problem

MAX_HEAD = 400

GET = b'GET /a?b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n'
POST = b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789'
CHUNKED = (
    b'PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n'
    b'3\r\nabc\r\n00A;name=value\r\n0123456789\r\n0\r\nDigest: x\r\n\r\n'
)
OLD = b'GET / HTTP/1.0\r\n\r\n'
REQUESTS = [GET, POST, CHUNKED, OLD, b'\r\n' + GET]

MALFORMED = [
    b'GET / HTTP/1.1\nHost: x\r\n\r\n',
    b'GET / HTTP/2.0\r\nHost: x\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: x\r\nX: ' + b'y' * MAX_HEAD + b'\r\n\r\n',
    b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n',
    b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n',
    b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n folded\r\n\r\n',
    b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc',
    b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 4\r\n\r\nabc',
]


def read_all(pieces: list[bytes]) -> list[object]:
    """Return what is read of a connection's bytes: heads as text, bodies joined, ends, and a refusal."""
    reader = Reader(MAX_HEAD)
    found: list[object] = []
    body = b''
    for piece in pieces:
        reader.feed(piece)
        while True:
            try:
                event = reader.read()
            except Malformed as error:
                return [*found, str(error)]
            if event is None:
                break
            if isinstance(event, bytes):
                body += event
                continue
            if isinstance(event, End):
                found.append(body)
                body = b''
            found.append((event.start_line, event.section) if isinstance(event, Head) else event)
    return found


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """Cut bytes at these places."""
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[begin:end] for begin, end in pairwise(places)]


@pytest.mark.parametrize('request_bytes', [*REQUESTS, *MALFORMED])
def test_a_byte_at_a_time_is_read_as_all_at_once(request_bytes: bytes) -> None:
    whole = read_all([request_bytes])
    assert whole
    assert read_all([bytes([byte]) for byte in request_bytes]) == whole


@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4), st.lists(st.integers(0, 2000), max_size=6))
def test_requests_behind_each_other_are_read_one_by_one(requests: list[bytes], at: list[int]) -> None:
    assert read_all(cut(b''.join(requests), at)) == [event for one in requests for event in read_all([one])]


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=9), st.lists(st.booleans(), min_size=10))
def test_a_body_that_is_not_read_yet_stays_in_order(body: bytes, at: list[int], reads: list[bool]) -> None:
    head = b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(body)
    reader = Reader(MAX_HEAD)
    reader.feed(head)
    assert isinstance(reader.read(), Head)
    read, fed, ended = b'', 0, False
    for piece, now in zip(cut(body + GET, at), reads, strict=False):
        reader.feed(piece)
        fed += len(piece)
        assert reader.size == fed - len(read)
        if now and not ended and (event := reader.read()) is not None:
            read += event if isinstance(event, bytes) else b''
            ended = event is END
    while not ended:
        event = reader.read()
        if event is None:
            break
        read += event if isinstance(event, bytes) else b''
        ended = event is END
    assert (read + body[len(read) :] == body) and reader.size == fed - len(read)
    assert ended == (fed >= len(body))
    reader.clear()
    assert reader.size == 0


@given(st.binary(max_size=3_000), st.lists(st.integers(0, 5000), max_size=6), st.lists(st.integers(1, 900), max_size=9))
def test_a_body_arrives_as_it_was_sent_whatever_its_chunks(body: bytes, at: list[int], sizes: list[int]) -> None:
    places = [0]
    for size in sizes:
        places.append(min(places[-1] + size, len(body)))
    chunks = [body[a:b] for a, b in zip(places, [*places[1:], len(body)], strict=True) if b > a]
    coded = b''.join(b'%x\r\n%b\r\n' % (len(chunk), chunk) for chunk in chunks)
    head = b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'
    assert read_all(cut(head + coded + b'0\r\n\r\n', at))[1:] == [body, END]


@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=5))
def test_no_bytes_are_read_in_two_ways(data: bytes, at: list[int]) -> None:
    assert read_all(cut(data, at)) == read_all([data])


@pytest.mark.parametrize(('request_bytes', 'closes'), [(GET, False), (CHUNKED, True), (OLD, True)])
def test_a_connection_stays_as_its_client_says(request_bytes: bytes, closes: bool) -> None:
    reader = Reader(MAX_HEAD)
    reader.feed(request_bytes)
    head = reader.read()
    assert isinstance(head, Head)
    assert head.section.closes == closes


def request_line(method: str = 'GET', version: str = 'HTTP/1.1') -> httputil.RequestStartLine:
    return httputil.RequestStartLine(method, '/', version)


@pytest.mark.parametrize(
    ('answer', 'headers', 'code', 'expected'),
    [
        (
            Answer(request_line(), closes=False),
            [('Content-Length', '2')],
            200,
            b'200 OK\r\nContent-Length: 2\r\n\r\nab',
        ),
        (
            Answer(request_line(), closes=True),
            [],
            200,
            b'200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n',
        ),
        (
            Answer(request_line(version='HTTP/1.0'), closes=False),
            [('Content-Length', '2')],
            200,
            b'200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nab',
        ),
        (Answer(request_line(version='HTTP/1.0'), closes=True), [], 200, b'200 OK\r\n\r\nab'),
    ],
)
def test_an_answer_is_framed(answer: Answer, headers: list[tuple[str, str]], code: int, expected: bytes) -> None:
    assert answer.head(code, 'OK', headers, b'a') + answer.piece(b'b') + answer.end() == b'HTTP/1.1 ' + expected


def test_an_answer_without_a_body_has_none() -> None:
    head = Answer(request_line('HEAD'), closes=False)
    assert (
        head.head(200, 'OK', [('Content-Length', '9')]) + head.end() == b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n'
    )
    with pytest.raises(httputil.HTTPOutputError):
        head.piece(b'a')


def test_an_answer_is_as_long_as_it_says() -> None:
    answer = Answer(request_line(), closes=False)
    answer.head(200, 'OK', [('Content-Length', '2')], b'a')
    with pytest.raises(httputil.HTTPOutputError):
        answer.end()
    with pytest.raises(httputil.HTTPOutputError):
        answer.piece(b'bc')


@pytest.mark.parametrize('value', ['a\r\nSet-Cookie: x', 'a\nb', 'a\rb'])
def test_a_header_of_two_lines_is_not_written(value: str) -> None:
    with pytest.raises(ValueError, match='must not stand there'):
        Answer(request_line(), closes=False).head(200, 'OK', [('X', value)])


class Answering:
    """Answers each request with one byte.

    Attributes:
        SIZE: how many bytes there are in an answer.
    """

    SIZE = 1

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def headers_received(self, start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        """Take the head."""

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body."""

    def finish(self) -> None:
        """Answer."""
        closes = self._exchange.start_line.method == 'POST'
        fields = [('Content-Length', str(self.SIZE))]
        self._exchange.write_headers(200, 'OK', fields, bytes(self.SIZE), closes=closes)
        self._exchange.finish()

    def on_connection_close(self) -> None:
        """Take note that the client hung up."""

    def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
        """Take note that the request is malformed."""


async def answer(
    begin: Callable[[Exchange], Delegate], *sent: bytes, idle: float = 75.0
) -> tuple[int, list[dict[str, Any]]]:
    """Return how many bytes come for what a client sends, and what goes wrong on the loop meanwhile.

    Args:
        begin: makes what answers.
        sent: what the client sends, with pauses.
        idle: how long the client may be idle, in seconds.
    """
    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    with socket.create_server(('127.0.0.1', 0)) as listening:
        listening.setblocking(False)
        server = HttpServer(begin, max_head=MAX_HEAD, max_connections=9, times=Times(idle=idle), budget=Budget(10**9))
        server.add_sockets([listening])
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        for piece in sent:
            writer.write(piece)
            await asyncio.sleep(0.01)
        size = 0
        while data := await asyncio.wait_for(reader.read(1_000_000), 5.0):
            size += len(data)
        await server.wait_closed(5.0)
        server.stop()
        await server.close_all_connections()
        writer.close()
    return size, wrong


def test_a_connection_is_lost_once_that_was_closed_when_its_client_had_taken_all() -> None:
    class Long(Answering):
        SIZE = 10_000_000

    size, wrong = asyncio.run(answer(Long, POST))
    assert size > Long.SIZE
    assert not wrong


@pytest.mark.parametrize('before', range(6))
def test_no_more_is_read_before_a_piece_of_a_body_was_taken(before: int) -> None:
    # However many requests come with it: after some, others have their turn, and then it is read on.
    seen: list[str] = []

    class Slow(Answering):
        def data_received(self, chunk: bytes) -> Awaitable[None] | None:
            seen.append('begun')
            return self._take()

        async def _take(self) -> None:
            await asyncio.sleep(0.01)
            seen.append('taken')

        def finish(self) -> None:
            seen.append(self._exchange.start_line.method)
            super().finish()

    _, wrong = asyncio.run(answer(Slow, before * GET + POST))
    assert seen == [*before * ['GET'], 'begun', 'taken', 'POST']
    assert not wrong


@pytest.mark.parametrize('sent', [[b'\r\n'], [b'\r'], [GET, b'\r\n'], [GET, b'\r\n', b'\r'], [GET + b'\r\n\r']])
def test_empty_lines_keep_no_connection_open(sent: list[bytes]) -> None:
    # They are no request, and none has begun with them: whoever sends no more than that is idle.
    _, wrong = asyncio.run(answer(Answering, *sent, idle=0.1))
    assert not wrong


def test_a_client_that_was_refused_is_not_idle_while_it_sends_the_rest() -> None:
    class Refusing(Answering):
        def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
            self._exchange.write_headers(400, 'Bad Request', [('Content-Length', '0')], b'', closes=True)

    async def talk() -> bytes:
        with socket.create_server(('127.0.0.1', 0)) as listening:
            listening.setblocking(False)
            server = HttpServer(Refusing, max_head=MAX_HEAD, max_connections=9, times=Times(), budget=Budget(10**9))
            server.add_sockets([listening])
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            for piece in (b'POST / HTTP/1.1\r\nHost: a b\r\n\r\n', b'x', b'x', b'x'):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)
                server.close_idle()
            data = await asyncio.wait_for(reader.read(1000), 5.0)
            server.stop()
            await server.close_all_connections()
            writer.close()
        return data

    assert asyncio.run(talk()).startswith(b'HTTP/1.1 400 ')


def test_a_client_that_was_refused_may_have_gone_when_it_is_shown_the_end() -> None:
    gone = asyncio.Event()

    class Refusing(Answering):
        def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
            self._exchange.write_headers(400, 'Bad Request', [('Content-Length', '0')], b'', closes=True)
            reset(client)
            gone.set()

    with socket.socket() as client:
        assert not asyncio.run(asyncio.wait_for(leave(Refusing, client, MALFORMED[0], gone), 10.0))


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    client.close()


def test_nothing_is_written_to_a_connection_that_has_just_failed(caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    class Downloading(Answering):
        SIZE = 20 * PIECE

        def finish(self) -> None:
            reset(client)
            download = Download(Owner(), self._exchange, Budget(10**9), Patience(60.0, 1024))
            response = Response(status='200 OK', headers=[('Content-Length', str(self.SIZE))], body=b'')
            download.begin(response, '', bytes(self.SIZE), whole=True, length=None, closes=False)
            assert download.written < self.SIZE
            gone.set()

    class Owner:
        def credit(self, offset: int) -> None: ...

        def mind_clock(self) -> None: ...

        answer_late = answer_written = answer_crowded = on_connection_close = mind_clock

    with socket.socket() as client:
        assert not asyncio.run(asyncio.wait_for(leave(Downloading, client, GET, gone), 10.0))
    assert 'socket.send() raised exception.' not in caplog.messages


async def leave(
    begin: Callable[[Exchange], Delegate], client: socket.socket, sent: bytes, gone: asyncio.Event
) -> list[dict[str, Any]]:
    """Return what goes wrong on the loop when a client is gone before its answer has left.

    Args:
        begin: makes what answers.
        client: not connected yet.
        sent: what the client sends.
        gone: is set when the client is gone.
    """
    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    with socket.create_server(('127.0.0.1', 0)) as listening:
        listening.setblocking(False)
        server = HttpServer(begin, max_head=MAX_HEAD, max_connections=9, times=Times(), budget=Budget(10**9))
        server.add_sockets([listening])
        client.connect(listening.getsockname())
        client.send(sent)
        await gone.wait()
        await server.wait_closed(5.0)
        server.stop()
        await server.close_all_connections()
    return wrong
