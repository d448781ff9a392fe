"""Messages to frames and back in one go: *basic.publish* with its content, and *basic.deliver*. Sans-IO.

A message is three frames or more (AMQP 0-9-1 §4.2): the method, the content header with the properties, and the body.
pika makes objects of each, and of each field; here bytes become an :class:`Envelope` and an envelope bytes. Only what
is whole, well-formed and of the types that crew sends is read here. All else is left to pika, frame by frame: then
:func:`decode_delivery` returns None, and nothing has been taken.
"""

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from pika.data import encode_table
from pika.exceptions import InvalidFrameError, ShortStringTooLong

from crew.envelope import MAX_SHORT_STRING, Envelope

__all__ = [
    'Delivered',
    'decode_delivery',
    'encode_ack',
    'encode_content',
    'encode_publish',
    'frame_size',
    'is_awaited',
    'undecodable_header',
]

# §4.2.3, §4.2.6: frame types, and the octet that ends a frame.
METHOD, HEADER, BODY = 1, 2, 3
END = 0xCE
_END = bytes([END])

# Class and method numbers in one (§1.8.3).
_BASIC = 60
_PUBLISH = _BASIC << 16 | 40
_DELIVER = _BASIC << 16 | 60
_ACK = _BASIC << 16 | 80

# What pika takes for a protocol header: a broker's answer to a version that it does not speak, of 8 bytes (§4.2.2).
_PROTOCOL_HEADER = b'AMQP'

# RabbitMQ adds to the headers of a dead letter, and does not look whether they still fit into a frame.
_TOLERANCE = 1024 * 1024

_FRAME = Struct('>BHL')  # type, channel, size
_METHOD_FRAME = Struct('>BHLL')
_DELIVERY = Struct('>QB')  # delivery tag, bits
_HEADER_FRAME = Struct('>BHLHHQH')  # and class, weight, size of the body, property flags
_ACK_FRAME = Struct('>BHLLQBB')
_HEADER_FIXED = _HEADER_FRAME.size - _FRAME.size
_OCTET = Struct('B')
_OCTETS = [bytes((value,)) for value in range(256)]
_LONG = Struct('>L')
_LONGLONG = Struct('>Q')
_SIGNED = Struct('>l')
_SIGNED_LONGLONG = Struct('>q')
_INTEGER = Struct('>cl')
_LONG_INTEGER = Struct('>cq')

# §4.2.6.1: one bit for each property, in the order in which they follow.
_CONTENT_TYPE = 1 << 15
_CONTENT_ENCODING = 1 << 14
_HEADERS = 1 << 13
_DELIVERY_MODE = 1 << 12
_PRIORITY = 1 << 11
_CORRELATION_ID = 1 << 10
_REPLY_TO = 1 << 9
_EXPIRATION = 1 << 8
_MESSAGE_ID = 1 << 7
_TIMESTAMP = 1 << 6
_TYPE = 1 << 5
_REST = 1 << 4 | 1 << 3 | 1 << 2  # user, application and cluster id
_UNKNOWN = 1 << 1 | 1

_PERSISTENT = 2

#: The largest *basic.deliver* (§1.8.3.14): a number, a tag and bits besides three short strings.
MAX_DELIVER = 4 + 8 + 1 + 3 * (1 + MAX_SHORT_STRING)

#: Below it a second copy of a body costs less than a view of it.
SMALL = 4096

# §4.2.5.5, as RabbitMQ has it: the field values that crew sends.
_FIELD_STRING = ord('S')
_FIELD_INTEGER = ord('I')
_FIELD_LONG_INTEGER = ord('l')
_FIELD_FLAG = ord('t')


class Delivered(NamedTuple):
    """A delivery as it was read.

    Attributes:
        channel: the number of its channel.
        consumer_tag: whose it is.
        tag: names the delivery on its channel.
        redelivered: whether the broker delivered it before.
        envelope: the message.
        end: the offset of what follows it.
        frames: how many frames it was.
    """

    channel: int
    consumer_tag: str
    tag: int
    redelivered: bool
    envelope: Envelope
    end: int
    frames: int


# Reading


