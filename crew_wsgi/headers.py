"""Header fields: what may stand in them, and which must not pass a gateway (RFC 9110 §5, §7.6.1)."""

import re
from collections.abc import Iterable, Sequence

__all__ = ['HeaderPairs', 'check_header', 'end_to_end', 'is_token']

HeaderPairs = Sequence[tuple[str, str]]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110 §5.5: visible characters and obs-text, blanks and tabs inside only: around it they are not part of a value.
_VALUE = re.compile(r'([\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?')

#: RFC 9110 §7.6.1, and those that only mean something on one connection by older habit.
HOP_BY_HOP = frozenset(
    {
        'connection',
        'keep-alive',
        'proxy-authenticate',
        'proxy-authorization',
        'proxy-connection',
        'te',
        'trailer',
        'transfer-encoding',
        'upgrade',
    }
)


def is_token(text: str) -> bool:
    """Return whether ``text`` is a token (RFC 9110 §5.6.2), as methods and field names must be."""
    return _TOKEN.fullmatch(text) is not None


def check_header(name: str, value: str) -> None:
    """Check a header field.

    Raises:
        ValueError: the name is no token, or the value has characters that would end the field or not fit latin-1.
    """
    if not is_token(name):
        raise ValueError(f'{name!r} is not a header name')
    if not _VALUE.fullmatch(value):
        raise ValueError(f'the value of header {name} has characters that must not stand there: {value[:80]!r}')


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the fields that pass a gateway: not hop-by-hop, and not named by ``Connection``."""
    pairs = list(headers)
    named = {
        token.strip().lower() for name, value in pairs if name.lower() == 'connection' for token in value.split(',')
    }
    dropped = HOP_BY_HOP | named
    return [(name, value) for name, value in pairs if name.lower() not in dropped]
