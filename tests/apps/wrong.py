"""A module whose attributes are no applications."""

number = 5


def failing_factory():
    raise RuntimeError('this factory is broken')
