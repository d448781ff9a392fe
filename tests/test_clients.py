"""The same promises from all five clients, against RabbitMQ and a worker in a process of its own."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

import pytest

import crew
from crew.envelope import Envelope
from crew.private_node import PrivateNode
from crew.worker import deliveries
from tests.faces import FACES, LONG, Asyncio, Client, Face, Threads, Twisted, put, serving, take
from tests.rpc import Script
from tests.stack import APPS
from tests.waiting import wait_until


@pytest.fixture(scope='module')
def url(broker: PrivateNode) -> str:
    """The broker's address, for what serves many tests."""
    return broker.url


@pytest.fixture(scope='module', autouse=True)
def worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """One worker for all tests: one process, one task at a time."""
    log = tmp_path_factory.mktemp('worker') / 'log'
    script = Script(APPS / 'rpc' / 'seed_worker.py', ['--amqp-url', url], log, {})
    script.await_ready()
    yield script
    script.kill()


@pytest.fixture(scope='module', params=FACES, ids=lambda face: face.__name__.lower())
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Each of the five, one after the other."""
    face: Face = request.param()
    face.start()
    yield face
    face.stop()


@pytest.fixture(scope='module')
def client(face: Face, url: str) -> Iterator[Client]:
    """A client that is connected, for what leaves no traces."""
    with face.open(url) as client:
        client.run('connect')
        yield client


@pytest.fixture
def alone(face: Face, url: str, queue: str) -> Iterator[Client]:
    """A client that has declared the queue of a task for which there is no worker."""
    with face.open(url, tasks=[queue]) as client:
        client.run('connect')
        yield client


def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port: int = sock.getsockname()[1]
        return port


# Values


@pytest.mark.parametrize('value', [None, 42, 'zwölf', [1, {'a': None}], b'\x00\xff', ''], ids=repr)
def test_a_value_goes_there_and_back(client: Client, value: Any) -> None:
    assert client.get('echo', value) == value


def test_headers_go_there_and_back(client: Client) -> None:
    headers = {'text': 'ä', 'number': -(2**63), 'flag': True}
    outcome = client.call('echo', 1, headers=headers)
    assert outcome.result(LONG) == 1
    assert outcome.headers == headers
    assert type(outcome.headers['flag']) is bool


def test_a_callback_gets_value_and_headers_and_the_call_its_id(client: Client) -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    id = client.call('echo', 'x', lambda *outcome: told.put(outcome), headers={'a': 1}).result(LONG)
    assert isinstance(id, str)
    assert told.get(timeout=LONG) == ('x', {'a': 1})


def test_a_callback_gets_an_error_in_the_place_of_the_value(client: Client) -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    client.call('fail', 'spoon', callback=lambda *outcome: told.put(outcome))
    error, headers = told.get(timeout=LONG)
    assert (type(error), str(error), headers) == (crew.RemoteError, 'LookupError: there is no spoon', {})


def test_what_is_long_is_compressed_and_arrives_whole(client: Client) -> None:
    text = 'red pill, blue pill ' * 20_000
    assert client.get('echo', text) == text
    assert client.get('echo', text, gzip=False) == text
    assert client.get('echo', text, gzip_level=1) == text


@pytest.mark.parametrize(('value', 'serializer'), [('ä', 'text'), (bytearray(b'ab'), 'bytes'), ([1], 'json')])
def test_serializers_can_be_chosen(client: Client, value: Any, serializer: str) -> None:
    assert client.get('echo', value, serializer=serializer) == value


def test_pickle_is_refused_by_a_worker_that_did_not_opt_in(client: Client) -> None:
    with pytest.raises(crew.RemoteError, match=r'pickle is not accepted here: .*--accept pickle') as caught:
        client.get('echo', {1}, serializer='pickle')
    assert (caught.value.type, caught.value.refused) == ('PayloadError', True)


def test_pickle_needs_both_sides_to_opt_in(face: Face, url: str, queue: str) -> None:
    with serving(url, accept=('pickle',), **{queue: lambda value: value}):
        with face.open(url) as wary, pytest.raises(crew.PayloadError, match=r"pickle is not .*accept=\{'pickle'\}"):
            wary.get(queue, {1}, serializer='pickle')
        with face.open(url, accept={'pickle'}) as trusting:
            assert trusting.get(queue, {1}, serializer='pickle') == {1}


@pytest.mark.parametrize(
    ('value', 'options'),
    [({1}, {}), (float('nan'), {}), (5, {'serializer': 'text'}), ('a', {'serializer': 'bytes'})],
    ids=['json', 'nan', 'text', 'bytes'],
)
def test_what_cannot_be_sent_is_told_at_once(client: Client, value: Any, options: dict[str, Any]) -> None:
    with pytest.raises(crew.PayloadError, match='cannot carry'):
        client.call('echo', value, **options)
    with pytest.raises(crew.PayloadError):
        client.run('publish', 'channel', value, **options)


def test_what_a_task_cannot_send_is_its_callers_error(client: Client) -> None:
    with pytest.raises(crew.RemoteError, match=r'task unsendable returned what cannot be sent: .*set') as caught:
        client.get('unsendable')
    assert caught.value.type == 'PayloadError'


@pytest.mark.parametrize(
    'options',
    [
        {'priority': 256},
        {'priority': -1},
        {'expiration': 0},
        {'expiration': float('nan')},
        {'timeout': 0},
        {'gzip_level': 10},
        {'serializer': 'xml'},
        {'headers': {'crew-x': 1}},
        {'headers': {'big': 2**63}},
        {'headers': {'a': 'x' * 200_000}},
        {'set_cid': ''},
        {'set_cid': 'x' * 256},
        {'routing_key': 'x' * 256},
        {'exchange': 'x' * 256},
    ],
    ids=repr,
)
def test_arguments_that_make_no_sense_are_told_at_once(client: Client, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        client.call('echo', 1, **options)
    assert client.get('echo', 2) == 2


# What takes the place of a value


def test_a_remote_exception_says_what_was_raised_and_where(client: Client) -> None:
    with pytest.raises(crew.RemoteError, match='LookupError: there is no spoon') as caught:
        client.get('fail', 'spoon')
    error = caught.value
    assert (error.type, error.message, error.refused) == ('LookupError', 'there is no spoon', False)
    assert 'seed_worker.py' in error.traceback
    assert 'raise LookupError' in error.traceback


def test_a_task_that_runs_past_its_time_is_a_timeout_and_is_stopped(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(crew.TimeoutError):
        client.get('dead', f'{client.face}-late', timeout=0.2)
    assert time.monotonic() - began < 5
    assert ['stopped', f'{client.face}-late', False] in client.get('notes')


def test_a_call_that_no_worker_takes_expires_by_a_dead_letter(alone: Client, queue: str) -> None:
    began = time.time()
    with pytest.raises(crew.ExpirationError) as caught:
        alone.get(queue, expiration=0.2)
    error = caught.value
    assert (error.reason, error.expiration) == ('expired', 0.2)
    # RabbitMQ says it in whole seconds.
    assert began - 1 <= error.time <= time.time()


def test_a_call_without_a_queue_is_unroutable_at_once(client: Client, queue: str) -> None:
    began = time.monotonic()
    with pytest.raises(crew.Unroutable, match='no worker has ever been there') as caught:
        client.get(queue)
    assert time.monotonic() - began < 1
    assert caught.value.reason == 'unroutable'


def test_a_call_through_an_exchange_that_is_not_there_fails_alone(client: Client) -> None:
    beside = client.call('sleep', 0.3)
    with pytest.raises(crew.ConnectionError, match='NOT_FOUND'):
        client.get('echo', exchange='no-such-exchange', expiration=5)
    assert beside.result(LONG) == 0.3


def test_an_id_in_flight_cannot_be_taken_again_before_it_is_free(client: Client) -> None:
    id = f'{client.face}-own'
    first = client.call('sleep', 0.2, set_cid=id)
    with pytest.raises(crew.DuplicateTaskId, match=id):
        client.call('test', set_cid=id)
    with pytest.raises(crew.DuplicateTaskId):
        client.call('test', set_cid=id, callback=print)
    assert first.result(LONG) == 0.2
    assert client.get('settings', set_cid=id)['correlation_id'] == id


def await_note(client: Client, note: Any) -> None:
    """Wait until the worker has taken a note: calls of different tasks may overtake each other."""
    wait_until(lambda: note in client.get('notes'), what=f'the note {note}')


def test_a_call_that_is_given_up_is_stopped_where_it_runs(client: Client) -> None:
    name = f'{client.face}-given-up'
    outcome = client.call('dead', name)
    client.cancel(outcome)
    with pytest.raises(client.face.cancelled):
        outcome.result(LONG)
    await_note(client, ['stopped', name, True])


def test_a_call_is_given_up_by_its_id(client: Client) -> None:
    name = f'{client.face}-id'
    told: SimpleQueue[Any] = SimpleQueue()
    id = client.get('dead', name, callback=lambda *outcome: told.put(outcome))
    client.run('cancel', id)
    client.run('cancel', 'unknown')
    await_note(client, ['stopped', name, True])
    with pytest.raises(Empty):
        told.get(block=False)


def test_calls_are_run_by_priority(alone: Client, url: str, queue: str) -> None:
    priorities = [2**level - 1 for level in range(9)] * 34
    random.Random(1).shuffle(priorities)
    outcomes = [alone.call(queue, priority, priority=priority) for priority in priorities[:300]]
    alone.run('publish', 'unheard', None)
    wait_until(lambda: depth(url, queue) == 300, what='300 calls in the queue')
    order: list[int] = []
    with serving(url, prefetch=1, **{queue: order.append}):
        for outcome in outcomes:
            outcome.result(LONG)
    assert order == sorted(priorities[:300], reverse=True)


def depth(url: str, task: str) -> int:
    """Return how many messages wait in the queue of a task."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    count: int = connection.channel().queue_declare(f'crew.tasks.{task}', passive=True).method.message_count
    connection.close()
    return count


