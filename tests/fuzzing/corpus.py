"""What a fuzzer has kept of its search: per target one text file, an input a line in base64, the shortest first."""

import base64
from collections.abc import Iterable
from pathlib import Path

__all__ = ['load', 'save']

FOLDER = Path(__file__).with_name('corpus')


def load(target: str) -> list[bytes]:
    """Return the inputs that are kept for a target; none if there is no file."""
    path = _path(target)
    return [base64.b64decode(line, validate=True) for line in path.read_text().splitlines()] if path.exists() else []


def save(target: str, inputs: Iterable[bytes]) -> None:
    """Keep these inputs for a target, and no others."""
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    _path(target).write_text(''.join(f'{base64.b64encode(data).decode()}\n' for data in ordered))


def _path(target: str) -> Path:
    return FOLDER / f'{target}.txt'
