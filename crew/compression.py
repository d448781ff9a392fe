"""Bytes to fewer bytes and back, by content encoding; what comes out is bounded, whatever came in."""

import gzip
import zlib

from crew.exceptions import PayloadError

__all__ = ['GZIP', 'MAX_PAYLOAD', 'check_level', 'compress', 'decompress']

GZIP = 'gzip'

#: The longest payload, uncompressed. A message of a megabyte must not become a gigabyte.
MAX_PAYLOAD = 64 * 1024 * 1024

# zlib: 16 more than the window's bits says that the stream is a gzip file (RFC 1952).
_GZIP_WINDOW = zlib.MAX_WBITS | 16


def check_level(level: int) -> None:
    """Refuse a level that gzip does not have.

    Raises:
        ValueError: there is no such level.
    """
    if not 0 <= level <= 9:
        raise ValueError(f'gzip_level must be 0 to 9, not {level}')


def compress(data: bytes, level: int = 6) -> bytes:
    """Return ``data`` as a gzip file.

    Args:
        data: what to compress.
        level: from 0, fast, to 9, small.

    Raises:
        ValueError: there is no such level.
    """
    check_level(level)
    # Without the time: the same value is the same message.
    return gzip.compress(data, level, mtime=0)


def decompress(data: bytes, content_encoding: str, limit: int = MAX_PAYLOAD) -> bytes:
    """Return what was compressed.

    Args:
        data: the bytes that came.
        content_encoding: ``gzip``, or nothing (``identity``, ``plain``).
        limit: the most bytes that may come out.

    Raises:
        PayloadError: the encoding is unknown, the data is damaged, or more than ``limit`` bytes would come out.
    """
    encoding = content_encoding.lower()
    if encoding in ('', 'identity', 'plain'):
        if len(data) > limit:
            raise _too_long(limit)
        return data
    if encoding != GZIP:
        raise PayloadError(f'the content encoding {content_encoding[:80]!r} is not understood, only gzip')
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        result = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise PayloadError(f'the payload is damaged: {error}') from error
    if len(result) > limit:
        raise _too_long(limit)
    if not stream.eof or stream.unused_data:
        raise PayloadError('the payload is damaged: it is not one whole gzip file')
    return result


def _too_long(limit: int) -> PayloadError:
    return PayloadError(f'the payload is longer than {limit} bytes')
