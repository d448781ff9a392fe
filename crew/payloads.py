"""A value on its way: serialized, perhaps compressed, and held to what every broker takes."""

from collections.abc import Collection
from typing import Any

from crew.compression import GZIP, MAX_PAYLOAD, check_level, compress, decompress
from crew.exceptions import PayloadError
from crew.serializers import Serializer, dump, load
from crew.values import value_class

__all__ = ['COMPRESS_ABOVE', 'MAX_BODY', 'Payload', 'pack', 'unpack']

#: From this size on, in bytes, a payload is compressed unless told otherwise.
COMPRESS_ABOVE = 32 * 1024

#: RabbitMQ 4 closes the channel on a longer message, and older ones take it: here it is refused before it is sent.
MAX_BODY = 16 * 1024 * 1024


@value_class(frozen=True, slots=True)
class Payload:
    """The bytes of a value, and how to read them."""

    body: bytes
    content_type: str
    content_encoding: str = ''


def pack(value: Any, serializer: Serializer | None = None, *, gzip: bool | None = None, gzip_level: int = 6) -> Payload:
    """Return the payload of a value.

    Args:
        value: the value.
        serializer: see :func:`crew.serializers.dump`.
        gzip: whether to compress; None compresses what is longer than 32 KiB.
        gzip_level: from 0, fast, to 9, small.

    Raises:
        PayloadError: it cannot be carried: not by this serializer, or not in one message.
        ValueError: there is no such serializer or level.
    """
    check_level(gzip_level)  # now, not when a value is first long enough to be compressed
    body, content_type = dump(value, serializer)
    if len(body) > MAX_PAYLOAD:
        raise PayloadError(f'{len(body)} bytes are too many: the limit is {MAX_PAYLOAD}')
    content_encoding = ''
    if gzip or (gzip is None and len(body) > COMPRESS_ABOVE):
        body, content_encoding = compress(body, gzip_level), GZIP
    if len(body) > MAX_BODY:
        raise PayloadError(f'{len(body)} bytes are too many for one message: the limit is {MAX_BODY}')
    return Payload(body, content_type, content_encoding)


def unpack(payload: Payload, accept: Collection[Serializer]) -> Any:
    """Return the value in a payload.

    Args:
        payload: what came.
        accept: the serializers that may be read, from :func:`crew.serializers.accepted`.

    Raises:
        PayloadError: it cannot be read, or must not.
    """
    return load(decompress(payload.body, payload.content_encoding), payload.content_type, accept)
