"""Header fields: what may stand in them, and which must not pass a gateway (RFC 9110 §5, §7.6.1)."""

import re
from collections.abc import Iterable, Sequence

__all__ = ['COUNTABLE', 'HeaderPairs', 'check_headers', 'end_to_end', 'for_host', 'is_token']

HeaderPairs = Sequence[tuple[str, str]]

#: Digits of the longest Content-Length that is taken for one.
COUNTABLE = 18

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110 §5.5: visible characters and obs-text, blanks and tabs inside only: around it they are not part of a value.
_VALUE = re.compile(r'([\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?')

# Up to this length, in characters, str.isprintable is faster than the pattern.
_SHORT_VALUE = 128

# The same few names come again and again, so those that were seen to be tokens are kept. Anybody may send others: there
# is an end to how many are kept before it begins anew, and to how long they are.
_MAX_TOKENS = 1024
_MAX_KEPT_TOKEN = 64
_tokens: set[str] = set()

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
    return text in _tokens or _is_new_token(text)


def check_headers(headers: HeaderPairs) -> None:
    """Check header fields.

    Raises:
        ValueError: a name is no token, or a value has characters that would end the field or not fit latin-1.
    """
    for name, value in headers:
        if name not in _tokens and not _is_new_token(name):
            raise ValueError(f'{name!r} is not a header name')
        # Nearly all are of ASCII without tabs.
        plain = len(value) <= _SHORT_VALUE and value.isascii() and value.isprintable() and value == value.strip()
        if not plain and not _VALUE.fullmatch(value):
            raise ValueError(f'the value of header {name} has characters that must not stand there: {value[:80]!r}')


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the fields that pass a gateway: not hop-by-hop, and not named by ``Connection``."""
    pairs = list(headers)
    passing = [pair for pair in pairs if pair[0].lower() not in HOP_BY_HOP]
    # Connection is hop-by-hop itself.
    named = set() if len(passing) == len(pairs) else _named_by_connection(pairs)
    return [pair for pair in passing if pair[0].lower() not in named] if named else passing


def for_host(host: str, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the fields of a request for this host, whatever ``Host`` they had, if any: HTTP/1.0 wants none."""
    return [('Host', host), *(pair for pair in headers if pair[0].lower() != 'host')]


def _named_by_connection(pairs: HeaderPairs) -> set[str]:
    values = [value for name, value in pairs if name.lower() == 'connection']
    return {token.strip().lower() for value in values for token in value.split(',')}


def _is_new_token(text: str) -> bool:
    if not _TOKEN.fullmatch(text):
        return False
    if len(text) <= _MAX_KEPT_TOKEN:
        if len(_tokens) >= _MAX_TOKENS:
            _tokens.clear()
        _tokens.add(text)
    return True
