"""A worker that dies: its requests are run once more where that is safe, never a third time, and somebody answers."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.stack import Stack, Worker
from tests.waiting import wait_until


def kill_runner_of(stack: Stack, path: str) -> None:
    """Kill the process that runs a path, once it does."""
    wait_until(lambda: any(f' {path} ' in run for run in stack.runs), 15, f'{path} to run')
    os.kill(int(stack.runs[-1].split()[-1]), signal.SIGKILL)


def two_workers(stack: Stack) -> Worker:
    return stack.worker('faults:app', '--processes', '2').await_ready(2)


def test_get_is_run_by_another_worker_and_answered_200(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = two_workers(stack)
    answer = front.later('GET', '/sleep?for=1.5')
    kill_runner_of(stack, '/sleep')
    assert answer.result(20).status == 200
    assert len(stack.runs) == 2
    worker.await_log(r'was killed by SIGKILL .* while it ran GET /sleep\?for=1.5 \(request')


def test_post_is_answered_502_and_not_run_again(stack: Stack) -> None:
    front = stack.front().await_ready()
    two_workers(stack)
    answer = front.later('POST', '/sleep?for=1.5')
    kill_runner_of(stack, '/sleep')
    lost = answer.result(20)
    assert lost.status == 502
    assert lost.headers['Proxy-Status'].startswith('crew; error=connection_terminated')
    assert len(stack.runs) == 1


def test_a_request_that_kills_everyone_it_meets_is_stopped_after_its_second(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = two_workers(stack)
    assert front.get('/die').status == 502
    assert len(stack.runs) == 2
    worker.await_ready(4)
    assert front.get('/').status == 200
    assert len(stack.runs) == 3


def test_a_request_that_outlived_its_queue_time_is_still_run_again(stack: Stack) -> None:
    front = stack.front('--queue-timeout', '1').await_ready()
    two_workers(stack)
    answer = front.later('GET', '/sleep?for=3')
    wait_until(lambda: bool(stack.runs), 15, 'the run')
    wait_until(_seconds_passed(1.5), 5, 'the queue time to run out')
    kill_runner_of(stack, '/sleep')
    assert answer.result(20).status == 200
    assert len(stack.runs) == 2


def test_a_worker_ends_with_its_supervisor(stack: Stack) -> None:
    worker = stack.worker('faults:app').await_ready()
    child = worker.children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f'/proc/{child}').exists(), 15, 'the worker process to end')


def _seconds_passed(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end
