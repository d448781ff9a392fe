"""The fault suite's accounts: each way in which a request may be lost, doubled or spoilt is found."""

import pytest

from tests.faults.account import Account, Exchange, Expectation


def exchange(method: str = 'GET', status: int = 200, took: float = 0.1, began: float = 0.0, **more: object) -> Exchange:
    return Exchange('a', method, began, began + took, status, **more)  # type: ignore[arg-type]


GOOD = Exchange('good', 'GET', 0.0, 0.1, 200)


@pytest.mark.parametrize(
    ('one', 'runs', 'complaint'),
    [
        (exchange(), 0, 'never run'),
        (exchange(), 3, 'run 3 times'),
        (exchange('POST'), 2, 'run 2 times'),
        (exchange('POST', 502), 2, 'run 2 times'),
        (exchange('POST', 503), 1, 'told to come again'),
        (exchange(status=500), 1, 'status 500'),
        (exchange(status=0), 1, 'without an answer'),
        (exchange(took=20.0), 1, 'answered after 20.0 s'),
        (exchange(wrong='a wrong answer'), 1, 'a wrong answer'),
        (exchange(status=502, began=10.0), 1, 'to recover'),
        (exchange(status=504, doomed=True), 1, 'status 504'),
    ],
)
def test_what_must_not_be_is_found(one: Exchange, runs: int, complaint: str) -> None:
    account = Account('it', Expectation(statuses=frozenset({502, 503})), [GOOD, one], broke=1.0)
    row = account.settle(['good GET 1 0.0', *['a GET 1 0.0'] * runs])
    assert not row.passed
    assert any(complaint in text for text in row.complaints)


@pytest.mark.parametrize(
    ('one', 'runs'),
    [
        (exchange(), 1),
        (exchange(), 2),
        (exchange('POST'), 1),
        (exchange('POST', 502), 1),
        (exchange('POST', 502), 0),
        (exchange('POST', 503), 0),
        (exchange(status=0), 1),
        (exchange(status=502, began=2.0), 1),
    ],
)
def test_what_may_be_passes(one: Exchange, runs: int) -> None:
    expectation = Expectation(statuses=frozenset({502, 503}), unanswered=True)
    account = Account('it', expectation, [GOOD, one], broke=1.0, mended=1.5)
    row = account.settle(['good GET 1 0.0', *['a GET 1 0.0'] * runs, 'a CLOSED 1 0.0'])
    assert row.complaints == ()
    assert row.sent == 2
    assert row.run_twice == (runs == 2)


def test_a_stranger_in_the_log_is_found() -> None:
    row = Account('it', Expectation(), [GOOD]).settle(['good GET 1 0.0', 'other GET 1 0.0'])
    assert 'nobody asked for it' in row.complaints[0]


def test_an_account_without_a_good_answer_does_not_pass() -> None:
    assert not Account('it', Expectation(), []).settle([]).passed
