"""What a fuzzer has kept of its search, and where it began: none of it breaks a promise (see tests/fuzzing)."""

import base64
import logging
from collections.abc import Iterator

import pytest

from tests.fuzzing import corpus
from tests.fuzzing.targets import TARGETS, check_of, seeds_of


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Let nothing be logged: it would be much, and pytest would keep it."""
    handlers, logging.root.handlers = logging.root.handlers, []
    last, logging.lastResort = logging.lastResort, None
    yield
    logging.root.handlers, logging.lastResort = handlers, last


@pytest.mark.parametrize('target', TARGETS)
def test_no_promise_is_broken(target: str) -> None:
    check = check_of(target)
    inputs = [*seeds_of(target), *corpus.load(target)]
    for data in inputs:
        try:
            check(data)
        except Exception as error:
            error.args = (f'{error}; the input is {base64.b64encode(data).decode()}',)
            raise


@pytest.mark.parametrize('target', TARGETS)
def test_the_corpus_is_small(target: str) -> None:
    inputs = corpus.load(target)
    assert 10 < len(inputs) < 500
    assert max(map(len, inputs)) <= TARGETS[target]
