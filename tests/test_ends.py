"""Clear ends: what runs is finished and answered, what has not begun is run by another, and the exit code says so."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from crew.private_node import PrivateNode
from tests.stack import APPS, Stack, children_of
from tests.waiting import wait_until


def await_run(stack: Stack, path: str, count: int = 1) -> None:
    wait_until(lambda: sum(f' {path} ' in run for run in stack.runs) >= count, 15, f'{path} to run {count} times')


def has_run(stack: Stack, process: int) -> bool:
    return any(run.endswith(f' {process}') for run in stack.runs)


def test_a_worker_told_to_end_finishes_what_it_runs_and_exits_0(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    answer = front.later('POST', '/sleep?for=1')
    await_run(stack, '/sleep')
    assert worker.terminate() == 0
    assert answer.result(10).status == 200
    waiting = front.later('GET', '/')
    another = stack.worker('faults:app').await_ready()
    assert waiting.result(10).body.decode() == str(another.children()[0])


@pytest.mark.parametrize('length', ['', '&length=1'])
def test_a_client_does_not_wait_for_the_application_to_clean_up(stack: Stack, length: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    began = time.monotonic()
    assert front.get(f'/?close=4{length}').body.decode() == str(worker.children()[0])
    assert time.monotonic() < began + 3
    # There is one slot.
    assert front.get('/').status == 200
    assert time.monotonic() >= began + 4
    assert [run.split()[1] for run in stack.runs] == ['/', '/closed', '/']


@pytest.mark.parametrize('length', ['', '&length=1'])
def test_cleaning_up_has_its_time_and_no_more(stack: Stack, length: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--timeout', '1').await_ready()
    assert front.get(f'/?close=60{length}').status == 200
    assert front.get('/').status == 200
    worker.await_log(r'GET /\?close=60\S* \(request \w+\) is stopped: it ran past its limit of 1 s')
    assert '/closed' not in ' '.join(stack.runs)


@pytest.mark.parametrize('length', ['', '&length=1'])
def test_what_was_answered_is_not_run_again_when_its_worker_dies_as_it_cleans_up(stack: Stack, length: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    (before,) = worker.children()
    assert front.get(f'/?close=60{length}').status == 200
    os.kill(before, signal.SIGKILL)
    worker.await_log('dropped call')
    assert front.get('/').status == 200
    assert len(stack.runs) == 2


def test_a_worker_process_told_to_end_is_replaced(stack: Stack) -> None:
    worker = stack.worker('faults:app').await_ready()
    os.kill(worker.children()[0], signal.SIGTERM)
    worker.await_ready(2)
    worker.await_log('ended, another takes its place')


def test_a_worker_told_twice_ends_at_once(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    answer = front.later('POST', '/sleep?for=20')
    await_run(stack, '/sleep')
    worker.signal(signal.SIGTERM)
    worker.await_log('told to end: ')
    assert worker.terminate() == 1
    # Nobody is there to find it in the queue; the next worker does, and asks.
    stack.worker('faults:app').await_ready()
    assert answer.result(10).status == 502


def test_a_worker_ends_when_its_graceful_timeout_is_over(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--graceful-timeout', '1').await_ready()
    front.later('POST', '/swallow')
    await_run(stack, '/swallow')
    assert worker.terminate() != 0
    assert 'is abandoned' in worker.text


def test_a_front_told_to_end_answers_what_is_in_flight_and_exits_0(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('faults:app').await_ready()
    with front.connection() as idle:
        idle.request('GET', '/')
        assert idle.getresponse().read()
        answer = front.later('GET', '/sleep?for=1')
        await_run(stack, '/sleep')
        assert front.terminate() == 0
        result = answer.result(10)
        assert result.status == 200
        assert result.headers['Connection'] == 'close'
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            idle.request('GET', '/')
            idle.getresponse()


def test_a_front_told_twice_ends_at_once(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('faults:app').await_ready()
    answer = front.later('GET', '/sleep?for=20')
    await_run(stack, '/sleep')
    front.signal(signal.SIGINT)
    front.await_log('told to end: ')
    assert front.terminate() == 1
    # It hears that the front gave it up, or sees its connection cut.
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        assert answer.result(10).status == 502


def test_ending_one_worker_of_four_under_load_fails_no_request(stack: Stack) -> None:
    front = stack.front().await_ready()
    workers = [stack.worker('faults:app', *prefetch) for prefetch in ([], [], [], ['--prefetch', '10'])]
    for worker in workers:
        worker.await_ready()
    end = time.monotonic() + 6

    def load(method: str) -> set[int]:
        statuses = set()
        with front.connection() as connection:
            while time.monotonic() < end:
                connection.request(method, '/')
                response = connection.getresponse()
                response.read()
                statuses.add(response.status)
        return statuses

    with ThreadPoolExecutor(8) as pool:
        statuses = [pool.submit(load, method) for method in ('GET', 'POST') * 4]
        for worker in (workers[0], workers[3]):
            wait_until(partial(has_run, stack, worker.children()[0]), 10, 'a run')
            assert worker.terminate() == 0
        assert [status.result() for status in statuses] == [{200}] * 8


def test_what_a_worker_fetched_ahead_is_run_by_another_exactly_once(stack: Stack, broker: PrivateNode) -> None:
    front = stack.front().await_ready()
    ahead = stack.worker('faults:app', '--prefetch', '10').await_ready()
    first = front.later('POST', '/sleep?for=6')
    await_run(stack, '/sleep')
    held = [front.later('POST', '/') for _ in range(5)]
    line = f'crew.tasks.{stack.queue}\t6'
    wait_until(lambda: line in broker.ctl('list_queues', 'name', 'messages_unacknowledged'), 20, 'all to be fetched')
    another = stack.worker('faults:app').await_ready()
    assert ahead.terminate() == 0
    assert 'gave back 5 calls' in ahead.text
    assert first.result(10).status == 200
    assert [answer.result(10).status for answer in held] == [200] * 5
    assert sum(run.startswith('POST / ') for run in stack.runs) == 5
    assert {int(run.split()[-1]) for run in stack.runs if run.startswith('POST / ')} <= set(another.children())


def test_a_request_whose_client_hung_up_in_the_queue_is_not_run(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('faults:app').await_ready()
    busy = front.later('GET', '/sleep?for=2.5')
    await_run(stack, '/sleep')
    with front.connection() as connection:
        connection.request('GET', '/clean')
    front.await_log('"GET /clean HTTP/1.1" 499')
    assert busy.result(10).status == 200
    assert front.get('/').status == 200
    assert not any('/clean' in run for run in stack.runs)


def test_a_worker_told_to_end_while_it_starts_ends_well(stack: Stack) -> None:
    for _ in range(8):
        worker = stack.worker('faults:app', '--processes', '2')
        worker.await_log('starting faults:app')
        assert worker.terminate() == 0, worker.text


def test_a_worker_whose_output_nobody_reads_ends_well(stack: Stack) -> None:
    front = stack.front().await_ready()
    command = [sys.executable, '-m', 'crew_wsgi.worker', 'faults:app', '--app-dir', str(APPS)]
    broker = ['--amqp-url', stack.amqp_url, '--queue', stack.queue]
    # Buffered, as usual: what is printed is written when the process ends.
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    with subprocess.Popen([*command, *broker], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as worker:
        try:
            assert worker.stdout is not None
            worker.stdout.close()
            assert front.get('/print').status == 200
            worker.terminate()
            assert worker.wait(20) == 0
        finally:
            worker.kill()


def test_processes_that_the_application_ends_do_not_end_the_worker(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    before = front.get('/').body
    assert front.get('/fork').body == before
    assert front.get('/').body == before
    assert 'told to end' not in worker.text


@pytest.mark.parametrize('slots', [(), ('--gevent', '2')])
@pytest.mark.parametrize('query', ['', '?code=7'])
def test_a_process_that_a_request_forks_is_no_second_worker(stack: Stack, slots: tuple[str, ...], query: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', *slots).await_ready()
    (process,) = worker.children()
    # Some short ones, so that others are fetched ahead and wait behind it.
    answers = [front.later('POST', path) for path in ['/'] * 30 + [f'/stray{query}'] + ['/'] * 30]
    assert {answer.result(20).body for answer in answers} == {str(process).encode()}
    assert len(stack.runs) == 61
    assert {run.split()[2] for run in stack.runs} == {str(process)}


def test_nothing_is_left_when_a_worker_has_ended(stack: Stack) -> None:
    worker = stack.worker('faults:app', '--processes', '3').await_ready(3)
    processes = children_of(worker.pid)
    assert worker.terminate() == 0
    assert not [process for process in processes if Path(f'/proc/{process}').exists()]
