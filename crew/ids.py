"""Ids that nobody can guess: as random as UUIDs, but many of them for one system call."""

import os

__all__ = ['unique_id']

BYTES = 16
AT_ONCE = 64

_pool: list[str] = []

# A forked child would give its parent's ids away once more.
os.register_at_fork(after_in_child=_pool.clear)


def unique_id() -> str:
    """Return 32 hexadecimal digits that were never returned before; from any thread."""
    try:
        return _pool.pop()
    except IndexError:
        digits = os.urandom(BYTES * AT_ONCE).hex()
        first, *rest = (digits[at : at + 2 * BYTES] for at in range(0, len(digits), 2 * BYTES))
        _pool.extend(rest)
        return first
