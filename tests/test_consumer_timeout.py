"""Runs that last longer than the broker lets anybody hold a delivery: they end, run once, and a death is told."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crew.exceptions import WorkerLost
from crew.private_node import PrivateNode
from tests.rpc import Rpc
from tests.stack import Stack

#: In seconds; the worker acks at nine tenths of it.
TIMEOUT = 2

ACKED = r'POST /sleep\?for=\S+ \(request .*\) is acked while it runs'


@pytest.fixture(scope='module')
def impatient_broker() -> Iterator[PrivateNode]:
    """A node that takes back what is held for 2 s, and looks each half second; by default half an hour, each minute."""
    with PrivateNode(config=[f'consumer_timeout = {TIMEOUT * 1000}']) as node:
        node.ctl('eval', 'application:set_env(rabbit, channel_tick_interval, 500).')
        yield node


@pytest.fixture
def stack(impatient_broker: PrivateNode, queue: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(impatient_broker.url, queue, tmp_path)
    yield stack
    stack.close()


def test_without_it_the_broker_takes_the_request_back(stack: Stack) -> None:
    """The control: were it not so, the tests below would show nothing."""
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    assert front.request('POST', '/sleep?for=4').status == 502
    assert '--consumer-timeout' in worker.await_log(r'the broker closed a channel.*timed out.*')[0]


@pytest.mark.parametrize('slots', [(), ('--prefetch', '4'), ('--threads', '2'), ('--gevent', '2')])
def test_a_run_that_lasts_longer_is_answered_and_its_process_takes_nothing_meanwhile(
    stack: Stack, slots: tuple[str, ...]
) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--consumer-timeout', str(TIMEOUT), *slots).await_ready()
    answer = front.later('POST', '/sleep?for=4')
    worker.await_log(ACKED)
    began = time.monotonic()
    behind = [front.later('POST', '/') for _ in range(3)]
    if slots[:1] in (('--threads',), ('--gevent',)):
        assert {one.result(10).status for one in behind} == {200}
        assert not answer.done()
    assert answer.result(10).status == 200
    assert {one.result(10).status for one in behind} == {200}
    assert time.monotonic() - began < 7
    assert sorted(run.split()[1] for run in stack.runs) == ['/', '/', '/', '/sleep']
    assert 'the broker closed a channel' not in worker.text


def test_another_worker_takes_what_waits(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--consumer-timeout', str(TIMEOUT), '--prefetch', '4').await_ready()
    answer = front.later('POST', '/sleep?for=4')
    worker.await_log(ACKED)
    stack.worker('faults:app').await_ready()
    assert {front.request('POST', '/').status for _ in range(5)} == {200}
    assert not answer.done()
    assert answer.result(10).status == 200


@pytest.mark.parametrize('method', ['POST', 'GET'])
def test_a_worker_that_dies_then_is_noticed_within_seconds(stack: Stack, method: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--consumer-timeout', str(TIMEOUT)).await_ready()
    answer = front.later(method, '/sleep?for=20')
    worker.await_log('is acked while it runs')
    os.kill(worker.children()[0], signal.SIGKILL)
    died = time.monotonic()
    assert answer.result(15).status == 502
    assert time.monotonic() - died < 6
    assert len(stack.runs) == 1


def test_it_ends_when_told_to_and_nothing_is_lost(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--consumer-timeout', str(TIMEOUT)).await_ready()
    answer = front.later('POST', '/sleep?for=4')
    worker.await_log(ACKED)
    assert worker.terminate() == 0
    assert answer.result(10).status == 200


def test_a_task_that_lasts_longer_runs_once(impatient_broker: PrivateNode, queue: str, tmp_path: Path) -> None:
    rpc = Rpc(impatient_broker.url, queue, tmp_path)
    try:
        worker = rpc.script('several', '--consumer-timeout', str(TIMEOUT), '--threads', '2').await_ready()
        call = rpc.client('a').call(rpc.id('a'), {'name': 'long', 'for': 4})
        rpc.send_alone('b', {'name': 'alone', 'for': 4})
        worker.await_log(r'task \S+\.b .* is acked while it runs; if this process dies it is lost')
        assert call.wait(timeout=15)
        rpc.await_note('ended:alone')
        lost = rpc.client('a').call(rpc.id('again'), {'name': 'dies', 'for': 20})
        worker.await_log(r'task \S+\.again .* is acked while it runs')
        os.kill(rpc.await_note('dies'), signal.SIGKILL)
        with pytest.raises(WorkerLost):
            lost.wait(timeout=10)
        assert (rpc.notes['long'], rpc.notes['alone'], rpc.notes['dies']) == (1, 1, 1)
    finally:
        rpc.close()
