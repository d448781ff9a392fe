"""Bytes as the body of an HTTP request's or answer's message: a head that can be believed, or a refusal."""

import dataclasses
import json
import re
import struct
import warnings
from typing import Any
from wsgiref.validate import check_environ

import h11
from tornado import httputil

from crew.exceptions import ProtocolError
from crew.messages import Chunk
from crew_wsgi.answers import added_to, length_of, reframed
from crew_wsgi.budget import Budget
from crew_wsgi.download import Download
from crew_wsgi.environ import build_environ
from crew_wsgi.headers import HeaderPairs
from crew_wsgi.http1 import Answer
from crew_wsgi.messages import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from crew_wsgi.patience import Patience
from tests.fuzzing.bounds import assert_line, quick, weight
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

PREAMBLE = struct.Struct('>BBBxI')

FIELDS = ['method', 'target', 'version', 'headers', 'scheme', 'client', 'server', 'root', 'mount', 'id', 'status']

NAMES = ['Content-Length', 'Content-Type', 'Host', 'Cookie', 'X-A', 'x-a', 'X_A', 'Transfer-Encoding', 'Connection']
NAMES += ['', 'A B', 'Date', 'Server', 'X-Request-ID']

STATUSES = ['200 OK', '204', '304 Not Modified', '404 ', '100 Continue', '199 ', '600 x', '099', '99', '200 a\nb']
STATUSES += ['200 \xe9']

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
        for version, closes in (('HTTP/1.1', False), ('HTTP/1.1', True), ('HTTP/1.0', False), ('HTTP/1.0', True)):
            _send(framed, method, version, whole=whole, closes=closes)


def _send(response: Response, method: str, version: str, *, whole: bool, closes: bool) -> None:
    """Fail unless a strict client reads the answer as it was meant, and nothing behind it."""
    length = length_of(response)
    body = b'' if whole else b'x' * (3 if length is None else min(length, 1000))
    expected = response.body + body
    client = Client(httputil.RequestStartLine(method, '/', version), closes=closes)
    added = added_to(response.headers, 'id')
    lines = [line.partition(': ') for line in added.removesuffix('\r\n').split('\r\n') if line]
    headers = [*response.headers, *((name, value) for name, _, value in lines)]
    names = [name.lower() for name, _ in headers]
    said = [name.lower() for name, _ in response.headers]
    assert all(names.count(name) == max(1, said.count(name)) for name in ('x-request-id', 'date', 'server'))
    assert not any(ENDS.search(name + value) for name, value in headers)
    # What the front does: see Handler.
    unbounded = not whole and length is None and version == 'HTTP/1.0'
    client.download.begin(
        response, added, response.body, whole=whole, length=None if whole else length, closes=unbounded
    )
    if body:
        last = length is None or len(body) == length
        client.download.take(Chunk(correlation_id='1', offset=0, body=body, last=last))
        if not last:
            # It is longer than anybody has time for.
            assert not client.written
            return
    elif not whole:
        client.download.take(Chunk(correlation_id='1', offset=0, body=b'', last=True))
    assert client.written, 'it does not end'
    client.sent += client.answer.end()
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target='/', headers=[('Host', 'h')]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(bytes(client.sent))
    event = reader.next_event()
    assert isinstance(event, h11.Response), event
    assert event.status_code == response.code and event.reason.decode('ascii') in ('', response.reason)
    theirs = [(name.decode(), value.decode('latin-1')) for name, value in event.headers]
    ours = [(name.lower(), value) for name, value in headers]
    added = {name for name, _ in theirs if name in ('connection', 'transfer-encoding')}
    assert [field for field in theirs if field[0] not in added] == ours, 'it reads other fields'
    assert 'transfer-encoding' not in added or (version == 'HTTP/1.1' and 'content-length' not in names)
    # What the other version would do is said.
    usual = client.answer.closes == (version == 'HTTP/1.0')
    connection = [] if usual else ['close' if client.answer.closes else 'Keep-Alive']
    assert [value for name, value in theirs if name == 'connection'] == connection
    read = b''
    while isinstance(event := reader.next_event(), h11.Data):
        read += event.data
    if event is h11.NEED_DATA:
        assert unbounded, 'for the client it has no end'
        reader.receive_data(b'')
        event = reader.next_event()
    assert isinstance(event, h11.EndOfMessage), event
    assert read == expected, 'it reads another body'
    assert not reader.trailing_data[0], 'there is more than the answer'


class Client:
    """A connection that takes all at once, in place of an exchange and of what carries it.

    Args:
        request: the request line that is answered.
        closes: whether the connection is to be closed then.

    Attributes:
        sent: what has gone to the client.
        written: whether that is all.
    """

    closed = writing = failing = False

    def __init__(self, request: httputil.RequestStartLine, *, closes: bool) -> None:
        self.connection = self
        self.answer = Answer(request, closes=closes)
        self.sent = bytearray()
        self.written = False
        self.download = Download(self, self, Budget(10**9), Patience(10.0, 1000))  # type: ignore[arg-type]

    def write_headers(
        self, code: int, reason: str, headers: HeaderPairs, chunk: bytes, *, closes: bool, added: str
    ) -> None:
        """Stand in for :meth:`crew_wsgi.connections.Exchange.write_headers`."""
        self.answer.closes = self.answer.closes or closes
        self.sent += self.answer.head(code, reason, headers, chunk, added)

    def write(self, chunk: bytes) -> None:
        """Stand in for :meth:`crew_wsgi.connections.Exchange.write`."""
        self.sent += self.answer.piece(chunk)

    # As the owner of the download

    def credit(self, offset: int) -> None:
        """Do nothing: no worker has more."""

    def mind_clock(self) -> None:
        """Do nothing: there is no clock."""

    def answer_written(self) -> None:
        """Take note that this was all."""
        assert not self.written
        self.written = True

    def _wrong(self) -> None:
        raise AssertionError('it does not take the client for what it is')

    answer_late = answer_crowded = on_connection_close = _wrong


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
    responses = [Response(status=f'200 {reason}', headers=[('A', 'b')], body=b'x') for reason in ('OK', '\xe9')]
    responses.append(Response(status='200 OK', headers=[('Date', 'b'), ('date', 'c'), ('X-Request-ID', 'd')]))
    whole = [encode_request(request), *map(encode_response, responses)]
    return [*(b'\0' + each for each in whole), *(b'\1' + each[8:] for each in whole), b'\2\1\1\1', b'\3\1\1\1']
