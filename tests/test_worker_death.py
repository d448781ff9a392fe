"""A worker that dies: its requests are run once more where that is safe, never a third time, and somebody answers."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_a_worker_that_c_code_holds_is_killed_when_its_supervisor_was(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', '--graceful-timeout', '1').await_ready()
    child = worker.children()[0]
    front.later('POST', '/gil')
    wait_until(lambda: bool(stack.runs), 15, 'the run')
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not _lives(child), 15, 'the worker process to end')
    assert f'worker process {child} is killed: its supervisor is gone' in worker.text


def test_the_sentinel_ends_with_its_supervisor(stack: Stack) -> None:
    before = set(_processes(stack.queue))
    worker = stack.worker('faults:app').await_ready()
    sentinel = set(_processes(stack.queue)) - before - {worker.pid, *worker.children()}
    assert len(sentinel) == 1
    # It is told to end like all others, and does not while somebody is left that it may be needed for.
    os.kill(*sentinel, signal.SIGTERM)
    assert set(_processes(stack.queue)) >= sentinel
    assert worker.terminate() == 0
    wait_until(lambda: not set(_processes(stack.queue)) & sentinel, 15, 'the sentinel to end')


@pytest.mark.parametrize(
    ('path', 'line'),
    [
        (
            '/leave?code=3',
            r'exited with code 3 \(by os._exit.*\) while it ran POST /leave\?code=3 \(.*\); starting another now',
        ),
        (
            '/leave?code=0',
            r'exited with code 0 \(by os._exit.*\) while it ran POST /leave\?code=0 \(.*\); starting another now',
        ),
        ('/die', r'out-of-memory killer: dmesg tells; it had \d+ MiB at most\) while it ran POST /die'),
        ('/crash', r'was killed by SIGSEGV \(a crash in C code: .*\) while it ran POST /crash .* it was here:'),
    ],
)
def test_the_log_tells_how_a_process_died_and_what_it_ran(stack: Stack, path: str, line: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    assert front.request('POST', path).status == 502
    worker.await_log(line)
    if path == '/crash':
        worker.await_log(r'Fatal Python error: Segmentation fault[^$]*in crash')
    assert front.get('/').status == 200


def _lives(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def _processes(argument: str) -> list[int]:
    """Return the ids of all processes with an argument."""
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            arguments = (entry / 'cmdline').read_bytes().split(b'\0')
        except OSError:
            continue
        if argument.encode() in arguments and _lives(int(entry.name)):
            found.append(int(entry.name))
    return found


def _seconds_passed(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end
