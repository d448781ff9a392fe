"""Ids that nobody can guess: UUIDs of version 4 (RFC 9562 §5.4), but many of them for one system call."""

import os

__all__ = ['unique_id']

AT_ONCE = 64
BYTES = 16

_pool: list[str] = []

# A forked child would give its parent's ids away once more.
os.register_at_fork(after_in_child=_pool.clear)


def unique_id() -> str:
    """Return a new UUID as 32 hexadecimal digits; from any thread."""
    try:
        return _pool.pop()
    except IndexError:
        random = os.urandom(BYTES * AT_ONCE)
        first, *rest = (_uuid(random[at : at + BYTES]) for at in range(0, len(random), BYTES))
        _pool.extend(rest)
        return first


def _uuid(random: bytes) -> str:
    digits = random.hex()
    return f'{digits[:12]}4{digits[13:16]}{"89ab"[random[8] & 3]}{digits[17:]}'
