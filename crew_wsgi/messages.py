"""An HTTP request and its response as plain values, and how they travel in one message body (docs/protocol.md).

A body of a message is a short preamble (magic, version, flags, length of the head), the head as JSON, then the raw body
of the request or response. Strings of the head are the latin-1 decoding of the bytes on the wire, as PEP 3333 wants
them, and header fields are pairs in their order: an AMQP header table must fit one frame and knows no name twice.
"""

import json
import re
import struct
from functools import lru_cache
from http import HTTPStatus
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from crew.exceptions import ProtocolError
from crew.values import value_class
from crew_wsgi.fields import Fields, quoted_pairs
from crew_wsgi.headers import HeaderPairs, check_headers, is_token

__all__ = ['CONTENT_TYPE', 'Request', 'Response', 'carry_request', 'check_status', 'decode_request', 'decode_response']
__all__ += ['encode_request', 'encode_response']

#: The content type of such a body in AMQP.
CONTENT_TYPE = 'application/x-crew-http'

_PREAMBLE = struct.Struct('>BBBxI')
_PREAMBLE_SIZE = _PREAMBLE.size
_MAGIC = 0xC7
_VERSION = 1

# Set in the flags when more of the body follows in messages of its own; nobody sends that yet, so it is refused.
_NO_FLAGS = 0

MAX_HEAD = 1024 * 1024

#: The longest head of a response that is remembered, in bytes.
USUAL_HEAD = 512

_DECODER = json.JSONDecoder()

# RFC 8259 §2: what may stand around a value.
_BLANKS = ' \t\n\r'

# Those of RFC 9110 §15 and its registry, in their usual words: nearly all.
_USUAL_STATUSES = frozenset(f'{status.value} {status.phrase}' for status in HTTPStatus if status.value >= 200)
_STATUS = re.compile(r'[2-5][0-9][0-9]( [\t\x20-\x7e\x80-\xff]*)?')


