"""A supervisor is small and a command line is read quickly: neither loads what only worker processes need."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew.options import broker_url
from crew.transports.addresses import check
from tests.stack import Stack

#: What only the processes need that speak to a broker, run an application, or debug one.
HEAVY = {'asyncio', 'crew.codec', 'crew.messages', 'crew.worker.consumer', 'pika', 'ssl', 'werkzeug'}
HEAVY |= {'crew_wsgi.gateway', 'hashlib', 'importlib.metadata'}

#: What makes dataclasses takes a megabyte.
MAKING = {'dataclasses', 'inspect'}

#: The libraries by which a running process shows that it has loaded those; where they are part of Python, it does not.
LIBRARIES = ('_asyncio.', '_hashlib.', '_ssl.', 'libcrypto.')

WSGI = 'from crew_wsgi.worker import parser; options = parser().parse_args(["app:app"])'
TASKS = 'from crew.worker import Task, context, on_start, run; from crew.worker.command import parser; parser()'


def loaded(pid: int) -> list[str]:
    maps = Path(f'/proc/{pid}/maps').read_text()
    return [name for name in LIBRARIES if f'/{name}' in maps]


@pytest.mark.parametrize(('program', 'unneeded'), [(WSGI, HEAVY | MAKING), (TASKS, HEAVY)])
@pytest.mark.parametrize('url', ['', 'amqp://guest:guest@127.0.0.1:5672/%2F'])
def test_a_command_line_is_read_without_what_worker_processes_need(program: str, unneeded: set[str], url: str) -> None:
    said = subprocess.run(
        [sys.executable, '-c', f'import sys; {program}; import crew.worker.supervisor; print(*sys.modules)'],
        env={**os.environ, 'CREW_AMQP_URL': url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert unneeded & set(said.stdout.split()) == set()


WORDS = ['amqp', 'amqps', 'AMQP', '://', 'user', 'pässword', '%2F', 'host', '[::1]', '5672', '65536', 'heartbeat=1']
PARTS = st.sampled_from([*WORDS, *'@:/%[]-10?&#; \n'])
URLS = st.builds('{}{}{}'.format, st.sampled_from(['', 'amqp://', 'amqp://a:b@']), st.lists(PARTS).map(''.join), PARTS)


@given(URLS)
def test_an_address_is_refused_without_pika_exactly_when_pika_refuses_it(url: str) -> None:
    read = understood = False
    with contextlib.suppress(argparse.ArgumentTypeError):
        broker_url(url)
        read = True
    with contextlib.suppress(ValueError):
        check(url)
        understood = True
    assert read == understood


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='only Linux says what a process has loaded')
def test_a_supervisor_stays_without_it_when_it_speaks_and_replaces_processes(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    answer = front.later('POST', '/gil')
    worker.await_log('telling its caller')
    os.kill(worker.children()[0], signal.SIGKILL)
    assert answer.result(15).status == 502
    worker.await_ready(2)
    assert loaded(worker.pid) == []
