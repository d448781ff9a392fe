"""``crew.testing`` and ``crew_wsgi.testing``, as a program's own tests use them."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = "pytest_plugins = ['crew.testing', 'crew_wsgi.testing']\n"

TESTS = """
import asyncio
import gc
import threading
import time
import urllib.request
import weakref

import pytest

import crew
from crew.master.asyncio import Client
from crew.testing import Worker
from crew.worker import HandlerClass, Task, context, on_start
from crew_wsgi.testing import Bridge


@Task('double')
def double(number):
    context.headers['made'] = 'here'
    return 2 * number


@Task('settings')
def of_settings(_):
    return [context.settings.given, context.settings.connection]


class Job(HandlerClass):
    def process(self):
        return [self.data]


Job.bind('job')


@on_start
def connect(settings):
    settings.connection = 'open'


def test_a_chosen_task_is_there_and_others_are_not(crew_worker, crew_client):
    crew_worker(double)
    result = crew_client.call('double', 21)
    assert (result.wait(10), result.headers) == (42, {'made': 'here'})
    with pytest.raises(crew.Unroutable):
        crew_client.call('job').wait(10)


def test_all_tasks_are_there_when_none_is_chosen(crew_worker, crew_client):
    worker = crew_worker(settings={'given': 5})
    assert crew_client.call('settings').wait(10) == [5, 'open']
    assert crew_client.call('job', 1).wait(10) == [1]
    assert worker.settings.given == 5


def test_a_module_a_class_and_an_id_choose_tasks(crew_broker, crew_client):
    import sys

    with Worker(sys.modules[__name__], url=crew_broker, settings={'given': 1}):
        assert crew_client.call('job', 1).wait(10) == [1]
    with Worker(Job, 'double', url=crew_broker):
        assert [crew_client.call('job', 1).wait(10), crew_client.call('double', 2).wait(10)] == [[1], 4]
    with pytest.raises(ValueError, match='is no task'):
        Worker(len)


def test_a_hung_task_is_stopped_and_the_worker_goes_on(crew_worker, crew_client):
    @Task('hang')
    def hang(_):
        while True:
            pass

    crew_worker(hang, double)
    with pytest.raises(crew.TimeoutError):
        crew_client.call('hang', timeout=0.2).wait(10)
    assert crew_client.call('double', 1).wait(10) == 2


def test_an_asyncio_client_reaches_the_same_broker(crew_worker, crew_broker):
    crew_worker(double)

    async def body():
        async with Client(crew_broker) as client:
            assert await client.call('double', 1) == 2

    asyncio.run(body())


def app(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [environ['PATH_INFO'].encode()]


def test_an_application_is_served_through_the_queue(crew_bridge):
    bridge = crew_bridge(app, threads=2)
    with urllib.request.urlopen(bridge.url + '/here') as response:
        assert (response.status, response.read()) == (200, b'/here')


def test_nothing_is_left_of_a_bridge(crew_broker):
    class App:
        def __call__(self, environ, start_response):
            return app(environ, start_response)

    mine, before = App(), threading.enumerate()
    alive = weakref.ref(mine)
    with Bridge(mine, url=crew_broker, threads=4) as bridge:
        urllib.request.urlopen(bridge.url).close()
    del mine, bridge
    deadline = time.monotonic() + 10
    while alive() is not None or set(threading.enumerate()) - set(before):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        gc.collect()
"""


@pytest.mark.parametrize('broker', ['memory', 'rabbitmq'])
def test_fixtures_run_on_both_brokers(tmp_path: Path, broker: str, request: pytest.FixtureRequest) -> None:
    if broker == 'rabbitmq':
        request.getfixturevalue('broker')  # skips where there is none
    (tmp_path / 'conftest.py').write_text(CONFTEST)
    (tmp_path / 'test_mine.py').write_text(TESTS)
    command = [sys.executable, '-W', 'error', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--crew-broker={broker}']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert '7 passed' in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
