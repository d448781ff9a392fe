"""HTTP requests and responses in one message body: nothing is lost on the way, and nothing malformed comes out."""

import json
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crew.exceptions import ProtocolError
from crew_wsgi.messages import (
    _STATUS,
    _USUAL_STATUSES,
    MAX_HEAD,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"

latin_1 = st.text(st.characters(max_codepoint=255), max_size=20)
tokens = st.text(TOKEN, min_size=1, max_size=8)
#: All that may stand in a field's value; blanks around it are not part of it (RFC 9110 §5.5).
VALUE = [chr(code) for code in range(256) if code == 9 or (code >= 32 and code != 127)]
values = st.text(VALUE, max_size=20).map(lambda value: value.strip(' \t'))
headers = st.lists(st.tuples(tokens, values), max_size=5).map(tuple)
addresses = st.tuples(latin_1, st.integers(0, 65535))
bodies = st.binary(max_size=100)

requests = st.builds(
    Request,
    method=tokens,
    target=latin_1,
    version=st.sampled_from(['HTTP/1.0', 'HTTP/1.1']),
    headers=headers,
    body=bodies,
    scheme=st.sampled_from(['http', 'https']),
    client=addresses,
    server=addresses,
    root=latin_1,
    mount=latin_1,
    request_id=latin_1,
)
responses = st.builds(
    Response,
    status=st.builds('{} {}'.format, st.integers(200, 599), values),
    headers=headers,
    body=bodies,
)


@given(requests)
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(responses)
def test_a_response_comes_back_as_it_was(response: Response) -> None:
    assert decode_response(encode_response(response)) == response


def head_of(data: bytes) -> bytes:
    """Return the head in a message body."""
    return data[8 : 8 + struct.unpack_from('>4xI', data)[0]]


@given(requests)
def test_the_head_of_a_request_is_what_json_writes(request: Request) -> None:
    head = {
        'method': request.method,
        'target': request.target,
        'version': request.version,
        'headers': request.headers,
        'scheme': request.scheme,
        'client': request.client,
        'server': request.server,
        'root': request.root,
        'mount': request.mount,
        'id': request.request_id,
    }
    assert head_of(encode_request(request)) == json.dumps(head, separators=(',', ':')).encode()


@given(responses)
def test_the_head_of_a_response_is_what_json_writes(response: Response) -> None:
    head = {'status': response.status, 'headers': response.headers}
    assert head_of(encode_response(response)) == json.dumps(head, separators=(',', ':')).encode()


def test_order_and_duplicates_of_headers_are_kept() -> None:
    pairs = (('B', '1'), ('a', '2'), ('b', '3'), ('A', '2'))
    assert decode_request(encode_request(Request(method='GET', target='/', headers=pairs))).headers == pairs
    assert decode_response(encode_response(Response(status='200 OK', headers=pairs))).headers == pairs


def test_every_byte_that_may_stand_in_a_value_passes() -> None:
    response = Response(status='200 OK', headers=(('x', f'a{"".join(VALUE)}a'),))
    assert decode_response(encode_response(response)) == response


def test_a_body_may_be_any_bytes_and_look_like_a_message() -> None:
    inner = encode_response(Response(status='200 OK', body=bytes(range(256))))
    assert decode_response(encode_response(Response(status='200 OK', body=inner))).body == inner


def test_a_message_begins_with_the_documented_preamble() -> None:
    data = encode_response(Response(status='200 OK', body=b'body'))
    magic, version, flags, reserved, length = struct.unpack_from('>BBBBI', data)
    assert (magic, version, flags, reserved) == (0xC7, 1, 0, 0)
    assert json.loads(data[8 : 8 + length]) == {'status': '200 OK', 'headers': []}
    assert data[8 + length :] == b'body'


# Valid by construction

INJECTIONS = ['a\r\nSet-Cookie: x=1', 'a\n', '\r', 'a\0b', '\x7f', 'a\x1bb', '☃', '\ud800', ' a', 'a ', '\ta']


@pytest.mark.parametrize('value', INJECTIONS)
def test_a_value_that_would_split_the_response_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match='x-name'):
        Response(status='200 OK', headers=[('x-name', value)])
    with pytest.raises(ValueError, match='x-name'):
        Request(method='GET', target='/', headers=[('x-name', value)])


@pytest.mark.parametrize('name', ['', 'a b', 'a:', 'a\r\nb', 'a\n', 'ä', '(a)', '"a"', ' a', 'a\0'])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match='not a header name'):
        Response(status='200 OK', headers=[(name, '')])
    with pytest.raises(ValueError, match='not a header name'):
        Request(method='GET', target='/', headers=[(name, '')])


@pytest.mark.parametrize('method', ['', 'GE T', 'GET\r\n', 'GET\n', 'Ä'])
def test_a_method_that_is_no_token_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match='not a method'):
        Request(method=method, target='/')


NO_STATUS = ['', '200OK', '20 OK', '2000 OK', ' 200 OK', '200\tOK', '200 OK\r\nx: y', '200 OK\n', '200 ☃', '٢٠٠ OK']
NOT_FINAL = ['100 Continue', '101 Switching Protocols', '199 x', '600 x', '000 x', '-20 x']


@pytest.mark.parametrize('status', [*NO_STATUS, *NOT_FINAL])
def test_a_status_that_is_not_that_of_a_final_response_is_refused(status: str) -> None:
    with pytest.raises(ValueError, match='status of a final response'):
        Response(status=status)