# Several at once


def test_parallel_calls_bring_their_results_in_order(client: Client) -> None:
    def make() -> Any:
        with client.raw.parallel() as mc:
            mc.call('sleep', 0.1)
            mc.call('fail', 'x')
            mc.call('echo', {1})
            mc.call('echo', 'last', headers={'a': 1}, priority=255)
        made.append(mc)

    made: list[Any] = []
    client.face.do(make)
    results = client.face.do(lambda: made[0].result()).result(LONG)
    assert [type(result) for result in results] == [float, crew.RemoteError, crew.PayloadError, str]
    assert (results[0], results[3]) == (0.1, 'last')


def test_parallel_results_may_be_asked_for_again_and_more_calls_made(client: Client) -> None:
    made: list[Any] = []
    client.face.do(lambda: made.append(client.raw.parallel()))
    mc = made[0]
    assert client.face.do(mc.result).result(LONG) == []
    client.face.do(lambda: mc.call('echo', 1))
    first, second = client.face.do(mc.result), client.face.do(mc.result)
    assert first.result(LONG) == second.result(LONG) == [1]
    client.face.do(lambda: mc.call('echo', 2))
    assert client.face.do(mc.result).result(LONG) == [1, 2]


def test_parallel_calls_are_given_up_when_their_block_fails(client: Client) -> None:
    name = f'{client.face}-parallel'

    def make() -> None:
        with client.raw.parallel() as mc:
            mc.call('dead', name)
            raise KeyError(name)

    with pytest.raises(KeyError):
        client.face.do(make)
    await_note(client, ['stopped', name, True])


