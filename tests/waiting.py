"""Waiting for what no event announces, such as the end of somebody else's process: the one place where tests sleep."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = 'the condition') -> None:
    """Return as soon as ``condition()`` is true; fail the test when it is still false after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f'waited {timeout:g} s in vain for {what}')
        time.sleep(0.01)
