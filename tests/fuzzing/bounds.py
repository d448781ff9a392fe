"""What every answer to hostile bytes must keep to, whatever they are: few words, little time, little memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ['assert_line', 'quick', 'weight']

#: The longest text of a refusal. It goes into logs and into answers.
MAX_LINE = 1500


def assert_line(error: BaseException) -> None:
    """Fail if the text of a refusal is not one line for a person."""
    text = str(error)
    assert text and len(text) < MAX_LINE, f'{len(text)} characters'
    assert text.isprintable() and '\n' not in text, f'not one line: {text!r}'


@contextmanager
def quick(seconds: float = 1.0) -> Iterator[None]:
    """Fail if it takes more time of the processor than so many seconds."""
    began = time.process_time()
    yield
    took = time.process_time() - began
    assert took < seconds, f'it took {took:.2f} s'


def weight(value: Any) -> int:
    """Return about how many bytes of memory a value takes that came out of JSON or an AMQP table."""
    total, left = 0, [value]
    while left:
        each = left.pop()
        total += sys.getsizeof(each)
        if isinstance(each, dict):
            left.extend(each)
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)
    return total