def test_hundreds_of_parallel_calls_lose_none(client: Client) -> None:
    def make() -> Any:
        mc = client.raw.parallel()
        for number in range(500):
            mc.call('echo', number)
        return mc.result()

    assert client.face.do(make).result(LONG) == list(range(500))


# Publications


def test_publications_reach_every_callback_of_every_client(face: Face, client: Client, url: str, queue: str) -> None:
    heard: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    first, second, third = (lambda value, name=name: heard.put((name, value)) for name in '123')
    with face.open(url) as other:
        client.run('subscribe', queue, first)
        client.run('subscribe', queue, second)
        other.run('subscribe', queue, third)
        other.run('subscribe', f'{queue}-other', third)
        client.run('publish', queue, 'to all')
        assert sorted(heard.get(timeout=LONG) for _ in '123') == [(name, 'to all') for name in '123']

        client.run('unsubscribe', queue, first)
        other.run('publish', queue, b'to two')
        assert sorted(heard.get(timeout=LONG) for _ in '23') == [('2', b'to two'), ('3', b'to two')]

        client.run('unsubscribe', queue)
        client.run('unsubscribe', 'never subscribed to')
        client.run('publish', queue, 'to one')
        assert heard.get(timeout=LONG) == ('3', 'to one')
        # The first would have come before.
        client.run('publish', f'{queue}-other', 'last')
        assert heard.get(timeout=LONG) == ('3', 'last')


