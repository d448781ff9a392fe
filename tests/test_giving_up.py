"""What is given up, or fails, while it is only being set up leaves nothing half made."""

import asyncio
import concurrent.futures
import errno
import gc
import re
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from tornado.ioloop import IOLoop

import crew
from crew.master import caller, own_thread, threaded_client, tornado
from crew.master.asyncio import Client
from crew.master.subscriptions import Subscriptions
from crew.testing import Worker
from crew.transports import memory, threads
from crew.transports.threads import LoopThread
from crew.worker.consumer import Settings
from crew.worker.deliveries import Terms
from crew.worker.in_process import InProcessWorker
from crew.worker.registry import Registered, Registry
from crew.worker.tasks import registered_task
from tests.waiting import wait_until

#: More turns of the loop than setting anything up takes.
TURNS = 20


@pytest.fixture
def url() -> str:
    """The address of a broker of this test's own."""
    return f'memory://{uuid4().hex}'


def connected(url: str, body: Callable[[Client], Awaitable[None]]) -> None:
    """Run a test body with a client."""

    async def run() -> None:
        async with Client(url) as client:
            await asyncio.wait_for(body(client), 10)

    asyncio.run(run())


async def pass_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.mark.parametrize('turns', range(TURNS))
def test_a_consumer_that_is_given_up_while_it_begins_does_not_begin(url: str, turns: int) -> None:
    async def body(client: Client) -> None:
        got: list[Any] = []
        begun = client.consume('things', lambda value, headers: got.append(value))
        await pass_turns(turns)
        await client.cancel_consume('things')
        await asyncio.gather(begun, return_exceptions=True)
        await pass_turns(TURNS)
        queues = memory.broker(url).queues()
        assert 'things' not in queues or queues['things'].consumers == 0

    connected(url, body)


def test_a_queue_that_cannot_be_consumed_costs_no_channel(url: str) -> None:
    async def body(client: Client) -> None:
        async with Client(url) as owner:
            private = owner._started().caller.reply_to
            connection: Any = client._started().caller._link.connection  # type: ignore[union-attr]
            before = len(connection._channels)
            with pytest.raises(crew.ConnectionError, match='LOCKED'):
                await client.consume(private, print)
            assert len(connection._channels) == before

    connected(url, body)


@pytest.mark.parametrize('turns', range(TURNS))
def test_a_subscription_that_is_given_up_while_it_is_made_is_not_made_twice(url: str, turns: int) -> None:
    async def body(client: Client) -> None:
        got: list[Any] = []
        given_up = client.subscribe('news', got.append)
        await pass_turns(turns)
        given_up.cancel()
        await client.subscribe('end', lambda value: got.append('end'))
        await client.publish('news', 1)
        await client.publish('end', None)
        await pass_turns(TURNS)
        assert got.count(1) <= 1
        assert sum(name.startswith('crew.subscribe.') for name in memory.broker(url).queues()) == 1

    connected(url, body)


@pytest.mark.parametrize('given_up', [False, True], ids=['waited for', 'given up'])
@pytest.mark.parametrize(
    'begin',
    [
        lambda client: client.consume('things', print),
        lambda client: client.publish('news', 1),
        lambda client: client.subscribe('news', print),
    ],
    ids=['consume', 'publish', 'subscribe'],
)
def test_what_begins_as_the_client_closes_is_no_complaint_of_the_loop(
    url: str, begin: Callable[[Client], 'asyncio.Future[None]'], given_up: bool
) -> None:
    complaints: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        for turns in range(3 * TURNS):
            client = Client(url)
            begun = begin(client)
            await pass_turns(turns)
            if given_up:
                begun.cancel()
            await client.close()
            await asyncio.gather(begun, return_exceptions=True)
            del begun
        # Said of what is collected.
        gc.collect()

    asyncio.run(run())
    assert complaints == []


def test_others_may_subscribe_while_a_client_starts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = threaded_client.Client(url)
    client._subscribers.update({'first': [print], 'second': [print]})
    add = Subscriptions.add

    def add_and_another(self: Subscriptions, channel: str) -> None:
        client._subscribers.setdefault('another', []).append(print)
        add(self, channel)

    monkeypatch.setattr(Subscriptions, 'add', add_and_another)
    client.connect(timeout=10)
    client.close()