def frame_size(data: bytes | bytearray, offset: int, stop: int, frame_max: int) -> int:
    """Return how many bytes the frame at ``offset`` has; 0 if not all of it has come.

    Args:
        data: what was read.
        offset: where the frame begins.
        stop: where what was read ends.
        frame_max: the largest frame that was agreed on, 0 for any.

    Raises:
        InvalidFrameError: it is so large that there can be no such frame (§4.2.3), and waiting for it has no end.
    """
    left = stop - offset
    if data.startswith(_PROTOCOL_HEADER, offset, stop):
        return 8 if left >= 8 else 0
    if left < _FRAME.size:
        return 0
    _, _, size = _FRAME.unpack_from(data, offset)
    whole: int = _FRAME.size + size + 1
    if frame_max and whole > frame_max + _TOLERANCE:
        raise InvalidFrameError(f'a frame of {whole} bytes, where {frame_max} were agreed on')
    return whole if whole <= left else 0


def undecodable_header(data: bytes) -> tuple[int, int, int] | None:
    """Return what can be known of a content header at the beginning of ``data`` whose properties make no sense.

    Returns:
        The number of its channel, the size of the body that follows, and where the frame ends. None if the frame itself
        is malformed.
    """
    if len(data) < _HEADER_FRAME.size:
        return None
    kind, channel, size, basic, _, body_size, _ = _HEADER_FRAME.unpack_from(data)
    end: int = _FRAME.size + size + 1
    if kind != HEADER or basic != _BASIC or size < _HEADER_FIXED or data[end - 1 : end] != _END:
        return None
    return channel, body_size, end


def is_awaited(data: bytes | bytearray, offset: int, stop: int) -> bool:
    """Return whether a delivery begins at ``offset`` that is in order so far, and of which more is to come.

    Args:
        data: what was read, and room for as much as is worth waiting for.
        offset: where a frame begins.
        stop: where what was read ends.
    """
    if stop - offset < _METHOD_FRAME.size:
        return False
    kind, channel, size, method = _METHOD_FRAME.unpack_from(data, offset)
    at: int = offset + size + 8
    if method != _DELIVER or kind != METHOD or size > MAX_DELIVER:
        return False
    if at < stop and data[at] != HEADER:
        return False
    if stop - at < _HEADER_FRAME.size:
        return at + _HEADER_FRAME.size - offset <= len(data)
    left: int
    kind, number, size, basic, _, left, _ = _HEADER_FRAME.unpack_from(data, at)
    at += size + 8
    if kind != HEADER or number != channel or basic != _BASIC:
        return False
    while left and at < stop:
        if data[at] != BODY:
            return False
        if stop - at < _FRAME.size:
            break
        _, number, size = _FRAME.unpack_from(data, at)
        if number != channel or not 0 < size <= left:
            return False
        at += size + 8
        left -= size
    # The rest of the body has at least one frame more.
    return (at > stop or left > 0) and at + left + _FRAME.size + 1 - offset <= len(data)


def decode_delivery(data: bytes | bytearray, offset: int, stop: int) -> Delivered | None:
    """Return the delivery that begins at ``offset``.

    Args:
        data: what was read.
        offset: where a frame begins.
        stop: where what was read ends.

    Returns:
        None if it is no delivery, is not all there, or is anything else than usual: then it is pika's.
    """
    try:
        kind, channel, size, method = _METHOD_FRAME.unpack_from(data, offset)
        if method != _DELIVER or kind != METHOD or not channel:
            return None
        at = offset + 11
        next_frame = offset + size + 8
        after = at + 1 + data[at]
        consumer_tag = data[at + 1 : after].decode()
        tag, bits = _DELIVERY.unpack_from(data, after)
        at = after + 9
        at += 1 + data[at]  # the exchange
        at += 1 + data[at]  # the routing key
        if at + 1 != next_frame or data[at] != END:
            return None
        kind, number, size, basic, _, body_size, flags = _HEADER_FRAME.unpack_from(data, next_frame)
        if kind != HEADER or number != channel or basic != _BASIC or flags & _UNKNOWN:
            return None
        at = next_frame + _HEADER_FRAME.size
        after = next_frame + _FRAME.size + size
        if after >= stop or data[after] != END:
            return None
        body, end, frames = b'', after + 1, 2
        if body_size:
            if end + _FRAME.size + body_size >= stop:
                # What is there would be copied, to no end.
                return None
            kind, number, size = _FRAME.unpack_from(data, end)
            begin = end + _FRAME.size
            end = begin + size
            if kind != BODY or number != channel or end >= stop or data[end] != END:
                return None
            # Of a view: a slice of a bytearray would be one copy more.
            body = bytes(data[begin:end]) if size < SMALL else memoryview(data)[begin:end].tobytes()
            end += 1
            frames = 3
            if size != body_size:
                if size > body_size:
                    return None
                body, end, more = _decode_rest(data, end, stop, channel, body, body_size)
                frames += more
        envelope = _decode_properties(data, at, after, flags, body)
    except (IndexError, StructError, UnicodeDecodeError):
        # Not all there, or not what it says. Text that is not UTF-8 pika has words for.
        return None
    if envelope is None:
        return None
    return Delivered(channel, consumer_tag, tag, bits & 1 != 0, envelope, end, frames)