def test_more_publications_than_a_client_holds_at_once_arrive_in_order(client: Client, queue: str) -> None:
    heard: SimpleQueue[int] = SimpleQueue()
    client.run('subscribe', queue, heard.put)
    with client.face.open(client.raw._urls[0]) as other:
        for number in range(1000):
            other.face.do(lambda number=number: other.raw.publish(queue, number))
        assert [heard.get(timeout=LONG) for _ in range(1000)] == list(range(1000))
    client.run('unsubscribe', queue)


def test_a_callback_that_fails_costs_no_other(client: Client, queue: str) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()

    def broken(value: Any) -> None:
        raise KeyError(value)

    client.run('subscribe', queue, broken)
    client.run('subscribe', queue, heard.put)
    for number in range(3):
        client.run('publish', queue, number)
    assert [heard.get(timeout=LONG) for _ in range(3)] == [0, 1, 2]
    client.run('unsubscribe', queue)


def test_a_worker_publishes(client: Client) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    client.run('subscribe', 'test', heard.put)
    assert client.get('publish', ['news']) == 'published'
    assert heard.get(timeout=LONG) == ['news']
    client.run('unsubscribe', 'test')


def test_what_was_published_leaves_before_the_client_closes(client: Client, url: str, queue: str) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    client.run('subscribe', queue, heard.put)
    with client.face.open(url) as other:
        other.run('connect')
        client.face.do(lambda: [other.raw.publish(queue, number) for number in range(10)] and other.raw.close())
    assert [heard.get(timeout=LONG) for _ in range(10)] == list(range(10))
    client.run('unsubscribe', queue)


@pytest.mark.parametrize('channel', ['', 'x' * 256])
def test_a_channel_needs_a_name(client: Client, channel: str) -> None:
    with pytest.raises(ValueError, match='channel'):
        client.run('subscribe', channel, print)
    with pytest.raises(ValueError, match='channel'):
        client.run('publish', channel, 1)


# Consuming


def test_a_queue_is_consumed_whoever_fills_it_and_made_if_there_is_none(client: Client, url: str, queue: str) -> None:
    got: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
    client.run('consume', queue, lambda *message: got.put(message), prefetch=3)
    foreign = Envelope(body=b'raw')
    typed = Envelope(body=b'{"a":1}', content_type='application/json', headers={'k': 'v', 'n': 1})
    unread = Envelope(body=b'?', content_type='application/x-unknown')
    put(url, queue, foreign, unread, typed)
    assert got.get(timeout=LONG) == (b'raw', {})
    assert got.get(timeout=LONG) == ({'a': 1}, {'k': 'v', 'n': 1})
    with pytest.raises(ValueError, match='already'):
        client.run('consume', queue, print)
    client.run('cancel_consume', queue)
    client.run('cancel_consume', 'never consumed')
    put(url, queue, foreign)
    assert [envelope.body for envelope in take(url, queue)] == [b'raw']


