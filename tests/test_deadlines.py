"""Each thread, asyncio task and greenlet has its own time, and what it calls gets no more than that."""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import gevent
import pytest

from crew import deadlines
from crew.exceptions import TimeoutError

Result = TypeVar('Result')


def elsewhere(function: Callable[[], Result]) -> Result:
    """Run something in a context of its own, so that it leaves no deadline for other tests."""
    return contextvars.Context().run(function)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be set by the test."""
    now = [1000.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    return now


def test_outside_of_any_task_there_is_no_limit() -> None:
    assert elsewhere(deadlines.time_left) is None
    assert elsewhere(lambda: deadlines.bounded(5.0)) == 5.0
    assert elsewhere(lambda: deadlines.bounded(math.inf)) == math.inf


@pytest.mark.parametrize(
    ('passed', 'asked', 'given'),
    [(0.0, 5.0, 5.0), (0.0, 10.0, 10.0), (0.0, 60.0, 10.0), (7.5, 60.0, 2.5), (7.5, 2.0, 2.0), (9.5, math.inf, 0.5)],
)
def test_a_call_gets_what_it_asks_for_or_what_is_left(
    clock: list[float], passed: float, asked: float, given: float
) -> None:
    def task() -> None:
        deadlines.enter(10.0)
        clock[0] += passed
        assert deadlines.time_left() == 10.0 - passed
        assert deadlines.bounded(asked) == given

    elsewhere(task)


@pytest.mark.parametrize('passed', [10.0, 10.001, 1e9])
def test_a_call_when_nothing_is_left_is_a_timeout(clock: list[float], passed: float) -> None:
    def task() -> None:
        deadlines.enter(10.0)
        clock[0] += passed
        assert deadlines.time_left() == 0.0
        with pytest.raises(TimeoutError, match='no time left'):
            deadlines.bounded(5.0)

    elsewhere(task)


def test_the_next_task_in_the_same_context_has_its_own_time(clock: list[float]) -> None:
    def tasks() -> None:
        deadlines.enter(10.0)
        clock[0] += 20.0
        deadlines.enter(10.0)
        assert deadlines.time_left() == 10.0

    elsewhere(tasks)


LIMITS = [10.0, 100.0, 1000.0]


def own(limit: float, left: float | None) -> bool:
    """Whether this is what is left of a limit a moment later."""
    return left is not None and limit - 5 < left <= limit


def test_each_thread_has_its_own() -> None:
    together = Barrier(len(LIMITS))

    def task(limit: float) -> float | None:
        deadlines.enter(limit)
        together.wait(10)
        return deadlines.time_left()

    with ThreadPoolExecutor(len(LIMITS)) as pool:
        lefts = list(pool.map(task, LIMITS))
    assert all(map(own, LIMITS, lefts))
    assert elsewhere(deadlines.time_left) is None


def test_each_asyncio_task_has_its_own_and_begins_with_that_of_who_made_it() -> None:
    async def task(limit: float) -> tuple[float | None, float | None]:
        before = deadlines.time_left()
        deadlines.enter(limit)
        await asyncio.sleep(0.01)
        return before, deadlines.time_left()

    async def main() -> None:
        deadlines.enter(50.0)
        lefts = await asyncio.gather(*(task(limit) for limit in LIMITS))
        assert all(own(50.0, before) for before, _ in lefts)
        assert all(own(limit, left) for limit, (_, left) in zip(LIMITS, lefts, strict=True))
        assert own(50.0, deadlines.time_left())

    elsewhere(lambda: asyncio.run(main()))


def test_each_greenlet_has_its_own() -> None:
    def task(limit: float) -> float | None:
        deadlines.enter(limit)
        gevent.sleep(0.01)
        return deadlines.time_left()

    def main() -> None:
        deadlines.enter(50.0)
        greenlets = [gevent.spawn(task, limit) for limit in LIMITS]
        gevent.joinall(greenlets, raise_error=True)
        assert all(own(limit, greenlet.value) for limit, greenlet in zip(LIMITS, greenlets, strict=True))
        assert own(50.0, deadlines.time_left())

    elsewhere(main)
