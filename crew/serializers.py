"""Values to bytes and back, by content type.

``json`` is the default, ``text`` and ``bytes`` are for what is that already. ``pickle`` carries almost anything, and
reading it runs whatever code its sender put in: who wants to read it says so.
"""

import json
import pickle
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias, get_args

from crew.exceptions import PayloadError

__all__ = ['CONTENT_TYPES', 'Serializer', 'accepted', 'dump', 'load']

Serializer: TypeAlias = Literal['json', 'text', 'bytes', 'pickle']

CONTENT_TYPES: dict[Serializer, str] = {
    'json': 'application/json',
    'text': 'text/plain',
    'bytes': 'application/octet-stream',
    'pickle': 'application/python-pickle',
}

_SERIALIZERS: dict[str, Serializer] = {content_type: name for name, content_type in CONTENT_TYPES.items()}

_HARMLESS: frozenset[Serializer] = frozenset({'json', 'text', 'bytes'})

_PICKLE_PROTOCOL = 4

#: How many values one JSON payload may have, counted by commas and opening brackets; an object counts as three.
MAX_VALUES = 5_000_000


def accepted(also: Collection[str]) -> frozenset[Serializer]:
    """Return the serializers that are read: the harmless ones, and those that were opted into.

    Args:
        also: names of further ones; ``pickle`` is the only one there is.

    Raises:
        ValueError: there is none of that name.
    """
    names = {also} if isinstance(also, str) else set(also)
    unknown = names - set(get_args(Serializer))
    if unknown:
        raise ValueError(f'no such serializer: {", ".join(map(repr, sorted(unknown)))}; there are {_names()}')
    return _HARMLESS | {name for name in CONTENT_TYPES if name in names}


def dump(value: Any, serializer: Serializer | None = None) -> tuple[bytes, str]:
    """Return a value's bytes and content type.

    Args:
        value: the value.
        serializer: how to write it; None is ``bytes`` for bytes, ``json`` for all else.

    Raises:
        PayloadError: the serializer cannot carry such a value; the text says which.
        ValueError: there is no such serializer.
    """
    if serializer is None:
        serializer = 'bytes' if isinstance(value, (bytes, bytearray, memoryview)) else 'json'
    writer = _WRITERS.get(serializer)
    if writer is None:
        raise ValueError(f'no such serializer: {serializer!r}; there are {_names()}')
    try:
        return writer(value), CONTENT_TYPES[serializer]
    except Exception as error:  # pickle runs the value's own code, and JSON that of its subclasses
        kind = type(value).__name__
        raise PayloadError(f'the {serializer} serializer cannot carry this {kind}: {error}') from error


def load(data: bytes, content_type: str, accept: Collection[Serializer] = _HARMLESS) -> Any:
    """Return the value in some bytes.

    Args:
        data: the bytes.
        content_type: how they were written; its parameters are passed over, for JSON and text are UTF-8.
        accept: the serializers that may be read, from :func:`accepted`.

    Raises:
        PayloadError: the content type is unknown or not accepted here, or the bytes are not what it says.
    """
    serializer = _SERIALIZERS.get(content_type.partition(';')[0].strip().lower())
    if serializer is None:
        known = ', '.join(CONTENT_TYPES.values())
        raise PayloadError(f'the content type {content_type[:80]!r} is not understood, only {known}')
    if serializer not in accept:
        raise PayloadError(f'{serializer} is not accepted here: reading it may run code; {_OPT_IN}')
    try:
        return _READERS[serializer](data)
    except Exception as error:  # unpickling runs the sender's code, which may raise anything
        raise PayloadError(f'the payload is not {serializer}: {error}') from error


_OPT_IN = "say Client(accept={'pickle'}) or --accept pickle if you trust everybody who can publish"


def _names() -> str:
    return ', '.join(CONTENT_TYPES)


def _write_json(value: Any) -> bytes:
    # NaN and Infinity are no JSON: others could not read them.
    data = _ENCODER.encode(value).encode()
    _check_number(data)
    return data


def _read_json(data: bytes) -> Any:
    _check_number(data)
    # json.loads would take UTF-16 and lone surrogates for it, too.
    return _DECODER.decode(str(data, 'utf-8'))


def _check_number(data: bytes) -> None:
    # Each takes some sixty bytes, even an empty list: 64 MiB of "[],[]," would become 1.5 GB. An object with one entry
    # takes 184, and more before Python 3.11.
    if 3 * len(data) > MAX_VALUES and sum(map(data.count, (b',', b'[', b'{', b'{', b'{'))) > MAX_VALUES:
        raise ValueError(f'it has more than {MAX_VALUES} values, where an object counts as three')


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is no JSON')


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(',', ':'))
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _write_text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError('it is no string')
    return value.encode()


def _read_text(data: bytes) -> str:
    return str(data, 'utf-8')


def _write_bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError('it is no bytes')
    return bytes(value)


def _write_pickle(value: Any) -> bytes:
    return pickle.dumps(value, _PICKLE_PROTOCOL)


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    'json': _write_json,
    'text': _write_text,
    'bytes': _write_bytes,
    'pickle': _write_pickle,
}
_READERS: dict[str, Callable[[bytes], Any]] = {
    'json': _read_json,
    'text': _read_text,
    'bytes': bytes,
    'pickle': pickle.loads,
}
