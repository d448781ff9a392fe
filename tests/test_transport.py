"""The contract of ``transports.base``, held by every transport: RabbitMQ through pika, and the broker in memory."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from time import time
from typing import Any
from uuid import uuid4

import pytest

from crew import topology
from crew.envelope import Envelope
from crew.exceptions import BrokerRefused, ConnectionError
from crew.private_node import PrivateNode
from crew.topology import Binding, Exchange, Queue
from crew.transports import memory
from crew.transports import session as session_module
from crew.transports.addresses import dial
from crew.transports.base import Channel, Connection, Delivery
from crew.transports.session import Session
from tests.waiting import wait_until

Body = Callable[[Connection], Coroutine[Any, Any, None]]


class Rabbit:
    """The operator of a RabbitMQ."""

    def __init__(self, node: PrivateNode) -> None:
        self._node = node
        self.url = node.url

    def close_all_connections(self) -> None:
        self._node.ctl('close_all_connections', 'test')

    def delete(self, queue: str) -> None:
        self._node.ctl('delete_queue', queue)


@pytest.fixture(params=['rabbitmq', 'memory'])
def operator(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The operator of a broker of either kind: the session's RabbitMQ, or one in memory for this test alone."""
    if request.param == 'rabbitmq':
        yield Rabbit(request.getfixturevalue('broker'))
        return
    url = f'memory://{uuid4().hex}'
    yield memory.broker(url)
    memory.forget(url)


@pytest.fixture
def broker_url(operator: Any) -> str:
    """The address of a broker of either kind."""
    url: str = operator.url
    return url


def connected(url: str, body: Body) -> None:
    """Run a test body with a connection."""

    async def run() -> None:
        connection = await dial(url)
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

    async def bodies(self, count: int) -> list[bytes]:
        return [(await self.get()).envelope.body for _ in range(count)]


async def private_queue(channel: Channel, **arguments: Any) -> Queue:
    """Declare a queue of this connection; ``max_length=3`` stands for ``x-max-length``."""
    named = {f'x-{key.replace("_", "-")}': value for key, value in arguments.items()}
    queue = Queue(f'test.{uuid4().hex}', exclusive=True, arguments=named)
    await channel.declare(queue)
    return queue


async def shared_queue(channel: Channel, queue: str) -> str:
    """Declare a queue of tasks, with priorities and dead letters; return its name."""
    tasks = topology.task_queue(queue)
    await channel.declare(topology.DEAD_LETTERS)
    await channel.declare(tasks)
    return tasks.name


async def buried(channel: Channel, **arguments: Any) -> tuple[Queue, Inbox]:
    """Declare a private queue, and a consumer that gets its dead letters."""
    letters, inbox = await private_queue(channel), Inbox()
    await channel.consume(letters.name, inbox.put, no_ack=True)
    where = {'dead_letter_exchange': '', 'dead_letter_routing_key': letters.name}
    return await private_queue(channel, **where, **arguments), inbox


def death(delivery: Delivery) -> dict[str, Any]:
    """Return the last death of a dead letter."""
    result: dict[str, Any] = delivery.envelope.headers['x-death'][0]
    return result


def reason_of(future: 'asyncio.Future[Exception]') -> 'Callable[[Exception], None]':
    """Return what puts a reason into a future, once."""
    return lambda reason: None if future.done() else future.set_result(reason)


def new_future() -> 'asyncio.Future[Exception]':
    return asyncio.get_running_loop().create_future()


# What is published


def test_what_is_published_arrives_as_it_was(broker_url: str) -> None:
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

    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        channel.publish(envelope, queue.name)
        assert (await inbox.get()).envelope == envelope

    connected(broker_url, body)


def test_header_values_survive_and_belong_to_the_message(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        headers: dict[str, Any] = {
            'text': 'é' * 1000,
            'empty': '',
            'least': -(2**63),
            'most': 2**63 - 1,
            'yes': True,
            'no': False,
            'none': None,
            'bytes': b'\x00\xff',
            'decimal': Decimal('1.5'),
            'time': datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc),
            'list': [1, [True, 'a', []], {'in': {'deep': [0]}}],
        }
        channel.publish(Envelope(headers=headers), queue.name)
        headers['list'][1].append('later')
        del headers['list'][2]
        arrived = dict((await inbox.get()).envelope.headers)
        assert arrived.pop('list') == [1, [True, 'a', []], {'in': {'deep': [0]}}]
        del headers['list']
        assert arrived == headers
        assert isinstance(arrived['yes'], bool)

    connected(broker_url, body)


@pytest.mark.parametrize('value', [1.5, (1, 2), 2**63, object()])
def test_header_values_that_amqp_has_not_are_an_error_of_the_publisher(broker_url: str, value: object) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        with pytest.raises(Exception, match=r'.'):
            channel.publish(Envelope(headers={'key': value}), 'nowhere')
        await private_queue(channel)

    connected(broker_url, body)


def test_a_time_has_whole_seconds_in_utc(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        channel.publish(Envelope(headers={'time': datetime(2024, 5, 6, 7, 8, 9, 123456)}), queue.name)
        assert (await inbox.get()).envelope.headers['time'] == datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)

    connected(broker_url, body)


