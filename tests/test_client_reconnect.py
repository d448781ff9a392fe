"""The broker dies, cuts connections, raises alarms and comes back: what callers hear of it, and what comes back."""

import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

import crew
from crew.envelope import Envelope
from crew.private_node import PrivateNode
from tests.conftest import _started_node
from tests.faces import Asyncio, Client, Face, Threads, put, serving
from tests.waiting import wait_until

#: A broker needs some seconds to come back, and clients try again ever less often meanwhile.
BACK = 40.0


@pytest.fixture(scope='module')
def own_node() -> Iterator[PrivateNode]:
    """A broker for these tests alone."""
    yield from _started_node()


@pytest.fixture
def node(own_node: PrivateNode) -> Iterator[PrivateNode]:
    """It runs when a test begins; the test may break it."""
    own_node.start()
    yield own_node
    if own_node.alive():
        own_node.ctl('set_vm_memory_high_watermark', '0.6')


@pytest.fixture
def faces() -> Iterator[list[Face]]:
    """A client with the caller's loop, and one with a thread of its own."""
    faces: list[Face] = [Asyncio(), Threads()]
    for face in faces:
        face.start()
    yield faces
    for face in faces:
        face.stop()


@pytest.fixture
def clients(faces: list[Face], node: PrivateNode, queue: str) -> Iterator[list[Client]]:
    """One connected client of each, which have declared the queue of a task for which there is no worker."""
    clients = [face.client(node.url, tasks=[queue]) for face in faces]
    for client in clients:
        client.run('connect')
    yield clients
    for client in clients:
        client.run('close')


@pytest.mark.parametrize('broken', ['killed', 'cut'])
def test_what_is_in_flight_fails_at_once_and_all_else_comes_back(
    clients: list[Client], node: PrivateNode, queue: str, broken: str
) -> None:
    heard: SimpleQueue[tuple[Client, Any]] = SimpleQueue()
    for number, client in enumerate(clients):
        client.run('subscribe', 'news', lambda value, client=client: heard.put((client, value)))
        client.run(
            'consume', f'{queue}-{number}', lambda value, headers, client=client: heard.put((client, bytes(value)))
        )
    in_flight = [client.call(queue) for client in clients]
    for client in clients:
        client.run('publish', 'unheard', None)  # confirmed after the call was sent

    if broken == 'killed':
        began = time.monotonic()
        node.kill()
    else:
        node.ctl('close_all_connections', 'a test')
        began = time.monotonic()
    for outcome in in_flight:
        error = outcome.exception(10)
        assert time.monotonic() - began < 2
        assert isinstance(error, crew.ConnectionError)
        assert error.published

    # Made while there is no connection, answered when there is one again, in time or not at all.
    waiting = [client.call(queue, number, expiration=60) for number, client in enumerate(clients)]
    node.start()
    with serving(node.url, **{queue: lambda value: value}):
        assert [outcome.result(BACK) for outcome in waiting] == [0, 1]
    for number, client in enumerate(clients):
        client.run('connect')
        put(node.url, f'{queue}-{number}', Envelope(body=b'consumed'))
        assert heard.get(timeout=BACK) == (client, b'consumed')
    # The connection is in use only when subscriptions are in place again.
    clients[0].run('publish', 'news', 'published')
    got = [heard.get(timeout=BACK) for _ in clients]
    assert sorted(got, key=lambda each: clients.index(each[0])) == [(client, 'published') for client in clients]


def test_a_call_expires_unconnected_when_the_broker_does_not_come_back(
    clients: list[Client], node: PrivateNode, queue: str
) -> None:
    node.kill()
    for client in clients:
        # Calls made before the loss is noticed are lost with the connection.
        wait_until(lambda client=client: _is_unconnected(client), what='the loss to be noticed')
    began = time.monotonic()
    outcomes = [client.call(queue, expiration=0.5) for client in clients]
    for outcome in outcomes:
        error = outcome.exception(10)
        assert isinstance(error, crew.ExpirationError)
        assert (error.reason, error.expiration, error.time) == ('unconnected', 0.5, None)
    assert 0.4 < time.monotonic() - began < 2
    for client in clients:
        with pytest.raises(crew.ConnectionError, match=r'within 0\.2 s'):
            client.run('publish', 'channel', 1, timeout=0.2)
        with pytest.raises(crew.ConnectionError, match=r'within 0\.2 s'):
            client.run('connect', timeout=0.2)


def _is_unconnected(client: Client) -> bool:
    try:
        client.run('connect', timeout=0.05)
    except crew.ConnectionError:
        return True
    return False


def test_a_brokers_alarm_blocks_calls_at_once_and_its_end_frees_them(
    clients: list[Client], node: PrivateNode, queue: str
) -> None:
    with serving(node.url, **{queue: lambda value: value}):
        assert [client.get(queue, 1) for client in clients] == [1, 1]
        node.ctl('set_vm_memory_high_watermark', '0')
        # The broker tells a client only when that sends something, which then waits in the socket.
        waiting = [client.call(queue, 2, expiration=60) for client in clients]
        for client in clients:
            wait_until(lambda client=client: _is_blocked(client, queue), what='the client to be told')
            began = time.monotonic()
            with pytest.raises(crew.Blocked, match='alarm'):
                client.get(queue, 3)
            with pytest.raises(crew.Blocked, match='alarm'):
                client.run('publish', 'channel', 1)
            assert time.monotonic() - began < 1
        node.ctl('set_vm_memory_high_watermark', '0.6')
        assert [outcome.result(10) for outcome in waiting] == [2, 2]
        for client in clients:
            wait_until(lambda client=client: not _is_blocked(client, queue), what='the end of the alarm')
            client.run('publish', 'channel', 1)


def _is_blocked(client: Client, queue: str) -> bool:
    outcome = client.call(queue, 'probe', expiration=60)
    try:
        outcome.result(0.2)
    except crew.Blocked:
        return True
    except TimeoutError:
        return False
    return False


def test_closing_does_not_wait_for_ever_for_a_broker_that_does_not_read(node: PrivateNode, faces: list[Face]) -> None:
    clients = [face.client(node.url) for face in faces]
    for client in clients:
        client.run('connect')
    node.ctl('set_vm_memory_high_watermark', '0')
    outcomes = [client.call('crew-nobody') for client in clients]
    began = time.monotonic()
    closing = clients[0].face.do(clients[0].raw.close)
    clients[1].run('close')
    closing.result(10)
    assert time.monotonic() - began < 8
    assert all(isinstance(outcome.exception(1), crew.ConnectionError) for outcome in outcomes)
