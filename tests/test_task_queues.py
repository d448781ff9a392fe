"""Workers of several queues: none waits or starves, nothing is lost or run twice, and what is called off ends."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from itertools import count
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from crew import TimeoutError, WorkerLost, codec, topology
from crew.master.threaded_client import Client, Result
from crew.messages import Call
from tests.rpc import Rpc, Script
from tests.waiting import wait_until

SHORT = 0.05


@pytest.fixture
def rpc(amqp_url: str, queue: str, tmp_path: Path) -> Iterator[Rpc]:
    """Worker scripts and clients on task ids of this test's own."""
    rpc = Rpc(amqp_url, queue, tmp_path)
    yield rpc
    rpc.close()


def call(rpc: Rpc, client: Client, task: str, seconds: float = 0.0, name: str = '', **options: object) -> Result:
    """Call one of the tasks that sleep."""
    return client.call(rpc.id(task), {'name': name or uuid4().hex, 'for': seconds}, **options)


def several(rpc: Rpc, processes: int = 1, *arguments: str) -> Script:
    """Start the script with this many processes."""
    script = rpc.script('several', '--forks', str(processes), *arguments)
    script.await_ready(processes)
    return script


# Evenness


def test_nobody_waits_behind_a_long_run_of_another_queue_while_a_process_is_idle(rpc: Rpc) -> None:
    several(rpc, 2)
    client = rpc.client()
    waits = []
    for turn in range(3):
        long = call(rpc, client, 'a', 3.0, f'long-{turn}')
        rpc.await_note(f'long-{turn}')
        for _ in range(20):
            began = time.monotonic()
            call(rpc, client, 'b').wait(10)
            waits.append(time.monotonic() - began)
        # It is called off, or it would have ended before: there was somebody to wait behind all the time.
        assert long.cancel()
    # A hundred times what it takes, and a sixth of what it would take behind the long one.
    assert max(waits) < 0.5


@pytest.mark.parametrize('fresh', [True, False], ids=['sent to a worker', 'found by a worker'])
def test_no_queue_starves_beside_another(rpc: Rpc, fresh: bool) -> None:
    client = rpc.client('a', 'b')
    if fresh:
        several(rpc)
    results = [(task, call(rpc, client, task, SHORT)) for task in 'ab' for _ in range(30)]
    if not fresh:
        several(rpc)
    tasks = {result: task for task, result in results}
    order = [tasks[result] for result in as_completed(tasks, 30)]
    assert len(order) == 60
    assert 0.25 * 30 <= order[:30].count('a') <= 0.75 * 30, ''.join(order)


# Giving back


def test_what_is_given_back_does_not_count_as_a_run(rpc: Rpc) -> None:
    script = several(rpc, 1, '-v')
    client = rpc.client()
    long = call(rpc, client, 'a', 1.0, 'long')
    rpc.await_note('long')
    given_back = [call(rpc, client, task, 0.0, f'{task}-{turn}') for task in 'bc' for turn in range(3)]
    script.await_log(r'gave back \d+ calls that were not started')
    assert not long.done()
    for result in [long, *given_back]:
        result.wait(10)
    assert set(rpc.notes.values()) == {1}


def test_a_deploy_under_load_loses_nothing_and_runs_nothing_twice(rpc: Rpc) -> None:
    leaving = [several(rpc, 2, '-v') for _ in range(2)]
    over = Event()
    results = load(rpc, rpc.client(), over)
    for script in leaving:
        several(rpc, 2)
        enough = len(results) + 200
        wait_until(lambda enough=enough: len(results) > enough, 20, 'calls with all of them')
        assert script.terminate() == 0, script.text
        assert 'gave back' in script.text
    over.set()
    wait_until(lambda: all(result.done() for result in results), 20, 'the last answers')
    for result in results:
        result.wait()
    assert len(rpc.notes) == 2 * len(results)
    assert set(rpc.notes.values()) == {1}