def test_large_bodies_and_their_order_survive(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        for number in range(3):
            channel.publish(Envelope(body=bytes([number]) * 2_000_000), queue.name)
        assert await inbox.bodies(3) == [bytes([number]) * 2_000_000 for number in range(3)]

    connected(broker_url, body)


def test_order_is_kept(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=7), Inbox()
        queue = await private_queue(channel)

        def on_delivery(delivery: Delivery) -> None:
            channel.ack(delivery.tag)
            inbox.put(delivery)

        await channel.consume(queue.name, on_delivery)
        for number in range(1000):
            channel.publish(Envelope(body=b'%d' % number), queue.name)
        assert await inbox.bodies(1000) == [b'%d' % number for number in range(1000)]

    connected(broker_url, body)


def test_nobody_is_called_back_from_within_publish(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(on_return=lambda *what: inbox.put(what)), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        channel.publish(Envelope(), queue.name)
        channel.publish(Envelope(), 'nowhere', mandatory=True)
        assert inbox.empty
        await inbox.get()
        await inbox.get()

    connected(broker_url, body)


def test_what_no_queue_takes_is_returned(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        returned: asyncio.Queue[tuple[Envelope, str]] = asyncio.Queue()
        channel = await connection.open_channel(on_return=lambda *what: returned.put_nowait(what))
        channel.publish(Envelope(body=b'lost', correlation_id='7'), 'nowhere', mandatory=True)
        envelope, routing_key = await asyncio.wait_for(returned.get(), 10)
        assert (envelope.correlation_id, routing_key) == ('7', 'nowhere')

    connected(broker_url, body)


def test_confirmed_waits_for_the_broker(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, other, inbox = await connection.open_channel(confirm=True), await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        for number in range(100):
            channel.publish(Envelope(body=str(number).encode()), queue.name)
        await channel.confirmed()
        await other.consume(queue.name, inbox.put, no_ack=True)
        assert [(await inbox.get()).envelope.body for _ in range(100)] == [b'%d' % number for number in range(100)]

    connected(broker_url, body)


def test_each_message_is_confirmed_by_itself_if_that_is_asked_for(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        told: asyncio.Queue[tuple[Envelope, str, bool]] = asyncio.Queue()
        channel = await connection.open_channel(on_confirm=lambda *what: told.put_nowait(what))
        queue = await private_queue(channel)
        sent = [Envelope(body=b'%d' % number) for number in range(100)]
        for envelope in sent:
            channel.publish(envelope, queue.name)
        heard = [await asyncio.wait_for(told.get(), 10) for _ in sent]
        # RabbitMQ may confirm them in any order.
        assert sorted(heard, key=lambda what: int(what[0].body)) == [(envelope, queue.name, True) for envelope in sent]

    connected(broker_url, body)


def test_who_gives_up_waiting_for_confirms_takes_them_from_nobody(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel(confirm=True)
        queue = await private_queue(channel)
        waiting = []
        for _ in range(3):
            channel.publish(Envelope(body=b'x'), queue.name)
            waiting.append(asyncio.ensure_future(channel.confirmed()))
            await asyncio.sleep(0)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [None, None]

    connected(broker_url, body)


def test_who_gives_up_waiting_for_one_confirm_takes_it_from_nobody(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel(confirm=True)
        queue = await private_queue(channel)
        waiting = []
        for wait in (channel.last_confirmed, channel.last_confirmed, channel.confirmed):
            channel.publish(Envelope(body=b'x'), queue.name)
            waiting.append(asyncio.ensure_future(wait()))
            await asyncio.sleep(0)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [None, None]

    connected(broker_url, body)


def test_a_lost_channel_fails_all_that_wait_for_one_confirm(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel(confirm=True, on_closed=lambda reason: None)
        waiting = []
        for _ in range(3):
            channel.publish(Envelope(), 'key', exchange='crew.nowhere')
            waiting.append(asyncio.ensure_future(channel.last_confirmed()))
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, ConnectionError) and '404' in str(outcome) for outcome in outcomes)
        with pytest.raises(ConnectionError, match='404 NOT_FOUND'):
            await channel.last_confirmed()

    connected(broker_url, body)


def test_what_is_published_on_a_channel_that_is_being_closed_is_not_confirmed(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel(confirm=True)
        queue = await private_queue(channel)
        closing = asyncio.ensure_future(channel.close())
        await asyncio.sleep(0)
        channel.publish(Envelope(body=b'x'), queue.name)
        with pytest.raises(ConnectionError, match='closed'):
            await channel.confirmed()
        await closing

    connected(broker_url, body)


def test_a_message_to_an_unknown_exchange_costs_the_channel(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        closed = new_future()
        channel = await connection.open_channel(confirm=True, on_closed=reason_of(closed))
        channel.publish(Envelope(), 'key', exchange='crew.nowhere')
        with pytest.raises(ConnectionError, match='404 NOT_FOUND'):
            await channel.confirmed()
        reason = await closed
        assert "404 NOT_FOUND - no exchange 'crew.nowhere'" in str(reason)
        assert isinstance(reason, ConnectionError)
        channel.publish(Envelope(), 'key')
        channel.ack(1)
        with pytest.raises(ConnectionError, match='404 NOT_FOUND'):
            await channel.declare(topology.DEAD_LETTERS)

    connected(broker_url, body)


@pytest.mark.parametrize('expiration', [-1, 10**15])
def test_an_expiration_out_of_range_costs_the_channel(broker_url: str, expiration: int) -> None:
    async def body(connection: Connection) -> None:
        closed = new_future()
        channel = await connection.open_channel(on_closed=reason_of(closed))
        channel.publish(Envelope(expiration=expiration), 'nowhere')
        assert '406 PRECONDITION_FAILED - invalid expiration' in str(await closed)

    connected(broker_url, body)


# What is delivered


def test_a_nack_comes_back_redelivered_and_an_ack_does_not(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
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

    connected(broker_url, body)


def test_what_is_put_back_keeps_its_place(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=3), Inbox()
        name = await shared_queue(channel, queue)
        for number in range(5):
            channel.publish(Envelope(body=b'%d' % number), name)
        tag = await channel.consume(name, inbox.put)
        first, second, third = [await inbox.get() for _ in range(3)]
        await channel.cancel(tag)
        for delivery in second, first, third:
            channel.nack(delivery.tag)
        again = Inbox()
        await (await connection.open_channel()).consume(name, again.put)
        deliveries = [await again.get() for _ in range(5)]
        assert [each.envelope.body for each in deliveries] == [b'0', b'1', b'2', b'3', b'4']
        assert [each.redelivered for each in deliveries] == [True, True, True, False, False]

    connected(broker_url, body)


def test_higher_levels_come_first_and_each_is_in_order(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        name = await shared_queue(channel, queue)
        sent = [(priority, number) for number in range(3) for priority in (0, 5, 8, 1, 255, 4, 2, 7, 3, 6)]
        for priority, number in sent:
            channel.publish(Envelope(body=b'%d %d' % (priority, number), priority=priority), name)

        def on_delivery(delivery: Delivery) -> None:
            channel.ack(delivery.tag)
            inbox.put(delivery)

        await channel.consume(name, on_delivery)
        # What is above the queue's levels is in the highest; sorted() keeps the order of equals.
        expected = sorted(sent, key=lambda each: -min(each[0], topology.PRIORITY_LEVELS))
        assert await inbox.bodies(len(sent)) == [b'%d %d' % each for each in expected]

    connected(broker_url, body)


def test_a_queue_without_levels_knows_no_priorities(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue = await private_queue(channel)
        for priority in 1, 5, 3:
            channel.publish(Envelope(body=b'%d' % priority, priority=priority), queue.name)
        await channel.consume(queue.name, inbox.put, no_ack=True)
        assert await inbox.bodies(3) == [b'1', b'5', b'3']

    connected(broker_url, body)


def test_prefetch_limits_each_consumer_by_itself(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, first, second = await connection.open_channel(prefetch=2), Inbox(), Inbox()
        queue = await private_queue(channel)
        await channel.consume(queue.name, first.put)
        await channel.consume(queue.name, second.put)
        for number in range(7):
            channel.publish(Envelope(body=b'%d' % number), queue.name)
        held = [await inbox.get() for inbox in (first, second, first, second)]
        assert sorted(each.envelope.body for each in held) == [b'0', b'1', b'2', b'3']
        # The queue's answer comes after all that the queue had sent.
        await channel.declare(queue)
        assert first.empty
        assert second.empty
        channel.ack(held[1].tag)
        assert await second.bodies(1) == [b'4']
        await channel.declare(queue)
        assert first.empty
        assert second.empty

    connected(broker_url, body)


def test_a_consumer_of_a_lower_priority_gets_what_others_have_no_room_for(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        first, behind, channel = Inbox(), Inbox(), await connection.open_channel(prefetch=2)
        ahead = await connection.open_channel(prefetch=1)
        name = await shared_queue(channel, queue)
        await ahead.consume(name, behind.put, prefetch=3, priority=-1)
        await channel.consume(name, first.put)
        for number in range(7):
            channel.publish(Envelope(body=b'%d' % number), name)
        held = [await first.get() for _ in range(2)]
        assert [each.envelope.body for each in held] == [b'0', b'1']
        assert await behind.bodies(3) == [b'2', b'3', b'4']
        channel.ack(held[0].tag)
        assert await first.bodies(1) == [b'5']
        await asyncio.sleep(0.05)
        assert first.empty
        assert behind.empty

    connected(broker_url, body)


def test_a_consumer_may_have_another_prefetch_than_its_channel(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, first, second = await connection.open_channel(prefetch=1), Inbox(), Inbox()
        queue = await private_queue(channel)
        tag = await channel.consume(queue.name, first.put)
        for number in range(5):
            channel.publish(Envelope(body=b'%d' % number), queue.name)
        assert await first.bodies(1) == [b'0']
        await channel.cancel(tag)
        await channel.consume(queue.name, second.put, prefetch=2)
        assert await second.bodies(2) == [b'1', b'2']
        await channel.declare(queue)
        assert second.empty

    connected(broker_url, body)


def test_consumers_take_turns(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        other = await dial(broker_url)
        try:
            inboxes = [Inbox(), Inbox(), Inbox()]
            channel = await connection.open_channel(prefetch=10)
            name = await shared_queue(channel, queue)
            await channel.consume(name, inboxes[0].put)
            await channel.consume(name, inboxes[1].put)
            await (await other.open_channel(prefetch=10)).consume(name, inboxes[2].put)
            for number in range(12):
                channel.publish(Envelope(body=b'%d' % number), name)
            got = [await inbox.bodies(4) for inbox in inboxes]
            assert sorted(body for bodies in got for body in bodies) == sorted(b'%d' % number for number in range(12))
            assert all(int(bodies[-1]) - int(bodies[0]) == 9 for bodies in got)
        finally:
            await other.close()

    connected(broker_url, body)


def test_without_acks_there_is_no_limit_and_nothing_comes_back(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        name = await shared_queue(channel, queue)
        await channel.consume(name, inbox.put, no_ack=True)
        for number in range(20):
            channel.publish(Envelope(body=b'%d' % number), name)
        assert len(await inbox.bodies(20)) == 20
        await channel.close()
        channel, inbox = await connection.open_channel(), Inbox()
        await channel.consume(name, inbox.put)
        channel.publish(Envelope(body=b'next'), name)
        delivery = await inbox.get()
        assert (delivery.envelope.body, delivery.redelivered) == (b'next', False)

    connected(broker_url, body)


def test_deliveries_that_cross_a_cancel_are_handed_over(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
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

    connected(broker_url, body)


def test_after_a_cancel_nothing_comes_and_what_came_can_be_acknowledged(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        name = await shared_queue(channel, queue)
        channel.publish(Envelope(body=b'1'), name)
        tag = await channel.consume(name, inbox.put)
        held = await inbox.get()
        await channel.cancel(tag)
        channel.publish(Envelope(body=b'2'), name)
        channel.ack(held.tag)
        again = Inbox()
        await channel.consume(name, again.put)
        delivery = await again.get()
        assert (delivery.envelope.body, delivery.redelivered) == (b'2', False)
        assert inbox.empty

    connected(broker_url, body)


def test_an_exception_in_a_callback_costs_one_message(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        name = await shared_queue(channel, queue)

        def on_delivery(delivery: Delivery) -> None:
            inbox.put(delivery)
            raise ZeroDivisionError

        await channel.consume(name, on_delivery)
        channel.publish(Envelope(body=b'1'), name)
        channel.publish(Envelope(body=b'2'), name)
        deliveries = [await inbox.get(), await inbox.get()]
        assert [(each.envelope.body, each.redelivered) for each in deliveries] == [(b'1', False), (b'2', False)]

    connected(broker_url, body)


def test_an_unknown_delivery_costs_the_channel(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        closed = new_future()
        channel = await connection.open_channel(on_closed=reason_of(closed))
        channel.ack(7)
        reason = await closed
        assert '406 PRECONDITION_FAILED - unknown delivery tag 7' in str(reason)
        assert isinstance(reason, BrokerRefused)

    connected(broker_url, body)


def test_a_closed_channel_puts_back_what_it_held(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        holder, channel = await connection.open_channel(), await connection.open_channel()
        held, inbox = Inbox(), Inbox()
        name = await shared_queue(channel, queue)
        await holder.consume(name, held.put)
        for number in range(3):
            channel.publish(Envelope(body=b'%d' % number), name)
        holder.ack([await held.get() for _ in range(3)][1].tag)
        await holder.close()
        await holder.close()
        channel.publish(Envelope(body=b'3'), name)
        await channel.consume(name, inbox.put)
        deliveries = [await inbox.get() for _ in range(3)]
        assert [(each.envelope.body, each.redelivered) for each in deliveries] == [
            (b'0', True),
            (b'2', True),
            (b'3', False),
        ]
        assert held.empty
        with pytest.raises(ConnectionError, match='closed'):
            await holder.declare(topology.DEAD_LETTERS)

    connected(broker_url, body)


def test_a_channel_that_is_being_closed_delivers_nothing_more(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        closing, channel = await connection.open_channel(), await connection.open_channel()
        inbox, again = Inbox(), Inbox()
        name = await shared_queue(channel, queue)
        await closing.consume(name, inbox.put)
        closing.publish(Envelope(body=b'1'), name)
        await closing.close()
        assert inbox.empty
        await channel.consume(name, again.put)
        assert await again.bodies(1) == [b'1']

    connected(broker_url, body)


def test_a_closed_connection_puts_back_what_it_held_and_takes_its_own_queues_along(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        returned: asyncio.Queue[str] = asyncio.Queue()
        channel = await connection.open_channel(on_return=lambda envelope, key: returned.put_nowait(key))
        other = await dial(broker_url)
        holder, held, inbox = await other.open_channel(), Inbox(), Inbox()
        private, name = await private_queue(holder), await shared_queue(channel, queue)
        await holder.consume(name, held.put)
        channel.publish(Envelope(body=b'1'), name)
        await held.get()
        with pytest.raises(ConnectionError, match='405 RESOURCE_LOCKED'):
            await (await connection.open_channel(on_closed=lambda reason: None)).consume(private.name, inbox.put)
        with pytest.raises(ConnectionError, match='405 RESOURCE_LOCKED'):
            await connection.exists(private.name)
        await other.close()
        await channel.consume(name, inbox.put)
        delivery = await inbox.get()
        assert (delivery.envelope.body, delivery.redelivered) == (b'1', True)
        channel.publish(Envelope(), private.name, mandatory=True)
        assert await asyncio.wait_for(returned.get(), 10) == private.name
        assert not await connection.exists(private.name)

    connected(broker_url, body)


# Dead letters


def test_what_expires_goes_to_its_caller_and_nobody_else(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox, others = await connection.open_channel(), Inbox(), Inbox()
        name = await shared_queue(channel, queue)
        mine, yours = await private_queue(channel), await private_queue(channel)
        await channel.declare(topology.dead_letter_binding(mine.name))
        await channel.declare(topology.dead_letter_binding(yours.name))
        await channel.consume(mine.name, inbox.put, no_ack=True)
        await channel.consume(yours.name, others.put, no_ack=True)
        before = int(time())
        headers = {topology.REPLY_KEY: mine.name, 'mine': [1]}
        sent = Envelope(type='call', body=b'b', headers=headers, expiration=20, priority=3, persistent=True)
        channel.publish(sent, name)
        letter = (await inbox.get()).envelope
        [table] = letter.headers['x-death']
        assert before <= table['time'].timestamp() <= time()
        assert table['time'].tzinfo is not None
        assert {key: value for key, value in table.items() if key != 'time'} == {
            'count': 1,
            'reason': 'expired',
            'queue': name,
            'exchange': '',
            'routing-keys': [name],
            'original-expiration': '20',
        }
        assert {key: value for key, value in letter.headers.items() if not key.startswith('x-')} == headers
        assert letter.expiration is None
        assert (letter.type, letter.body, letter.priority, letter.persistent) == ('call', b'b', 3, True)
        await channel.declare(yours)
        assert others.empty

    connected(broker_url, body)


def test_messages_expire_only_at_the_head_of_their_queue(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        clock, ticks = await buried(channel)
        queue, letters = await buried(channel)
        channel.publish(Envelope(body=b'head'), queue.name)
        channel.publish(Envelope(body=b'behind', expiration=20), queue.name)
        channel.publish(Envelope(expiration=100), clock.name)
        await ticks.get()
        assert letters.empty
        await channel.consume(queue.name, inbox.put)
        assert await inbox.bodies(1) == [b'head']
        assert await letters.bodies(1) == [b'behind']
        assert inbox.empty

    connected(broker_url, body)


def test_messages_do_not_expire_behind_a_higher_level(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        clock, ticks = await buried(channel)
        queue, letters = await buried(channel, max_priority=8)
        channel.publish(Envelope(body=b'low', expiration=20, priority=1), queue.name)
        channel.publish(Envelope(body=b'high', priority=2), queue.name)
        channel.publish(Envelope(expiration=100), clock.name)
        await ticks.get()
        assert letters.empty
        await channel.consume(queue.name, inbox.put)
        assert await inbox.bodies(1) == [b'high']
        assert await letters.bodies(1) == [b'low']

    connected(broker_url, body)


def test_what_is_put_back_keeps_its_expiry(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        clock, ticks = await buried(channel)
        queue, letters = await buried(channel)
        await channel.consume(queue.name, inbox.put)
        channel.publish(Envelope(body=b'1', expiration=50), queue.name)
        delivery = await inbox.get()
        channel.publish(Envelope(expiration=100), clock.name)
        await ticks.get()
        assert letters.empty
        channel.nack(delivery.tag)
        assert death(await letters.get())['reason'] == 'expired'
        assert inbox.empty

    connected(broker_url, body)


def test_the_lower_time_to_live_wins(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        queue, letters = await buried(channel, message_ttl=30)
        channel.publish(Envelope(body=b'queue', expiration=60_000), queue.name)
        channel.publish(Envelope(body=b'none'), queue.name)
        assert await letters.bodies(2) == [b'queue', b'none']
        queue, letters = await buried(channel, message_ttl=60_000)
        channel.publish(Envelope(body=b'message', expiration=30), queue.name)
        letter = await letters.get()
        assert death(letter)['original-expiration'] == '30'

    connected(broker_url, body)


def test_an_expiration_of_0_is_for_who_waits_already(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(prefetch=1), Inbox()
        queue, letters = await buried(channel)
        channel.publish(Envelope(body=b'1', expiration=0), queue.name)
        assert await letters.bodies(1) == [b'1']
        await channel.consume(queue.name, inbox.put)
        channel.publish(Envelope(body=b'2', expiration=0), queue.name)
        channel.publish(Envelope(body=b'3', expiration=0), queue.name)
        assert await inbox.bodies(1) == [b'2']
        assert await letters.bodies(1) == [b'3']

    connected(broker_url, body)


def test_a_full_queue_drops_its_head(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        queue, letters = await buried(channel, max_length=2)
        for number in range(4):
            channel.publish(Envelope(body=b'%d' % number), queue.name)
        dropped = [await letters.get(), await letters.get()]
        assert [(each.envelope.body, death(each)['reason']) for each in dropped] == [(b'0', 'maxlen'), (b'1', 'maxlen')]
        assert 'original-expiration' not in death(dropped[0])
        await channel.consume(queue.name, inbox.put)
        assert await inbox.bodies(2) == [b'2', b'3']

    connected(broker_url, body)


def test_without_the_exchange_dead_letters_are_dropped(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        clock, ticks = await buried(channel)
        queue = await private_queue(channel, dead_letter_exchange='crew.nowhere')
        channel.publish(Envelope(expiration=20), queue.name)
        channel.publish(Envelope(body=b'2'), queue.name)
        channel.publish(Envelope(expiration=100), clock.name)
        await ticks.get()
        await channel.consume(queue.name, inbox.put, no_ack=True)
        assert await inbox.bodies(1) == [b'2']

    connected(broker_url, body)


def test_a_dead_letter_does_not_go_round_in_a_circle(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inbox = await connection.open_channel(), Inbox()
        last, letters = await private_queue(channel), Inbox()
        name = f'test.{uuid4().hex}'
        arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': name, 'x-message-ttl': 20}
        await channel.declare(Queue(name, exclusive=True, arguments=arguments))
        await channel.consume(last.name, letters.put, no_ack=True)
        clock, ticks = await buried(channel)
        channel.publish(Envelope(), name)
        channel.publish(Envelope(expiration=100), clock.name)
        await ticks.get()
        await channel.consume(name, inbox.put, no_ack=True)
        channel.publish(Envelope(body=b'next'), name)
        assert await inbox.bodies(1) == [b'next']

    connected(broker_url, body)


def test_a_second_death_is_told_before_the_first(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        second, letters = await buried(channel, message_ttl=20)
        first = await private_queue(channel, dead_letter_exchange='', dead_letter_routing_key=second.name)
        channel.publish(Envelope(expiration=10), first.name)
        letter = (await letters.get()).envelope
        assert [(each['queue'], each['count']) for each in letter.headers['x-death']] == [
            (second.name, 1),
            (first.name, 1),
        ]
        assert letter.headers['x-first-death-queue'] == first.name
        assert letter.headers['x-first-death-reason'] == 'expired'

    connected(broker_url, body)


# What is declared


def test_other_arguments_are_refused_with_a_reason(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        await channel.declare(topology.DEAD_LETTERS)
        await channel.declare(topology.task_queue(queue))
        with pytest.raises(BrokerRefused, match='406 PRECONDITION_FAILED'):
            await channel.declare(Queue(f'crew.tasks.{queue}', arguments={'x-queue-type': 'classic'}))

    connected(broker_url, body)


@pytest.mark.parametrize('before, after', [({}, {'x-queue-type': 'classic'}), ({'x-queue-type': 'classic'}, {})])
def test_classic_is_the_type_of_who_names_none(
    broker_url: str, queue: str, before: dict[str, str], after: dict[str, str]
) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        await channel.declare(Queue(f'crew.tasks.{queue}', arguments=before))
        await channel.declare(Queue(f'crew.tasks.{queue}', arguments=after))

    connected(broker_url, body)


@pytest.mark.parametrize(
    'what, match',
    [
        (Queue('amq.mine'), '403 ACCESS_REFUSED'),
        (Exchange('amq.mine', 'fanout'), '403 ACCESS_REFUSED'),
        (Exchange('', 'direct'), '403 ACCESS_REFUSED'),
        (Exchange('amq.headers', 'fanout'), "406 PRECONDITION_FAILED - inequivalent arg 'type' for exchange"),
        (Queue('crew.bad', arguments={'x-queue-type': 'none'}), '406 PRECONDITION_FAILED'),
        (Queue('crew.bad', arguments={'x-message-ttl': -1}), '406 PRECONDITION_FAILED - invalid arg'),
        (Queue('crew.bad', arguments={'x-max-priority': 256}), '406 PRECONDITION_FAILED - invalid arg'),
        (Queue('crew.bad', arguments={'x-max-length': 'a'}), '406 PRECONDITION_FAILED - invalid arg'),
        (Queue('crew.bad', arguments={'x-dead-letter-exchange': 1}), '406 PRECONDITION_FAILED - invalid'),
        (Queue('crew.bad', arguments={'x-dead-letter-routing-key': 'a'}), '406 PRECONDITION_FAILED - invalid arg'),
    ],
)
def test_what_can_never_be_is_refused(broker_url: str, what: Queue | Exchange, match: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel(on_closed=lambda reason: None)
        with pytest.raises(BrokerRefused, match=match):
            await channel.declare(what)

    connected(broker_url, body)


def test_a_binding_needs_both_ends(broker_url: str) -> None:
    async def body(connection: Connection) -> None:
        async def refused(binding: Binding) -> str:
            channel = await connection.open_channel(on_closed=lambda reason: None)
            with pytest.raises((ConnectionError, BrokerRefused)) as raised:
                await channel.declare(binding)
            return str(raised.value)

        own = await private_queue(await connection.open_channel())
        assert "404 NOT_FOUND - no queue 'crew.none'" in await refused(Binding('crew.none', 'amq.headers', {}))
        assert "404 NOT_FOUND - no exchange 'crew.none'" in await refused(Binding(own.name, 'crew.none', {}))
        assert '403 ACCESS_REFUSED' in await refused(Binding(own.name, '', {}))
        assert '406 PRECONDITION_FAILED' in await refused(Binding(own.name, 'amq.headers', {'x-match': 'none'}))

    connected(broker_url, body)


def test_headers_choose_the_queues(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel, inboxes = await connection.open_channel(), {}
        exchange = Exchange(f'test.{queue}', 'headers')
        await channel.declare(exchange)
        for name, keys in {
            'both': {'a': '1', 'b': '2'},
            'any': {'x-match': 'any', 'a': '1', 'b': '2'},
            'one': {'a': '1'},
            'all': {'x-a': '7'},  # keys like this are skipped
            'gone': {'a': '1'},
        }.items():
            private, inboxes[name] = await private_queue(channel), Inbox()
            await channel.declare(Binding(private.name, exchange.name, keys))
            await channel.declare(Binding(private.name, exchange.name, keys))
            await channel.consume(private.name, inboxes[name].put, no_ack=True)
        await channel.unbind(Binding(private.name, exchange.name, {'a': '2'}))
        for headers in {'a': '1'}, {'b': '2', 'c': '3'}, {'a': '1', 'b': '2'}, {'a': 1}, {}:
            channel.publish(Envelope(body=repr(headers).encode(), headers=headers), 'ignored', exchange=exchange.name)
        a, b, ab, number, none = (
            repr(each).encode() for each in ({'a': '1'}, {'b': '2', 'c': '3'}, {'a': '1', 'b': '2'}, {'a': 1}, {})
        )
        assert await inboxes['all'].bodies(5) == [a, b, ab, number, none]
        assert await inboxes['any'].bodies(3) == [a, b, ab]
        assert await inboxes['both'].bodies(1) == [ab]
        assert await inboxes['one'].bodies(2) == [a, ab]
        assert await inboxes['gone'].bodies(2) == [a, ab]
        for _ in range(2):
            await channel.unbind(Binding(private.name, exchange.name, {'a': '1'}))
        await channel.unbind(Binding('crew.none', 'crew.none', {}))
        channel.publish(Envelope(headers={'a': '1'}), '', exchange=exchange.name)
        await inboxes['one'].get()
        await channel.declare(private)
        assert all(inboxes[name].empty for name in ('both', 'one', 'gone'))

    connected(broker_url, body)


def test_a_fanout_reaches_all(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        returned: asyncio.Queue[str] = asyncio.Queue()
        channel = await connection.open_channel(on_return=lambda envelope, key: returned.put_nowait(key))
        exchange, inbox = Exchange(f'test.{queue}', 'fanout'), Inbox()
        await channel.declare(exchange)
        await channel.declare(exchange)
        channel.publish(Envelope(), 'nobody', exchange=exchange.name, mandatory=True)
        assert await asyncio.wait_for(returned.get(), 10) == 'nobody'
        for _ in range(3):
            private = await private_queue(channel)
            await channel.declare(Binding(private.name, exchange.name, {}))
            await channel.consume(private.name, inbox.put, no_ack=True)
        channel.publish(Envelope(body=b'1'), 'everybody', exchange=exchange.name, mandatory=True)
        assert await inbox.bodies(3) == [b'1'] * 3
        assert returned.empty()

    connected(broker_url, body)


def test_a_queue_exists_or_not(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        channel = await connection.open_channel()
        name = topology.task_queue(queue).name
        assert not await connection.exists(name)
        await shared_queue(channel, queue)
        assert await connection.exists(name)
        assert await connection.exists((await private_queue(channel)).name)

    connected(broker_url, body)


# What is lost


def test_a_missing_queue_costs_only_a_channel_that_wants_to_know(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        lost: list[Exception] = []
        connection.on_close = lost.append
        closed, inbox = new_future(), Inbox()
        other = await connection.open_channel()
        own = await private_queue(other)
        await other.consume(own.name, inbox.put, no_ack=True)
        channel = await connection.open_channel(on_closed=reason_of(closed))
        with pytest.raises(ConnectionError, match=f"404 NOT_FOUND - no queue '{queue}'"):
            await channel.consume(queue, inbox.put)
        assert '404 NOT_FOUND' in str(await closed)
        other.publish(Envelope(body=b'1'), own.name)
        assert await inbox.bodies(1) == [b'1']
        assert not lost

    connected(broker_url, body)


def test_a_missing_queue_costs_the_connection_of_who_does_not_want_to_know(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        lost, closed = [], new_future()

        def on_close(reason: Exception) -> None:
            lost.append(reason)
            closed.set_result(reason)

        connection.on_close = on_close
        other = await connection.open_channel(on_closed=lost.append)
        channel = await connection.open_channel()
        with pytest.raises(ConnectionError, match=f"404 NOT_FOUND - no queue '{queue}'"):
            await channel.consume(queue, lambda delivery: None)
        assert isinstance(await closed, ConnectionError)
        assert broker_url.partition('@')[2] in str(lost[0])
        with pytest.raises(ConnectionError):
            await other.declare(topology.DEAD_LETTERS)
        with pytest.raises(ConnectionError):
            await connection.open_channel()
        with pytest.raises(ConnectionError):
            await connection.exists(queue)
        other.publish(Envelope(), queue)
        other.ack(1)
        await other.close()
        await connection.close()
        assert len(lost) == 1

    connected(broker_url, body)


def test_a_deleted_queue_costs_the_channel_of_its_consumer(operator: Any, queue: str) -> None:
    async def body(connection: Connection) -> None:
        lost: list[Exception] = []
        connection.on_close = lost.append
        closed, other = new_future(), await connection.open_channel()
        channel = await connection.open_channel(on_closed=reason_of(closed))
        name = await shared_queue(other, queue)
        await channel.consume(name, lambda delivery: None)
        other.publish(Envelope(), name)
        await asyncio.to_thread(operator.delete, name)
        assert str(await closed) == 'the broker cancelled a consumer: its queue was deleted or has moved'
        with pytest.raises(ConnectionError, match='its queue was deleted'):
            await channel.declare(topology.DEAD_LETTERS)
        assert not await connection.exists(name)
        assert not lost

    connected(operator.url, body)


def test_who_closes_a_connection_is_told_once_and_nothing_else(broker_url: str, queue: str) -> None:
    async def body(connection: Connection) -> None:
        calls: list[Any] = []
        other = await dial(broker_url)
        other.on_close = calls.append
        channel = await other.open_channel(on_closed=calls.append)
        name = await shared_queue(channel, queue)
        await channel.consume(name, calls.append)
        sender = await connection.open_channel(confirm=True)
        sender.publish(Envelope(), name)
        await asyncio.gather(other.close(), other.close())
        await other.close()
        await sender.confirmed()
        sender.publish(Envelope(), name)
        await sender.confirmed()
        reasons = [each for each in calls if not isinstance(each, Delivery)]
        assert len(reasons) == 1
        assert isinstance(reasons[0], ConnectionError)
        assert calls[-1] is reasons[0]

    connected(broker_url, body)


def test_a_session_comes_back_and_tells_of_each_loss(operator: Any) -> None:
    async def run() -> None:
        connections: list[Connection] = []
        losses: list[Exception] = []

        async def prepare(connection: Connection) -> None:
            connections.append(connection)

        session = Session([operator.url], dial, prepare, losses.append)
        session.start()
        await session.wait_ready()
        await asyncio.to_thread(operator.close_all_connections)
        await _until(lambda: len(connections) == 2 and session.ready)
        assert len(losses) == 1
        assert '320 CONNECTION_FORCED' in str(losses[0])
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


def test_a_session_tries_the_next_url(broker_url: str) -> None:
    async def run() -> None:
        async def prepare(connection: Connection) -> None:
            pass

        dead = 'amqp://guest:guest@127.0.0.1:1/%2F'
        session = Session([dead, broker_url], dial, prepare, lambda reason: None)
        session.start()
        await asyncio.wait_for(session.wait_ready(), 10)
        await session.close()

    asyncio.run(run())


def test_a_session_tries_the_next_url_at_once_and_does_not_wait_for_who_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, 'SETTLED', 0.0)
    monkeypatch.setattr(session_module, 'HASTE', 0.1)
    monkeypatch.setattr(session_module, 'FIRST_PAUSE', 60.0)

    async def run() -> None:
        dialled: list[str] = []
        connections: list[Stub] = []

        async def dial_stub(url: str) -> Any:
            dialled.append(url)
            if url == 'amqp://silent':
                await asyncio.sleep(60)
            connections.append(Stub())
            return connections[-1]

        async def prepare(connection: Any) -> None:
            pass

        session = Session(['amqp://a', 'amqp://silent', 'amqp://b'], dial_stub, prepare, lambda reason: None)
        session.start()
        await asyncio.wait_for(session.wait_ready(), 5)
        for lost in range(3):
            connections[lost].on_close(ConnectionError('cut'))
            await asyncio.wait_for(_until(lambda lost=lost: len(connections) == lost + 2 and session.ready), 5)
        assert [url.rpartition('/')[2] for url in dialled] == ['a', 'silent', 'b', 'a', 'silent', 'b']
        await session.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ('answers', 'refused'),
    [('RR', True), ('RDRR', True), ('RDRD+', False), ('DR+', False), ('+RRRR+', False)],
)
def test_a_session_is_refused_when_all_urls_refuse_it_before_any_has_taken_it(
    answers: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R is a node that refuses, D one that is down, + one that takes us."""
    monkeypatch.setattr(session_module, 'FIRST_PAUSE', 0.001)
    monkeypatch.setattr(session_module, 'LONGEST_PAUSE', 0.001)

    async def run() -> None:
        to_come = list(answers)
        connections: list[Stub] = []

        async def dial_stub(url: str) -> Any:
            answer = to_come.pop(0)
            if answer == 'R':
                raise BrokerRefused('who are you?')
            if answer == 'D':
                raise ConnectionError('down')
            connections.append(Stub())
            return connections[-1]

        async def prepare(connection: Any) -> None:
            if to_come:
                # When it is in use.
                asyncio.get_running_loop().call_later(0.05, connection.on_close, ConnectionError('cut'))

        session = Session(['amqp://a', 'amqp://b'], dial_stub, prepare, lambda reason: None)
        session.start()
        if refused:
            with pytest.raises(BrokerRefused):
                await asyncio.wait_for(session.wait_ready(), 5)
        else:
            await asyncio.wait_for(_until(lambda: not to_come and session.ready), 5)
        assert not to_come
        await session.close()

    asyncio.run(run())


async def _until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)
