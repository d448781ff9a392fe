"""How many calls are fetched ahead: none behind runs that are not short, and no more than are over in a moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew.worker.lookahead import CAUTION, MOST, SHORT, LookAhead


def after(runs: list[float], slots: int = 1) -> LookAhead:
    look_ahead = LookAhead(slots)
    for took in runs:
        look_ahead.ran(took)
    return look_ahead


@pytest.mark.parametrize(
    ('took', 'slots', 'window'),
    [(0.0001, 1, MOST), (0.0005, 1, 10), (0.001, 1, 5), (0.001, 4, 20), (0.002, 1, 2), (0.004, 1, 1), (SHORT, 1, 0)],
)
def test_so_many_are_fetched_as_are_over_in_a_moment(took: float, slots: int, window: int) -> None:
    assert after([took] * CAUTION, slots).window == pytest.approx(window, abs=1)


def test_nothing_is_fetched_before_some_runs_have_been_short() -> None:
    assert after([0.0001] * (CAUTION - 1)).window == 0


def test_after_a_run_that_was_not_short_nothing_is_fetched_before_some_have_been_again() -> None:
    runs = [0.0001] * CAUTION + [1.0]
    assert after(runs).window == 0
    assert after([*runs, *[0.0001] * (CAUTION - 1)]).window == 0
    assert after([*runs, *[0.0001] * CAUTION]).window == MOST


def test_the_window_follows_runs_that_become_longer_and_shorter_without_a_change_for_each() -> None:
    look_ahead = after([0.0002] * CAUTION)
    windows = []
    for took in [0.002] * 100 + [0.0002] * 100:
        look_ahead.ran(took)
        windows.append(look_ahead.window)
    assert windows[99] <= 4
    assert windows[-1] > 12
    assert len(set(windows)) < 12


@given(runs=st.lists(st.floats(0.0, 0.01), max_size=100), slots=st.integers(1, 8))
def test_what_is_fetched_is_over_in_twice_a_moment_at_most(runs: list[float], slots: int) -> None:
    look_ahead = after(runs, slots)
    assert 0 <= look_ahead.window <= MOST
    if look_ahead.window:
        assert all(took < SHORT for took in runs[-CAUTION:])
        assert look_ahead.window * look_ahead._mean <= 2 * slots * SHORT