def _decode_rest(
    data: bytes | bytearray, at: int, stop: int, channel: int, first: bytes, body_size: int
) -> tuple[bytes, int, int]:
    """Return a body of several frames, where it ends, and how many there were after the first."""
    pieces: list[bytes | memoryview] = [first]
    left, view = body_size - len(first), memoryview(data)
    while left > 0:
        kind, number, size = _FRAME.unpack_from(data, at)
        begin = at + _FRAME.size
        at = begin + size
        if kind != BODY or number != channel or at >= stop or data[at] != END:
            raise IndexError('another frame')
        pieces.append(view[begin:at])
        at += 1
        left -= size
    if left:
        raise IndexError('the body is too long')
    return b''.join(pieces), at, len(pieces) - 1


def _decode_properties(data: bytes | bytearray, at: int, end: int, flags: int, body: bytes) -> Envelope | None:
    # Short strings are read in place: with a function for them, all of a call takes an eighth longer to decode.
    content_type = content_encoding = correlation_id = reply_to = type = ''
    headers: dict[str, Any] = {}
    expiration = timestamp = None
    priority, persistent = 0, False
    if flags & _CONTENT_TYPE:
        stop = at + 1 + data[at]
        content_type = data[at + 1 : stop].decode()
        at = stop
    if flags & _CONTENT_ENCODING:
        stop = at + 1 + data[at]
        content_encoding = data[at + 1 : stop].decode()
        at = stop
    if flags & _HEADERS:
        stop = at + 4 + _LONG.unpack_from(data, at)[0]
        if stop > end or not _decode_table(data, at + 4, stop, headers):
            return None
        at = stop
    if flags & _DELIVERY_MODE:
        persistent = data[at] == _PERSISTENT
        at += 1
    if flags & _PRIORITY:
        priority = data[at]
        at += 1
    if flags & _CORRELATION_ID:
        stop = at + 1 + data[at]
        correlation_id = data[at + 1 : stop].decode()
        at = stop
    if flags & _REPLY_TO:
        stop = at + 1 + data[at]
        reply_to = data[at + 1 : stop].decode()
        at = stop
    if flags & _EXPIRATION:
        stop = at + 1 + data[at]
        text = data[at + 1 : stop]
        if not text.isdigit():
            return None
        expiration = int(text)
        at = stop
    if flags & _MESSAGE_ID:
        at += 1 + data[at]
    if flags & _TIMESTAMP:
        timestamp = _LONGLONG.unpack_from(data, at)[0]
        at += 8
    if flags & _TYPE:
        stop = at + 1 + data[at]
        type = data[at + 1 : stop].decode()
        at = stop
    if flags & _REST:
        for flag in (1 << 4, 1 << 3, 1 << 2):
            if flags & flag:
                at += 1 + data[at]
    if at != end:
        return None
    return Envelope(
        body=body,
        type=type,
        correlation_id=correlation_id,
        reply_to=reply_to,
        content_type=content_type,
        content_encoding=content_encoding,
        headers=headers,
        expiration=expiration,
        priority=priority,
        persistent=persistent,
        timestamp=timestamp,
    )


def _decode_table(data: bytes | bytearray, at: int, end: int, table: dict[str, Any]) -> bool:
    """Fill ``table``; return False if a value is of a type that only pika reads, or the sizes do not fit."""
    while at < end:
        stop = at + 1 + data[at]
        name = data[at + 1 : stop].decode()
        kind = data[stop]
        at = stop + 1
        if kind == _FIELD_STRING:
            stop = at + 4 + _LONG.unpack_from(data, at)[0]
            table[name] = data[at + 4 : stop].decode()
            at = stop
        elif kind == _FIELD_INTEGER:
            table[name] = _SIGNED.unpack_from(data, at)[0]
            at += 4
        elif kind == _FIELD_LONG_INTEGER:
            table[name] = _SIGNED_LONGLONG.unpack_from(data, at)[0]
            at += 8
        elif kind == _FIELD_FLAG:
            table[name] = data[at] != 0
            at += 1
        else:
            return False
    return at == end