def test_an_interrupt_while_something_is_posted_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, done = LoopThread('test'), threading.Event()
    thread.start()
    wait_until(lambda: thread._loop is not None and thread._loop.is_running())
    assert thread._bell is not None

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(thread._bell, 'ring', interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.post(lambda: None)
    thread.post(done.set)
    assert done.wait(10)
    thread.stop()
    assert thread.join(10)


@pytest.mark.parametrize('lacking', ['Bell', 'start_native'])
def test_a_client_whose_thread_could_not_start_says_so_and_tries_again(
    url: str, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread") if lacking == 'start_native' else OSError(errno.EMFILE, 'too many')

    client = threaded_client.Client(url)
    with monkeypatch.context() as patch:
        patch.setattr(threads, lacking, fail)
        with pytest.raises(crew.ConnectionError, match='cannot be started'):
            client.call('nobody').wait(10)
        with pytest.raises(crew.ConnectionError, match='cannot be started'):
            client.publish('news', 1)
    client.publish('news', 1)
    client.close()


def test_a_thread_that_could_not_start_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, 'too many')

    monkeypatch.setattr(threads, 'Bell', fail)
    thread = LoopThread('test')
    with pytest.raises(OSError, match='too many'):
        thread.start()
    assert thread.join(0)


def test_a_worker_that_cannot_start_leaves_no_thread_that_tries() -> None:
    before = set(threading.enumerate())
    settings = Settings(urls=['amqp://guest:guest@127.0.0.1:1/'], queues=[Terms('any')])
    worker = InProcessWorker(settings, registered_task(Registry(), SimpleNamespace(), frozenset()))
    with pytest.raises(concurrent.futures.TimeoutError):
        worker.start(timeout=0.1)
    assert 'crew-connection' not in {thread.name for thread in set(threading.enumerate()) - before}


def test_what_a_tornado_program_called_before_the_loop_ran_fails_if_it_closes_before() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        IOLoop.current()
        client = tornado.Client('memory://')
        called, published = client.call('nobody'), client.publish('news', 1)
        client.close()
        both = asyncio.gather(called, published, return_exceptions=True)
        outcomes = loop.run_until_complete(asyncio.wait_for(both, 10))
        assert [type(outcome) for outcome in outcomes] == [crew.ConnectionError] * 2
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_callback_that_exits_ends_neither_the_connection_nor_the_callbacks(url: str) -> None:
    def leave(*_: object) -> None:
        raise SystemExit

    heard: SimpleQueue[object] = SimpleQueue()
    client = threaded_client.Client(url, tasks=['nobody'])
    client.call('nobody', expiration=0.1).add_done_callback(leave)
    client.call('nobody', callback=leave, expiration=0.1)
    client.call('nobody', callback=lambda error, headers: heard.put(error), expiration=0.3)
    assert isinstance(heard.get(timeout=10), crew.ExpirationError)
    client.close()


def test_a_child_process_does_not_wait_for_what_its_parent_is_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned: Any = object()
    monkeypatch.setattr(own_thread, '_open', {abandoned})
    monkeypatch.setattr(own_thread, '_inherited', [])
    own_thread._inherit()
    assert (own_thread._open, own_thread._inherited) == (set(), [abandoned])


def test_who_gives_up_a_parallel_result_leaves_nobody_waiting(url: str) -> None:
    async def run() -> None:
        async with Client(url, tasks=['t']) as client:
            parallel = client.parallel()
            parallel.call('t')
            given_up, other = parallel.result(), parallel.result()
            given_up.cancel()
            [outcome] = await asyncio.wait_for(other, 10)
            assert isinstance(outcome, crew.TaskError)

    asyncio.run(run())


def test_an_id_is_free_when_the_call_could_not_be_made(url: str) -> None:
    client = Client(url, tasks=['t'])
    with pytest.raises(RuntimeError, match='no running event loop'):
        client.call('t', set_cid='one')

    async def run() -> None:
        async with client:
            client.call('t', set_cid='one').cancel()

    asyncio.run(run())


def test_who_would_wait_for_the_connection_in_its_own_thread_is_told(url: str) -> None:
    told: SimpleQueue[object] = SimpleQueue()

    def call_back(result: object) -> None:
        try:
            client.subscribe('here', print)
        except RuntimeError as error:
            told.put(error)

    with threaded_client.Client(url, tasks=['nobody']) as client:
        # Not over before somebody is to be called back: that would happen in this thread.
        result = client.call('nobody', expiration=1)
        result.add_done_callback(call_back)
        assert isinstance(told.get(timeout=10), RuntimeError)


@pytest.mark.parametrize('waiting', ['wait', 'result', 'exception'])
def test_who_would_wait_for_a_result_in_the_connections_thread_is_told(url: str, waiting: str) -> None:
    told: SimpleQueue[Any] = SimpleQueue()

    def call_back(result: threaded_client.Result) -> None:
        with pytest.raises(crew.ExpirationError):
            result.wait()
        try:
            getattr(client.call('nobody', expiration=10), waiting)(1)
        except BaseException as error:
            told.put(error)

    with threaded_client.Client(url, tasks=['nobody']) as client:
        # Not over before somebody is to be called back: that would happen in this thread.
        client.call('nobody', expiration=1).add_done_callback(call_back)  # type: ignore[arg-type]
        error = told.get(timeout=10)
        assert isinstance(error, RuntimeError)
        assert 'use callback=' in str(error)


def test_an_id_that_is_used_again_brings_no_other_calls_value(url: str) -> None:
    entered, released = threading.Event(), threading.Event()
    tasks = Registry()

    def hold(value: Any) -> Any:
        entered.set()
        released.wait(10)
        return 'held'

    tasks.add(Registered('hold', hold, place='here'))

    def echo(value: Any) -> Any:
        released.wait(10)
        return value

    tasks.add(Registered('echo', echo, place='there'))
    with Worker(tasks, url=url, threads=2), threaded_client.Client(url) as client:
        first = client.call('hold', set_cid='one')
        assert entered.wait(10)
        first.cancel()
        second = client.call('echo', 'mine', set_cid='one')
        with pytest.raises(crew.DuplicateTaskId):
            client.call('echo', set_cid='one')
        released.set()
        assert second.wait(10) == 'mine'
        assert client.call('echo', 'again', set_cid='one').wait(10) == 'again'


def test_an_exchange_that_routes_nowhere_is_named(url: str) -> None:
    with threaded_client.Client(url) as client:
        client.subscribe('here', print)
        with pytest.raises(crew.Unroutable, match=r"'crew\.PUBSUB' has no queue bound"):
            client.call('t', exchange='crew.PUBSUB', routing_key='nowhere').wait(10)


def test_calls_through_an_exchange_wait_for_others_when_many_are_made_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, 'THROUGH_AT_ONCE', 3)

    async def body(client: Client) -> None:
        await client.publish('news', 'makes the exchange')
        connection: Any = client._started().caller._link.connection  # type: ignore[union-attr]
        before = most = len(connection._channels)
        calls = [client.call('t', exchange='crew.PUBSUB', routing_key='nowhere') for _ in range(20)]
        given_up = calls[10]
        given_up.cancel()
        while not all(call.done() for call in calls):
            most = max(most, len(connection._channels))
            await asyncio.sleep(0)
        assert most <= before + 3
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, crew.Unroutable) or calls[at] is given_up for at, outcome in enumerate(outcomes))

    connected(url, body)


@pytest.mark.parametrize(
    'wrong', [{'expiration': None}, {'expiration': '3'}, {'timeout': float('inf')}, {'headers': []}]
)
def test_a_wrong_argument_is_named(url: str, wrong: dict[str, Any]) -> None:
    with threaded_client.Client(url) as client, pytest.raises(ValueError, match=next(iter(wrong))):
        client.call('t', **wrong)


@pytest.mark.parametrize('name', ['expiration', 'timeout'])
def test_the_most_that_is_said_of_a_time_is_what_is_taken(url: str, name: str) -> None:
    with threaded_client.Client(url, tasks=['t']) as client:
        with pytest.raises(ValueError, match=f'{name} must be a positive number of seconds, at most') as caught:
            client.call('t', **{name: 2.0**32})
        most = int(re.findall('at most (.*),', str(caught.value))[0])
        with pytest.raises(ValueError, match=f'at most {most}, '):
            client.call('t', **{name: most + 0.5})
        client.call('t', **{name: most}).cancel()


def test_a_single_task_may_be_given_by_its_name(url: str) -> None:
    with threaded_client.Client(url, tasks='greet'):
        assert 'crew.tasks.greet' in memory.broker(url).queues()
