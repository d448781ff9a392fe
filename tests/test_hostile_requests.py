"""Requests that nobody of good will sends, as raw bytes to a real front with a real worker behind it.

Three things may become of one. It is **malformed**: the front says so, its application does not run, the connection
ends and what comes behind it is never served. It is **refused**: there is no doubt where it ends, so the connection
goes on. Or it is **served**, for the RFC allows it; then the table says what the application sees.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from crew.private_node import PrivateNode
from crew_wsgi.http1 import Malformed, parse_head
from tests.stack import Front, Stack
from tests.waiting import wait_until
from tests.wire import RawAnswer, Wire

HOST = b'Host: crew.test\r\n'
GET = b'GET / HTTP/1.1\r\n' + HOST
POST = b'POST / HTTP/1.1\r\n' + HOST
CHUNKED = POST + b'Transfer-Encoding: chunked\r\n\r\n'
SMUGGLED = b'GET /smuggled HTTP/1.1\r\n' + HOST + b'\r\n'
MAX_HEAD = 64 * 1024


@pytest.fixture(scope='module')
def stack(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(broker.url, 'hostile', tmp_path_factory.mktemp('hostile'))
    yield stack
    stack.close()


@pytest.fixture(scope='module')
def front(stack: Stack) -> Front:
    front = stack.front().await_ready()
    stack.worker('witness:app', '--threads', '2').await_ready()
    return front


def assert_serves(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(b'GET /honest HTTP/1.1\r\n' + HOST + b'\r\n')
        assert wire.answer().status == 200


def runs(stack: Stack) -> list[str]:
    """All runs but those by which tests ask whether the front still serves."""
    return [run for run in stack.runs if run != 'GET /honest']


def assert_ours(answer: RawAnswer, status: int) -> None:
    assert answer.status == status
    assert re.match('crew; error=http_request_error; details="[^"]+"', answer['Proxy-Status'] or '')
    assert re.fullmatch('[0-9a-f]{32}', answer['X-Request-ID'] or '')
    assert answer['Date'] and answer['Cache-Control'] == 'no-store'


def padded(size: int) -> bytes:
    """Return a head of exactly so many bytes."""
    head = GET + b'X-Pad: \r\n\r\n'
    return head.replace(b'X-Pad: ', b'X-Pad: ' + b'p' * (size - len(head)))


MALFORMED: dict[str, tuple[bytes, int]] = {
    # Where it ends
    'both lengths': (POST + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400),
    'both lengths, the other way round': (
        POST + b'Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n',
        400,
    ),
    'two fields with different lengths': (POST + b'Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!', 400),
    'one field with different lengths': (POST + b'Content-Length: 5, 6\r\n\r\nhello!', 400),
    'the same length in other digits': (POST + b'Content-Length: 5, 05\r\n\r\nhello', 400),
    'length +5': (POST + b'Content-Length: +5\r\n\r\nhello', 400),
    'length -1': (POST + b'Content-Length: -1\r\n\r\n', 400),
    'length 0x5': (POST + b'Content-Length: 0x5\r\n\r\nhello', 400),
    'length 5 5': (POST + b'Content-Length: 5 5\r\n\r\nhello', 400),
    'length 5.0': (POST + b'Content-Length: 5.0\r\n\r\nhello', 400),
    'length 1_0': (POST + b'Content-Length: 1_0\r\n\r\nhellohello', 400),
    'length in other digits': (POST + b'Content-Length: \xb2\r\n\r\nhe', 400),
    'empty length': (POST + b'Content-Length: \r\n\r\n', 400),
    'empty length and one': (POST + b'Content-Length: , 5\r\n\r\nhello', 400),
    'length of 20 digits': (POST + b'Content-Length: 10000000000000000000\r\n\r\n', 413),
    'length of 5000 digits': (POST + b'Content-Length: ' + b'9' * 5000 + b'\r\n\r\n', 413),
    'gzip, chunked': (POST + b'Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n', 501),
    'gzip': (POST + b'Transfer-Encoding: gzip\r\n\r\n', 400),
    'identity': (POST + b'Transfer-Encoding: identity\r\n\r\n', 400),
    'chunked, chunked': (POST + b'Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n', 400),
    'chunked twice': (POST + b'Transfer-Encoding: chunked\r\n' * 2 + b'\r\n0\r\n\r\n', 400),
    'chunked, identity': (POST + b'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n', 400),
    'xchunked': (POST + b'Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n', 400),
    'quoted chunked': (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    'chunked with a parameter': (POST + b'Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n', 400),
    'vertical tab before chunked': (POST + b'Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n', 400),
    'no coding': (POST + b'Transfer-Encoding:\r\n\r\n0\r\n\r\n', 400),
    'chunked in HTTP/1.0': (b'POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400),
    # Chunks
    'chunk size 0x5': (CHUNKED + b'0x5\r\nhello\r\n0\r\n\r\n', 400),
    'chunk size -1': (CHUNKED + b'-1\r\nhello\r\n0\r\n\r\n', 400),
    'chunk size +5': (CHUNKED + b'+5\r\nhello\r\n0\r\n\r\n', 400),
    'blank before the chunk size': (CHUNKED + b' 5\r\nhello\r\n0\r\n\r\n', 400),
    'blank behind the chunk size': (CHUNKED + b'5 \r\nhello\r\n0\r\n\r\n', 400),
    'empty chunk size': (CHUNKED + b'\r\nhello\r\n0\r\n\r\n', 400),
    'only an extension': (CHUNKED + b';ext\r\nhello\r\n0\r\n\r\n', 400),
    'chunk size with an underscore': (CHUNKED + b'1_0\r\nhello\r\n0\r\n\r\n', 400),
    'chunk size of 17 digits': (CHUNKED + b'10000000000000005\r\nhello\r\n0\r\n\r\n', 400),
    'chunk size in other digits': (CHUNKED + b'\xb2\r\nhe\r\n0\r\n\r\n', 400),
    'bare LF behind the chunk size': (CHUNKED + b'5\nhello\r\n0\r\n\r\n', 400),
    'bare LF behind a chunk': (CHUNKED + b'5\r\nhello\n0\r\n\r\n', 400),
    'bare LF at the end': (CHUNKED + b'5\r\nhello\r\n0\n\n', 400),
    'bare CR in an extension': (CHUNKED + b'5;a\rb\r\nhello\r\n0\r\n\r\n', 400),
    'bare LF in an extension': (CHUNKED + b'5;a\nb\r\nhello\r\n0\r\n\r\n', 400),
    'NUL in an extension': (CHUNKED + b'5;a\x00b\r\nhello\r\n0\r\n\r\n', 400),
    'no CR LF behind a chunk': (CHUNKED + b'5\r\nhello0\r\n\r\n', 400),
    'chunk longer than its size': (CHUNKED + b'5\r\nhello!\r\n0\r\n\r\n', 400),
    'long chunk-size line': (CHUNKED + b'0' * 2000 + b'5\r\nhello\r\n0\r\n\r\n', 400),
    'long extension': (CHUNKED + b'5;' + b'x' * 2000 + b'\r\nhello\r\n0\r\n\r\n', 400),
    'more extensions than body': (CHUNKED + (b'1;' + b'x' * 1000 + b'\r\nh\r\n') * 40 + b'0\r\n\r\n', 400),
    'endless chunk-size line': (CHUNKED + b'5' * 5000, 400),
    'malformed trailer': (CHUNKED + b'0\r\nno colon\r\n\r\n', 400),
    'folded trailer': (CHUNKED + b'0\r\nX-A: b\r\n c\r\n\r\n', 400),
    'NUL in a trailer': (CHUNKED + b'0\r\nX-A: \x00\r\n\r\n', 400),
    'bare LF behind a trailer': (CHUNKED + b'0\r\nX-A: b\n\r\n', 400),
    'long trailers': (CHUNKED + b'0\r\n' + b'X-A: b\r\n' * 10_000 + b'\r\n', 400),
    # Header fields
    'folded': (GET + b'X-A: b\r\n c\r\n\r\n', 400),
    'folded with a tab': (GET + b'X-A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n', 400),
    'blank before the first name': (b'GET / HTTP/1.1\r\n X-A: b\r\n' + HOST + b'\r\n', 400),
    'blank before the colon': (GET + b'X-A : b\r\n\r\n', 400),
    'blank before the colon of a length': (POST + b'Content-Length : 5\r\n\r\nhello', 400),
    'tab before the colon': (GET + b'X-A\t: b\r\n\r\n', 400),
    'blank in a name': (GET + b'X A: b\r\n\r\n', 400),
    'empty name': (GET + b': b\r\n\r\n', 400),
    'no colon': (GET + b'X-A\r\n\r\n', 400),
    'NUL in a value': (GET + b'X-A: b\x00c\r\n\r\n', 400),
    'NUL in a name': (GET + b'X-\x00A: b\r\n\r\n', 400),
    'bare CR in a value': (GET + b'X-A: b\rX-B: c\r\n\r\n', 400),
    'bare CR in a name': (GET + b'X-\rA: b\r\n\r\n', 400),
    'CR CR LF': (GET + b'X-A: b\r\r\n\r\n', 400),
    'bare LF in a value': (GET + b'X-A: b\nX-B: c\r\n\r\n', 400),
    'bare LF in a name': (GET + b'X-\nA: b\r\n\r\n', 400),
    'bare LF everywhere': ((GET + b'\r\n').replace(b'\r', b''), 400),
    'bare LF at the end of the head': (GET + b'\n', 400),
    'DEL in a value': (GET + b'X-A: b\x7f\r\n\r\n', 400),
    'ESC in a value': (GET + b'X-A: \x1b[2J\r\n\r\n', 400),
    'non-ASCII in a name': (GET + b'X-\xc3\xa9: b\r\n\r\n', 400),
    'parentheses in a name': (GET + b'X-(A): b\r\n\r\n', 400),
    'Host with userinfo': (b'GET / HTTP/1.1\r\nHost: user@crew.test\r\n\r\n', 400),
    'Host with a blank': (b'GET / HTTP/1.1\r\nHost: crew test\r\n\r\n', 400),
    'Host with a path': (b'GET / HTTP/1.1\r\nHost: crew.test/x\r\n\r\n', 400),
    'Host with two names': (b'GET / HTTP/1.1\r\nHost: crew.test, evil.test\r\n\r\n', 400),
    'Host with markup': (b'GET / HTTP/1.1\r\nHost: "><script>\r\n\r\n', 400),
    'Host with a bad port': (b'GET / HTTP/1.1\r\nHost: crew.test:80a\r\n\r\n', 400),
    # The request line
    'HTTP/0.9': (b'GET /\r\n\r\n', 400),
    'HTTP/2.0': (b'GET / HTTP/2.0\r\n' + HOST + b'\r\n', 400),
    'the preface of HTTP/2': (b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400),
    'HTTP/1.1x': (b'GET / HTTP/1.1x\r\n' + HOST + b'\r\n', 400),
    'HTTP/1.': (b'GET / HTTP/1.\r\n' + HOST + b'\r\n', 400),
    'HTTP/01.1': (b'GET / HTTP/01.1\r\n' + HOST + b'\r\n', 400),
    'http/1.1': (b'GET / http/1.1\r\n' + HOST + b'\r\n', 400),
    'a method with a blank': (b'GE T / HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a method with NUL': (b'GET\x00 / HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a method with a parenthesis': (b'G(T / HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a tab for a blank': (b'GET\t/ HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'two blanks': (b'GET  / HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a blank before it': (b' GET / HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a blank behind it': (b'GET / HTTP/1.1 \r\n' + HOST + b'\r\n', 400),
    'no target': (b'GET HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'an empty target': (b'GET  HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a target with a blank': (b'GET /a b HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a target with NUL': (b'GET /\x00 HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a target with a fragment': (b'GET /a#b HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a URL without a host': (b'GET http:///a HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a URL with only a port': (b'GET http://:80/a HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a URL with a bad host': (b'GET http://"evil"/a HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a handshake of TLS': (b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n', 400),
    # Size
    'a head of one byte too many': (padded(MAX_HEAD + 1), 431),
    'a head of 200 kB': (padded(200_000), 431),
    'a head of 2 MB': (padded(2_000_000), 431),
    'a head that does not end': (GET + b'X-A: ' + b'b' * MAX_HEAD, 431),
    'a target of 100 kB': (b'GET /' + b'p' * 100_000 + b' HTTP/1.1\r\n' + HOST + b'\r\n', 431),
    '10,000 headers': (GET + b''.join(b'X-%d: b\r\n' % number for number in range(10_000)) + b'\r\n', 431),
}


@pytest.mark.parametrize('case', MALFORMED)
def test_malformed(stack: Stack, front: Front, case: str) -> None:
    request, status = MALFORMED[case]
    before = runs(stack)
    with Wire(front.port) as wire:
        wire.send(request + SMUGGLED)
        answer = wire.answer()
        assert_ours(answer, status)
        assert answer['Connection'] == 'close' and wire.ended()
    front.await_log(f'" {status} .*id={answer["X-Request-ID"]}')
    assert_serves(front)
    assert runs(stack) == before


REFUSED: dict[str, tuple[bytes, int]] = {
    'no Host': (b'GET / HTTP/1.1\r\n\r\n', 400),
    'two Hosts': (GET + HOST + b'\r\n', 400),
    'two different Hosts': (GET + b'Host: evil.test\r\n\r\n', 400),
    'CONNECT': (b'CONNECT crew.test:443 HTTP/1.1\r\n' + HOST + b'\r\n', 501),
    'CONNECT /': (b'CONNECT / HTTP/1.1\r\n' + HOST + b'\r\n', 501),
    'GET *': (b'GET * HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a target without a slash': (b'GET nowhere HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a URL of another scheme': (b'GET ftp://crew.test/ HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'javascript:': (b'GET javascript:alert(1) HTTP/1.1\r\n' + HOST + b'\r\n', 400),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(stack: Stack, front: Front, case: str) -> None:
    request, status = REFUSED[case]
    before = runs(stack)
    with Wire(front.port) as wire:
        wire.send(request + b'GET /honest HTTP/1.1\r\n' + HOST + b'\r\n')
        assert_ours(wire.answer(), status)
        assert wire.answer().status == 200
    assert runs(stack) == before


HELLO = {'body': 'hello'}

SERVED: dict[str, tuple[bytes, dict[str, Any]]] = {
    'the same length in two fields': (
        POST + b'Content-Length: 5\r\n' * 2 + b'\r\nhello',
        {**HELLO, 'CONTENT_LENGTH': '5'},
    ),
    'the same length twice in one': (POST + b'Content-Length: 5, 5\r\n\r\nhello', {**HELLO, 'CONTENT_LENGTH': '5'}),
    'a length with zeros before it': (POST + b'Content-Length: 0005\r\n\r\nhello', {**HELLO, 'CONTENT_LENGTH': '5'}),
    'a length of 30 zeros': (POST + b'Content-Length: ' + b'0' * 30 + b'\r\n\r\n', {'body': '', 'CONTENT_LENGTH': '0'}),
    'GET with a body': (GET + b'Content-Length: 5\r\n\r\nhello', HELLO),
    'CHUNKED': (POST + b'Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n', HELLO),
    'an extension': (CHUNKED + b'5;ext=1\r\nhello\r\n0\r\n\r\n', HELLO),
    'blanks around an extension': (CHUNKED + b'5 ; ext = "a;b"\r\nhello\r\n0;last\r\n\r\n', HELLO),
    'a chunk size with zeros before it': (CHUNKED + b'00000000000000000005\r\nhello\r\n000\r\n\r\n', HELLO),
    'a byte a chunk': (
        CHUNKED + b''.join(b'1\r\n%c\r\n' % byte for byte in b'hello' * 2000) + b'0\r\n\r\n',
        {'body': 'hello' * 2000},
    ),
    'a trailer': (CHUNKED + b'5\r\nhello\r\n0\r\nX-Trailer: evil\r\nContent-Length: 9\r\n\r\n', HELLO),
    'an underscore in a name': (GET + b'X_Forwarded_For: evil\r\nContent_Length: 5\r\n\r\n', {}),
    'non-ASCII in a value': (GET + b'X-A: \xc3\xa9\r\n\r\n', {'HTTP_X_A': '\xc3\xa9'}),
    'an empty value': (GET + b'X-A:\r\n\r\n', {'HTTP_X_A': ''}),
    'a tab in a value': (GET + b'X-A: \tb\tc \t\r\n\r\n', {'HTTP_X_A': 'b\tc'}),
    'a name of odd characters': (GET + b"!#$%&'*+-.^`|~: b\r\n\r\n", {"HTTP_!#$%&'*+_.^`|~": 'b'}),
    'an empty Host': (b'GET / HTTP/1.1\r\nHost:\r\n\r\n', {'HTTP_HOST': ''}),
    'a Host of IPv6': (b'GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n', {'HTTP_HOST': '[::1]:80'}),
    'HTTP/1.2': (b'GET / HTTP/1.2\r\n' + HOST + b'\r\n', {'SERVER_PROTOCOL': 'HTTP/1.1'}),
    'an unknown method': (b'BREW /pot HTTP/1.1\r\n' + HOST + b'\r\n', {'REQUEST_METHOD': 'BREW'}),
    'a method in lower case': (b'get / HTTP/1.1\r\n' + HOST + b'\r\n', {'REQUEST_METHOD': 'get'}),
    'a method of 100 characters': (b'M' * 100 + b' / HTTP/1.1\r\n' + HOST + b'\r\n', {'REQUEST_METHOD': 'M' * 100}),
    'TRACE': (b'TRACE / HTTP/1.1\r\n' + HOST + b'\r\n', {'REQUEST_METHOD': 'TRACE'}),
    'OPTIONS *': (b'OPTIONS * HTTP/1.1\r\n' + HOST + b'\r\n', {'PATH_INFO': '', 'REQUEST_URI': '*'}),
    'a URL': (
        b'GET http://other.test:8/a?b HTTP/1.1\r\n' + HOST + b'\r\n',
        {'HTTP_HOST': 'other.test:8', 'PATH_INFO': '/a'},
    ),
    'a URL with userinfo': (b'GET http://user@other.test/ HTTP/1.1\r\n' + HOST + b'\r\n', {'HTTP_HOST': 'other.test'}),
    'raw bytes in a target': (b'GET /\xc3\xa9 HTTP/1.1\r\n' + HOST + b'\r\n', {'PATH_INFO': '/\xc3\xa9'}),
    'a target of 60 kB': (
        b'GET /' + b'p' * 60_000 + b' HTTP/1.1\r\n' + HOST + b'\r\n',
        {'PATH_INFO': '/' + 'p' * 60_000},
    ),
    '1,000 headers': (GET + b''.join(b'X-%d: b\r\n' % number for number in range(1000)) + b'\r\n', {'HTTP_X_999': 'b'}),
    '1,000 headers of one name': (GET + b'X-A: b\r\n' * 1000 + b'\r\n', {'HTTP_X_A': ','.join('b' * 1000)}),
    'a head of 64 KiB': (padded(MAX_HEAD), {}),
    'another expectation': (POST + b'Expect: miracles\r\nContent-Length: 5\r\n\r\nhello', HELLO),
    'Upgrade with a body': (POST + b'Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello', HELLO),
    'empty lines before it': (b'\r\n\r\n' + GET + b'\r\n', {}),
}


@pytest.mark.parametrize('case', SERVED)
def test_served(stack: Stack, front: Front, case: str) -> None:
    request, expected = SERVED[case]
    before = len(runs(stack))
    with Wire(front.port) as wire:
        wire.send(request + b'GET /next HTTP/1.1\r\n' + HOST + b'\r\n')
        answer, following = wire.answer(), wire.answer()
    assert answer.status == following.status == 200
    assert answer['Proxy-Status'] is None
    seen = json.loads(answer.body)
    assert {name: seen.get(name) for name in expected} == expected
    assert 'evil' not in answer.body.decode()
    # What follows is not mixed up with it.
    assert json.loads(following.body)['PATH_INFO'] == '/next'
    assert len(runs(stack)) == before + 2


def test_there_are_enough_of_them() -> None:
    assert len(MALFORMED) + len(REFUSED) + len(SERVED) >= 45


# A byte at a time, and in pieces


@pytest.mark.parametrize('case', ['folded', 'NUL in a trailer', 'chunk longer than its size', 'HTTP/0.9', 'CR CR LF'])
def test_malformed_a_byte_at_a_time(stack: Stack, front: Front, case: str) -> None:
    request, status = MALFORMED[case]
    before = runs(stack)
    with Wire(front.port) as wire:
        for at in range(len(request)):
            wire.send(request[at : at + 1])
            time.sleep(0.0005)
        assert_ours(wire.answer(), status)
        assert wire.ended()
    assert runs(stack) == before


@pytest.mark.parametrize('case', ['a trailer', 'blanks around an extension', 'empty lines before it'])
def test_served_a_byte_at_a_time(front: Front, case: str) -> None:
    request, expected = SERVED[case]
    with Wire(front.port) as wire:
        for at in range(len(request)):
            wire.send(request[at : at + 1])
            time.sleep(0.0005)
        seen = json.loads(wire.answer().body)
    assert {name: seen.get(name) for name in expected} == expected


def test_chunks_that_turn_malformed_while_the_application_reads_end_its_run(stack: Stack, front: Front) -> None:
    """It has begun; but its client hears that the request was wrong, and the application that the body has no end."""
    with Wire(front.port) as wire:
        wire.send(CHUNKED.replace(b'POST /', b'POST /begun') + b'5\r\nhello\r\n')
        wait_until(lambda: 'POST /begun' in stack.runs, 15, 'the application to begin')
        wire.send(b'no chunk\r\n' + SMUGGLED)
        assert_ours(wire.answer(), 400)
        assert wire.ended()
    assert_serves(front)
    assert 'GET /smuggled' not in stack.runs


# Connections


def test_twenty_requests_at_once_are_answered_in_order(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(b''.join(b'GET /%d HTTP/1.1\r\n' % number + HOST + b'\r\n' for number in range(20)))
        paths = [json.loads(wire.answer().body)['PATH_INFO'] for _ in range(20)]
    assert paths == [f'/{number}' for number in range(20)]


def test_what_comes_behind_a_malformed_one_is_not_served_but_what_comes_before_it_is(
    stack: Stack, front: Front
) -> None:
    before = len(runs(stack))
    with Wire(front.port) as wire:
        wire.send(GET + b'\r\n' + GET + b'X-A : b\r\n\r\n' + SMUGGLED)
        assert wire.answer().status == 200
        assert_ours(wire.answer(), 400)
        assert wire.ended()
    assert len(runs(stack)) == before + 1


@pytest.mark.parametrize('connection', [b'close', b'Close', b'X-A, close', b'close, keep-alive'])
def test_what_comes_behind_the_last_request_is_not_served(stack: Stack, front: Front, connection: bytes) -> None:
    before = len(runs(stack))
    with Wire(front.port) as wire:
        wire.send(GET + b'Connection: ' + connection + b'\r\n\r\n' + SMUGGLED)
        answer = wire.answer()
        assert answer.status == 200 and answer['Connection'] == 'close'
        assert wire.ended()
    assert_serves(front)
    assert len(runs(stack)) == before + 1


def test_the_last_answer_can_be_read_by_who_sends_more(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(GET + b'Connection: close\r\n\r\n' + SMUGGLED * 20_000)
        # That of a connection that is reset is lost.
        time.sleep(0.5)
        assert wire.answer().status == 200
        assert wire.read() == b''


def test_a_refusal_can_be_read_by_who_sends_all_before(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(padded(200_000)[:-4] + b'p' * 4_000_000)
        assert_ours(wire.answer(), 431)


def test_who_goes_on_sending_is_cut_off(front: Front) -> None:
    began = time.monotonic()
    with Wire(front.port) as wire:
        wire.send(GET + b'X-A : b\r\n\r\n')
        assert_ours(wire.answer(), 400)
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 60:
                wire.send(b'more')
                time.sleep(0.05)
    assert time.monotonic() - began < 30
    assert_serves(front)


def test_a_head_that_comes_slowly_is_given_up(stack: Stack, front: Front) -> None:
    hurried = stack.front('--head-timeout', '1').await_ready()
    began = time.monotonic()
    with Wire(hurried.port) as wire:
        wire.send(b'GET / HTTP/1.1\r\nX-Slow: ')
        with socket.create_connection(('127.0.0.1', hurried.port)):
            # Never mind how steadily it comes.
            while wire.is_quiet(0.2) and time.monotonic() - began < 30:
                wire.send(b'x')
        answer = wire.answer()
        assert_ours(answer, 408)
        assert answer['Connection'] == 'close' and wire.ended()
    assert 0.9 < time.monotonic() - began < 25
    assert_serves(hurried)


def test_the_answer_to_a_malformed_head_has_no_body(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(b'HEAD / HTTP/1.1\r\n' + HOST + b'X-A : b\r\n\r\n')
        assert_ours(wire.answer('HEAD'), 400)
        assert wire.ended()


def test_the_log_does_not_repeat_what_would_harm_its_reader(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(b'\x1b[2J / HTTP/1.1\rinjected\r\n\r\n')
        assert_ours(wire.answer(), 400)
    front.await_log('injected')
    line = next(line for line in front.text.splitlines() if 'injected' in line)
    assert '\\x1b[2J' in line and '\x1b' not in line and '\r' not in line


def test_a_front_that_was_asked_for_so_much_has_nothing_to_complain_of(front: Front) -> None:
    assert 'Traceback' not in front.text and 'Exception' not in front.text


# Without a front


def test_heads_are_read_in_linear_time() -> None:
    lines = b''.join(b'X-A: b\r\n' for _ in range(8000))
    for head in (
        GET + lines + b'\r\n',
        GET + b'X-A: ' + b' ' * MAX_HEAD + b'\x00\r\n\r\n',
        GET + b'X-A:' + b' \t' * MAX_HEAD + b'\r\n\r\n',
        b'G' * MAX_HEAD + b'\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: ' + b'a.' * MAX_HEAD + b'@\r\n\r\n',
        GET + b'Content-Length: ' + b'5,' * MAX_HEAD + b'\r\n\r\n',
        GET + b'Transfer-Encoding: ' + b'chunked,' * MAX_HEAD + b'\r\n\r\n',
    ):
        began = time.process_time()
        with contextlib.suppress(Malformed):
            parse_head(head)
        assert time.process_time() - began < 5