@pytest.mark.parametrize(
    ('status', 'code', 'reason'),
    [('200 OK', 200, 'OK'), ('599', 599, ''), ('404 ', 404, ''), ('500 d\xe9j\xe0 vu', 500, 'd\xe9j\xe0 vu')],
)
def test_a_status_is_a_code_and_perhaps_a_reason(status: str, code: int, reason: str) -> None:
    response = Response(status=status)
    assert (response.code, response.reason) == (code, reason)


def test_the_statuses_that_are_not_looked_at_are_final_ones() -> None:
    assert '200 OK' in _USUAL_STATUSES and len(_USUAL_STATUSES) > 40
    assert all(_STATUS.fullmatch(status) for status in _USUAL_STATUSES)


# Whatever comes


def message(head: Any, body: bytes = b'', *, magic: int = 0xC7, version: int = 1, flags: int = 0) -> bytes:
    encoded = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack('>BBBxI', magic, version, flags, len(encoded)) + encoded + body


REQUEST = json.loads(encode_request(Request(method='GET', target='/'))[8:])
RESPONSE = {'status': '200 OK', 'headers': []}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
heads = st.dictionaries(st.sampled_from([*REQUEST, 'status', 'more']), json_values, max_size=3)
anything = (
    st.binary(max_size=40)
    | st.binary(max_size=40).map(message)
    | json_values.map(message)
    | heads.map(lambda head: message({**REQUEST, **RESPONSE, **head}))
)


@settings(max_examples=300, deadline=None)
@example(b'')
@example(b'\xc7\x01\x00\x00')
@given(anything)
def test_whatever_comes_is_a_valid_message_or_a_protocol_error(data: bytes) -> None:
    for decode, encode in ((decode_request, encode_request), (decode_response, encode_response)):
        try:
            decoded = decode(data)
        except ProtocolError:
            continue
        assert decode(encode(decoded)) == decoded  # type: ignore[arg-type]


@pytest.mark.parametrize('field', sorted(REQUEST))
@pytest.mark.parametrize('value', [None, 3, [], {}, '☃', [['a']], [[1, 2]], ['a', 'b'], [['a', 'b', 'c']], ['', '80']])
def test_a_request_with_a_field_of_another_kind_is_a_protocol_error(field: str, value: Any) -> None:
    if field == 'headers' and value == []:
        return
    with pytest.raises(ProtocolError):
        decode_request(message({**REQUEST, field: value}))


@pytest.mark.parametrize('port', [-1, 65536, 10**400, True, 80.0, '80', None])
def test_a_port_that_cannot_be_is_a_protocol_error(port: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_request(message({**REQUEST, 'client': ['192.0.2.1', port]}))


# A front without routes says nothing of where the application is.
@pytest.mark.parametrize('field', sorted(REQUEST.keys() - {'root', 'mount'}))
def test_a_request_that_lacks_a_field_is_a_protocol_error(field: str) -> None:
    with pytest.raises(ProtocolError):
        decode_request(message({name: value for name, value in REQUEST.items() if name != field}))


@pytest.mark.parametrize(
    'data',
    [
        message(RESPONSE, magic=0xC6),
        message(RESPONSE, version=2),
        message(RESPONSE, flags=1),
        message(RESPONSE)[:-1],
        message([]),
        message(b''),
        message(b'{"status": "200 OK", "headers": [}'),
        message(b'\xff\xfe'),
        message(b'[' * 100_000),
        message(b'9' * 5000),
        message(json.dumps(RESPONSE).encode() + b','),
        message(json.dumps(RESPONSE).encode('utf-8-sig')),
        message(json.dumps(RESPONSE).encode('utf-16')),
        message(json.dumps(RESPONSE).encode('utf-16-le')),
        message(json.dumps(RESPONSE).encode('utf-32')),
        message(b'{"status": "200 OK", "headers": [], "other": "\xff"}'),
        message(b'{"status": "200 OK", "headers": [], "other": "\xed\xa0\x80"}'),
        message(b'{"status": "200 \\ud800", "headers": []}'),
        message(b'{"status": "200 OK", "headers": [["a", "\\ud800"]]}'),
        message(b'{"status": "200 OK", "headers": [["a", "\\u2603"]]}'),
        message(b'{"status": "200 OK", "headers": ["ab"]}'),
        message(b'{"status": "200 OK", "headers": [{"a": 1, "b": 2}]}'),
        message(b' ' * MAX_HEAD + b'{}'),
        message({'status': '200 OK', 'headers': [['a', 'b\r\nc: d']]}),
        message({'status': '200 OK\r\n', 'headers': []}),
        message({'status': '100 Continue', 'headers': []}),
        message({'status': 200, 'headers': []}),
        struct.pack('>BBBxI', 0xC7, 1, 0, 2**32 - 1),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_a_malformed_response_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_response(data)


def test_blanks_may_stand_around_a_head() -> None:
    assert decode_response(message(b'\r\n\t ' + json.dumps(RESPONSE).encode() + b' \t\r\n')).status == '200 OK'
    for blank in (b'\x0b', b'\x0c', b'\0', '\xa0'.encode()):
        with pytest.raises(ProtocolError):
            decode_response(message(json.dumps(RESPONSE).encode() + blank))


@pytest.mark.parametrize('depth', [*range(100, 1100, 50), 5000, 100_000])
def test_a_deeply_nested_head_is_a_protocol_error(depth: int) -> None:
    nested = b'[' * depth + b']' * depth
    with pytest.raises(ProtocolError):
        decode_response(message(b'{"headers": [], "status": ' + nested + b'}'))
    with pytest.raises(ProtocolError):
        decode_response(message(b'{"status": "200 OK", "headers": [["a", ' + nested + b']]}'))
