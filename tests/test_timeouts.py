"""The timeout guard: the caller is told on time, whatever the application does, and the worker goes on."""

import time

import pytest

from tests.stack import Front, Stack, Worker
from tests.waiting import wait_until


def start(stack: Stack, *worker_arguments: str) -> tuple[Front, Worker]:
    front = stack.front('--timeout', '1')
    worker = stack.worker('faults:app', '--kill-after', '1', *worker_arguments)
    return front.await_ready(), worker.await_ready()


def test_a_request_past_its_time_gets_504_and_its_worker_serves_the_next(stack: Stack) -> None:
    front, worker = start(stack)
    before = front.get('/').body
    late = front.get('/clean')
    assert late.status == 504
    assert late.headers['Proxy-Status'].startswith('crew; error=http_response_timeout')
    assert front.get('/').body == before
    assert f'FINALLY /cleaned {before.decode()}' in stack.runs
    assert 'GET /clean (request' in worker.text


@pytest.mark.parametrize('path', ['/swallow', '/syscall', '/gil'])
def test_a_thread_that_does_not_end_has_its_process_replaced(stack: Stack, path: str) -> None:
    front, worker = start(stack)
    before = front.get('/').body
    began = time.monotonic()
    assert front.get(path).status == 504
    assert time.monotonic() - began < 4
    after = front.get('/')
    assert after.status == 200
    assert after.body != before
    worker.await_log(r'GET ' + path + r' \(request [0-9a-f]{32}\)')
    worker.await_log(r'File ".*faults\.py", line \d+ in ')


def test_other_requests_of_the_process_get_time_to_finish(stack: Stack) -> None:
    front = stack.front('--timeout', '2').await_ready()
    worker = stack.worker('faults:app', '--threads', '2', '--kill-after', '2').await_ready()
    hanging = front.later('GET', '/swallow')
    wait_until(lambda: any('/swallow' in run for run in stack.runs), 10, 'the first to run')
    assert hanging.result(10).status == 504
    # It begins before the hard limit and ends after it.
    other = front.later('POST', '/sleep?for=1.9')
    worker.await_log('so this process is replaced')
    assert other.result(10).status == 200
    worker.await_ready(2)
    assert front.get('/').status == 200


def test_the_worker_lowers_the_limit_but_does_not_raise_it(stack: Stack) -> None:
    front = stack.front('--timeout', '20').await_ready()
    stack.worker('faults:app', '--timeout', '0.5').await_ready()
    assert front.get('/spin').status == 504


def test_a_greenlet_past_its_time_is_ended(stack: Stack) -> None:
    front = stack.front('--timeout', '1').await_ready()
    stack.worker('faults:app', '--gevent', '10', '--kill-after', '1').await_ready()
    before = front.get('/').body
    assert front.get('/sleep?for=60').status == 504
    assert front.get('/').body == before


def test_a_greenlet_that_blocks_its_hub_has_its_process_replaced(stack: Stack) -> None:
    front = stack.front('--timeout', '1').await_ready()
    worker = stack.worker('faults:app', '--gevent', '10', '--kill-after', '1').await_ready()
    before = front.get('/').body
    assert front.get('/spin').status == 504
    assert front.get('/').body not in (before, b'')
    worker.await_log(r'GET /spin \(request')


def test_greenlets_serve_at_once_while_others_wait(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('faults:app', '--gevent', '10').await_ready()
    began = time.monotonic()
    waiting = [front.later('GET', '/sleep?for=1') for _ in range(10)]
    assert [answer.result(20).status for answer in waiting] == [200] * 10
    assert time.monotonic() - began < 8
