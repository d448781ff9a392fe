"""What the asyncio transport promises beyond the contract of ``tests/test_transport.py``: pika, sockets, addresses."""

import asyncio
import socket
import time
from random import Random
from threading import Thread
from typing import NoReturn

import pytest
from pika.adapters.utils.nbio_interface import AbstractStreamTransport

from crew import topology
from crew.envelope import Envelope
from crew.exceptions import BrokerRefused, ConnectionError
from crew.master.asyncio import Client
from crew.private_node import PrivateNode
from crew.transports import pulse
from crew.transports.addresses import safe_url
from crew.transports.asyncio import AsyncioConnection, dial
from crew.transports.base import Connection
from crew.transports.services import AsyncioServices
from crew.transports.session import Session
from tests.faults.proxy import Proxy, Way
from tests.test_transport import Inbox, connected, private_queue, shared_queue


def test_a_message_that_a_queue_does_not_take_is_told_with_where_it_was_to_go(amqp_url: str) -> None:
    async def body(connection: Connection) -> None:
        told: asyncio.Queue[tuple[Envelope, str, bool]] = asyncio.Queue()
        channel = await connection.open_channel(on_confirm=lambda *what: told.put_nowait(what))
        queue = await private_queue(channel, max_length=1, overflow='reject-publish')
        for number in range(3):
            channel.publish(Envelope(body=b'%d' % number), queue.name)
            envelope, routing_key, taken = await asyncio.wait_for(told.get(), 10)
            assert (envelope.body, routing_key, taken) == (b'%d' % number, queue.name, number == 0)

    connected(amqp_url, body)


