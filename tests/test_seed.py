"""SEED.md, statement by statement and in its order, on RabbitMQ, with a worker script as a process.

The worker is reached by every option that says where it is: its own virtual host, user and password.
"""

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from tornado import gen
from tornado.ioloop import IOLoop

import crew
from crew import ConnectionError, DuplicateTaskId, ExpirationError, TaskError, TimeoutError, codec, topology
from crew.exceptions import DuplicateTask
from crew.master.threaded_client import Client as ThreadedClient
from crew.master.threaded_client import Result
from crew.master.tornado import Client
from crew.messages import Call
from crew.private_node import PrivateNode
from crew.transports.addresses import dial, url_of
from crew.worker import Task
from crew.worker.registry import Registry
from tests.faces import serving, take
from tests.rpc import Script
from tests.stack import APPS
from tests.waiting import wait_until

VHOST, USER, PASSWORD = 'seed', 'neo', 'the/one@'
FORKS = 2
SCRIPT = APPS / 'rpc' / 'seed_worker.py'


@pytest.fixture(scope='module')
def url(broker: PrivateNode) -> str:
    """A virtual host of these tests' own, and a user of its own in it."""
    broker.ctl('add_vhost', VHOST)
    broker.ctl('add_user', USER, PASSWORD)
    broker.ctl('set_permissions', '-p', VHOST, USER, '.*', '.*', '.*')
    return url_of('127.0.0.1', broker.port, VHOST, USER, PASSWORD)