def test_a_message_is_acknowledged_after_its_callback_even_if_that_raised(face: Face, url: str, queue: str) -> None:
    got: SimpleQueue[Any] = SimpleQueue()

    def callback(value: Any, headers: Any) -> None:
        got.put(value)
        raise KeyError(value)

    with face.open(url) as client:
        client.run('consume', queue, callback)
        put(url, queue, Envelope(body=b'1'), Envelope(body=b'2'))
        # With a prefetch of 1, the second comes when the first has been acknowledged.
        assert [got.get(timeout=LONG) for _ in '12'] == [b'1', b'2']
        wait_until(lambda: ready_and_unacked(client) == 0, what='the last ack')
    put(url, queue, Envelope(body=b'3'))
    assert [envelope.body for envelope in take(url, queue)] == [b'3']


def ready_and_unacked(client: Client) -> int:
    """Return 0 when what the client holds has been acknowledged: calls are answered in order after acks."""
    client.get('echo')
    return 0


def test_a_consumer_may_be_given_up_before_it_has_begun(face: Face) -> None:
    with face.open('127.0.0.1', free_port()) as client:
        outcomes: SimpleQueue[BaseException | None] = SimpleQueue()

        def consume() -> None:
            try:
                client.run('consume', 'q', print)
            except BaseException as error:
                outcomes.put(error)
            else:
                outcomes.put(None)

        thread = threading.Thread(target=consume)
        thread.start()
        wait_until(lambda: client.raw._urls and thread.is_alive() and _is_consumed(client, 'q'), what='the consumer')
        client.run('cancel_consume', 'q')
        assert isinstance(outcomes.get(timeout=LONG), crew.ConnectionError)
        thread.join(LONG)


def _is_consumed(client: Client, queue: str) -> bool:
    raw = client.raw
    engine = getattr(raw, '_running', None) or getattr(getattr(raw, '_connection', None), '_engine', None)
    return engine is not None and queue in engine.consumers._consumers


DYING = {
    'asyncio': """
import asyncio
from crew.master.asyncio import Client
async def main():
    await Client(url).consume(queue, die)
    await asyncio.sleep(60)
asyncio.run(main())
""",
    'tornado': """
from tornado.ioloop import IOLoop
from crew.master.tornado import Client
Client(url).consume(queue, die)
IOLoop.current().start()
""",
    'threads': """
import time
from crew.master.threaded_client import Client
Client(url).consume(queue, die)
time.sleep(60)
""",
    'gevent': """
from gevent import monkey; monkey.patch_all()
import time
from crew.master.gevent import Client
Client(url).consume(queue, die)
time.sleep(60)
""",
    'twisted': """
from twisted.internet import reactor
from crew.master.twisted import Client
client = Client(url)
reactor.callWhenRunning(client.consume, queue, die)
reactor.run()
""",
}

