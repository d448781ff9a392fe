"""The fixture that gives a test fronts and workers of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack


@pytest.fixture
def stack(amqp_url: str, queue: str, tmp_path: Path) -> Iterator[Stack]:
    """Fronts and workers on a queue of this test's own."""
    stack = Stack(amqp_url, queue, tmp_path)
    yield stack
    stack.close()
