"""What the front refuses, how it says so, and that it goes on serving: raw bytes against a real stack."""

import hashlib
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pytest
import tornado

from crew.private_node import PrivateNode
from crew_wsgi.messages import CONTENT_TYPE, Response, encode_response
from tests.stack import Answer, Front, Stack, Worker
from tests.waiting import wait_until
from tests.wire import RawAnswer, Wire

LIMIT = 8 * 1024 * 1024
MAX_BODY = ('--max-body', str(LIMIT))
HOST = b'Host: crew.test\r\n'


@pytest.fixture(scope='module')
def stack(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(broker.url, 'limits', tmp_path_factory.mktemp('limits'))
    yield stack
    stack.close()


@pytest.fixture(scope='module')
def worker(stack: Stack) -> Worker:
    return stack.worker('pep3333:app', '--threads', '2')


@pytest.fixture(scope='module')
def front(stack: Stack, worker: Worker) -> Front:
    front = stack.front(*MAX_BODY).await_ready()
    worker.await_ready()
    return front


@pytest.fixture(scope='module')
def strict_front(stack: Stack, worker: Worker) -> Front:
    """A front whose limits a test can reach."""
    limits = ['--max-inflight', '1', '--body-timeout', '0.5', '--max-head', '2000', '--max-body', '1000']
    front = stack.front(*limits, '--log-format', 'json').await_ready()
    worker.await_ready()
    return front


def exchange(front: Front, request: bytes, method: str = 'GET') -> RawAnswer:
    """Send raw bytes on a connection of its own; return the first answer."""
    with Wire(front.port) as wire:
        wire.send(request)
        return wire.answer(method)


def assert_serves(front: Front) -> None:
    assert front.get('/').status == 200


def assert_refused(answer: RawAnswer, status: int, error: str = 'http_request_error') -> None:
    assert answer.status == status
    assert (answer['Proxy-Status'] or '').startswith(f'crew; error={error}; details="')
    assert answer['X-Request-ID'] and answer['Date'] and answer['Cache-Control'] == 'no-store'


# The size of the body


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b''.join(f'{len(piece):x}\r\n'.encode() + piece + b'\r\n' for piece in [*pieces, b''])


@pytest.mark.parametrize('framing', ['length', 'chunks'])
def test_a_body_of_exactly_the_limit_passes(front: Front, framing: str) -> None:
    body = os.urandom(LIMIT)
    with Wire(front.port) as wire:
        if framing == 'length':
            wire.send(b'POST / HTTP/1.1\r\n' + HOST + b'Content-Length: %d\r\n\r\n' % LIMIT + body)
        else:
            wire.send(b'POST / HTTP/1.1\r\n' + HOST + b'Transfer-Encoding: chunked\r\n\r\n' + chunked(body, 100_000))
        seen = json.loads(wire.answer().body)
    assert seen['body'] == {'length': LIMIT, 'sha256': hashlib.sha256(body).hexdigest()}
    # In chunks, its length is known to nobody when it begins.
    assert seen.get('CONTENT_LENGTH') == (str(LIMIT) if framing == 'length' else None)
    assert 'HTTP_TRANSFER_ENCODING' not in seen


def test_a_longer_body_is_refused_by_its_length_before_it_comes(front: Front) -> None:
    answer = exchange(front, b'POST / HTTP/1.1\r\n' + HOST + b'Content-Length: %d\r\n\r\n' % (LIMIT + 1))
    assert_refused(answer, 413)
    assert answer['Connection'] == 'close' and b'longer than 8388608 bytes' in answer.body


def test_a_longer_body_in_chunks_is_refused_as_soon_as_it_is_too_long(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(b'POST / HTTP/1.1\r\n' + HOST + b'Transfer-Encoding: chunked\r\n\r\n')
        wire.send(chunked(bytes(LIMIT + 1), 1_000_000).removesuffix(b'0\r\n\r\n'))
        assert_refused(wire.answer(), 413)


@pytest.mark.parametrize('chunks', [False, True])
def test_a_client_that_sends_all_before_it_reads_can_still_read_413(front: Front, chunks: bool) -> None:
    with front.connection() as connection:
        body: Any = iter([bytes(1024 * 1024)] * 20) if chunks else bytes(20 * 1024 * 1024)
        connection.request('POST', '/', body, encode_chunked=chunks)
        answer = Answer(connection.getresponse())
    assert answer.status == 413 and answer.headers['Proxy-Status'].startswith('crew; error=http_request_error')


def test_a_client_that_asks_first_hears_413_instead_of_continue(front: Front) -> None:
    head = b'PUT / HTTP/1.1\r\n' + HOST + b'Expect: 100-continue\r\nContent-Length: %d\r\n\r\n'
    with Wire(front.port) as wire:
        wire.send(head % (LIMIT + 1))
        assert_refused(wire.answer(), 413)
        assert wire.ended()
    with Wire(front.port) as wire:
        wire.send(head % 5)
        assert wire.answer().status == 100
        wire.send(b'hello')
        assert json.loads(wire.answer().body)['body']['length'] == 5


# The head


def test_a_head_up_to_the_limit_passes(front: Front) -> None:
    value = 'v' * 30_000
    seen = json.loads(front.get('/' + 'p' * 30_000, {'X-Long': value}).body)
    assert len(seen['PATH_INFO']) == 30_001 and seen['HTTP_X_LONG'] == value


@pytest.mark.parametrize(
    'head',
    [
        b'GET /' + b'p' * 66_000 + b' HTTP/1.1\r\n' + HOST,
        b'GET / HTTP/1.1\r\n' + HOST + b'X-Long: ' + b'v' * 66_000 + b'\r\n',
        b'GET / HTTP/1.1\r\n' + HOST + b'X-Many: v\r\n' * 10_000,
    ],
)
def test_a_longer_head_is_refused(front: Front, head: bytes) -> None:
    assert_refused(exchange(front, head + b'\r\n'), 431)
    assert_serves(front)


NO_HOST = b'GET / HTTP/1.1\r\n\r\n'


@pytest.mark.parametrize(
    ('request_bytes', 'status'),
    [
        (b'CONNECT crew.test:443 HTTP/1.1\r\n' + HOST + b'\r\n', 501),
        (b'GET nowhere HTTP/1.1\r\n' + HOST + b'\r\n', 400),
        (b'GET * HTTP/1.1\r\n' + HOST + b'\r\n', 400),
        (b'GET ftp://crew.test/ HTTP/1.1\r\n' + HOST + b'\r\n', 400),
        (NO_HOST, 400),
        (b'GET / HTTP/1.1\r\n' + HOST + HOST + b'\r\n', 400),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(front: Front, request_bytes: bytes, status: int) -> None:
    with Wire(front.port) as wire:
        wire.send(request_bytes)
        assert_refused(wire.answer(), status)
        # Its framing was in order, so the connection is still good.
        wire.send(b'GET / HTTP/1.1\r\n' + HOST + b'\r\n')
        assert wire.answer().status == 200


POST = b'POST / HTTP/1.1\r\n' + HOST


# Python 3.10 has no Tornado 6.6; an older one unfolds the first, and ends the second with an assertion.
NEWER_TORNADO = (
    b'GET / HTTP/1.1\r\n' + HOST + b'X-Folded: a\r\n b\r\n\r\n',
    POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n',
)


@pytest.mark.parametrize(
    'request_bytes',
    [
        b'HELLO\r\n\r\n',
        b'GET /\r\n\r\n',
        b'GET / HTTP/2.0\r\n' + HOST + b'\r\n',
        b'GET / HTTP/1.1 \r\n' + HOST + b'\r\n',
        b'G(T / HTTP/1.1\r\n' + HOST + b'\r\n',
        b'GET  / HTTP/1.1\r\n' + HOST + b'\r\n',
        b'GET /a b HTTP/1.1\r\n' + HOST + b'\r\n',
        b'GET /\x00 HTTP/1.1\r\n' + HOST + b'\r\n',
        b'GET / HTTP/1.1\r\n' + HOST + b'no colon\r\n\r\n',
        b'GET / HTTP/1.1\r\n' + HOST + b'X-Space : v\r\n\r\n',
        *(NEWER_TORNADO if tornado.version_info >= (6, 6) else ()),
        b'GET / HTTP/1.1\r\n' + HOST + b'X-Control: \x01\r\n\r\n',
        POST + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
        POST + b'Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!',
        POST + b'Content-Length: +5\r\n\r\nhello',
        POST + b'Content-Length: five\r\n\r\nhello',
        POST + b'Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n',
        POST + b'Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n',
    ],
)
def test_bytes_that_are_no_request_end_the_connection_and_nothing_else(front: Front, request_bytes: bytes) -> None:
    with Wire(front.port) as wire:
        wire.send(request_bytes + b'GET /smuggled HTTP/1.1\r\n' + HOST + b'\r\n')
        assert wire.answer().status == 400
        assert wire.ended()
    assert_serves(front)
    assert 'smuggled' not in front.text


def test_an_unknown_transfer_coding_is_refused(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(POST + b'Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n')
        assert wire.answer().status in (400, 501)
        assert wire.ended()
    assert_serves(front)


# Time and number


def test_a_body_that_stalls_is_given_up(strict_front: Front) -> None:
    with Wire(strict_front.port) as wire:
        wire.send(b'POST / HTTP/1.1\r\n' + HOST + b'Content-Length: 10\r\n\r\nhello')
        answer = wire.answer()
        assert_refused(answer, 408)
        assert answer['Connection'] == 'close' and wire.ended()
    assert_serves(strict_front)


def open_for_writing(fifo: Path) -> int:
    """Open a fifo as soon as somebody reads it."""
    opened: list[int] = []

    def try_it() -> bool:
        try:
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    wait_until(try_it, 30, f'a reader of {fifo}')
    return opened[0]


def test_more_requests_than_allowed_in_flight_are_refused_at_once(strict_front: Front, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'fifo')
    with Wire(strict_front.port) as wire:
        wire.send(f'GET / HTTP/1.1\r\nHost: a\r\nX-App: blocks\r\nX-Fifo: {tmp_path}/fifo\r\n\r\n'.encode())
        writing = open_for_writing(tmp_path / 'fifo')
        answer = exchange(strict_front, b'GET / HTTP/1.1\r\n' + HOST + b'\r\n')
        assert_refused(answer, 503, 'connection_limit_reached')
        assert answer['Retry-After'] == '1'
        os.write(writing, b'at last')
        os.close(writing)
        assert wire.answer().body == b'read at last'
    assert_serves(strict_front)


def test_the_limits_of_sizes_can_be_lowered(strict_front: Front) -> None:
    assert strict_front.request('POST', '/', bytes(1000)).status == 200
    assert strict_front.request('POST', '/', bytes(1001)).status == 413
    assert strict_front.get('/' + 'p' * 2000).status == 431


# Connections


def test_a_connection_serves_many_requests(front: Front) -> None:
    with Wire(front.port) as wire:
        ports = set()
        for _ in range(3):
            wire.send(b'GET / HTTP/1.1\r\n' + HOST + b'\r\n')
            answer = wire.answer()
            assert answer['Connection'] is None
            ports.add(json.loads(answer.body)['REMOTE_PORT'])
    assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order(front: Front) -> None:
    with Wire(front.port) as wire:
        post = b'POST /2 HTTP/1.1\r\n' + HOST + b'Content-Length: 5\r\n\r\nhello'
        wire.send(b'GET /1 HTTP/1.1\r\n' + HOST + b'\r\n' + post + b'GET /3 HTTP/1.1\r\n' + HOST + b'\r\n')
        seen = [json.loads(wire.answer().body) for _ in range(3)]
    assert [each['PATH_INFO'] for each in seen] == ['/1', '/2', '/3']
    assert [each['body']['length'] for each in seen] == [0, 5, 0]


@pytest.mark.parametrize(
    ('version', 'connection', 'stays', 'said'),
    [
        ('1.0', '', False, None),
        ('1.0', 'Connection: close\r\n', False, None),
        ('1.0', 'Connection: Keep-Alive\r\n', True, 'keep-alive'),
        ('1.1', '', True, None),
        ('1.1', 'Connection: close\r\n', False, 'close'),
        ('1.1', 'Connection: keep-alive\r\n', True, None),
    ],
)
def test_a_connection_stays_as_the_client_wants(
    front: Front, version: str, connection: str, stays: bool, said: str | None
) -> None:
    request = f'GET / HTTP/{version}\r\nHost: a\r\nX-App: cookies\r\n{connection}\r\n'.encode()
    with Wire(front.port) as wire:
        wire.send(request)
        answer = wire.answer()
        assert answer.body == b'cookies'
        assert (answer['Connection'] or '').lower() == (said or '')
        if stays:
            wire.send(request)
            assert wire.answer().status == 200
        else:
            assert wire.ended()


def test_http_1_0_needs_no_host(front: Front) -> None:
    answer = exchange(front, b'GET / HTTP/1.0\r\n\r\n')
    assert answer.status == 200 and 'HTTP_HOST' not in json.loads(answer.body)


def test_empty_lines_before_a_request_are_ignored(front: Front) -> None:
    assert exchange(front, b'\r\nGET / HTTP/1.1\r\n' + HOST + b'\r\n').status == 200


def test_a_client_that_hangs_up_midway_disturbs_nobody(front: Front) -> None:
    for request in (
        b'GET /cut',
        POST + b'Content-Length: 9\r\n\r\nhalf',
        POST + b'Transfer-Encoding: chunked\r\n\r\n5',
    ):
        with Wire(front.port) as wire:
            wire.send(request)
    front.await_log('"POST / HTTP/1.1" 499')
    assert_serves(front)


def test_a_request_whose_client_has_gone_before_it_is_read_is_not_run(front: Front) -> None:
    front.signal(signal.SIGSTOP)
    with socket.create_connection(('127.0.0.1', front.port)) as client:
        client.sendall(b'POST /gone HTTP/1.1\r\n' + HOST + b'Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello')
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # close() is a reset then
    front.signal(signal.SIGCONT)
    front.await_log('"POST /gone HTTP/1.1" 499')
    assert_serves(front)
    assert 'Traceback' not in front.text


# Headers on their way


def test_hop_by_hop_headers_of_the_client_are_not_passed(front: Front) -> None:
    hop_by_hop = {'Connection': 'X-Named, keep-alive', 'Keep-Alive': 'timeout=5', 'TE': 'trailers', 'Trailer': 'X-T'}
    hop_by_hop |= {'Upgrade': 'h2c', 'Proxy-Authorization': 'Basic eDp5', 'Proxy-Connection': 'close', 'X-Named': '1'}
    seen = json.loads(front.get('/', {**hop_by_hop, 'X-Kept': 'yes'}).body)
    assert seen['HTTP_X_KEPT'] == 'yes'
    assert not [name for name in hop_by_hop if f'HTTP_{name.upper().replace("-", "_")}' in seen]


def test_a_request_id_is_honoured_everywhere(front: Front, worker: Worker) -> None:
    answer = front.get('/', {'X-Request-ID': 'my-id/1'})
    seen = json.loads(answer.body)
    assert answer.headers['X-Request-ID'] == seen['HTTP_X_REQUEST_ID'] == seen['crew.request_id'] == 'my-id/1'
    front.await_log(r'127.0.0.1 "GET / HTTP/1.1" 200 \d+ [\d.]+ms id=my-id/1\n')
    assert front.get('/', {'X-Request-ID': 'my-id/2', 'X-App': 'raises'}).status == 500
    worker.await_log(r'ERROR .*GET / \(request my-id/2\) raised')


@pytest.mark.parametrize('given', [None, '', 'with blanks', 'x' * 129, 'caf\xe9'])
def test_a_request_id_is_made_where_none_can_be_used(front: Front, given: str | None) -> None:
    answer = front.get('/', {} if given is None else {'X-Request-ID': given})
    made = answer.headers['X-Request-ID']
    assert re.fullmatch('[0-9a-f]{32}', made)
    assert json.loads(answer.body)['HTTP_X_REQUEST_ID'] == made
    front.await_log(f'id={made}\n')


@pytest.mark.parametrize(
    ('accept', 'kind'),
    [
        ('', 'text/plain'),
        ('*/*', 'text/plain'),
        ('application/json', 'application/problem+json'),
        ('application/problem+json', 'application/problem+json'),
        ('text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8', 'text/html'),
        ('application/json;q=0.5, text/html;q=0.1', 'application/problem+json'),
        ('image/png', 'text/plain'),
        ('\xe9 ;;q=x', 'text/plain'),
    ],
)
def test_an_error_is_told_in_the_form_that_the_client_reads(front: Front, accept: str, kind: str) -> None:
    answer = front.get('/', {'X-App': 'raises', **({'Accept': accept} if accept else {})})
    assert answer.status == 500 and answer.headers.get_content_type() == kind
    if kind == 'application/problem+json':
        expected = {'type': 'about:blank', 'title': 'Internal Server Error', 'status': 500}
        assert json.loads(answer.body) == {**expected, 'detail': 'The application failed.'}
    else:
        assert b'Internal Server Error' in answer.body and (b'<h1>' in answer.body) == (kind == 'text/html')


def test_an_answer_to_head_that_the_front_makes_has_no_body(front: Front) -> None:
    with Wire(front.port) as wire:
        request = b'HEAD / HTTP/1.1\r\n' + HOST + b'X-App: raises\r\n\r\n'
        wire.send(request * 2)
        for answer in wire.answer('HEAD'), wire.answer('HEAD'):
            assert_refused(answer, 500, 'proxy_internal_error')


def test_json_log_lines_are_json(strict_front: Front) -> None:
    strict_front.get('/caf%C3%A9?"quoted"', {'X-Request-ID': 'in-json'})
    strict_front.await_log('in-json')
    lines = [json.loads(line) for line in strict_front.text.splitlines()]
    line = next(line for line in lines if line.get('request_id') == 'in-json')
    assert (line['level'], line['logger'], line['client']) == ('INFO', 'crew_wsgi.access', '127.0.0.1')
    assert (line['method'], line['target'], line['status']) == ('GET', '/caf%C3%A9?"quoted"', 200)
    assert line['bytes'] > 0 and 0 < line['seconds'] < 60


# Replies of a worker of another make


@pytest.fixture
def foreign_worker(amqp_url: str, queue: str, tmp_path: Path) -> Iterator[Callable[[bytes, Response], RawAnswer]]:
    """Make one request to a front whose worker speaks the protocol, but sends whatever the test says."""
    stack = Stack(amqp_url, queue, tmp_path)
    front = stack.front().await_ready()

    def exchange_by_foreigner(request: bytes, response: Response) -> RawAnswer:
        with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as broker, Wire(front.port) as wire:
            wire.send(request)
            channel = broker.channel()
            _, properties, _ = next(channel.consume(f'crew.tasks.{queue}', auto_ack=True))
            reply = pika.BasicProperties(
                type='reply', correlation_id=properties.correlation_id, headers={'crew-v': 1}, content_type=CONTENT_TYPE
            )
            channel.basic_publish('', properties.reply_to, encode_response(response), reply)
            return wire.answer(request.split()[0].decode())

    yield exchange_by_foreigner
    stack.close()


@pytest.mark.parametrize('version', [b'1.1', b'1.0'])
def test_hop_by_hop_headers_of_a_worker_are_not_passed(foreign_worker: Any, version: bytes) -> None:
    headers = [('Transfer-Encoding', 'chunked'), ('Connection', 'keep-alive, X-Named'), ('X-Named', '1'), ('X', 'kept')]
    request = b'GET / HTTP/' + version + b'\r\n' + HOST + b'\r\n'
    answer = foreign_worker(request, Response(status='200 OK', headers=headers, body=b'hello'))
    assert (answer.status, answer['X'], answer['Content-Length'], answer.body) == (200, 'kept', '5', b'hello')
    assert not [name for name in ('Transfer-Encoding', 'Connection', 'X-Named') if answer[name] is not None]


@pytest.mark.parametrize('status', ['204 No Content', '304 Not Modified'])
def test_a_body_that_must_not_be_is_not_sent(foreign_worker: Any, status: str) -> None:
    response = Response(status=status, headers=[('Content-Length', '5')], body=b'hello')
    answer = foreign_worker(b'GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n', response)
    assert answer.status == int(status[:3])
    assert answer['Content-Length'] == (None if answer.status == 204 else '5')


def test_a_reply_with_a_wrong_length_is_502(foreign_worker: Any) -> None:
    response = Response(status='200 OK', headers=[('Content-Length', '6')], body=b'hello')
    assert_refused(foreign_worker(b'GET / HTTP/1.1\r\n' + HOST + b'\r\n', response), 502, 'http_protocol_error')