def load(rpc: Rpc, client: Client, over: Event) -> list[Result]:
    """Keep 24 calls of three queues in flight, short and long ones; return the growing list of them."""
    results: list[Result] = []
    numbers = count()

    def another(_: object = None) -> None:
        if not over.is_set():
            number = next(numbers)
            result = call(rpc, client, 'abc'[number % 3], (0.0, 0.01, 0.06)[number // 3 % 3], f'call-{number}')
            results.append(result)
            result.add_done_callback(another)

    for _ in range(24):
        another()
    return results


# Calls that nobody waits for


def alone(*names: str, seconds: float = 0.0) -> list[dict[str, object]]:
    """Return arguments of tasks that sleep."""
    return [{'name': name, 'for': seconds} for name in names]


def test_a_call_nobody_waits_for_is_not_run_again_when_its_worker_dies(rpc: Rpc) -> None:
    script = several(rpc)
    rpc.send_alone('a', *alone('lost', seconds=60))
    os.kill(rpc.await_note('lost'), signal.SIGKILL)
    script.await_log('dropped call lost: it may have run')
    rpc.send_alone('a', *alone('next'))
    rpc.await_note('ended:next')
    assert rpc.notes['lost'] == 1


def test_an_idempotent_one_is_run_again_once(rpc: Rpc) -> None:
    script = several(rpc)
    rpc.send_alone('again', *alone('twice', seconds=0.5))
    os.kill(rpc.await_note('twice'), signal.SIGKILL)
    script.await_log('published call twice anew')
    rpc.await_note('ended:twice')
    assert rpc.notes['twice'] == 2


def test_an_idempotent_one_that_kills_its_workers_is_stopped_after_its_second_run(rpc: Rpc) -> None:
    script = several(rpc)
    rpc.send_alone('poison', *alone('poison'))
    script.await_log('dropped call poison: its worker has died 2 times')
    rpc.send_alone('a', *alone('next'))
    rpc.await_note('ended:next')
    assert rpc.notes['poison'] == 2


def test_those_that_a_worker_has_not_started_when_it_ends_are_run_by_another(rpc: Rpc) -> None:
    leaving = [several(rpc, 2), several(rpc, 2)]
    names = {task: [f'{task}-{number}' for number in range(60)] for task in ('a', 'b', 'again')}
    for task in names:
        rpc.send_alone(task, *alone(*names[task], seconds=0.02))
    everything = [name for task in names for name in names[task]]
    for script, share in zip(leaving, (0.2, 0.5), strict=True):
        staying = several(rpc)
        wait_until(lambda share=share: len(rpc.notes) > share * 2 * len(everything), 20, f'{share:.0%} of the runs')
        assert script.terminate() == 0, script.text
    del staying
    for name in everything:
        rpc.await_note(f'ended:{name}')
    assert set(rpc.notes.values()) == {1}


def test_what_is_published_anew_is_as_it_was(rpc: Rpc) -> None:
    script = several(rpc, 1, '-v')
    rpc.send_alone('a', *alone('long', seconds=60))
    rpc.await_note('long')
    options = {'priority': 200, 'persistent': True, 'timeout': 7.0, 'expiration': 60.0, 'headers': {'a': 1}}
    rpc.send_alone('b', *alone('waiting'), sent=time.time(), **options)
    script.await_log('gave back 1 calls')
    call = codec.decode(rpc.taken('b'))
    assert isinstance(call, Call)
    assert (call.correlation_id, call.runs, call.priority) == ('waiting', 0, topology.priority_level(200))
    assert (call.persistent, call.timeout, dict(call.headers)) == (True, 7.0, {'a': 1})
    assert call.expiration is not None
    assert 30 < call.expiration <= 60


# What becomes of a call


def test_a_call_whose_worker_dies_is_lost_at_once(rpc: Rpc) -> None:
    several(rpc, 2)
    result = call(rpc, rpc.client(), 'a', 60, 'lost')
    os.kill(rpc.await_note('lost'), signal.SIGKILL)
    with pytest.raises(WorkerLost):
        result.wait(5)
    assert rpc.notes['lost'] == 1


def test_an_idempotent_one_is_answered_by_another_worker(rpc: Rpc) -> None:
    several(rpc, 2)
    result = call(rpc, rpc.client(), 'again', 1, 'twice')
    first = rpc.await_note('twice')
    os.kill(first, signal.SIGKILL)
    assert result.wait(10) != first
    assert (rpc.notes['twice'], rpc.notes['ended:twice']) == (2, 1)


@pytest.mark.parametrize('greenlets', [[], ['--gevent', '1']], ids=['threads', 'greenlets'])
def test_a_cancelled_call_is_stopped_and_frees_its_slot(rpc: Rpc, greenlets: list[str]) -> None:
    script = several(rpc, 1, *greenlets)
    client = rpc.client()
    task = 'a' if greenlets else 'spin'
    result = call(rpc, client, task, 60, 'stopped')
    rpc.await_note('stopped')
    assert result.cancel()
    if not greenlets:
        rpc.await_note('finally:stopped')
    assert call(rpc, client, 'b').wait(5) == script.children()[0]
    assert rpc.notes['ended:stopped'] == 0
    assert 'is stopped: its caller no longer waits' in script.text


def test_what_never_began_behind_a_greenlet_that_computes_is_run_by_another_process(rpc: Rpc) -> None:
    script = several(rpc, 1, '--gevent', '10', '--kill-after', '1')
    stuck = script.children()[0]
    client = rpc.client()
    spinning = call(rpc, client, 'spin', name='spinning', timeout=1)
    rpc.await_note('spinning')
    behind = [call(rpc, client, 'a', name=f'behind-{number}') for number in range(3)]
    rpc.send_alone('a', {'name': 'alone', 'for': 0})
    with pytest.raises(TimeoutError):
        spinning.wait(10)
    assert stuck not in [result.wait(15) for result in behind]
    assert rpc.await_note('ended:alone') != stuck
    assert [rpc.notes[name] for name in ('behind-0', 'behind-1', 'behind-2', 'alone')] == [1, 1, 1, 1]


def test_a_call_made_by_a_task_gets_no_more_time_than_the_task_has(rpc: Rpc) -> None:
    several(rpc, 2)
    outer, inner = rpc.client().call(rpc.id('outer'), {'task': 'left'}, timeout=8).wait(10)
    # On the wire it is milliseconds, rounded up.
    assert 0 < inner <= outer + 0.001
    assert outer <= 8


def test_the_limit_of_a_task_ends_what_it_has_called_too(rpc: Rpc) -> None:
    several(rpc, 2)
    began = time.monotonic()
    result = rpc.client().call(rpc.id('outer'), {'task': 'spin', 'name': 'inner'}, timeout=1)
    rpc.await_note('inner')
    with pytest.raises(TimeoutError):
        result.wait(10)
    rpc.await_note('finally:inner')
    assert time.monotonic() - began < 6


def test_what_a_task_publishes_arrives_before_it_has_ended(rpc: Rpc) -> None:
    several(rpc)
    client = rpc.client()
    values: list[object] = []
    client.subscribe(rpc.prefix, values.append)
    argument = {'channel': rpc.prefix, 'value': [1, 'two'], 'until': 'received'}
    result = client.call(rpc.id('publish'), argument)
    wait_until(lambda: values, 10, 'the publication')
    assert not result.done()
    rpc.note('received')
    assert result.wait(10) == 'replied'
    assert values == [[1, 'two']]
