"""Value classes: dataclasses that are frozen to mypy, and cost no more than others.

A frozen dataclass calls ``object.__setattr__`` for each field that it is made with: two thirds of the time that it
takes to make one. From the request of a client to the response there are a dozen values with a hundred fields. So it is
mypy that sees to it that nobody assigns to a field; the interpreter does not look.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

__all__ = ['value_class']

if TYPE_CHECKING:
    from dataclasses import dataclass as value_class
else:
    T = TypeVar('T')

    def value_class(*, frozen: bool, slots: bool, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
        """Return a decorator that makes a dataclass of a class; to mypy this is :func:`dataclasses.dataclass`.

        Args:
            frozen: what mypy keeps to; values are hashed by their fields as frozen ones are.
            slots: as of any dataclass.
            kw_only: as of any dataclass.
        """
        return dataclass(slots=slots, kw_only=kw_only, unsafe_hash=frozen)
