"""What is frozen to mypy is at runtime a value still: equal, hashed and shown by its fields, and with no others."""

from dataclasses import field, replace

import pytest

from crew.values import value_class


@value_class(frozen=True, slots=True, kw_only=True)
class Point:
    """A value."""

    x: int = 0
    path: tuple[int, ...] = field(default_factory=tuple)


def test_values_are_what_their_fields_are() -> None:
    assert Point(x=1) == Point(x=1, path=()) != Point(x=2)
    assert {Point(x=1), Point(x=1)} == {Point(x=1)}
    assert repr(Point(x=1)) == 'Point(x=1, path=())'
    assert replace(Point(x=1), path=(2,)) == Point(x=1, path=(2,))


def test_a_value_has_no_other_fields() -> None:
    with pytest.raises(AttributeError):
        Point().y = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[misc]
