"""Bytes of any content type and encoding as a payload: a value or a refusal comes out, and a value goes back in."""

import gzip
import json
import math
import zlib
from typing import Any
from unittest.mock import patch

from crew import compression, serializers
from crew.compression import GZIP, compress, decompress
from crew.exceptions import PayloadError
from crew.payloads import Payload, pack, unpack
from crew.serializers import CONTENT_TYPES, Serializer, accepted
from tests.fuzzing.bounds import assert_line, quick, weight
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

TYPES = [*CONTENT_TYPES.values(), 'Application/JSON; charset=utf-16', 'application/python-pickle;x', '', 'pickle']
ENCODINGS = ['', 'gzip', 'identity', 'plain', 'GZIP', 'deflate', 'gzip, gzip']

HARMLESS = accepted(())


def check(data: bytes) -> None:
    """Read the bytes as what the first of them say."""
    choices = Choices(data)
    content_type, encoding = choices.pick(TYPES), choices.pick(ENCODINGS)
    zipped, damage, at, limit = choices.flag(), choices.byte(), choices.byte(), 1 << choices.below(12)
    body = choices.rest()
    if zipped:
        whole = compress(body, damage % 10)
        assert whole == compress(body, damage % 10), 'the same value is not the same message'
        assert decompress(whole, GZIP) == body
        body = _damaged(whole, damage, at)
    _check_bound(body, encoding, limit)
    _check_value(Payload(body, content_type, encoding))


def _damaged(whole: bytes, damage: int, at: int) -> bytes:
    kind, at = damage % 4, at % len(whole)
    if kind == 1:
        return whole[:at]
    if kind == 2:
        return whole + whole[:at]
    if kind == 3:
        return whole[:at] + bytes([damage]) + whole[at + 1 :]
    return whole


def _check_bound(body: bytes, encoding: str, limit: int) -> None:
    """Fail unless what comes out is as long as allowed at most, and what zlib itself makes of it."""
    try:
        with quick(), patch.object(compression, 'zlib', _Counting(limit)):
            out = decompress(body, encoding, limit)
    except PayloadError as error:
        assert_line(error)
        return
    assert len(out) <= limit
    if encoding.lower() != GZIP:
        assert out == body
        return
    assert out == gzip.decompress(body)
    # RFC 1952 §2.3.1: the last four bytes say how long it is. Behind them nothing comes.
    assert zlib.crc32(out).to_bytes(4, 'little') + len(out).to_bytes(4, 'little') == body[-8:]


class _Counting:
    """zlib that fails if more is taken out of it at once than has been allowed."""

    error, MAX_WBITS = zlib.error, zlib.MAX_WBITS

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def decompressobj(self, wbits: int) -> '_Counting':
        self._stream = zlib.decompressobj(wbits)
        return self

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        result = self._stream.decompress(data, max_length)
        assert len(result) <= self._limit + 1, 'more came out than there may be, before it was refused'
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check_value(payload: Payload) -> None:
    readers, unpickled = serializers._READERS, []
    before = readers['pickle']
    readers['pickle'] = unpickled.append
    try:
        with quick():
            value = unpack(payload, HARMLESS)
    except PayloadError as error:
        assert_line(error)
        return
    finally:
        readers['pickle'] = before
        assert not unpickled, 'a pickle was read that nobody opted into'
    assert not payload.content_type.lower().partition(';')[0].strip().endswith('pickle')
    assert weight(value) < 60 * len(decompress(payload.body, payload.content_encoding)) + 1000
    _check_return(value)


def _check_return(value: Any) -> None:
    """Fail unless a value that came in goes out, and comes back as it was."""
    serializer: Serializer = 'json'
    if isinstance(value, bytes | str):
        serializer = 'bytes' if isinstance(value, bytes) else 'json'
    try:
        packed = pack(value, serializer, gzip=bool(value))
    except PayloadError:
        # 1e999 comes in as infinity, which is no JSON; and what is read as deep as Python goes may not be written.
        assert serializer == 'json' and (_has_infinity(value) or _is_deep(value))
        return
    back = unpack(packed, HARMLESS)
    assert back == value and type(back) is type(value)


def _has_infinity(value: Any) -> bool:
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)
        elif isinstance(each, float) and math.isinf(each):
            return True
    return False


def _is_deep(value: Any) -> bool:
    try:
        json.dumps(value)
    except RecursionError:
        return True
    return False


def seeds() -> list[bytes]:
    """Return a value of each kind, plain and compressed."""
    head = b'%c%c%c%c%c%c'
    bodies = [b'{"a": [1, -2.5e3, "\\u2603", null, true], "b": {}}', 'täxt'.encode(), b'\x00\xff', b'\x80\x04N.']
    plain = [head % (at, 0, 0, 0, 0, 11) + body for at, body in enumerate(bodies)]
    zipped = [head % (at, 1, 1, damage, 9, 11) + body for at, body in enumerate(bodies) for damage in range(4)]
    raw = [head % (at, 1, 0, 0, 0, 11) + compress(body) for at, body in enumerate(bodies)]
    return plain + zipped + raw
