"""How long the task that runs here may still go on, so that what it calls gets no more time than it has itself.

Carried in a context variable: each thread, each greenlet and each asyncio task has its own.
"""

import contextvars
import time

from crew.exceptions import TimeoutError

__all__ = ['bounded', 'enter', 'time_left']

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar('crew_deadline', default=None)


def enter(seconds: float) -> None:
    """Note in this context that a task has begun which may run for so long."""
    _deadline.set(time.monotonic() + seconds)


def time_left() -> float | None:
    """Return how many seconds the task in this context may still run, never negative; None outside of any task."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def bounded(seconds: float) -> float:
    """Return ``seconds``, or what is left of the task in this context if that is less.

    Raises:
        TimeoutError: nothing is left.
    """
    left = time_left()
    if left is None:
        return seconds
    if left <= 0:
        raise TimeoutError('the task that makes this call has no time left')
    return min(seconds, left)