def test_a_publication_that_the_broker_refuses_fails_no_other(amqp_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        full = await private_queue(channel, max_length=1, overflow='reject-publish')
        async with Client(amqp_url) as client:
            await client.publish('other', 'makes the exchange')
            await channel.declare(topology.subscription(full.name, queue))
            await client.publish(queue, 'fills it')
            publications = [client.publish(name, 1) for name in ('other', queue) * 10]
            outcomes = await asyncio.gather(*publications, return_exceptions=True)
        assert outcomes[::2] == [None] * 10
        assert all(isinstance(outcome, ConnectionError) and 'refused' in str(outcome) for outcome in outcomes[1::2])

    connected(amqp_url, body)


def test_a_broker_that_has_gone_silent_is_given_up(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, 'QUIET', 0.2)
    proxy = Proxy(amqp_url, Random(1))

    async def run() -> None:
        lost: asyncio.Queue[Exception] = asyncio.Queue()
        connection = await dial(proxy.url)
        connection.on_close = lost.put_nowait
        await connection.open_channel()
        await asyncio.sleep(1.0)
        assert lost.empty()  # it says nothing by itself, but answers
        proxy.set(back=Way(dead=True))
        reason = await asyncio.wait_for(lost.get(), 10)
        assert 'said nothing' in str(reason)

    try:
        asyncio.run(run())
    finally:
        proxy.close()


def test_a_broker_is_not_given_up_for_the_silence_of_our_own_loop(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, 'QUIET', 0.1)

    async def body(connection: Connection) -> None:
        lost: asyncio.Queue[Exception] = asyncio.Queue()
        connection.on_close = lost.put_nowait
        await connection.open_channel()
        for _ in range(6):
            asyncio.get_running_loop().call_soon(time.sleep, 0.3)
            await asyncio.sleep(0.01)
        assert lost.empty()

    connected(amqp_url, body)


def test_one_turn_of_the_loop_is_one_write(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(connection: Connection) -> None:
        assert isinstance(connection, AsyncioConnection)
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        stream = connection._pika._transport
        writes: list[bytes] = []
        write = stream._transport.write
        monkeypatch.setattr(stream._transport, 'write', lambda data: (writes.append(data), write(data)), raising=False)
        for _ in range(50):
            channel.publish(Envelope(body=b'x'), queue.name)
        for _ in range(50):
            await inbox.get()
        assert len(writes) == 1

    # asyncio's transports have slots in some versions; a wrapper then stands in their place.
    connected(amqp_url, body)


def test_the_acks_of_one_turn_are_one_frame_that_spares_what_is_held(amqp_url: str) -> None:
    async def body(connection: Connection) -> None:
        assert isinstance(connection, AsyncioConnection)
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put)
        for number in range(50):
            channel.publish(Envelope(body=b'%d' % number), queue.name)
        tags = [(await inbox.get()).tag for _ in range(50)]
        frames = connection._pika.frames_sent
        for tag in [*tags[:40], *tags[41:]]:
            channel.ack(tag)
        # Nothing is lost when the channel is closed in the same turn of the loop.
        await channel.close()
        # And what pika closes it with: its consumer is cancelled first.
        assert connection._pika.frames_sent == frames + 1 + 9 + 2
        again = Inbox()
        await (await connection.open_channel()).consume(queue.name, again.put)
        assert (await again.get()).envelope.body == b'40'
        assert again.empty

    connected(amqp_url, body)


def test_what_is_acknowledged_as_the_connection_closes_does_not_come_back(amqp_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        name = await shared_queue(channel, queue)
        await channel.consume(name, inbox.put)
        for _ in range(3):
            channel.publish(Envelope(), name)
        for tag in [(await inbox.get()).tag for _ in range(3)]:
            channel.ack(tag)

    async def look(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        channel.publish(Envelope(body=b'new'), f'crew.tasks.{queue}')
        await channel.consume(f'crew.tasks.{queue}', inbox.put)
        assert (await inbox.get()).envelope.body == b'new'

    connected(amqp_url, body)
    connected(amqp_url, look)


@pytest.mark.parametrize('wrong', ['amqp://guest:wrong@{}/%2F', 'amqp://guest:guest@{}/nowhere'])
def test_a_broker_that_refuses_says_so_without_the_password(broker: PrivateNode, wrong: str) -> None:
    with pytest.raises(BrokerRefused) as refused:
        asyncio.run(dial(wrong.format(f'127.0.0.1:{broker.port}')))
    assert 'wrong' not in str(refused.value)
    assert '127.0.0.1' in str(refused.value)


def test_a_limit_of_connections_may_be_over_soon(broker: PrivateNode) -> None:
    broker.ctl('add_vhost', 'full')
    try:
        broker.ctl('set_permissions', '--vhost', 'full', 'guest', '', '', '')
        broker.ctl('set_vhost_limits', '--vhost', 'full', '{"max-connections": 0}')
        with pytest.raises(ConnectionError, match=r'takes no more connections: connection limit \(0\) is reached'):
            asyncio.run(dial(broker.url.replace('%2F', 'full')))
    finally:
        broker.ctl('delete_vhost', 'full')


def test_a_connection_says_that_it_has_no_channel_left_and_goes_on(amqp_url: str) -> None:
    async def body(connection: Connection) -> None:
        channels = [await connection.open_channel() for _ in range(2)]
        with pytest.raises(ConnectionError, match='no channel is free: the connection has 2, and all are taken'):
            await connection.open_channel()
        await channels[0].close()
        await connection.open_channel()

    connected(f'{amqp_url}?channel_max=2', body)


def test_nobody_there_and_nobody_answering_are_connection_errors() -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectionError, match='no answer'):
            asyncio.run(dial(f'amqp://guest:guest@127.0.0.1:{port}/%2F', timeout=0.5))
    with pytest.raises(ConnectionError, match='refused'):
        asyncio.run(dial(f'amqp://guest:guest@127.0.0.1:{port}/%2F'))


def test_garbage_instead_of_amqp_is_a_connection_error() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n' * 10)
                while peer.recv(1000):
                    pass

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError):
            asyncio.run(dial(f'amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/%2F', timeout=1))
        thread.join(10)


def test_a_url_is_shown_without_its_password() -> None:
    assert safe_url('amqp://user:s3c@ret@host:1/%2F') == 'amqp://user@host:1/%2F'
    assert safe_url('amqp://host/') == 'amqp://host/'


def test_pika_is_told_of_no_loss_before_it_has_the_stream() -> None:
    told: list[str] = []
    over = asyncio.Event()

    def on_done(result: object) -> None:
        told.append('stream')

    class Protocol:
        def connection_made(self, stream: AbstractStreamTransport) -> None:
            told.append('made')
            stream.abort()

        def eof_received(self) -> bool:
            return False

        def connection_lost(self, reason: Exception | None) -> None:
            told.append('lost')
            over.set()

    async def scenario() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        services = AsyncioServices(asyncio.get_running_loop())
        with far:
            services.create_streaming_connection(Protocol, near, on_done)
            await asyncio.wait_for(over.wait(), 5)

    asyncio.run(scenario())
    assert told == ['made', 'stream', 'lost']


def test_a_session_that_is_closed_while_it_dials_ends_whatever_that_raises() -> None:
    dials: list[str] = []

    async def dial(url: str) -> NoReturn:
        dials.append(url)
        try:
            await asyncio.sleep(60)
        finally:
            if len(dials) == 1:
                raise AssertionError('as pika does where it cannot abort')
        raise NotImplementedError

    async def prepare(connection: object) -> None:
        raise NotImplementedError

    async def scenario() -> None:
        session = Session(['amqp://nobody'], dial, prepare, lambda reason: None)
        session.start()
        await asyncio.sleep(0)
        await asyncio.wait_for(session.close(), 5)

    asyncio.run(scenario())
