"""The environ that an application is given: PEP 3333, key by key, and what wsgiref's server gives where both agree."""

import io
import os
import sys
from typing import Any
from urllib.parse import quote
from wsgiref import validate
from wsgiref.simple_server import WSGIRequestHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew_wsgi.environ import MAX_KEPT_NAME, _usual_variable, build_environ, split_target
from crew_wsgi.messages import Request


def environ(target: str = '/', *headers: tuple[str, str], method: str = 'GET', **fields: Any) -> dict[str, Any]:
    fields = {'client': ('192.0.2.7', 5123), 'server': ('127.0.0.1', 8000), **fields}
    request = Request(method=method, target=target, headers=headers, **fields)
    return build_environ(request, multithread=False, multiprocess=False)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('REQUEST_METHOD', 'PATCH'),
        ('SCRIPT_NAME', ''),
        ('PATH_INFO', '/a b'),
        ('QUERY_STRING', 'q=%20'),
        ('CONTENT_TYPE', 'text/plain'),
        ('CONTENT_LENGTH', '4'),
        ('SERVER_NAME', '127.0.0.1'),
        ('SERVER_PORT', '8000'),
        ('SERVER_PROTOCOL', 'HTTP/1.0'),
        ('HTTP_HOST', 'example.org'),
        ('REMOTE_ADDR', '192.0.2.7'),
        ('REMOTE_PORT', '5123'),
        ('REQUEST_URI', '/a%20b?q=%20'),
        ('RAW_URI', '/a%20b?q=%20'),
        ('wsgi.version', (1, 0)),
        ('wsgi.url_scheme', 'https'),
        ('wsgi.multithread', False),
        ('wsgi.multiprocess', False),
        ('wsgi.run_once', False),
        ('wsgi.input_terminated', True),
        ('crew.request_id', 'r-1'),
    ],
)
def test_a_key_has_its_value(key: str, value: object) -> None:
    built = environ(
        '/a%20b?q=%20',
        ('Host', 'example.org'),
        ('content-type', 'text/plain'),
        ('Content-Length', '4'),
        method='PATCH',
        body=b'body',
        version='HTTP/1.0',
        scheme='https',
        request_id='r-1',
    )
    assert built[key] == value


def test_it_is_what_wsgiref_takes_for_an_environ() -> None:
    check: Any = validate
    check.check_environ(environ('/x?y=z', ('Host', 'a'), ('Cookie', 'b=c'), method='POST', body=b'd'))


@pytest.mark.parametrize('multithread', [True, False])
@pytest.mark.parametrize('multiprocess', [True, False])
def test_it_says_what_else_may_run_the_application(multithread: bool, multiprocess: bool) -> None:
    built = build_environ(Request(method='GET', target='/'), multithread=multithread, multiprocess=multiprocess)
    assert (built['wsgi.multithread'], built['wsgi.multiprocess']) == (multithread, multiprocess)


def test_errors_go_to_the_standard_error() -> None:
    assert environ()['wsgi.errors'] is sys.stderr


def test_the_body_is_read_from_the_input_and_ends_there() -> None:
    stream = environ(method='POST', body=b'one\ntwo')['wsgi.input']
    assert (stream.readline(), stream.read(1), stream.read(), stream.read(1)) == (b'one\n', b't', b'wo', b'')


# Paths


@pytest.mark.parametrize(
    ('target', 'path', 'query'),
    [
        ('/', b'/', ''),
        ('/a/b', b'/a/b', ''),
        ('/a?', b'/a', ''),
        ('/a?b?c', b'/a', 'b?c'),
        ('/a?x=%C3%BC&y=+%2B', b'/a', 'x=%C3%BC&y=+%2B'),
        ('/%C3%BC', b'/\xc3\xbc', ''),
        ('/\xc3\xbc', b'/\xc3\xbc', ''),
        ('/%FF%fe', b'/\xff\xfe', ''),
        ('/%', b'/%', ''),
        ('/%zz%4', b'/%zz%4', ''),
        ('/a%2Fb%3Fc', b'/a/b?c', ''),
        ('/a%00b', b'/a\0b', ''),
        ('/a+b', b'/a+b', ''),
        ('//a//b', b'//a//b', ''),
        ('/a/../b', b'/a/../b', ''),
        ('*', b'', ''),
        ('http://example.org', b'/', ''),
        ('http://example.org/', b'/', ''),
        ('http://example.org/a%20b?c=d', b'/a b', 'c=d'),
        ('https://user@example.org:8443?c', b'/', 'c'),
        ('HTTP://example.org/a?http://b/c', b'/a', 'http://b/c'),
        ('/http://example.org/a', b'/http://example.org/a', ''),
    ],
)
def test_a_target_has_this_path_and_this_raw_query(target: str, path: bytes, query: str) -> None:
    built = environ(target)
    assert built['PATH_INFO'].encode('latin-1') == path
    assert built['QUERY_STRING'] == query
    assert built['REQUEST_URI'] == target


@given(st.text())
def test_a_percent_encoded_text_reaches_the_application_as_pep_3333_says(text: str) -> None:
    encoded = quote(text, errors='surrogatepass')
    assert environ(f'/{encoded}')['PATH_INFO'] == '/' + text.encode('utf-8', 'surrogatepass').decode('latin-1')


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255)))
def test_every_target_has_a_path_and_a_query(target: str) -> None:
    path, query = split_target(target)
    assert path.startswith('/') or target == '*'
    assert '?' not in path
    built = environ(target)
    assert built['QUERY_STRING'] == query


# Headers


