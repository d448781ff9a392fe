"""docs/security.md: each role works with just the permissions that stand there, and can do nothing else."""

import concurrent.futures
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from crew import codec, topology
from crew.exceptions import BrokerRefused, ExpirationError
from crew.master.threaded_client import Client
from crew.messages import Call
from crew.private_node import PrivateNode
from tests.rpc import Script
from tests.stack import Front, Stack, Worker
from tests.waiting import wait_until

TEXT = (Path(__file__).parent.parent / 'docs' / 'security.md').read_text(encoding='utf-8')
SECTION = TEXT.partition('## The least permissions\n')[2].partition('\n## ')[0]
COMMANDS = [shlex.split(line) for line in re.findall(r'^rabbitmqctl (.*)$', SECTION, re.MULTILINE)]
VHOST = 'shop'
PASSWORD = 'p4ss'
ROLES = ('operator', 'front', 'worker', 'client')

#: Those who do more, by what the table in the document calls them.
MORE = {
    'greeter': 'a worker of the task `greet`',
    'herald': 'the same, when its tasks publish',
    'publisher': 'a client that publishes',
    'subscriber': 'a client that subscribes',
    'taker': 'a client that consumes `orders`, which the operator has declared',
    'deaf': 'a client that must not hear what expired for others',
}


def permissions(who: str) -> list[str]:
    """Return configure, write and read of a row of the table."""
    (row,) = re.findall(rf'^\| {re.escape(who)} \| (.*) \|$', SECTION, re.MULTILINE)
    return [cell.strip('` ').replace('\\|', '|') for cell in re.split(r' \| ', row)]


@dataclass(frozen=True)
class Shop:
    """A virtual host with the users of the document, in which the operator has declared what is shared."""

    node: PrivateNode

    def url(self, user: str) -> str:
        return f'amqp://{user}:{PASSWORD}@127.0.0.1:{self.node.port}/{VHOST}'

    def ctl(self, command: str, *arguments: str) -> str:
        return self.node.ctl(command, '-p', VHOST, *arguments)

    def users(self, granted: dict[str, Sequence[str]]) -> None:
        """Make users by their configure, write and read; in one go, for each rabbitmqctl takes a second and more."""
        vhost, acting = binary(VHOST), binary('test')
        users = [
            f'rabbit_auth_backend_internal:add_user({binary(name)}, {binary(PASSWORD)}, {acting})' for name in granted
        ]
        permissions = [
            f'rabbit_auth_backend_internal:set_permissions({", ".join([binary(name), vhost, *what, acting])})'
            for name, what in ((name, [*map(binary, regexes)]) for name, regexes in granted.items() if regexes)
        ]
        self.node.ctl('eval', ', '.join([*users, *permissions, 'ok.']))


def binary(text: str) -> str:
    """Return a string as Erlang writes it."""
    escaped = text.replace('\\', '\\\\')
    return f'<<"{escaped}">>'


@pytest.fixture(scope='module')
def shop(broker: PrivateNode) -> Iterator[Shop]:
    """Made by the document's own commands."""
    shop = Shop(broker)
    users = [command[1] for command in COMMANDS if command[0] == 'add_user']
    granted = [command for command in COMMANDS if command[0] == 'set_permissions']
    assert users == [command[3] for command in granted] == [f'shop-{role}' for role in ROLES]
    broker.ctl('add_vhost', VHOST)
    shop.users({**{name: () for name in users}, **{name: permissions(who) for name, who in MORE.items()}})
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: broker.ctl(*command), granted))
    done = declared(shop.url('shop-operator'), '--queue', 'wsgi', '--queue', 'greet')
    assert (done.returncode, done.stderr) == (0, '')
    yield shop
    broker.ctl('delete_vhost', VHOST)


