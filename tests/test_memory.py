"""A worker process that runs out of memory answers 500 and goes on, or is replaced; nobody waits for nothing."""

import os
import resource
import signal
from pathlib import Path

import pytest

from tests.stack import Stack
from tests.waiting import wait_until

#: First as it comes, and then what is left between.
ALL = '100000,1000,100,30'


@pytest.mark.parametrize('slots', [(), ('--threads', '2'), ('--gevent', '2')])
@pytest.mark.parametrize('sizes', [str(10**9), '100000', ALL])
def test_a_request_that_takes_all_memory_is_500_and_the_process_goes_on(
    stack: Stack, sizes: str, slots: tuple[str, ...]
) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app', *slots).await_ready()
    before = worker.children()
    for _ in range(2):
        # If its connection needs memory just when there is none, the process is replaced.
        status = front.request('POST', f'/exhaust?sizes={sizes}').status
        assert status == 500 or (sizes == ALL and status == 502)
        assert front.request('POST', '/').status == 200
    assert worker.children() == before or sizes == ALL
    request = r'POST /exhaust\?sizes=[\d,]+ \(request \w+\)'
    worker.await_log(f'{request} raised|there is hardly any memory left after {request}|no memory left')


@pytest.mark.parametrize('sizes', ['100000', ALL])
def test_a_process_whose_memory_is_gone_for_good_is_replaced(stack: Stack, sizes: str) -> None:
    front = stack.front('--timeout', '8').await_ready()
    worker = stack.worker('faults:app').await_ready()
    before = worker.children()
    assert front.request('POST', f'/exhaust?sizes={sizes}&keep=1').status in (500, 502)
    wait_until(lambda: worker.children() not in ([], before), 15, 'another process')
    wait_until(lambda: front.get('/').status == 200, 15, 'it to serve again')


def test_a_supervisor_that_cannot_make_a_process_goes_on(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    before = worker.children()
    limit = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    in_use = len([*Path(f'/proc/{worker.pid}/fd').iterdir()])
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (in_use, limit[1]))
    worker.signal(signal.SIGHUP)
    worker.await_log('the reload has stopped: .*Too many open files')
    assert worker.children() == before
    # What a process leaves behind is enough for the next one, so now there must be less.
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (in_use - 2, limit[1]))
    os.kill(before[0], signal.SIGKILL)
    worker.await_log('no process can be made: .*Too many open files')
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limit)
    worker.await_ready(2)
    assert front.get('/').status == 200