def test_headers_of_one_name_are_joined_in_their_order() -> None:
    assert environ('/', ('X-A', '1'), ('x-b', '2'), ('x-a', '3'))['HTTP_X_A'] == '1,3'


def test_cookies_are_joined_as_cookies_are() -> None:
    assert environ('/', ('Cookie', 'a=1'), ('cookie', 'b=2'))['HTTP_COOKIE'] == 'a=1; b=2'


@pytest.mark.parametrize('name', ['X_Forwarded_For', 'x-forwarded_for', 'Content_Length', '_'])
def test_a_name_with_an_underscore_is_dropped_so_that_nobody_can_pose_as_a_proxy(name: str) -> None:
    built = environ('/', ('X-Forwarded-For', '192.0.2.1'), (name, 'evil'))
    assert 'evil' not in built.values()
    assert built['HTTP_X_FORWARDED_FOR'] == '192.0.2.1'


def test_names_of_any_length_become_variables_and_only_short_ones_are_kept() -> None:
    long = 'x' * (MAX_KEPT_NAME + 1)
    for _ in range(2):
        built = environ('/', ('X-Short', '1'), (long, '2'), (f'{long}_y', '3'))
        assert (built['HTTP_X_SHORT'], built[f'HTTP_{long.upper()}']) == ('1', '2')
        assert '3' not in built.values()
    kept = _usual_variable.cache_info()
    environ('/', (long, '2'), (f'{long}-z', '2'))
    assert _usual_variable.cache_info() == kept
    assert kept.maxsize is not None


def test_no_header_can_take_the_place_of_what_the_server_says() -> None:
    built = environ('/', ('Path-Info', 'x'), ('Request-Method', 'x'), ('Remote-Addr', 'x'), ('wsgi.input', 'x'))
    assert (built['PATH_INFO'], built['REQUEST_METHOD'], built['REMOTE_ADDR']) == ('/', 'GET', '192.0.2.7')
    assert isinstance(built['wsgi.input'], io.BytesIO)


def test_a_proxy_header_does_not_become_the_proxy_of_a_child_process() -> None:
    # "httpoxy": it is HTTP_PROXY of the environ only, never of os.environ.
    environ('/', ('Proxy', 'http://evil.example'))
    assert os.environ.get('HTTP_PROXY') != 'http://evil.example'


def test_values_are_the_latin_1_decoding_of_their_bytes() -> None:
    assert environ('/', ('X-Name', '\xc3\xbc'))['HTTP_X_NAME'].encode('latin-1').decode() == 'ü'


@pytest.mark.parametrize(
    ('headers', 'body', 'length'),
    [
        ((), b'', None),
        ((), b'chunked before', '14'),
        ((('Content-Length', '4'),), b'body', '4'),
        ((('Content-Length', '0'),), b'', '0'),
        ((('Content-Length', '4'), ('Content-Length', '4')), b'body', '4'),
        ((('Content-Length', '400'),), b'body', '4'),
    ],
)
def test_the_content_length_is_that_of_the_body(
    headers: tuple[tuple[str, str], ...], body: bytes, length: str | None
) -> None:
    assert environ('/', *headers, method='POST', body=body).get('CONTENT_LENGTH') == length


def test_without_a_content_type_there_is_none() -> None:
    built = environ(method='POST', body=b'x')
    assert 'CONTENT_TYPE' not in built
    assert 'HTTP_CONTENT_LENGTH' not in built


# The reference


class Reference(WSGIRequestHandler):
    """wsgiref's handler, without a socket."""

    def __init__(self, raw: bytes) -> None:
        self.server = type('Server', (), {'base_environ': {'SCRIPT_NAME': '', 'SERVER_PORT': '8000'}})()
        self.client_address = ('192.0.2.7', 5123)
        self.rfile = io.BytesIO(raw)
        self.raw_requestline = self.rfile.readline()
        assert self.parse_request()

    def address_string(self) -> str:
        return self.client_address[0]


plain = st.text('abcXYZ019-', min_size=1, max_size=6)
target_parts = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='?'), max_size=15)
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=15).map(str.strip)
header_names = plain.map(lambda name: f'X{name}') | st.sampled_from(['Host', 'Accept', 'User-Agent', 'Content-Type'])


@given(
    method=st.sampled_from(['GET', 'POST', 'DELETE', 'OPTIONS']),
    path=target_parts.map(lambda path: '/' + path.lstrip('/')),
    query=st.none() | target_parts,
    headers=st.lists(st.tuples(header_names, printable), max_size=5, unique_by=lambda pair: pair[0].lower()),
    repeated=st.none() | st.tuples(printable, printable),
)
def test_a_plain_request_looks_as_it_does_under_wsgiref(
    method: str, path: str, query: str | None, headers: list[tuple[str, str]], repeated: tuple[str, str] | None
) -> None:
    headers = [*headers, *(('Repeated', value) for value in repeated or ())]
    target = path if query is None else f'{path}?{query}'
    lines = [f'{method} {target} HTTP/1.1', *(f'{name}: {value}' for name, value in headers), '', '']
    expected = Reference('\r\n'.join(lines).encode()).get_environ()
    for own in ('SERVER_SOFTWARE', 'REMOTE_HOST', 'GATEWAY_INTERFACE'):
        expected.pop(own, None)
    if not any(name == 'Content-Type' for name, _ in headers):
        del expected['CONTENT_TYPE']  # wsgiref invents one
    built = environ(target, *headers, method=method)
    assert {key: built[key] for key in expected} == expected
    assert {key for key in built if key.startswith(('HTTP_', 'CONTENT_'))} <= set(expected)
