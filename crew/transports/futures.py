"""Futures that nobody waits for."""

import asyncio
from typing import Any

__all__ = ['look_at']


def look_at(future: 'asyncio.Future[Any]') -> None:
    """Look at how a future has ended: the loop complains of an exception that nobody has looked at.

    Args:
        future: one that has ended; to be given to ``add_done_callback``, too.
    """
    if not future.cancelled():
        future.exception()
