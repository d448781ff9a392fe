"""The contract of ``transports.base``, held by the asyncio transport against a real RabbitMQ."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from threading import Thread
from typing import Any

import pytest

from crew import topology
from crew.envelope import Envelope
from crew.exceptions import BrokerRefused, ConnectionError
from crew.private_node import PrivateNode
from crew.topology import Queue
from crew.transports.addresses import safe_url
from crew.transports.asyncio import AsyncioChannel, AsyncioConnection, dial
from crew.transports.base import Connection, Delivery
from crew.transports.session import Session
from tests.waiting import wait_until

Body = Callable[[AsyncioConnection], Coroutine[Any, Any, None]]


def connected(amqp_url: str, body: Body) -> None:
    """Run a test body with a connection."""

    async def run() -> None:
        connection = await dial(amqp_url)
        try:
            await asyncio.wait_for(body(connection), 20)
        finally:
            await connection.close()

    asyncio.run(run())


class Inbox:
    """Deliveries of a consumer, to be awaited one by one."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.put = self._queue.put_nowait

    async def get(self) -> Delivery:
        return await asyncio.wait_for(self._queue.get(), 10)

    @property
    def empty(self) -> bool:
        return self._queue.empty()


async def private_queue(channel: AsyncioChannel) -> Queue:
    queue = topology.reply_queue()
    await channel.declare(queue)
    return queue