@value_class(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request.

    Args:
        method: as sent; methods are case-sensitive.
        target: the request target as sent (RFC 9112 §3.2), in latin-1.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        headers: the end-to-end header fields in their order.
        body: the whole body.
        scheme: ``http`` or ``https``.
        client: address and port of the client.
        server: address and port that it reached.
        root: where the application is for the client, as far as that is not in ``target`` (percent-encoded).
        mount: the beginning of the path in ``target`` that belongs to that too.
        request_id: names the request in every log.
    """

    method: str
    target: str
    version: str = 'HTTP/1.1'
    headers: HeaderPairs = ()
    body: bytes = b''
    scheme: str = 'http'
    client: tuple[str, int] = ('', 0)
    server: tuple[str, int] = ('', 0)
    root: str = ''
    mount: str = ''
    request_id: str = ''

    def __post_init__(self) -> None:
        """Check what an application would be misled by.

        Raises:
            ValueError: a field is not what RFC 9110 says.
        """
        if not is_token(self.method):
            raise ValueError(f'{self.method!r} is not a method')
        check_headers(self.headers)


@value_class(frozen=True, slots=True, kw_only=True)
class Response:
    """A final HTTP response.

    Args:
        status: code and reason, as in ``200 OK``.
        headers: the header fields in their order.
        body: the whole body.
    """

    status: str
    headers: HeaderPairs = ()
    body: bytes = b''

    def __post_init__(self) -> None:
        """Check what would break the framing of the connection to the client.

        Raises:
            ValueError: the status or a header field is not what RFC 9110 says.
        """
        check_status(self.status)
        if not isinstance(self.headers, Fields):
            check_headers(self.headers)

    @property
    def code(self) -> int:
        """The status code."""
        return int(self.status[:3])

    @property
    def reason(self) -> str:
        """The reason phrase, perhaps empty."""
        return self.status[4:]


def check_status(status: str) -> None:
    """Check the status of a response.

    Raises:
        ValueError: it is not that of a final one.
    """
    if status not in _USUAL_STATUSES and not _STATUS.fullmatch(status):
        raise ValueError(f'{status[:80]!r} is not the status of a final response')


def encode_request(request: Request) -> bytes:
    """Return the message body that carries a request."""
    return carry_request(
        request.method,
        request.target,
        request.version,
        quoted_pairs(request.headers),
        request.body,
        scheme=request.scheme,
        client=request.client,
        server=request.server,
        root=request.root,
        mount=request.mount,
        request_id=request.request_id,
    )


def carry_request(
    method: str,
    target: str,
    version: str,
    headers: str,
    body: bytes,
    *,
    scheme: str,
    client: tuple[str, int],
    server: tuple[str, int],
    root: str,
    mount: str,
    request_id: str,
) -> bytes:
    """Return the message body that carries a request whose parts have been checked.

    They are those of :class:`Request`, but ``headers`` are as :func:`crew_wsgi.fields.quoted_pairs` returns them.
    """
    # By hand: an encoder that looks what each value is takes twice the time.
    head = (
        f'{{"method":{quoted(method)},"target":{quoted(target)},"version":{quoted(version)}'
        f',"headers":[{headers}],"scheme":{quoted(scheme)}'
        f',"client":[{quoted(client[0])},{client[1]}],"server":[{quoted(server[0])},{server[1]}]'
        f',"root":{quoted(root)},"mount":{quoted(mount)},"id":{quoted(request_id)}}}'
    )
    return _join(head, body)


def decode_request(data: bytes) -> Request:
    """Return the request in a message body.

    Raises:
        ProtocolError: it is none.
    """
    encoded, body = _split(data)
    head = _read_head(encoded)
    try:
        client, server = _address(head['client']), _address(head['server'])
        method, target, version, scheme = head['method'], head['target'], head['version'], head['scheme']
        root, mount, request_id = head.get('root', ''), head.get('mount', ''), head['id']
        _check_texts(method, target, version, scheme, client[0], server[0], root, mount, request_id)
        return Request(
            method=method,
            target=target,
            version=version,
            headers=_pairs(head['headers']),
            body=body,
            scheme=scheme,
            client=client,
            server=server,
            root=root,
            mount=mount,
            request_id=request_id,
        )
    except (KeyError, ValueError) as error:
        raise ProtocolError(f'malformed request head: {error}') from error


def encode_response(response: Response) -> bytes:
    """Return the message body that carries a response."""
    head = f'{{"status":{quoted(response.status)},"headers":[{quoted_pairs(response.headers)}]}}'
    return _join(head, response.body)


def decode_response(data: bytes) -> Response:
    """Return the response in a message body.

    Raises:
        ProtocolError: it is none.
    """
    head, body = _split(data)
    status, fields = _usual_response_head(head) if len(head) <= USUAL_HEAD else _read_response_head(head)
    return Response(status=status, headers=fields, body=body)


def _read_response_head(data: bytes) -> tuple[str, Fields]:
    head = _read_head(data)
    try:
        status = head['status']
        _check_texts(status)
        response = Response(status=status, headers=_pairs(head['headers']))
        return status, Fields(response.headers)
    except (KeyError, ValueError) as error:
        raise ProtocolError(f'malformed response head: {error}') from error


#: An application has the same head for many of its answers.
_usual_response_head = lru_cache(maxsize=256)(_read_response_head)


# Head and body


def _join(head: str, body: bytes) -> bytes:
    encoded = head.encode()
    return b''.join((_PREAMBLE.pack(_MAGIC, _VERSION, _NO_FLAGS, len(encoded)), encoded, body))


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Return head and body of a message, neither of which has been read."""
    if len(data) < _PREAMBLE_SIZE:
        raise ProtocolError('the message is shorter than its preamble')
    magic, version, flags, head_length = _PREAMBLE.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise ProtocolError(f'magic {magic:#x}, version {version}: only {_MAGIC:#x}, {_VERSION} is understood here')
    if flags != _NO_FLAGS:
        raise ProtocolError(f'flags {flags:#x} are not understood here')
    end = _PREAMBLE_SIZE + head_length
    if head_length > MAX_HEAD or end > len(data):
        raise ProtocolError(f'a head of {head_length} bytes is too long')
    return data[_PREAMBLE_SIZE:end], data[end:]


def _read_head(data: bytes) -> dict[str, Any]:
    try:
        # RFC 8259 §8.1. json.loads would take UTF-16 and lone surrogates for it, too.
        text = str(data, 'utf-8').strip(_BLANKS)
        head, length = _DECODER.raw_decode(text)
        if length != len(text):
            raise ValueError(f'something follows its end at character {length}')
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f'the head is not JSON: {error}') from error
    if not isinstance(head, dict):
        raise ProtocolError('the head is not a JSON object')
    return head


def _check_texts(*texts: Any) -> None:
    """Check that all are strings of latin-1: together, and one by one only to say which is not."""
    try:
        plain = ''.join(texts).isascii()
    except TypeError:
        plain = False
    if not plain:
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f'not a string: {str(text)[:40]!r}')
            text.encode('latin-1')


def _pairs(value: Any) -> HeaderPairs:
    """Return header fields, whose characters are still to be checked."""
    if type(value) is not list:
        raise ValueError('headers are not a list of pairs')
    pairs = []
    for pair in value:
        if type(pair) is not list or len(pair) != 2:
            raise ValueError('headers are not a list of pairs')
        name, content = pair
        if type(name) is not str or type(content) is not str:
            raise ValueError(f'a header is not a pair of strings: {str(pair)[:40]!r}')
        pairs.append((name, content))
    return tuple(pairs)


def _address(value: Any) -> tuple[Any, int]:
    """Return an address, whose host is still to be checked."""
    if type(value) is not list or len(value) != 2 or type(value[1]) is not int or not 0 <= value[1] < 65536:
        raise ValueError('an address is not a pair of host and port')
    return value[0], value[1]