DIE = """
import os, signal, sys
url, queue = sys.argv[1:]
def die(value, headers):
    print(value, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_message_whose_process_died_comes_again(url: str, queue: str) -> None:
    queues = {name: f'{queue}-{name}' for name in DYING}
    threads = Threads()
    with threads.open(url) as client:
        for name in queues.values():
            client.run('consume', name, print)
            client.run('cancel_consume', name)
    processes = {
        name: subprocess.Popen(
            [sys.executable, '-W', 'error', '-c', DIE + DYING[name], url, queues[name]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in queues
    }
    for name, process in processes.items():
        put(url, queues[name], Envelope(body=b'1'))
        output = process.communicate(timeout=LONG)[0]
        assert (process.returncode, output) == (-signal.SIGKILL, b"b'1'\n"), name
        assert [envelope.body for envelope in take(url, queues[name])] == [b'1'], name


# Connecting


def test_connecting_to_nobody_ends_in_time(face: Face) -> None:
    with face.open('127.0.0.1', free_port()) as client:
        began = time.monotonic()
        with pytest.raises(crew.ConnectionError, match=r'within 0\.5 s'):
            client.run('connect', timeout=0.5)
        assert 0.4 < time.monotonic() - began < 2


def test_a_wrong_password_is_told_to_whoever_waits(face: Face, broker: PrivateNode) -> None:
    with face.open('127.0.0.1', broker.port, password='wrong') as client:
        waiting = client.call('test')
        with pytest.raises(crew.BrokerRefused, match='user name or password'):
            client.run('connect')
        with pytest.raises(crew.BrokerRefused):
            waiting.result(LONG)
        with pytest.raises(crew.BrokerRefused):
            client.get('test')
        with pytest.raises(crew.BrokerRefused):
            client.run('publish', 'channel', 1)
        with pytest.raises(crew.BrokerRefused):
            client.run('subscribe', 'channel', print)
        with pytest.raises(crew.BrokerRefused):
            client.run('consume', 'queue', print)


@pytest.mark.parametrize('late', [False, True], ids=['in flight', 'waiting for a connection'])
def test_closing_fails_what_is_in_flight(face: Face, url: str, queue: str, late: bool) -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    with face.open(f'amqp://127.0.0.1:{free_port()}' if late else url, tasks=[queue]) as client:
        if not late:
            client.run('connect')
        outcome = client.call(queue)
        client.call(queue, callback=lambda *outcome: told.put(outcome))
        client.run('close')
        with pytest.raises(crew.ConnectionError, match='closed') as caught:
            outcome.result(LONG)
        assert caught.value.published is not late
        assert isinstance(told.get(timeout=LONG)[0], crew.ConnectionError)


@pytest.mark.parametrize('used', [True, False], ids=['used before', 'never used'])
def test_a_closed_client_says_so(face: Face, url: str, used: bool) -> None:
    client = face.client(url)
    if used:
        client.run('connect')
    client.run('close')
    client.run('close')
    for use in (
        lambda: client.get('test'),
        lambda: client.run('connect'),
        lambda: client.run('connect', timeout=0.5),
        lambda: client.run('publish', 'channel', 1),
        lambda: client.run('subscribe', 'channel', print),
        lambda: client.run('consume', 'queue', print),
    ):
        with pytest.raises(crew.ConnectionError, match='closed'):
            use()
    # What needs no connection is fine: it may be in somebody's finally.
    client.run('cancel', 'unknown')
    told: SimpleQueue[Any] = SimpleQueue()
    with contextlib.suppress(crew.ConnectionError):
        client.call('test', callback=lambda *outcome: told.put(outcome))
        assert isinstance(told.get(timeout=LONG)[0], crew.ConnectionError)
    client.run('close')


def test_what_waits_to_begin_ends_when_the_client_closes(face: Face) -> None:
    client = face.client('127.0.0.1', free_port())
    starts: list[Callable[[], Any]] = [
        lambda: client.run('connect'),
        lambda: client.run('publish', 'channel', 1),
        lambda: client.run('subscribe', 'channel', print),
        lambda: client.run('consume', 'queue', print),
    ]
    with ThreadPoolExecutor(len(starts)) as pool:
        waiting = [pool.submit(start) for start in starts]
        wait_until(lambda: _is_consumed(client, 'queue'), what='the last to have begun')
        client.run('close')
        for each in waiting:
            assert isinstance(each.exception(LONG), crew.ConnectionError)


def test_a_context_manager_connects_and_closes(face: Face, url: str) -> None:
    if isinstance(face, Twisted):
        assert not hasattr(face.module.Client, '__enter__')
        return
    client = face.client(url)

    def use() -> Any:
        with client.raw as entered:
            assert entered is client.raw
            return entered.call('test').wait()

    async def use_async() -> Any:
        async with client.raw as entered:
            assert entered is client.raw
            return await entered.call('test')

    if isinstance(face, Asyncio):
        import asyncio

        value = face.do(lambda: asyncio.ensure_future(use_async())).result(LONG)
    else:
        value = face.do(use).result(LONG)
    assert value == 'Wake up Neo.\n'
    with pytest.raises(crew.ConnectionError, match='closed'):
        client.get('test')


def test_its_repr_shows_no_password(face: Face) -> None:
    for options in ({'url': 'amqp://neo:secret@localhost'}, {'user': 'neo', 'password': 'secret'}):
        client = face.client(**options)
        assert repr(client.raw).startswith(f'<crew.master.{face.module.__name__.rpartition(".")[2]}.Client amqp://neo@')
        assert 'secret' not in repr(client.raw)


def test_several_addresses_are_tried_in_turn(face: Face, url: str) -> None:
    with face.open(url=[f'amqp://127.0.0.1:{free_port()}', url]) as client:
        began = time.monotonic()
        assert client.get('test') == 'Wake up Neo.\n'
        assert time.monotonic() - began < 5


def test_an_address_that_cannot_be_understood_is_told_at_once(face: Face) -> None:
    for options in (
        {'url': 'http://x'},
        {'url': []},
        {'url': 'amqp://h:badport'},
        {'accept': {'xml'}},
        {'tasks': ['']},
    ):
        with pytest.raises(ValueError):
            face.client(**options)


# Giving up


def test_a_call_that_waits_in_the_queue_is_given_up_unrun(
    alone: Client, url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has waited for long is asked about before it is run; here that is not long.
    monkeypatch.setattr(deliveries, 'FRESH', 0.05)
    outcome = alone.call(queue, 'given up')
    alone.cancel(outcome)
    with pytest.raises(alone.face.cancelled):
        outcome.result(LONG)
    began = time.time()
    wait_until(lambda: time.time() > began + 0.1, what='the call to be old')
    ran: list[str] = []
    with serving(url, **{queue: ran.append}):
        alone.get(queue, 'last')
    assert ran == ['last']


# Threads and forks


def test_many_threads_share_one_client(url: str) -> None:
    with Threads().open(url) as client:

        def use(thread: int) -> list[Any]:
            results = [client.raw.call('echo', [thread, number], set_cid=f'{thread}-{number}') for number in range(50)]
            with client.raw.parallel() as mc:
                for number in range(10):
                    mc.call('echo', number)
            assert mc.result(LONG) == list(range(10))
            return [result.wait(LONG) for result in results]

        with ThreadPoolExecutor(20) as pool:
            for thread, values in enumerate(pool.map(use, range(20))):
                assert values == [[thread, number] for number in range(50)]
        assert not client.raw._ids


def in_child(work: Callable[[], None]) -> int:
    """Fork; do something in the child, and return its exit code."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(code)
    os.close(write)
    ended: list[int] = []
    try:
        wait_until(lambda: ended.extend(os.waitpid(child, os.WNOHANG)) or ended[-2], what='the end of the child')
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        print(os.read(read, 4096).decode())
        os.close(read)
    return os.waitstatus_to_exitcode(ended[-1])


