"""Heartbeats go on whatever the application does: the connection outlives several of them without a word from it."""

import pytest

from tests.stack import Stack


@pytest.mark.parametrize('slots', [(), ('--gevent', '10')], ids=['thread', 'greenlet'])
@pytest.mark.parametrize('path', ['/compute?for=4', '/sleep?for=4'])
def test_the_connection_lives_through_a_long_request(stack: Stack, slots: tuple[str, ...], path: str) -> None:
    front = stack.front().await_ready()
    # One second: the broker gives a silent peer up after two of them.
    stack.amqp_url += '?heartbeat=1'
    worker = stack.worker('faults:app', *slots).await_ready()
    assert front.request('POST', path).status == 200
    assert 'was lost' not in worker.text
    assert worker.text.count('taking requests from') == 1


def test_a_process_that_holds_the_interpreter_is_given_up_by_the_broker(stack: Stack) -> None:
    front = stack.front('--timeout', '20').await_ready()
    stack.amqp_url += '?heartbeat=1'
    stack.worker('faults:app').await_ready()
    stack.worker('faults:app').await_ready()
    answer = front.later('POST', '/gil')
    # The broker sees two heartbeats missing and gives the request to the other worker, which asks.
    assert answer.result(15).status == 502
    assert front.get('/').status == 200
