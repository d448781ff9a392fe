"""PEP 3333 whole, through the real stack: raw bytes to the front, RabbitMQ, the worker, and back."""

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crew.private_node import PrivateNode
from tests.stack import Answer, Front, Stack, Worker
from tests.waiting import wait_until
from tests.wire import Wire

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope='module')
def stack(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(broker.url, 'pep3333', tmp_path_factory.mktemp('pep3333'))
    yield stack
    stack.close()


@pytest.fixture(scope='module')
def worker(stack: Stack) -> Worker:
    return stack.worker('pep3333:app')


@pytest.fixture(scope='module')
def front(stack: Stack, worker: Worker) -> Front:
    front = stack.front().await_ready()
    worker.await_ready()
    return front


def get(front: Front, app: str, target: str = '/', method: str = 'GET', body: bytes | None = None) -> Answer:
    return front.request(method, target, body, {'X-App': app})


def echo(front: Front, target: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = front.get(target, headers)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


# The environ, under requests of all kinds


TOKEN = "!#$%&'*+-.^`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
VISIBLE = [*map(chr, range(0x21, 0x7F)), *map(chr, range(0x80, 0x100))]
PATH_CHARACTERS = sorted(set(VISIBLE) - set('%?#'))
# These have a meaning of their own between the client and the front, or are tested by name.
SPECIAL = {
    *('connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te', 'trailer'),
    *('transfer-encoding', 'upgrade', 'host', 'content-length', 'expect', 'x-request-id', 'x-app'),
}

methods = st.sampled_from(['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'get']) | st.text(
    TOKEN, min_size=1, max_size=12
).filter(lambda method: method not in ('HEAD', 'CONNECT'))

# Pairs of what is sent and what it means.
path_pieces = st.sampled_from(PATH_CHARACTERS).map(lambda character: (character, character)) | st.integers(0, 255).map(
    lambda code: (f'%{code:02x}' if code % 2 else f'%{code:02X}', chr(code))
)
paths = st.lists(path_pieces, max_size=20)
# A target has no fragment (RFC 9112 §3.2).
queries = st.none() | st.text([each for each in VISIBLE if each != '#'], max_size=30)
names = st.sampled_from(['X-A', 'x-a', 'Accept', 'Cookie', 'cookie', 'Content-Type', 'Referer', 'X_Forged']) | st.text(
    TOKEN, min_size=1, max_size=15
).filter(lambda name: name.lower() not in SPECIAL)
values = st.text([' ', '\t', *VISIBLE], max_size=30).map(lambda value: value.strip(' \t'))
headers = st.lists(st.tuples(names, values), max_size=8)
long_bodies = st.builds(
    lambda seed, size: (seed * size)[:size], st.binary(min_size=1, max_size=20), st.integers(0, 300_000)
)
bodies = st.none() | st.binary(max_size=200) | long_bodies
chunk_sizes = st.lists(st.integers(1, 70_000), max_size=5)


def environ_of(sent: list[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that these headers must become (RFC 3875 §4.1.18, but without underscores)."""
    environ: dict[str, str] = {}
    for name, value in sent:
        key = name.upper().replace('-', '_')
        key = key if key == 'CONTENT_TYPE' else f'HTTP_{key}'
        if '_' not in name:
            separator = '; ' if key == 'HTTP_COOKIE' else ','
            environ[key] = f'{environ[key]}{separator}{value}' if key in environ else value
    return environ


def frame(body: bytes | None, sizes: list[int]) -> tuple[str, bytes]:
    """Return the framing header and the body as sent: in chunks of these sizes, or whole when there are none."""
    if body is None:
        return '', b''
    if not sizes:
        return f'Content-Length: {len(body)}\r\n', body
    cuts = [0, *(sum(sizes[: i + 1]) for i in range(len(sizes)))]
    pieces = [body[start:end] for start, end in zip(cuts, [*cuts[1:], len(body)], strict=True)]
    chunks = [f'{len(piece):x}\r\n'.encode() + piece + b'\r\n' for piece in pieces if piece]
    return 'Transfer-Encoding: chunked\r\n', b''.join([*chunks, b'0\r\n\r\n'])


class Reconnecting:
    """One connection kept alive over all examples, and a new one after an example that broke it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.wire: Wire | None = None

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        wire, self.wire = self.wire or Wire(self.port), None
        wire.send(request)
        answer = wire.answer()
        self.wire = wire
        return answer.status, answer.body


@pytest.fixture(scope='module')
def kept_alive(front: Front) -> Iterator[Reconnecting]:
    reconnecting = Reconnecting(front.port)
    yield reconnecting
    if reconnecting.wire is not None:
        reconnecting.wire.close()


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(method=methods, path=paths, query=queries, sent=headers, body=bodies, sizes=chunk_sizes)
def test_each_request_arrives_as_it_was_sent(
    kept_alive: Reconnecting,
    method: str,
    path: list[tuple[str, str]],
    query: str | None,
    sent: list[tuple[str, str]],
    body: bytes | None,
    sizes: list[int],
) -> None:
    target = '/' + ''.join(raw for raw, _ in path) + ('' if query is None else f'?{query}')
    framing, framed = frame(body, sizes)
    lines = ''.join(f'{name}: {value}\r\n' for name, value in sent)
    head = f'{method} {target} HTTP/1.1\r\nHost: crew.test\r\n{lines}{framing}\r\n'
    status, answer = kept_alive.exchange(head.encode('latin-1') + framed)

    assert status == 200, answer
    seen = json.loads(answer)
    assert (seen['REQUEST_METHOD'], seen['SERVER_PROTOCOL']) == (method, 'HTTP/1.1')
    assert seen['PATH_INFO'] == '/' + ''.join(meant for _, meant in path)
    assert (seen['QUERY_STRING'], seen['REQUEST_URI']) == (query or '', target)
    given_headers = {key: seen[key] for key in seen if key.startswith('HTTP_') or key == 'CONTENT_TYPE'}
    assert len(given_headers.pop('HTTP_X_REQUEST_ID')) == 32
    assert given_headers == {'HTTP_HOST': 'crew.test', **environ_of(sent)}
    whole = body or b''
    assert seen['body'] == {'length': len(whole), 'sha256': hashlib.sha256(whole).hexdigest()}
    # When a long one in chunks begins, nobody knows its length.
    assert seen.get('CONTENT_LENGTH') in (str(len(whole)), None if sizes or not whole else '')


def test_the_environ_has_all_that_is_promised(front: Front) -> None:
    seen = echo(front, '/a%2Fb%20c/?x=%20+y')
    assert (seen['SCRIPT_NAME'], seen['PATH_INFO'], seen['QUERY_STRING']) == ('', '/a/b c/', 'x=%20+y')
    assert (seen['SERVER_NAME'], seen['SERVER_PORT']) == ('127.0.0.1', str(front.port))
    assert seen['REMOTE_ADDR'] == '127.0.0.1' and 0 < int(seen['REMOTE_PORT']) < 65536
    assert (seen['wsgi.version'], seen['wsgi.url_scheme']) == ([1, 0], 'http')
    assert (seen['wsgi.multithread'], seen['wsgi.multiprocess'], seen['wsgi.run_once']) == (False, False, False)
    assert seen['wsgi.input_terminated'] is True
    assert 'CONTENT_LENGTH' not in seen and 'CONTENT_TYPE' not in seen


@pytest.mark.parametrize(
    ('target', 'path', 'query', 'host'),
    [
        ('//other/path', '//other/path', '', 'crew.test'),
        ('/?', '/', '', 'crew.test'),
        ('/?a?b', '/', 'a?b', 'crew.test'),
        ('http://named.test:81/p%41?q', '/pA', 'q', 'named.test:81'),
        ('http://user@named.test?q=/', '/', 'q=/', 'named.test'),
        ('HTTP://named.test', '/', '', 'named.test'),
    ],
)
def test_the_target_may_have_each_form(front: Front, target: str, path: str, query: str, host: str) -> None:
    with Wire(front.port) as wire:
        wire.send(f'GET {target} HTTP/1.1\r\nHost: crew.test\r\n\r\n'.encode())
        answer = wire.answer()
    assert answer.status == 200, answer.body
    seen = json.loads(answer.body)
    assert (seen['PATH_INFO'], seen['QUERY_STRING'], seen['HTTP_HOST']) == (path, query, host)
    assert seen['REQUEST_URI'] == target


def test_options_may_ask_about_the_whole_server(front: Front) -> None:
    with Wire(front.port) as wire:
        wire.send(b'OPTIONS * HTTP/1.1\r\nHost: crew.test\r\n\r\n')
        seen = json.loads(wire.answer().body)
    assert (seen['REQUEST_METHOD'], seen['PATH_INFO'], seen['REQUEST_URI']) == ('OPTIONS', '', '*')


def test_the_body_can_be_read_in_every_way(front: Front) -> None:
    answer = get(front, 'reads', method='POST', body=b'first\nsecond\nthird\nfourth')
    assert answer.body == repr([b'fi', b'rst\n', b'second\n', b'third\n', b'fourth', b'']).encode()


def test_wsgi_errors_is_the_log_of_the_worker(front: Front, worker: Worker) -> None:
    assert get(front, 'errors', '/?heard').status == 200
    worker.await_log('said to wsgi.errors: heard')


# The response


def test_set_cookie_may_come_several_times(front: Front) -> None:
    answer = get(front, 'cookies')
    assert answer.headers.get_all('Set-Cookie') == ['a=1', 'b=2; Path=/'] and answer.headers['X-Between'] == 'yes'


def test_pieces_leave_as_they_come(front: Front) -> None:
    answer = get(front, 'lazy')
    assert (answer.status, answer.body, answer.headers['Content-Length']) == (201, b'one, two', None)


def test_what_is_written_comes_before_what_is_returned(front: Front) -> None:
    assert get(front, 'writes').body == b'written, twice, returned'


def test_the_head_can_be_replaced_before_the_first_byte(front: Front) -> None:
    answer = get(front, 'second_thoughts')
    assert (answer.status, answer.body) == (500, b'sorry')
    assert answer.headers['X-First'] is None and answer.headers['Proxy-Status'] is None


def test_the_head_cannot_be_replaced_after_the_first_byte(front: Front, worker: Worker) -> None:
    with pytest.raises(http.client.IncompleteRead):
        get(front, 'too_late')
    worker.await_log('LookupError: lost the other half')


@pytest.mark.parametrize(
    ('method', 'status', 'length'),
    [
        ('HEAD', '200 OK', '5'),
        ('GET', '204 No Content', None),
        ('HEAD', '204 No Content', None),
        ('GET', '304 Not Modified', '5'),
        ('GET', '299 Of Its Own', '5'),
        ('GET', '404 ', '5'),
    ],
)
def test_a_body_is_only_where_it_may_be(front: Front, method: str, status: str, length: str | None) -> None:
    with Wire(front.port) as wire:
        wire.send(f'{method} /?{quote(status)} HTTP/1.1\r\nHost: a\r\nX-App: status\r\n\r\n'.encode() * 2)
        for answer in wire.answer(method), wire.answer(method):  # the second shows that no byte too many came
            assert (answer.status, answer['Content-Length'], answer['ETag']) == (int(status[:3]), length, '"x"')
            assert answer.reason == status[4:]
            bodiless = method == 'HEAD' or status[:3] in ('204', '304')
            assert answer.body == (b'' if bodiless else b'five!')


def with_headers(front: Front, headers: list[list[str]], method: str = 'GET') -> Answer:
    return get(front, 'headers', f'/?{json.dumps(headers).encode().hex()}', method)


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
@pytest.mark.parametrize('lengths', [['5'], ['5', '5'], ['05'], [' 5\t'], []])
def test_a_true_content_length_is_sent_in_one_spelling(front: Front, lengths: list[str], method: str) -> None:
    answer = with_headers(front, [['Content-Length', length] for length in lengths], method)
    assert (answer.status, answer.body) == (200, b'hello' if method == 'GET' else b'')
    expected = ['5'] if lengths or method == 'GET' else None
    assert answer.headers.get_all('Content-Length') == expected


def test_a_body_longer_than_its_content_length_is_cut(front: Front, worker: Worker) -> None:
    answer = with_headers(front, [['Content-Length', '2']])
    assert (answer.status, answer.body) == (200, b'he')
    worker.await_log('a body of more than its Content-Length of 2 bytes was cut')


@pytest.mark.parametrize('lengths', [['6'], ['5', '6'], ['-5'], ['five'], ['5, 5'], ['']])
def test_a_false_content_length_is_an_error(front: Front, lengths: list[str]) -> None:
    assert with_headers(front, [['Content-Length', length] for length in lengths]).status == 500


@pytest.mark.parametrize(
    'header',
    [
        ['X-A', 'b\r\nSet-Cookie: stolen=1'],
        ['X-A', 'b\nSet-Cookie: stolen=1'],
        ['X-A\r\nSet-Cookie', 'stolen=1'],
        ['X-A', 'b\x00'],
        ['X-A', 'b\x7f'],
        ['X-A', 'not latin-1: \u20ac'],
        ['X A', 'b'],
        ['', 'b'],
        ['X-A:', 'b'],
    ],
)
def test_a_header_that_would_break_the_framing_is_an_error(front: Front, header: list[str]) -> None:
    answer = with_headers(front, [header])
    assert answer.status == 500 and 'stolen' not in str(answer.headers)


def test_header_values_are_sent_as_given_without_blanks_around_them(front: Front) -> None:
    answer = with_headers(front, [['X-A', ' b c\t'], ['X-Empty', ''], ['X-Latin', 'caf\xe9'], ['X-Request-ID', 'own']])
    assert [answer.headers[name] for name in ('X-A', 'X-Empty', 'X-Latin')] == ['b c', '', 'caf\xe9']
    assert answer.headers.get_all('X-Request-ID') == ['own']


def test_hop_by_hop_headers_of_the_application_are_dropped(front: Front) -> None:
    given_headers = [['Connection', 'close, X-Named'], ['X-Named', 'a'], ['Transfer-Encoding', 'chunked'], ['TE', 'b']]
    with Wire(front.port) as wire:
        target = f'/?{json.dumps(given_headers).encode().hex()}'
        wire.send(f'GET {target} HTTP/1.1\r\nHost: a\r\nX-App: headers\r\n\r\n'.encode() * 2)
        for answer in wire.answer(), wire.answer():
            assert (answer.status, answer.body) == (200, b'hello')
            assert not [name for name, _ in given_headers if answer[name] is not None]


@pytest.mark.parametrize(
    'status', ['100 Continue', '199 Own', '600 Own', '20', '200OK', '200 \u20ac', '200 OK\r\nX-Forged: 1', 'OK', '']
)
def test_a_status_that_is_none_is_an_error(front: Front, status: str) -> None:
    answer = get(front, 'status', f'/?{quote(status)}')
    assert answer.status == 500 and answer.headers['X-Forged'] is None


@pytest.mark.parametrize(
    ('app', 'said'),
    [
        ('raises', 'ValueError: before its head'),
        ('raises_after_head', 'ValueError: after its head'),
        ('exits', 'SystemExit: 3'),
        ('says_nothing', 'never called start_response'),
        ('starts_twice', 'start_response was called twice without exc_info'),
        ('gives_text', 'a piece of the body must be bytes, not str'),
        ('writes_before_head', 'the body began before start_response was called'),
        ('header_tuple', 'the headers must be a list, not tuple'),
        ('header_number', 'a header must be a pair of strings'),
    ],
)
def test_an_application_that_fails_is_answered_500_and_logged(
    front: Front, worker: Worker, app: str, said: str
) -> None:
    answer = front.get(f'/{app}', {'X-App': app, 'X-Request-ID': f'id-of-{app}'})
    assert (answer.status, answer.headers['X-Request-ID']) == (500, f'id-of-{app}')
    assert answer.headers['Proxy-Status'] == 'crew; error=proxy_internal_error; details="The application failed."'
    assert said.encode() not in answer.body and b'half' not in answer.body
    worker.await_log(rf'GET /{app} \(request id-of-{app}\) raised\n(?s:.)*{re.escape(said)}')


def test_an_application_that_fails_after_a_part_of_its_body_is_cut_and_logged(front: Front, worker: Worker) -> None:
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(front, 'raises_after_body')
    assert cut.value.partial == b'half of it'
    worker.await_log('ValueError: after half of its body')


@pytest.mark.parametrize('size', [0, 1, 64 * 1024, 64 * 1024 + 1, 8 * MEBIBYTE + 1])
def test_a_response_has_any_length(front: Front, size: int) -> None:
    answer = get(front, 'sized', f'/?{size}')
    assert answer.status == 200 and answer.body == b'x' * size


@pytest.mark.parametrize(
    ('app', 'method'),
    [('closes', 'GET'), ('closes', 'HEAD'), ('closes_after_error', 'GET'), ('closes_unstarted', 'GET')],
)
def test_the_iterable_is_closed_exactly_once(front: Front, app: str, method: str) -> None:
    before = int(get(front, 'close_count').body)
    with suppress(http.client.IncompleteRead):
        get(front, app, method=method)
    assert int(get(front, 'close_count').body) == before + 1


# How it is run


def test_a_factory_makes_the_application_and_the_flags_tell_the_truth(
    broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stack = Stack(broker.url, 'pep3333-factory', tmp_path_factory.mktemp('factory'))
    try:
        worker = stack.worker('pep3333:make_app("hi ", times=2)', '--threads', '2', '--processes', '2')
        front = stack.front().await_ready()
        worker.await_ready(2)
        assert front.get('/').body == b'hi hi  (True, True, False)'
        wait_until(lambda: len(worker.children()) == 2, what='two processes')
    finally:
        stack.close()