@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')
def test_a_client_that_was_used_before_a_fork_works_on_both_sides(url: str, queue: str) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    with Threads().open(url) as client:
        client.run('subscribe', queue, heard.put)
        running = client.call('sleep', 0.3, set_cid='mine')

        def use() -> None:
            assert client.raw.call('echo', 'child', set_cid='mine').wait(LONG) == 'child'
            mine: SimpleQueue[Any] = SimpleQueue()
            client.raw.subscribe(queue, mine.put)
            client.raw.publish(queue, 'from the child')
            assert mine.get(timeout=LONG) == 'from the child'
            # The parent's callbacks are the parent's.
            assert heard.empty()
            client.raw.close()

        assert in_child(use) == 0
        assert running.result(LONG) == 0.3
        assert heard.get(timeout=LONG) == 'from the child'
        assert client.get('echo', 'parent') == 'parent'


@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')
def test_a_fork_while_other_threads_call_does_not_hang(url: str) -> None:
    with Threads().open(url) as client:
        done = threading.Event()

        def call_on() -> None:
            while not done.is_set():
                client.raw.parallel().call('echo', 1)
                client.raw.call('echo', 1, set_cid=f'{threading.get_ident()}-{random.random()}').wait(LONG)

        threads = [threading.Thread(target=call_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert in_child(lambda: client.raw.call('echo', 2, set_cid='child').wait(LONG)) == 0
        finally:
            done.set()
            for thread in threads:
                thread.join(LONG)


def test_a_gevent_program_may_wait_for_nothing_but_a_callback(url: str) -> None:
    run_program(
        """
import gevent.event
from crew.master.gevent import Client
client, called = Client(url), gevent.event.AsyncResult()
client.call('echo', 1, lambda value, headers: called.set(value))
print(called.get(timeout=None))
client.close()
""",
        url,
        '1\n',
    )


def test_a_patched_gevent_program_calls_from_many_greenlets(url: str) -> None:
    run_program(
        """
from gevent import monkey; monkey.patch_all()
import gevent
from crew.master.gevent import Client
with Client(url) as client:
    def call(number):
        return client.call('echo', number, set_cid=number).get()
    print(sum(job.get() for job in [gevent.spawn(call, number) for number in range(300)]))
    heard = gevent.event.AsyncResult()
    client.subscribe('greenlets', heard.set)
    client.publish('greenlets', 'heard')
    print(heard.get())
""",
        url,
        f'{sum(range(300))}\nheard\n',
    )


def test_a_tornado_program_may_use_its_client_before_the_loop_runs(url: str) -> None:
    program = """
import asyncio
from tornado.ioloop import IOLoop
from crew.master.tornado import Client
client = Client(url)
connected = client.connect()
subscribed = client.subscribe('early', lambda value: heard.append(value))
heard = []
early = client.call('echo', 'early')
async def main():
    assert not subscribed.done()
    await connected
    await subscribed
    print(await early, await client.call('echo', 'late'))
    await client.publish('early', 1)
    while not heard:
        await asyncio.sleep(0.01)
    await client.close()
"""
    run_program(program + 'IOLoop.current().run_sync(main)', url, 'early late\n')


def test_a_tornado_client_may_find_another_loop_than_it_expected(url: str) -> None:
    program = """
import asyncio
from crew.master.tornado import Client
client, heard = Client(url), []
client.subscribe('other', heard.append)
async def main():
    await client.connect()
    while not heard:
        await client.publish('other', 1)
        await asyncio.sleep(0.01)
    print(await client.call('echo', 'x'))
    await client.close()
asyncio.run(main())
"""
    run_program(program, url, 'x\n', warnings='default')


def test_an_asyncio_client_may_be_used_by_one_loop_after_the_other(url: str) -> None:
    program = """
import asyncio
from crew.master.asyncio import Client
client = Client(url)
async def main():
    print(await client.call('echo', 'x', set_cid='same'))
    client.call('sleep', 0.1, set_cid='left behind').add_done_callback(lambda left: left.exception())
asyncio.run(main())
asyncio.run(main())
async def last():
    print(await client.call('echo', 'y', set_cid='left behind'))
    await client.close()
asyncio.run(last())
asyncio.run(client_closes())
""".replace('asyncio.run(client_closes())', 'async def again():\n    await client.close()\nasyncio.run(again())')
    run_program(program, url, 'x\nx\ny\n', warnings='default')


def test_a_script_that_ends_sends_what_it_has_published(url: str, queue: str) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    with Threads().open(url) as client:
        client.run('subscribe', queue, heard.put)
        program = f'from crew.master.threaded_client import Client\nClient(url).publish({queue!r}, 5)'
        run_program(program, url, '')
        assert heard.get(timeout=LONG) == 5


def run_program(program: str, url: str, output: str, warnings: str = 'error') -> None:
    """Run a program as a person would; compare all that it writes."""
    command = [sys.executable, '-W', warnings, '-c', f'import sys\nurl = sys.argv[1]\n{program}', url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, '')