# Writing


@lru_cache(maxsize=1024)
def encode_publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Return the method frame of a message; its content comes next (:func:`encode_content`).

    Raises:
        ShortStringTooLong: a name has more than 255 bytes.
    """
    payload = b'\0\0' + _short(exchange) + _short(routing_key) + (b'\1' if mandatory else b'\0')
    return _METHOD_FRAME.pack(METHOD, channel, 4 + len(payload), _PUBLISH) + payload + _END


def encode_content(channel: int, envelope: Envelope, body_max: int) -> list[bytes | memoryview]:
    """Return the frames of a message's properties and body, in pieces to be joined, three for each frame.

    Args:
        channel: the number of the channel.
        envelope: the message.
        body_max: how many bytes of a body fit into one frame.

    Raises:
        ShortStringTooLong: a property has more than 255 bytes.
        UnsupportedAMQPFieldException: a header is of a type that AMQP does not know.
        struct.error: a number is out of range.
    """
    flags = _HEADERS | _DELIVERY_MODE
    properties: list[bytes] = []
    if envelope.content_type:
        flags |= _CONTENT_TYPE
        properties.append(_known_short(envelope.content_type))
    if envelope.content_encoding:
        flags |= _CONTENT_ENCODING
        properties.append(_known_short(envelope.content_encoding))
    properties.append(_encode_table(envelope.headers))
    properties.append(b'\2' if envelope.persistent else b'\1')
    if envelope.priority:
        flags |= _PRIORITY
        properties.append(_OCTET.pack(envelope.priority))
    if envelope.correlation_id:
        flags |= _CORRELATION_ID
        properties.append(_short(envelope.correlation_id))
    if envelope.reply_to:
        flags |= _REPLY_TO
        properties.append(_known_short(envelope.reply_to))
    if envelope.expiration is not None:
        flags |= _EXPIRATION
        properties.append(_known_short(str(envelope.expiration)))
    if envelope.timestamp is not None:
        flags |= _TIMESTAMP
        properties.append(_LONGLONG.pack(envelope.timestamp))
    if envelope.type:
        flags |= _TYPE
        properties.append(_known_short(envelope.type))
    data = b''.join(properties)
    body = envelope.body
    size = len(body)
    header = _HEADER_FRAME.pack(HEADER, channel, _HEADER_FIXED + len(data), _BASIC, 0, size, flags)
    if not size:
        return [header, data, _END]
    if size <= body_max:
        return [header, data, _END, _FRAME.pack(BODY, channel, size), body, _END]
    pieces: list[bytes | memoryview] = [header, data, _END]
    view = memoryview(body)
    for start in range(0, size, body_max):
        piece = view[start : start + body_max]
        pieces += (_FRAME.pack(BODY, channel, len(piece)), piece, _END)
    return pieces


def encode_ack(channel: int, tag: int, multiple: bool) -> bytes:
    """Return the frame that acknowledges a delivery, or all of a channel up to it."""
    return _ACK_FRAME.pack(METHOD, channel, 13, _ACK, tag, multiple, END)


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > MAX_SHORT_STRING:
        raise ShortStringTooLong(data)
    return _OCTETS[len(data)] + data


#: For what is the same in many messages: names of headers and queues, media types.
_known_short = lru_cache(maxsize=1024)(_short)


def _encode_table(table: Mapping[str, Any]) -> bytes:
    pieces = [b'']
    for name, value in table.items():
        kind = type(value) if type(name) is str else None
        if kind is str:
            data = value.encode()
            pieces.append(_known_short(name) + b'S' + _LONG.pack(len(data)) + data)
        elif kind is int and -(2**31) <= value < 2**31:
            pieces.append(_known_integer(name, value))
        elif kind is int and -(2**63) <= value < 2**63:
            pieces.append(_known_short(name) + _LONG_INTEGER.pack(b'l', value))
        elif kind is bool:
            pieces.append(_known_short(name) + (b't\1' if value else b't\0'))
        else:
            # Others are pika's, nested tables and its own integers among them.
            pieces = []
            encode_table(pieces, dict(table))
            return b''.join(pieces)
    data = b''.join(pieces)
    return _LONG.pack(len(data)) + data


# Versions, limits and whatever else is nearly always the same number of 32 bits.
@lru_cache(maxsize=1024)
def _known_integer(name: str, value: int) -> bytes:
    return _known_short(name) + _INTEGER.pack(b'I', value)