@pytest.fixture(scope='module')
def worker(url: str, broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """The worker for all tests, started as a person would."""
    where = ['-H', '127.0.0.1', '-P', str(broker.port), '--username', USER, '--password', PASSWORD, '--vhost', VHOST]
    arguments = [*where, '--forks', str(FORKS), '--logging', 'INFO', '-v']
    script = Script(SCRIPT, arguments, tmp_path_factory.mktemp('seed') / 'log', {})
    script.await_ready(FORKS)
    yield script
    script.kill()


@pytest.fixture
def client(url: str, worker: Script) -> Iterator[ThreadedClient]:
    """A blocking client, where what is tested is not the client."""
    with ThreadedClient(url) as client:
        yield client


def in_tornado(url: str, body: Callable[[Client], Any], **options: Any) -> Any:
    """Run a coroutine with a Tornado client on a loop of its own, as ``application.crew``."""

    async def main() -> Any:
        client = Client(url, **options)
        client.connect()
        try:
            return await body(client)
        finally:
            await client.close()

    return asyncio.run(main())


# Client, in a Tornado server


def test_a_client_takes_host_port_virtualhost_and_credentials_or_a_url(broker: PrivateNode, worker: Script) -> None:
    class PlainCredentials:
        username, password = USER, PASSWORD

    async def call(client: Client) -> Any:
        return await client.call('test')

    for credentials in (PlainCredentials(), (USER, PASSWORD)):
        options = {'port': broker.port, 'virtualhost': VHOST, 'credentials': credentials}
        assert in_tornado('127.0.0.1', call, **options) == 'Wake up Neo.\n'


def test_connect_may_come_before_the_loop_starts_and_calls_made_earlier_wait(url: str, worker: Script) -> None:
    program = """
import sys
from tornado.ioloop import IOLoop
from crew.master.tornado import Client
crew = Client(sys.argv[1])
crew.connect()
early = crew.call('test', priority=100)
async def main():
    print((await early).strip())
    await crew.close()
IOLoop.current().run_sync(main)
"""
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', program, url], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ('Wake up Neo.\n', '')


def test_a_call_is_yielded_or_awaited(url: str, worker: Script) -> None:
    async def body(client: Client) -> Any:
        @gen.coroutine
        def get() -> Any:
            resp = yield client.call('test', priority=100)
            return resp

        return [await get(), await client.call('test', priority=100)]

    assert in_tornado(url, body) == ['Wake up Neo.\n'] * 2


def test_a_callback_needs_no_coroutine(url: str, worker: Script) -> None:
    async def body(client: Client) -> Any:
        responded = IOLoop.current().asyncio_loop.create_future()

        def on_response(resp: Any, headers: Any) -> None:
            responded.set_result((resp, headers))

        # With a callback the call returns the id; without it, a future.
        id = client.call('test', priority=100, callback=on_response)
        assert isinstance(id, str)
        assert asyncio.isfuture(client.call('test'))
        return await responded

    assert in_tornado(url, body) == ('Wake up Neo.\n', {})


def test_a_hanging_task_is_a_timeout_and_an_absent_worker_an_expiration(url: str, worker: Script) -> None:
    async def body(client: Client) -> Any:
        with pytest.raises(TimeoutError):
            await client.call('dead', persistent=False, priority=255, expiration=0.3)
        with pytest.raises(ExpirationError):
            await client.call('nobody', persistent=False, priority=255, expiration=0.3)

    in_tornado(url, body, tasks=['nobody'])


def test_call_has_the_articles_arguments_in_their_order(client: ThreadedClient) -> None:
    called: SimpleQueue[Any] = SimpleQueue()
    headers = {'a': 1}
    arguments = ('echo', [1], lambda *got: called.put(got), 'json', headers, True, 0, 86400, None, 6, 'mine', None, '')
    assert client.call(*arguments) == 'mine'
    assert called.get(timeout=10) == ([1], headers)


def test_priority_orders_the_queue(url: str, queue: str) -> None:
    priorities = [0, 1, 2, 4, 16, 100, 255] * 10
    random.Random(2).shuffle(priorities)
    with ThreadedClient(url, tasks=[queue]) as client:
        results = [client.call(queue, priority, priority=priority) for priority in priorities]
        client.publish('nobody', 'so all calls are there')
        order: list[int] = []
        with serving(url, prefetch=1, **{queue: order.append}):
            for result in results:
                result.wait(10)
    # The first may be handed over before the last has come.
    assert order[1:] == sorted(order[1:], reverse=True)


def test_expiration_is_in_seconds_and_messages_are_persistent(url: str, queue: str) -> None:
    with ThreadedClient(url, tasks=[queue]) as client:
        client.call(queue, expiration=3)
        client.call(queue, persistent=False)
        client.publish('nobody', 'so both calls are there')
        first, second = take(url, f'crew.tasks.{queue}', 2)
    assert (first.expiration, second.expiration) == (3000, 86_400_000)
    assert (first.persistent, second.persistent) == (True, False)


def test_compression_begins_above_32_kib(url: str, queue: str) -> None:
    sizes = [(32 * 1024, None), (32 * 1024 + 1, None), (1, True), (100_000, False)]
    with ThreadedClient(url, tasks=[queue]) as client:
        for size, gzip in sizes:
            client.call(queue, b'x' * size, gzip=gzip)
        client.publish('nobody', 'so all calls are there')
        envelopes = take(url, f'crew.tasks.{queue}', len(sizes))
    assert [envelope.content_encoding for envelope in envelopes] == ['', 'gzip', 'gzip', '']


def test_set_cid_names_the_call_and_no_other_in_flight_may_have_it(client: ThreadedClient) -> None:
    first = client.call('sleep', 0.2, set_cid='mine')
    with pytest.raises(DuplicateTaskId):
        client.call('test', set_cid='mine')
    first.wait(10)
    assert client.call('settings', set_cid='mine').wait(10)['correlation_id'] == 'mine'


# Errors


def test_all_errors_are_importable_and_task_errors_are_one_family() -> None:
    assert all(issubclass(error, TaskError) for error in (TimeoutError, ExpirationError, DuplicateTaskId))
    assert not issubclass(ConnectionError, TaskError)
    assert {'TaskError', 'TimeoutError', 'ExpirationError', 'DuplicateTaskId', 'ConnectionError'} <= set(crew.__all__)


def test_an_expiration_carries_what_the_dead_letter_says(url: str, queue: str) -> None:
    with ThreadedClient(url, tasks=[queue]) as client, pytest.raises(ExpirationError) as caught:
        client.call(queue, expiration=0.2).wait(10)
    assert (caught.value.reason, caught.value.expiration) == ('expired', 0.2)
    assert abs(caught.value.time - time.time()) < 10


def test_what_a_task_raises_arrives_with_type_message_and_traceback(client: ThreadedClient) -> None:
    with pytest.raises(TaskError, match='LookupError: there is no spoon') as caught:
        client.call('fail', 'spoon').wait(10)
    error = caught.value
    assert (error.type, error.message) == ('LookupError', 'there is no spoon')
    assert 'line' in error.traceback
    assert 'in fail' in error.traceback


# Worker


def test_a_second_task_with_the_same_id_is_an_error() -> None:
    registry = Registry()
    Task('test', registry=registry)(lambda req: 1)
    with pytest.raises(DuplicateTask, match=r'test_seed\.py'):
        Task('test', registry=registry)(lambda req: 2)


def test_settings_live_as_long_as_the_worker_and_know_it(client: ThreadedClient) -> None:
    def counters() -> dict[str, int]:
        counts: dict[str, int] = {}
        while len(counts) < FORKS:
            results = [client.call('stat') for _ in range(20)]
            counts.update({result.headers['worker']: count for result in results if (count := result.wait(10)) >= 0})
        return counts

    before = counters()
    for result in [client.call('test') for _ in range(10)]:
        result.wait(10)
    after = counters()
    assert before.keys() == after.keys()
    assert sum(after.values()) - sum(before.values()) == 10
    known = client.call('settings').wait(10)
    assert known['uuid'] != known['node_uuid']
    assert known['forks'] == FORKS


def test_headers_travel_beside_the_response_and_are_emptied_after_it(client: ThreadedClient) -> None:
    with_headers, without = client.call('stat'), client.call('test')
    with_headers.wait(10)
    without.wait(10)
    assert set(with_headers.headers) == {'worker'}
    assert without.headers == {}


def test_a_worker_publishes(client: ThreadedClient) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    client.subscribe('test', heard.put)
    assert client.call('publish', ['req']).wait(10) == 'published'
    assert heard.get(timeout=10) == ['req']


def test_help_tells_all_options() -> None:
    text = subprocess.run([sys.executable, str(SCRIPT), '--help'], capture_output=True, text=True, check=True).stdout
    options = ('-v', '--verbose', '--logging LEVEL', '-H', '--host', '-P', '--port', '--username', '--password')
    for option in (*options, '--vhost', '--forks N'):
        assert re.search(rf'(?<!\S){option}\b', text), option


def test_a_fork_that_dies_is_restarted(client: ThreadedClient, worker: Script) -> None:
    before = set(worker.children())
    assert len(before) == FORKS
    with pytest.raises(crew.WorkerLost):
        client.call('die').wait(10)
    wait_until(lambda: len(set(worker.children()) - before) == 1, what='another process')
    worker.await_ready(FORKS + 1)
    victim = next(iter(set(worker.children()) & before))
    os.kill(victim, signal.SIGKILL)
    worker.await_ready(FORKS + 2)
    assert client.call('test').wait(10) == 'Wake up Neo.\n'


def test_everything_else_comes_from_the_environment(url: str, tmp_path: Path, queue: str) -> None:
    lonely = tmp_path / 'lonely.py'
    lonely.write_text(
        f'from crew.worker import Task, run\n@Task({queue!r})\ndef task(req):\n    return "here"\nrun()\n'
    )
    script = Script(lonely, [], tmp_path / 'log', {'CREW_AMQP_URL': url})
    try:
        script.await_ready()
        with ThreadedClient(url) as client:
            assert client.call(queue).wait(10) == 'here'
        assert script.terminate() == 0
    finally:
        script.kill()


def test_a_task_may_be_a_class(client: ThreadedClient) -> None:
    assert client.call('job', 'data').wait(10) == ['data']


def test_a_task_may_force_compression(url: str, worker: Script) -> None:
    assert _raw_reply(url, 'zipped').content_encoding == 'gzip'
    assert _raw_reply(url, 'test').content_encoding == ''


def _raw_reply(url: str, task: str) -> Any:
    """Call as another implementation would, and return the reply as it is."""

    async def call() -> Any:
        connection = await dial(url)
        channel = await connection.open_channel()
        replies, taken = topology.reply_queue(), asyncio.Queue()
        await channel.declare(replies)
        await channel.consume(replies.name, lambda delivery: taken.put_nowait(delivery.envelope), no_ack=True)
        message = Call(correlation_id='raw', reply_to=replies.name, body=b'null', content_type='application/json')
        channel.publish(codec.encode(message), topology.task_queue_name(task))
        envelope = await asyncio.wait_for(taken.get(), 10)
        await connection.close()
        return envelope

    return asyncio.run(call())


# What happens behind it


def test_the_broker_shows_the_promised_names(client: ThreadedClient, broker: PrivateNode) -> None:
    client.subscribe('names', print)
    exchanges = broker.ctl('list_exchanges', '-p', VHOST, 'name', 'type').splitlines()
    assert {'crew.DLX\theaders', 'crew.PUBSUB\theaders'} <= set(exchanges)
    queues = set(broker.ctl('list_queues', '-p', VHOST, 'name').splitlines())
    assert {'crew.tasks.test', 'crew.tasks.dead', 'crew.tasks.stat'} <= queues


def test_only_its_own_dead_letters_come_back_to_a_client(url: str, queue: str) -> None:
    with ThreadedClient(url, tasks=[queue]) as one, ThreadedClient(url, tasks=[queue]) as other:
        # Of the same id, so that a letter which came to the wrong one would end its call.
        lasting = other.call(queue, set_cid='same', expiration=60)
        with pytest.raises(ExpirationError):
            # Above the other, for only the head of a queue expires.
            one.call(queue, set_cid='same', expiration=0.2, priority=1).wait(10)
        other.publish('nobody', 'so whatever came before has been read')
        assert not lasting.done()


def test_a_hanging_task_gets_system_exit_and_the_worker_goes_on(client: ThreadedClient, worker: Script) -> None:
    pids = set(worker.children())
    results = [client.call('dead', number, timeout=0.2) for number in range(FORKS)]
    for result in results:
        with pytest.raises(TimeoutError):
            result.wait(10)
    # Each process has cleaned up, and takes the next task.
    notes: list[Any] = []

    def all_stopped() -> bool:
        notes.extend(client.call('notes').wait(10))
        return all(['stopped', number, False] in notes for number in range(FORKS))

    wait_until(all_stopped, what='both to be stopped')
    assert set(worker.children()) == pids


# PubSub


def test_everybody_who_subscribed_is_given_what_the_server_publishes(url: str, client: ThreadedClient) -> None:
    elsewhere: SimpleQueue[Any] = SimpleQueue()
    client.subscribe('test', elsewhere.put)

    async def body(application: Client) -> Any:
        responded: asyncio.Queue[Any] = asyncio.Queue()
        await application.subscribe('test', responded.put_nowait)
        await application.subscribe('other', lambda data: responded.put_nowait('not mine'))
        await application.publish('test', b'posted')
        return await asyncio.wait_for(responded.get(), 10)

    assert in_tornado(url, body) == b'posted'
    assert elsewhere.get(timeout=10) == b'posted'


# Parallel calls


def test_parallel_calls_bring_results_in_call_order_and_failures_in_their_place(url: str, worker: Script) -> None:
    async def body(client: Client) -> Any:
        @gen.coroutine
        def get() -> Any:
            with client.parallel() as mc:
                mc.call('sleep', 0.1)
                mc.call('fail', 'spoon')
                mc.call('test')
            slept, failed, test_result = yield mc.result()
            return slept, failed, test_result

        return await get()

    slept, failed, test_result = in_tornado(url, body)
    assert (slept, test_result) == (0.1, 'Wake up Neo.\n')
    assert isinstance(failed, TaskError)


# Blocking client


def test_a_script_makes_thirty_calls_and_waits_for_each(client: ThreadedClient) -> None:
    tasks = [client.call('sleep') for _ in range(30)]
    assert all(isinstance(task, Result) for task in tasks)
    assert [task.wait(timeout=50) for task in tasks] == [None] * 30


def test_waiting_raises_or_times_out(client: ThreadedClient) -> None:
    task = client.call('sleep', 0.5)
    with pytest.raises(TimeoutError, match=r'within 0\.1 s'):
        task.wait(timeout=0.1)
    assert task.wait(timeout=10) == 0.5