def test_what_is_published_arrives_as_it_was(amqp_url: str) -> None:
    envelope = Envelope(
        type='call',
        body=b'\x00\xff' * 200_000,
        correlation_id='é',
        reply_to='r',
        content_type='application/x',
        content_encoding='gzip',
        headers={'text': 'é', 'number': 2**40, 'crew-v': 1},
        expiration=60000,
        priority=7,
        persistent=True,
        timestamp=1_700_000_000,
    )

    async def body(connection: AsyncioConnection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        channel.publish(envelope, queue.name)
        assert (await inbox.get()).envelope == envelope

    connected(amqp_url, body)


def test_a_nack_comes_back_redelivered_and_an_ack_does_not(amqp_url: str, queue: str) -> None:
    async def body(connection: AsyncioConnection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        tasks = topology.task_queue(queue)
        await channel.declare(topology.DEAD_LETTERS)
        await channel.declare(tasks)
        await channel.consume(tasks.name, inbox.put)
        channel.publish(Envelope(body=b'1'), tasks.name)
        channel.publish(Envelope(body=b'2'), tasks.name)
        first = await inbox.get()
        assert not first.redelivered
        channel.nack(first.tag)
        again = await inbox.get()
        assert again.redelivered
        assert again.envelope.body == b'1'
        channel.ack(again.tag)
        second = await inbox.get()
        assert second.envelope.body == b'2'
        channel.ack(second.tag)

    connected(amqp_url, body)


def test_what_no_queue_takes_is_returned(amqp_url: str) -> None:
    async def body(connection: AsyncioConnection) -> None:
        returned: asyncio.Queue[tuple[Envelope, str]] = asyncio.Queue()
        channel = await connection.open_channel(on_return=lambda *what: returned.put_nowait(what))
        channel.publish(Envelope(body=b'lost', correlation_id='7'), 'nowhere', mandatory=True)
        envelope, routing_key = await asyncio.wait_for(returned.get(), 10)
        assert (envelope.correlation_id, routing_key) == ('7', 'nowhere')

    connected(amqp_url, body)


def test_confirmed_waits_for_the_broker(amqp_url: str) -> None:
    async def body(connection: AsyncioConnection) -> None:
        channel, other, inbox = await connection.open_channel(confirm=True), await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        for number in range(100):
            channel.publish(Envelope(body=str(number).encode()), queue.name)
        await channel.confirmed()
        await other.consume(queue.name, inbox.put, no_ack=True)
        assert [(await inbox.get()).envelope.body for _ in range(100)] == [b'%d' % number for number in range(100)]

    connected(amqp_url, body)


def test_deliveries_that_cross_a_cancel_are_handed_over(amqp_url: str, queue: str) -> None:
    async def body(connection: AsyncioConnection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1000), Inbox()
        tasks = topology.task_queue(queue)
        await channel.declare(topology.DEAD_LETTERS)
        await channel.declare(tasks)
        for _ in range(500):
            channel.publish(Envelope(), tasks.name)
        tag = await channel.consume(tasks.name, inbox.put)
        await channel.cancel(tag)
        count = 0
        while not inbox.empty:
            delivery = await inbox.get()
            count += 1
            channel.nack(delivery.tag)
        # Whatever the broker had sent is among them, so all are there once more and not redelivered unseen.
        again = Inbox()
        await channel.consume(tasks.name, again.put)
        redelivered = [(await again.get()).redelivered for _ in range(500)]
        assert sum(redelivered) == count

    connected(amqp_url, body)


def test_one_turn_of_the_loop_is_one_write(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(connection: AsyncioConnection) -> None:
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


def test_other_arguments_are_refused_with_a_reason(amqp_url: str, queue: str) -> None:
    async def body(connection: AsyncioConnection) -> None:
        channel = await connection.open_channel()
        await channel.declare(topology.DEAD_LETTERS)
        await channel.declare(topology.task_queue(queue))
        with pytest.raises(BrokerRefused, match='406 PRECONDITION_FAILED'):
            await channel.declare(Queue(f'crew.tasks.{queue}', arguments={'x-queue-type': 'classic'}))

    connected(amqp_url, body)


@pytest.mark.parametrize('wrong', ['amqp://guest:wrong@{}/%2F', 'amqp://guest:guest@{}/nowhere'])
def test_a_broker_that_refuses_says_so_without_the_password(broker: PrivateNode, wrong: str) -> None:
    with pytest.raises(BrokerRefused) as refused:
        asyncio.run(dial(wrong.format(f'127.0.0.1:{broker.port}')))
    assert 'wrong' not in str(refused.value)
    assert '127.0.0.1' in str(refused.value)


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


def test_a_session_comes_back_and_tells_of_each_loss(broker: PrivateNode) -> None:
    async def run() -> None:
        connections: list[Connection] = []
        losses: list[Exception] = []

        async def prepare(connection: Connection) -> None:
            connections.append(connection)

        session = Session([broker.url], dial, prepare, losses.append)
        session.start()
        await session.wait_ready()
        await asyncio.to_thread(broker.ctl, 'close_all_connections', 'test')
        await _until(lambda: len(connections) == 2 and session.ready)
        assert len(losses) == 1
        await session.close()
        assert not session.ready

    asyncio.run(asyncio.wait_for(run(), 30))


class Stub:
    """A connection that is lost when told to; the real one cannot be lost at a certain moment."""

    on_close: Callable[[Exception], None]

    async def close(self) -> None:
        pass


def test_a_session_tells_of_a_loss_while_it_prepares_and_goes_on_after_any_error() -> None:
    async def run() -> None:
        losses: list[str] = []
        attempts: list[Stub] = []

        async def dial_stub(url: str) -> Any:
            attempts.append(Stub())
            return attempts[-1]

        async def prepare(connection: Any) -> None:
            if len(attempts) == 1:
                connection.on_close(ConnectionError('cut'))
                await asyncio.sleep(60)
            if len(attempts) == 2:
                raise ZeroDivisionError

        session = Session(['amqp://stub'], dial_stub, prepare, lambda reason: losses.append(str(reason)))
        session.start()
        await asyncio.wait_for(session.wait_ready(), 10)
        assert len(attempts) == 3
        assert losses == ['cut', 'the connection was closed']
        await session.close()
        assert len(losses) == 3

    asyncio.run(run())


def test_a_session_tries_the_next_url(broker: PrivateNode) -> None:
    async def run() -> None:
        async def prepare(connection: Connection) -> None:
            pass

        dead = 'amqp://guest:guest@127.0.0.1:1/%2F'
        session = Session([dead, broker.url], dial, prepare, lambda reason: None)
        session.start()
        await asyncio.wait_for(session.wait_ready(), 10)
        await session.close()

    asyncio.run(run())


async def _until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)
