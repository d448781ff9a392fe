"""Bytes as the body of an HTTP request's or answer's message: a head that can be believed, or a refusal."""

import dataclasses
import json
import re
import struct
import warnings
from typing import Any
from wsgiref.validate import check_environ

from crew.exceptions import ProtocolError
from crew_wsgi.answers import head_of, length_of, reframed
from crew_wsgi.environ import build_environ
from crew_wsgi.messages import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from tests.fuzzing.bounds import assert_line, quick, weight
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

PREAMBLE = struct.Struct('>BBBxI')

FIELDS = ['method', 'target', 'version', 'headers', 'scheme', 'client', 'server', 'root', 'mount', 'id', 'status']

NAMES = ['Content-Length', 'Content-Type', 'Host', 'Cookie', 'X-A', 'x-a', 'X_A', 'Transfer-Encoding', 'Connection']
NAMES += ['', 'A B', 'Date', 'Server', 'X-Request-ID']

STATUSES = ['200 OK', '204', '304 Not Modified', '404 ', '100 Continue', '199 ', '600 x', '099', '99', '200 a\r\nb']

#: What ends a field or a line, or a string in C: none may stand in a head.
ENDS = re.compile('[\r\n\0]')


def check(data: bytes) -> None:
    """Read the bytes as a request and as an answer."""
    choices = Choices(data)
    message = _made(choices)
    for decode, encode, examine in (
        (decode_request, encode_request, _examine_request),
        (decode_response, encode_response, _examine_response),
    ):
        try:
            with quick():
                found: Any = decode(message)
        except ProtocolError as error:
            assert_line(error)
            continue
        assert weight([getattr(found, each.name) for each in dataclasses.fields(found)]) < 100 * len(message) + 10_000
        assert PREAMBLE.size + PREAMBLE.unpack_from(message)[3] + len(found.body) == len(message)
        again = encode(found)
        assert decode(again) == found, 'it says something else when it is sent on'
        assert encode(decode(again)) == again
        for name, value in found.headers:
            assert not ENDS.search(name + value) and ':' not in name and value == value.strip(' \t')
        examine(found)


def _examine_request(request: Request) -> None:
    """Fail unless an application gets what PEP 3333 promises."""
    environ = build_environ(request, multithread=False, multiprocess=False)
    for name, value in environ.items():
        if isinstance(value, str):
            value.encode('latin-1')
            assert not name.startswith('HTTP_') or not ENDS.search(value)
    assert environ['wsgi.input'].read() == request.body
    assert 0 <= int(environ['REMOTE_PORT']) < 65536 and 0 <= int(environ['SERVER_PORT']) < 65536
    if request.body:
        assert environ['CONTENT_LENGTH'] == str(len(request.body))
    # RFC 3875 makes one variable of a hyphen and of an underscore: nobody may speak in another's place.
    said = {name.upper() for name, _ in request.headers}
    for name in environ:
        assert not name.startswith('HTTP_') or name == 'HTTP_HOST' or name[5:].replace('_', '-') in said, name
    assert 'HTTP_CONTENT_LENGTH' not in environ and 'HTTP_CONTENT_TYPE' not in environ
    # Only of what a front of ours may have sent; that the rest is a path is for its sender to see to.
    rooted = all(not part or part.startswith('/') for part in (request.root, request.mount, environ['SCRIPT_NAME']))
    path = environ['PATH_INFO']
    if rooted and (not path or path.startswith('/')) and request.scheme in ('http', 'https') and request.server[0]:
        environ['CONTENT_LENGTH'] = str(len(request.body))
        if environ['SCRIPT_NAME'] != '/' and (environ['SCRIPT_NAME'] or path):
            with warnings.catch_warnings():
                # It does not know every method.
                warnings.simplefilter('ignore')
                check_environ(environ)


def _examine_response(response: Response) -> None:
    """Fail unless a client gets one answer, as long as it says."""
    assert 200 <= response.code < 600 and not ENDS.search(response.reason)
    for method, whole in (('GET', True), ('HEAD', True), ('GET', False)):
        try:
            framed = reframed(response, method, whole=whole)
        except ProtocolError as error:
            assert_line(error)
            continue
        lengths = [value for name, value in framed.headers if name.lower() == 'content-length']
        assert len(lengths) <= 1
        assert not any(name.lower() in ('transfer-encoding', 'connection') for name, _ in framed.headers)
        if method == 'GET' and whole and framed.code not in (204, 304):
            assert lengths == [str(len(framed.body))] == [str(length_of(framed))]
        else:
            assert not framed.body
        start_line, headers = head_of(framed, 'id', closing=False)
        assert not any(ENDS.search(name + value) for name, value in headers.get_all())
        start_line.reason.encode('ascii')


# From bytes


def _made(choices: Choices) -> bytes:
    kind = choices.below(4)
    if kind == 0:
        return choices.rest()
    if kind == 1:
        return _joined(choices.rest(), b'')
    head: dict[str, Any] = {
        'method': 'GET' if choices.flag() else _text(choices),
        'target': choices.pick(['/', '/a%20b?c', '*', 'http://h/x']) if choices.flag() else _text(choices),
        'version': 'HTTP/1.1',
        'headers': [
            [choices.pick(NAMES) if choices.flag() else _text(choices), _text(choices)] for _ in range(choices.below(6))
        ],
        'scheme': choices.pick(['http', 'https', 'ftp']),
        'client': ['', choices.integer()],
        'server': [_text(choices), 80],
        'id': _text(choices),
        'status': choices.pick(STATUSES) if choices.flag() else _text(choices),
    }
    if choices.flag():
        head.update(root=_text(choices), mount=_text(choices))
    change, field = choices.byte(), choices.pick(FIELDS)
    value = _value(choices)
    body = choices.rest()
    if kind == 2:
        head['headers'].append(['Content-Length', str(len(body))])
    if change % 8 == 6:
        head[field] = value
    elif change % 8 == 7:
        head.pop(field, None)
    return _joined(json.dumps(head).encode(), body, wrong=change == 255)


def _joined(head: bytes, body: bytes, *, wrong: bool = False) -> bytes:
    return PREAMBLE.pack(0xC7, 1, 0, len(head) + len(body) + 1 if wrong else len(head)) + head + body


def _text(choices: Choices) -> str:
    return choices.short().decode('utf-8' if choices.rarely() else 'latin-1', 'surrogateescape')


def _value(choices: Choices) -> Any:
    kind = choices.below(5)
    if kind == 0:
        return [_value(choices) for _ in range(choices.below(3))]
    if kind == 1:
        return [[_text(choices), _text(choices)]]
    return choices.pick([None, True, 1.5, {}, '', -1]) if kind == 2 else _text(choices)


def seeds() -> list[bytes]:
    """Return a request and an answer, plain and to be mended."""
    request = Request(
        method='POST',
        target='/a?b',
        headers=[('Host', 'h'), ('Content-Type', 'a/b')],
        body=b'x',
        client=('192.0.2.1', 9),
        server=('h', 80),
        mount='/a',
        request_id='1',
    )
    whole = [encode_request(request), encode_response(Response(status='200 OK', headers=[('A', 'b')], body=b'x'))]
    return [*(b'\0' + each for each in whole), *(b'\1' + each[8:] for each in whole), b'\2\1\1\1', b'\3\1\1\1']