def declared(url: str, *arguments: str) -> 'subprocess.CompletedProcess[str]':
    command = [sys.executable, '-m', 'crew.declare', '--amqp-url', url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


class Bridge:
    """Fronts and workers, each side with a user of its own."""

    def __init__(self, shop: Shop, directory: Path) -> None:
        self._fronts = Stack(shop.url('shop-front'), 'wsgi', directory)
        (directory / 'workers').mkdir()
        self._workers = Stack(shop.url('shop-worker'), 'wsgi', directory / 'workers')

    def front(self, *arguments: str) -> Front:
        return self._fronts.front(*arguments)

    def worker(self, app: str, *arguments: str) -> Worker:
        return self._workers.worker(app, *arguments)

    def close(self) -> None:
        self._fronts.close()
        self._workers.close()


@pytest.fixture(scope='module')
def bridge(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    bridge = Bridge(shop, tmp_path_factory.mktemp('bridge'))
    yield bridge
    bridge.close()


@pytest.fixture(scope='module')
def pair(bridge: Bridge) -> tuple[Front, Worker]:
    """A front and a worker that serve."""
    front, worker = bridge.front('-v'), bridge.worker('faults:app', '-v')
    return front.await_ready(), worker.await_ready()


@pytest.fixture(scope='module')
def greeter(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """A worker of the task ``greet``, which publishes what it was told."""
    directory = tmp_path_factory.mktemp('greeter')
    script = directory / 'greeter.py'
    script.write_text(
        'from crew.worker import Task, context, run\n\n\n'
        "@Task('greet')\ndef greet(name):\n"
        "    if name == 'all':\n        context.pubsub.publish('news', name)\n"
        "    return f'Hello {name}'\n\n\nrun()\n"
    )
    process = Script(script, [], directory / 'log', {'CREW_AMQP_URL': shop.url('herald')})
    process.await_ready()
    yield process
    process.kill()


@pytest.fixture
def client(shop: Shop) -> Iterator[Callable[[str], Client]]:
    """Makes connected clients."""
    made: list[Client] = []

    def make(user: str, **options: Any) -> Client:
        made.append(Client(shop.url(user), tasks=['greet'], **options))
        made[-1].connect()
        return made[-1]

    yield make
    for each in made:
        each.close()


# What each may


def test_front_and_worker_serve_and_come_back(shop: Shop, pair: tuple[Front, Worker]) -> None:
    front, worker = pair
    assert front.get('/').status == 200
    before = [process.text.count('connected to the broker') for process in pair]
    shop.ctl('close_all_connections', 'test')
    for process, count in zip(pair, before, strict=True):
        wait_until(lambda process=process, count=count: process.text.count('connected to the broker') > count, 30)  # type: ignore[misc]
    assert front.get('/').status == 200
    assert front.request('POST', '/', b'x' * 300_000).status == 200
    for process in front, worker:
        assert 'not declared here, but it is there: crew.tasks.wsgi' in process.text
        # Nothing of that is worth a line to who has not asked for details.
        assert not re.search('(WARNING|ERROR).*(ACCESS_REFUSED|refuse)', process.text)


def test_a_request_whose_worker_dies_runs_again(bridge: Bridge, pair: tuple[Front, Worker]) -> None:
    front, _ = pair
    # The last line of its log before it is gone.
    assert front.get('/die').status == 502
    assert front.get('/').status == 200


def test_what_expires_comes_back_to_a_front(shop: Shop, tmp_path: Path) -> None:
    fronts = Stack(shop.url('shop-front'), 'nobody', tmp_path)
    try:
        assert declared(shop.url('shop-operator'), '--queue', 'nobody').returncode == 0
        front = fronts.front('--queue-timeout', '0.2').await_ready()
        # A POST is 503 only if a dead letter has said that it did not run.
        assert front.request('POST', '/').status == 503
    finally:
        fronts.close()


def test_a_client_calls(client: Callable[..., Client], greeter: Script) -> None:
    assert client('shop-client').call('greet', 'Neo', expiration=10).wait(10) == 'Hello Neo'


def test_a_worker_of_tasks_that_do_not_publish(shop: Shop, tmp_path: Path, client: Callable[..., Client]) -> None:
    script = tmp_path / 'plain.py'
    script.write_text(
        "from crew.worker import Task, run\n\n\n@Task('greet')\ndef greet(name):\n    return name\n\n\nrun()\n"
    )
    worker = Script(script, [], tmp_path / 'log', {'CREW_AMQP_URL': shop.url('greeter')})
    try:
        worker.await_ready()
    finally:
        worker.kill()


def test_tasks_and_clients_publish_to_subscribers(client: Callable[..., Client], greeter: Script) -> None:
    subscriber, heard = client('subscriber'), SimpleQueue[str]()
    subscriber.subscribe('news', heard.put)
    client('publisher').publish('news', 'extra')
    assert heard.get(timeout=10) == 'extra'
    subscriber.call('greet', 'all', expiration=10).wait(10)
    assert heard.get(timeout=10) == 'all'


def test_a_client_consumes_a_queue_of_others(shop: Shop, client: Callable[..., Client]) -> None:
    shop.users({'shopkeeper': ['^orders$', '^amq.default$', '^$']})
    with as_user(shop, 'shopkeeper') as channel:
        channel.queue_declare('orders', durable=True, arguments={'x-queue-type': 'classic'})
        channel.basic_publish('', 'orders', b'1')
    taken = SimpleQueue[Any]()
    client('taker').consume('orders', taken.put)
    assert taken.get(timeout=10) == b'1'


def test_a_client_that_hears_no_dead_letters_learns_by_its_own_clock(
    client: Callable[..., Client], shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    declared(shop.url('shop-operator'), '--queue', 'nobody')
    deaf = client('deaf')
    assert "told by our own clock, a second later: 403 ACCESS_REFUSED - access to exchange 'crew.DLX'" in caplog.text
    with pytest.raises(ExpirationError) as expired:
        deaf.call('nobody', expiration=0.2).wait(10)
    assert expired.value.time is None
    with pytest.raises(ExpirationError) as expired:
        client('shop-client').call('nobody', expiration=0.2).wait(10)
    assert expired.value.time is not None


# What nobody may


def as_user(shop: Shop, user: str) -> Any:
    """Return a connected channel of pika's own, as a context."""

    class Channel:
        def __enter__(self) -> BlockingChannel:
            self._connection = pika.BlockingConnection(pika.URLParameters(shop.url(user)))
            return self._connection.channel()

        def __exit__(self, *_: object) -> None:
            self._connection.close()

    return Channel()


def binding_of(name: str) -> dict[str, Any]:
    """Return the binding that a queue has. (Of one that it has not RabbitMQ says that it is gone.)"""
    if name.startswith('crew.subscribe.'):
        return {'exchange': 'crew.PUBSUB', 'arguments': {'x-match': 'all', 'crew-channel': 'news'}}
    return {'exchange': 'crew.DLX', 'arguments': {'x-match': 'all', 'crew-reply': name}}


#: What can be asked of a queue. Each gets a channel and the queue's name.
OF_A_QUEUE: dict[str, Callable[[BlockingChannel, str], object]] = {
    'consume': lambda channel, name: channel.basic_consume(name, lambda *_: None),
    'get': lambda channel, name: channel.basic_get(name),
    'purge': lambda channel, name: channel.queue_purge(name),
    'delete': lambda channel, name: channel.queue_delete(name),
    'declare': lambda channel, name: channel.queue_declare(name, durable=True),
    'bind': lambda channel, name: channel.queue_bind(name, 'crew.DLX', arguments={'x-match': 'all'}),
    'bind to hear publications': lambda channel, name: channel.queue_bind(name, 'crew.PUBSUB'),
    'unbind': lambda channel, name: channel.queue_unbind(name, **binding_of(name)),
}

#: What can be asked of the broker beside.
OF_THE_BROKER: dict[str, Callable[[BlockingChannel], object]] = {
    'delete crew.DLX': lambda channel: channel.exchange_delete('crew.DLX'),
    'delete crew.PUBSUB': lambda channel: channel.exchange_delete('crew.PUBSUB'),
    'declare an exchange': lambda channel: channel.exchange_declare('crew.other'),
    'bind exchanges': lambda channel: channel.exchange_bind('crew.PUBSUB', 'crew.DLX'),
    'declare a queue': lambda channel: channel.queue_declare('other', durable=True),
    'declare a task queue': lambda channel: channel.queue_declare('crew.tasks.other', durable=True),
    'publish dead letters': lambda channel: published(channel, 'crew.DLX'),
    'publish': lambda channel: published(channel, 'crew.PUBSUB'),
}

#: A worker may purge its own queue, for that needs what consuming needs.
ITS_OWN = {'consume', 'get', 'purge'}


def published(channel: BlockingChannel, exchange: str) -> None:
    channel.confirm_delivery()
    channel.basic_publish(exchange, '', b'')


def refusal(shop: Shop, user: str, act: Callable[[BlockingChannel], object]) -> int:
    """Return the code with which the broker refuses; 0 if it does not."""
    with as_user(shop, user) as channel:
        try:
            act(channel)
        except ChannelClosedByBroker as error:
            return error.reply_code
        return 0


@pytest.fixture(scope='module')
def queues(shop: Shop, pair: tuple[Front, Worker], greeter: Script) -> Iterator[list[str]]:
    """A reply queue, an inbox, a subscriber's queue and two shared ones, all in use."""
    with Client(shop.url('subscriber')) as subscriber:
        subscriber.subscribe('news', lambda value: None)
        names = shop.ctl('list_queues', '--no-table-headers', 'name').split()
        kinds = [f'crew.{kind}.' for kind in ('master', 'worker', 'subscribe')]
        yield [
            *(next(name for name in names if name.startswith(kind)) for kind in kinds),
            *(f'crew.tasks.{task}' for task in ('wsgi', 'greet')),
        ]


@pytest.mark.parametrize('user', ['shop-front', 'shop-worker', 'shop-client', *MORE])
def test_nobody_can_touch_what_is_not_his(shop: Shop, user: str, queues: list[str]) -> None:
    own = {'shop-worker': 'wsgi', 'greeter': 'greet', 'herald': 'greet'}.get(user)
    done = {
        (name, action): refusal(shop, user, lambda channel, act=act, name=name: act(channel, name))  # type: ignore[misc]
        for name in queues
        for action, act in OF_A_QUEUE.items()
    }
    allowed = {(f'crew.tasks.{own}', action) for action in ITS_OWN if own}
    assert {where for where, code in done.items() if code == 0} == allowed
    # 405 is RESOURCE_LOCKED: it is exclusive to another connection.
    assert {code for where, code in done.items() if where not in allowed} <= {403, 405}


@pytest.mark.parametrize('user', ['shop-front', 'shop-worker', 'shop-client', *MORE])
def test_nobody_can_change_what_is_shared(shop: Shop, user: str) -> None:
    done = {action for action, act in OF_THE_BROKER.items() if refusal(shop, user, act) != 403}
    assert done == ({'publish'} if user in ('herald', 'publisher') else set())


def test_a_user_of_the_same_name_is_locked_out_too(shop: Shop, pair: tuple[Front, Worker], queues: list[str]) -> None:
    front, _ = pair
    for act in OF_A_QUEUE.values():
        code = refusal(shop, 'shop-front', lambda channel, act=act: act(channel, queues[0]))  # type: ignore[misc]
        assert code in (403, 405)
    assert front.get('/').status == 200


# What is left, as the document says


def test_who_may_read_dead_letters_may_overhear_those_of_others(shop: Shop, client: Callable[..., Client]) -> None:
    declared(shop.url('shop-operator'), '--queue', 'nobody')
    with as_user(shop, 'shop-client') as channel:
        name = channel.queue_declare('crew.master.listening', exclusive=True).method.queue
        channel.queue_bind(name, 'crew.DLX', arguments={'x-match': 'all'})
        with pytest.raises(ExpirationError):
            client('deaf').call('nobody', 'private', expiration=0.1).wait(10)
        wait_until(lambda: channel.queue_declare(name, passive=True).method.message_count)
        assert channel.basic_get(name, auto_ack=True)[2] == b'"private"'

    # And who may not read them cannot.
    def bind(channel: BlockingChannel) -> None:
        channel.queue_declare('crew.master.listening', exclusive=True)
        channel.queue_bind('crew.master.listening', 'crew.DLX', arguments={'x-match': 'all'})

    assert refusal(shop, 'deaf', bind) == 403


def test_everybody_may_ask_whether_a_queue_is_there(shop: Shop) -> None:
    assert refusal(shop, 'shop-client', lambda channel: channel.queue_declare('crew.tasks.wsgi', passive=True)) == 0


def test_who_may_publish_may_call_every_task(
    shop: Shop, pair: tuple[Front, Worker], client: Callable[..., Client]
) -> None:
    """So applications that do not trust each other get virtual hosts of their own."""
    _, worker = pair
    call = codec.encode(Call(correlation_id='forged', reply_to='nobody', body=b''))
    with as_user(shop, 'shop-client') as channel:
        properties = pika.BasicProperties(type='call', correlation_id='forged', headers=dict(call.headers))
        channel.basic_publish('', 'crew.tasks.wsgi', b'', properties)
        worker.await_log('forged')


# What the operator limits


def test_beyond_the_length_of_a_policy_the_oldest_hears_at_once(shop: Shop, tmp_path: Path) -> None:
    limits = [command for command in COMMANDS if command[0] in ('set_policy', 'set_user_limits', 'set_vhost_limits')]
    assert len(limits) == 3
    for command in limits:
        shop.node.ctl(*(word.replace('{"max-length": 10000}', '{"max-length": 1}') for word in command))
    declared(shop.url('shop-operator'), '--queue', 'nobody')
    fronts = Stack(shop.url('shop-front'), 'nobody', tmp_path)
    try:
        front = fronts.front('--queue-timeout', '60').await_ready()
        oldest = front.later('POST', '/')
        with pytest.raises(concurrent.futures.TimeoutError):
            oldest.result(0.5)
        front.later('POST', '/')
        assert oldest.result(15).status == 503
    finally:
        fronts.close()
        shop.ctl('clear_policy', 'crew-tasks')


# Who is told what is missing


@pytest.mark.parametrize(
    ('name', 'configure', 'write', 'read', 'said'),
    [
        (
            'no-configure',
            '^$',
            '^(amq.default|crew.master)',
            '.*',
            "queue 'crew.master.* give this user configure there",
        ),
        ('no-read', '^crew.master', '.*', '^crew.DLX$', "queue 'crew.master.* give this user read there"),
    ],
)
def test_a_front_says_what_it_may_not(
    shop: Shop, tmp_path: Path, name: str, configure: str, write: str, read: str, said: str
) -> None:
    shop.users({name: [configure, write, read]})
    fronts = Stack(shop.url(name), 'wsgi', tmp_path)
    try:
        front = fronts.front()
        assert front.wait() == 2
        (line,) = [line for line in front.text.splitlines() if 'listening' not in line]
        assert re.search(f'^crew-wsgi-front: 403 ACCESS_REFUSED - access to {said}', line), line
    finally:
        fronts.close()


def test_a_worker_says_that_it_may_not_consume(shop: Shop, tmp_path: Path) -> None:
    workers = Stack(shop.url('greeter'), 'wsgi', tmp_path)
    try:
        worker = workers.worker('basic:hello')
        assert worker.wait() == 2
        assert re.search(
            "403 ACCESS_REFUSED - access to queue 'crew.tasks.wsgi' .* give this user read there", worker.text
        )
        assert worker.text.count('ACCESS_REFUSED') <= 2
    finally:
        workers.close()


@pytest.mark.parametrize('role', ['front', 'worker'])
def test_what_nobody_has_declared_is_said_in_one_line(shop: Shop, tmp_path: Path, role: str) -> None:
    stack = Stack(shop.url(f'shop-{role}'), 'undeclared', tmp_path)
    try:
        process: Any = stack.front() if role == 'front' else stack.worker('basic:hello')
        assert process.wait() == 2
        assert re.search(
            'there is no queue crew.tasks.undeclared at the broker, and this user may not declare it: run crew-declare',
            process.text,
        )
    finally:
        stack.close()
    done = declared(shop.url(f'shop-{role}'), '--queue', 'undeclared')
    assert (done.returncode, done.stdout) == (2, '')
    assert len(done.stderr.splitlines()) == 1


def test_a_client_that_may_not_publish_or_subscribe_goes_on_calling(
    client: Callable[..., Client], greeter: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caller = client('shop-client')
    caplog.set_level(logging.WARNING, 'crew')
    with pytest.raises(BrokerRefused, match=r"exchange 'crew.PUBSUB'.* give this user write there"):
        caller.publish('news', 'x')
    with pytest.raises(BrokerRefused, match=r"queue 'crew.subscribe.*give this user configure there"):
        caller.subscribe('news', lambda value: None)
    with pytest.raises(BrokerRefused, match=r"queue 'orders'.* give this user read there"):
        caller.consume('orders', lambda value: None)
    assert caller.call('greet', 'Neo', expiration=10).wait(10) == 'Hello Neo'
    assert 'lost' not in caplog.text


def test_a_front_that_may_not_publish_names_the_permission(shop: Shop, tmp_path: Path) -> None:
    shop.users({'mute': ['^crew.master', '^crew.master', '^crew']})
    fronts = Stack(shop.url('mute'), 'wsgi', tmp_path)
    try:
        front = fronts.front().await_ready()
        assert front.request('POST', '/').status == 502
        front.await_log("access to exchange 'amq.default' .* give this user write there with rabbitmqctl")
    finally:
        fronts.close()


def test_topology_names_what_the_permissions_are_for() -> None:
    """Another name in the code would need other permissions."""
    names = [topology.reply_queue().name, topology.inbox().name, topology.subscriber_queue().name]
    assert [name.rpartition('.')[0] for name in names] == ['crew.master', 'crew.worker', 'crew.subscribe']
