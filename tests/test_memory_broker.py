"""The broker in memory: its core as plain data, by hand and under hypothesis; and shared by loops in threads."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from crew.envelope import Envelope
from crew.exceptions import BrokerRefused, ConnectionError
from crew.memory_broker import (
    MAX_MESSAGE_SIZE,
    Blocked,
    BrokerChannel,
    BrokerConnection,
    ChannelClosed,
    Confirmed,
    ConnectionClosed,
    ConsumerCancelled,
    Delivered,
    Done,
    Event,
    MemoryBroker,
    QueueStatus,
    Returned,
)
from crew.topology import Binding, Exchange, Queue
from crew.transports import memory
from crew.transports.base import Connection, Delivery


def opened(broker: MemoryBroker, **how: Any) -> BrokerChannel:
    """Open a channel on a connection of its own; what was said of it is read."""
    channel = broker.open_channel(broker.open('test'), **how)
    assert said(channel) == [Done(channel)]
    return channel


def said(what: BrokerChannel | BrokerConnection) -> list[Event]:
    """Read what a connection was told."""
    outbox = (what.connection if isinstance(what, BrokerChannel) else what).outbox
    return [outbox.popleft() for _ in range(len(outbox))]


def bodies(channel: BrokerChannel) -> list[bytes]:
    """Read what a connection was told, and return what was delivered."""
    return [event.envelope.body for event in said(channel) if isinstance(event, Delivered)]


def declared(broker: MemoryBroker, channel: BrokerChannel, name: str = 'q', **arguments: Any) -> None:
    """Declare a shared queue; ``max_length=3`` stands for ``x-max-length``."""
    broker.declare(channel, Queue(name, arguments={f'x-{key.replace("_", "-")}': arguments[key] for key in arguments}))
    assert said(channel)[-1] == Done(channel)


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.advance(1000.0, 1_700_000_000.9)
    return broker


# The core


def test_an_answer_comes_before_what_follows_from_it(broker: MemoryBroker) -> None:
    channel = opened(broker, prefetch=1, confirm=True)
    declared(broker, channel)
    broker.publish(channel, Envelope(body=b'1'), 'q')
    broker.consume(channel, 'q', 'tag')
    broker.publish(channel, Envelope(), 'nowhere', mandatory=True)
    assert said(channel) == [
        Confirmed(channel, 1),
        Done(channel),
        Delivered(channel, 'tag', 1, False, Envelope(body=b'1')),
        Returned(channel, Envelope(), 'nowhere'),
        Confirmed(channel, 2),
    ]
    assert broker.queues() == {'q': QueueStatus(ready=0, unacked=1, consumers=1)}


def test_only_who_was_spoken_to_is_named(broker: MemoryBroker) -> None:
    one, two = opened(broker), opened(broker)
    declared(broker, one)
    broker.take_spoken_to()
    broker.consume(two, 'q', 'tag')
    assert broker.take_spoken_to() == {two.connection}
    broker.publish(one, Envelope(), 'q')
    assert broker.take_spoken_to() == {two.connection}
    assert broker.take_spoken_to() == set()


def test_a_message_above_the_limit_costs_the_channel(broker: MemoryBroker) -> None:
    channel = opened(broker)
    declared(broker, channel)
    broker.publish(channel, Envelope(body=bytes(MAX_MESSAGE_SIZE)), 'q')
    assert said(channel) == []
    broker.publish(channel, Envelope(body=bytes(MAX_MESSAGE_SIZE + 1)), 'q')
    [closed] = said(channel)
    assert isinstance(closed, ChannelClosed)
    assert (closed.code, closed.text) == (
        406,
        'PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216',
    )
    assert broker.queues()['q'].ready == 1


@pytest.mark.parametrize('argument', ['x-expires', 'x-max-length-bytes', 'x-overflow', 'x-single-active-consumer'])
def test_what_is_not_supported_is_refused_rather_than_ignored(broker: MemoryBroker, argument: str) -> None:
    channel = opened(broker)
    broker.declare(channel, Queue('q', arguments={argument: 1}))
    [closed] = said(channel)
    assert isinstance(closed, ChannelClosed)
    assert closed.code == 540
    assert broker.queues() == {}


def test_a_closed_channel_or_connection_does_nothing(broker: MemoryBroker) -> None:
    other = opened(broker)
    declared(broker, other)
    channel = opened(broker)
    broker.ack(channel, 1)
    said(channel)
    closed = opened(broker)
    broker.close(closed.connection)
    broker.close(closed.connection)
    for each in channel, closed:
        broker.declare(each, Queue('other'))
        broker.look_up(each, 'q')
        broker.consume(each, 'q', 'tag')
        broker.cancel(each, 'tag')
        broker.unbind(each, Binding('q', 'amq.headers', {}))
        broker.publish(each, Envelope(), 'q')
        broker.ack(each, 1)
        broker.nack(each, 1)
        broker.close_channel(each)
        assert said(each) == []
    assert not broker.open_channel(closed.connection).open
    assert broker.queues() == {'q': QueueStatus(0, 0, 0)}
    assert broker.connections() == ['test', 'test']


def test_time_is_only_what_it_is_told(broker: MemoryBroker) -> None:
    channel = opened(broker)
    declared(broker, channel, dead_letter_exchange='', dead_letter_routing_key='letters')
    declared(broker, channel, 'letters')
    assert broker.next_deadline() is None
    broker.publish(channel, Envelope(body=b'1', expiration=2500, headers={'k': 'v'}), 'q')
    broker.publish(channel, Envelope(body=b'2', expiration=500), 'q')
    assert broker.next_deadline() == 1002.5
    broker.advance(1002.4, 1_700_000_003.2)
    assert broker.queues()['q'].ready == 2
    broker.advance(1002.5, 1_700_000_003.4)
    first, second = broker.peek('letters')
    death = {
        'count': 1,
        'reason': 'expired',
        'queue': 'q',
        'time': datetime.fromtimestamp(1_700_000_003, timezone.utc),
        'exchange': '',
        'routing-keys': ['q'],
        'original-expiration': '2500',
    }
    first_death = {'x-first-death-exchange': '', 'x-first-death-queue': 'q', 'x-first-death-reason': 'expired'}
    assert first == Envelope(body=b'1', headers={'k': 'v', 'x-death': [death], **first_death})
    assert second.body == b'2'
    broker.advance(1010.0, 0)
    assert broker.next_deadline() is None


def test_a_rejected_message_is_a_dead_letter_and_counts_its_deaths(broker: MemoryBroker) -> None:
    channel = opened(broker)
    # Into its own queue: a circle with a rejection in it may go on.
    declared(broker, channel, dead_letter_exchange='')
    broker.publish(channel, Envelope(), 'q')
    broker.consume(channel, 'q', 'tag')
    for tag in 1, 2, 3:
        broker.nack(channel, tag, requeue=False)
    last = said(channel)[-1]
    assert isinstance(last, Delivered)
    assert not last.redelivered
    [death] = last.envelope.headers['x-death']
    assert (death['reason'], death['count']) == ('rejected', 3)


@pytest.mark.parametrize('foreign', ['text', [1, 'text'], [{}], [{'queue': 'q', 'reason': 'expired'}]])
def test_a_death_that_somebody_made_up_does_no_harm(broker: MemoryBroker, foreign: object) -> None:
    channel = opened(broker)
    declared(broker, channel, dead_letter_exchange='amq.fanout')
    declared(broker, channel, 'letters')
    broker.declare(channel, Binding('letters', 'amq.fanout', {}))
    broker.publish(channel, Envelope(expiration=0, headers={'x-death': foreign}), 'q')
    [letter] = broker.peek('letters')
    assert (letter.headers['x-death'][0]['queue'], letter.headers['x-death'][0]['count']) == ('q', 1)


def test_a_long_chain_of_dead_letters_is_no_recursion(broker: MemoryBroker) -> None:
    channel, length = opened(broker), 2000
    for number in range(length):
        following = {'dead_letter_exchange': '', 'dead_letter_routing_key': f'q{number + 1}'}
        declared(broker, channel, f'q{number}', message_ttl=0, **following)
    declared(broker, channel, f'q{length}')
    broker.publish(channel, Envelope(), 'q0')
    assert broker.queues()[f'q{length}'].ready == 1


def test_a_nacked_message_of_a_full_queue_is_its_head(broker: MemoryBroker) -> None:
    channel = opened(broker, prefetch=1)
    declared(broker, channel, max_length=1, dead_letter_exchange='amq.fanout')
    declared(broker, channel, 'letters')
    broker.declare(channel, Binding('letters', 'amq.fanout', {}))
    broker.consume(channel, 'q', 'tag')
    broker.publish(channel, Envelope(body=b'1'), 'q')
    broker.publish(channel, Envelope(body=b'2'), 'q')
    broker.nack(channel, 1)
    assert [letter.body for letter in broker.peek('letters')] == [b'1']
    assert bodies(channel) == [b'1', b'2']


def test_direct_and_topic_exchanges_route_by_the_name_of_the_queue(broker: MemoryBroker) -> None:
    channel = opened(broker)
    for kind in 'direct', 'topic':
        declared(broker, channel, kind)
        broker.declare(channel, Exchange(f'x.{kind}', kind))  # type: ignore[arg-type]
        broker.declare(channel, Binding(kind, f'x.{kind}', {}))
        broker.publish(channel, Envelope(), kind, exchange=f'x.{kind}')
        broker.publish(channel, Envelope(), 'other', exchange=f'x.{kind}')
        assert broker.queues()[kind].ready == 1


@pytest.mark.parametrize(
    'keys, headers, matches',
    [
        ({}, {}, True),
        ({'x-match': 'any'}, {'a': '1'}, False),
        ({'a': None}, {'a': 7}, True),
        ({'a': None}, {'b': 7}, False),
        ({'a': 1}, {'a': True}, False),
        ({'a': 1}, {'a': 1}, True),
        ({'x-a': '1'}, {'x-a': '2'}, True),
        ({'x-match': 'any', 'x-a': '1'}, {'x-a': '1'}, False),
        ({'x-match': 'all-with-x', 'x-a': '1'}, {'x-a': '2'}, False),
        ({'x-match': 'any-with-x', 'x-a': '1', 'b': '2'}, {'x-a': '1'}, True),
    ],
)
def test_headers_match(broker: MemoryBroker, keys: dict[str, Any], headers: dict[str, Any], matches: bool) -> None:
    channel = opened(broker)
    declared(broker, channel)
    broker.declare(channel, Binding('q', 'amq.headers', keys))
    broker.publish(channel, Envelope(headers=headers), '', exchange='amq.headers')
    assert broker.queues()['q'].ready == matches


def test_a_message_that_several_bindings_want_arrives_once(broker: MemoryBroker) -> None:
    channel = opened(broker)
    declared(broker, channel)
    for key in 'a', 'b':
        broker.declare(channel, Binding('q', 'amq.headers', {key: '1'}))
    broker.publish(channel, Envelope(headers={'a': '1', 'b': '1'}), '', exchange='amq.headers')
    assert broker.queues()['q'].ready == 1


def test_a_cancelled_consumer_makes_room_for_nobody(broker: MemoryBroker) -> None:
    channel = opened(broker, prefetch=1)
    declared(broker, channel)
    for number in range(3):
        broker.publish(channel, Envelope(body=b'%d' % number), 'q')
    broker.consume(channel, 'q', 'tag')
    broker.cancel(channel, 'tag')
    broker.cancel(channel, 'never')
    broker.ack(channel, 1)
    assert bodies(channel) == [b'0']
    assert broker.queues()['q'] == QueueStatus(ready=2, unacked=0, consumers=0)


def test_a_deleted_queue_takes_its_messages_bindings_and_consumers_along(broker: MemoryBroker) -> None:
    channel, other = opened(broker), opened(broker, prefetch=1)
    declared(broker, channel, dead_letter_exchange='amq.fanout', message_ttl=500)
    broker.declare(channel, Binding('q', 'amq.headers', {}))
    broker.consume(other, 'q', 'tag')
    for _ in range(3):
        broker.publish(channel, Envelope(), 'q')
    assert broker.delete('q') == 2
    assert said(other)[-1] == ConsumerCancelled(other, 'tag')
    broker.nack(other, 1)
    broker.nack(other, 1)
    assert isinstance(said(other)[-1], ChannelClosed)
    broker.publish(channel, Envelope(), '', exchange='amq.headers', mandatory=True)
    assert isinstance(said(channel)[-1], Returned)
    broker.advance(2000.0, 0)
    assert broker.queues() == {}
    with pytest.raises(KeyError):
        broker.delete('q')


def test_purge_takes_what_is_ready(broker: MemoryBroker) -> None:
    channel = opened(broker, prefetch=1)
    declared(broker, channel, max_priority=3)
    broker.consume(channel, 'q', 'tag')
    for priority in range(4):
        broker.publish(channel, Envelope(priority=priority), 'q')
    assert broker.purge('q') == 3
    assert broker.queues()['q'] == QueueStatus(0, 1, 1)
    broker.nack(channel, 1)
    assert [event.redelivered for event in said(channel) if isinstance(event, Delivered)] == [False, True]


def test_during_an_alarm_messages_are_held_in_order(broker: MemoryBroker) -> None:
    channel, lost, reader = opened(broker, confirm=True), opened(broker), opened(broker)
    declared(broker, channel)
    broker.consume(reader, 'q', 'tag')
    said(reader)
    broker.set_alarm()
    broker.set_alarm()
    assert said(channel) == []
    for number in range(3):
        broker.publish(channel, Envelope(body=b'%d' % number), 'q')
    broker.publish(channel, Envelope(), '', exchange='nowhere')
    broker.publish(channel, Envelope(body=b'after'), 'q')
    broker.publish(lost, Envelope(body=b'lost'), 'q')
    broker.close(lost.connection)
    assert said(channel) == [Blocked(True)]
    assert said(reader) == []
    broker.clear_alarm()
    broker.clear_alarm()
    *confirms, closed = said(channel)
    assert confirms == [Blocked(False), *(Confirmed(channel, number) for number in (1, 2, 3))]
    assert isinstance(closed, ChannelClosed)
    assert bodies(reader) == [b'0', b'1', b'2']


def test_a_channel_closed_during_an_alarm_still_sends_what_it_had(broker: MemoryBroker) -> None:
    channel = opened(broker, confirm=True)
    declared(broker, channel)
    broker.set_alarm()
    broker.publish(channel, Envelope(body=b'1'), 'q')
    broker.publish(channel, Envelope(), '', exchange='nowhere')
    broker.close_channel(channel)
    broker.clear_alarm()
    assert [envelope.body for envelope in broker.peek('q')] == [b'1']


def test_a_connection_that_closes_gets_nothing_back_of_what_it_held(broker: MemoryBroker) -> None:
    channel = opened(broker)
    declared(broker, channel)
    broker.consume(channel, 'q', 'acks')
    broker.consume(broker.open_channel(channel.connection), 'q', 'acks not', no_ack=True)
    broker.publish(channel, Envelope(body=b'1'), 'q')
    assert broker.queues()['q'].unacked == 1
    broker.close(channel.connection)
    assert [envelope.body for envelope in broker.peek('q')] == [b'1']


def test_all_connections_are_closed_with_their_reason(broker: MemoryBroker) -> None:
    one, two = opened(broker), opened(broker)
    declared(broker, one)
    broker.consume(one, 'q', 'tag')
    broker.consume(two, 'q', 'tag')
    broker.publish(one, Envelope(), 'q')
    broker.take_spoken_to()
    broker.close_all_connections('why not')
    for channel in one, two:
        assert said(channel)[-1] == ConnectionClosed(320, 'CONNECTION_FORCED - why not')
    assert broker.take_spoken_to() == {one.connection, two.connection}
    assert broker.connections() == []
    assert broker.queues() == {'q': QueueStatus(1, 0, 0)}


def test_deadlines_do_not_pile_up(broker: MemoryBroker) -> None:
    channel = opened(broker)
    declared(broker, channel)
    for number in range(1000):
        broker.advance(1000.0 + number / 1000, 0)
        broker.publish(channel, Envelope(expiration=60_000 - 30 * number), 'q')
        broker.purge('q')
    assert len(broker._deadlines) < 100
    broker.publish(channel, Envelope(expiration=10), 'q')
    deadline = broker.next_deadline()
    assert deadline is not None
    broker.advance(deadline, 0)
    assert broker.queues()['q'].ready == 0


# Every message is in one place


@dataclass(eq=False)
class Held:
    """A delivery that a model's channel has not settled."""

    channel: BrokerChannel
    tag: int
    body: bytes


LEVELS = 3
LETTERS = 'letters'

#: Two queues that differ in all that decides over a message, and one that takes the dead letters of both.
QUEUES = {
    'levels': Queue('levels', arguments={'x-max-priority': LEVELS, 'x-dead-letter-exchange': 'amq.fanout'}),
    'short': Queue(
        'short',
        arguments={'x-max-length': 3, 'x-message-ttl': 3000, 'x-dead-letter-exchange': 'amq.fanout'},
    ),
}


class Places(RuleBasedStateMachine):
    """Every message is ready, unacked, gone (acked, purged) or a dead letter, and only one; ready ones are in order."""

    channels = Bundle('channels')
    consumers = Bundle('consumers')

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.broker = MemoryBroker()
        self.broker.advance(0.0, 0.0)
        self.root = self.broker.open_channel(self.broker.open('root'))
        for queue in *QUEUES.values(), Queue(LETTERS):
            self.broker.declare(self.root, queue)
        self.broker.declare(self.root, Binding(LETTERS, 'amq.fanout', {}))
        self.open: dict[BrokerChannel, int] = {}
        self.consuming: dict[tuple[BrokerChannel, str], tuple[str, bool]] = {}
        self.held: list[Held] = []
        self.sent: dict[bytes, tuple[str, int, int]] = {}
        self.gone: Counter[bytes] = Counter()
        self.tags = 0

    @rule(target=channels, prefetch=st.integers(0, 3))
    def open_channel(self, prefetch: int) -> BrokerChannel:
        channel = self.broker.open_channel(self.broker.open('test'), prefetch=prefetch)
        self.open[channel] = prefetch
        return channel

    @rule(queue=st.sampled_from(sorted(QUEUES)), priority=st.integers(0, LEVELS + 1), ttl=st.none() | st.integers(0, 5))
    def publish(self, queue: str, priority: int, ttl: int | None) -> None:
        number = len(self.sent)
        body = b'%d' % number
        self.sent[body] = (queue, min(priority, LEVELS) if queue == 'levels' else 0, number)
        expiration = None if ttl is None else ttl * 1000
        self.broker.publish(self.root, Envelope(body=body, priority=priority, expiration=expiration), queue)

    @rule(target=consumers, channel=channels, queue=st.sampled_from(sorted(QUEUES)), no_ack=st.booleans())
    def consume(self, channel: BrokerChannel, queue: str, no_ack: bool) -> tuple[BrokerChannel, str]:
        self.tags += 1
        tag = f'tag{self.tags}'
        self.broker.consume(channel, queue, tag, no_ack=no_ack)
        if channel.open:
            self.consuming[channel, tag] = (queue, no_ack)
        return channel, tag

    @rule(consumer=consumes(consumers))
    def cancel(self, consumer: tuple[BrokerChannel, str]) -> None:
        self.read()
        self.broker.cancel(*consumer)
        self.consuming.pop(consumer, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(['ack', 'nack', 'reject']))
    def settle(self, data: st.DataObject, how: str) -> None:
        held = data.draw(st.sampled_from(range(len(self.held))).map(lambda index: self.held[index]))
        self.held.remove(held)
        if how == 'ack':
            self.broker.ack(held.channel, held.tag)
            self.gone[held.body] += 1
        else:
            self.broker.nack(held.channel, held.tag, requeue=how == 'nack')

    @rule(channel=consumes(channels), how=st.sampled_from(['channel', 'connection', 'error']))
    def close(self, channel: BrokerChannel, how: str) -> None:
        if channel not in self.open:
            return
        self.read()
        if how == 'channel':
            self.broker.close_channel(channel)
        elif how == 'error':
            self.broker.ack(channel, 10**6)
        else:
            self.broker.close(channel.connection)
        self._forget(channel)

    @rule()
    def close_all(self) -> None:
        self.read()
        self.broker.close_all_connections('test')
        # What the first to go held has come to those after it.
        self.read()
        for channel in list(self.open):
            self._forget(channel)
        self.root = self.broker.open_channel(self.broker.open('root'))

    def _forget(self, channel: BrokerChannel) -> None:
        del self.open[channel]
        self.held = [held for held in self.held if held.channel is not channel]
        self.consuming = {key: value for key, value in self.consuming.items() if key[0] is not channel}

    @rule(queue=st.sampled_from(sorted(QUEUES)))
    def purge(self, queue: str) -> None:
        self.gone.update(envelope.body for envelope in self.broker.peek(queue))
        self.broker.purge(queue)

    @rule(seconds=st.sampled_from([0.5, 1, 2, 5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.broker.advance(self.now, self.now)

    @rule(on=st.booleans())
    def alarm(self, on: bool) -> None:
        # Held messages are in no place yet, so the alarm is over before anybody looks.
        self.broker.set_alarm()
        self.publish('levels', 1, None)
        if on:
            self.broker.close_channel(self.root)
            self.root = self.broker.open_channel(self.broker.open('root'))
        self.broker.clear_alarm()

    @invariant()
    def read(self) -> None:
        for channel in self.open:
            for event in said(channel):
                if isinstance(event, Delivered):
                    queue, no_ack = self.consuming[channel, event.consumer_tag]
                    assert self.sent[event.envelope.body][0] == queue
                    if no_ack:
                        self.gone[event.envelope.body] += 1
                    else:
                        self.held.append(Held(channel, event.tag, event.envelope.body))

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        self.read()
        places = Counter(self.gone)
        for name in *QUEUES, LETTERS:
            places.update(envelope.body for envelope in self.broker.peek(name))
        places.update(held.body for held in self.held)
        assert places == Counter(dict.fromkeys(self.sent, 1))

    @invariant()
    def what_is_ready_is_in_order(self) -> None:
        for name in QUEUES:
            order = [self.sent[envelope.body] for envelope in self.broker.peek(name)]
            assert order == sorted(order, key=lambda sent: (-sent[1], sent[2]))
        assert self.broker.queues()['short'].ready <= 3

    @invariant()
    def the_operator_sees_the_same(self) -> None:
        for name, status in self.broker.queues().items():
            assert status.ready == len(self.broker.peek(name))
            assert status.unacked == sum(self.sent[held.body][0] == name for held in self.held)
            assert status.consumers == sum(queue == name for queue, _ in self.consuming.values())

    @invariant()
    def nobody_waits_while_there_is_room_and_nobody_has_too_much(self) -> None:
        room: Counter[str] = Counter()
        for (channel, tag), (queue, no_ack) in self.consuming.items():
            consumer = channel._consumers[tag]
            limit = self.open[channel]
            assert no_ack or not limit or consumer.unacked <= limit
            room[queue] += consumer.has_room
        for name in QUEUES:
            assert not (room[name] and self.broker.queues()[name].ready)

    @invariant()
    def nothing_overdue_is_at_a_head(self) -> None:
        deadline = self.broker.next_deadline()
        assert deadline is None or deadline > self.now


TestPlaces = Places.TestCase
TestPlaces.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# Shared by threads


@pytest.fixture
def url() -> Iterator[str]:
    url = f'memory://{uuid4().hex}'
    yield url
    memory.forget(url)


def in_thread(body: Callable[[], Coroutine[Any, Any, None]]) -> threading.Thread:
    """Run a coroutine on a loop in a thread of its own."""
    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(body(), 30)))
    thread.start()
    return thread


def test_all_messages_of_many_threads_arrive_once(url: str) -> None:
    count, senders, receivers = 10_000, 3, 3
    arrived: list[bytes] = []
    all_there = threading.Event()
    consuming = threading.Barrier(senders + receivers)

    async def receive() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel(prefetch=20)
        await channel.declare(Queue('q'))
        nacked: set[bytes] = set()

        def on_delivery(delivery: Delivery) -> None:
            body = delivery.envelope.body
            if len(arrived) % 97 == 0 and body not in nacked:
                nacked.add(body)
                channel.nack(delivery.tag)
                return
            channel.ack(delivery.tag)
            arrived.append(body)
            if len(arrived) == count:
                all_there.set()

        await channel.consume('q', on_delivery)
        await asyncio.to_thread(consuming.wait, 10)
        await asyncio.to_thread(all_there.wait, 20)
        await connection.close()

    async def send(first: int) -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel(confirm=True)
        await channel.declare(Queue('q'))
        await asyncio.to_thread(consuming.wait, 10)
        for number in range(first, count, senders):
            channel.publish(Envelope(body=b'%d' % number, expiration=60_000), 'q')
            if number % 50 == 0:
                await channel.confirmed()
        await channel.confirmed()
        await connection.close()

    threads = [in_thread(receive) for _ in range(receivers)]
    threads += [in_thread(lambda first=first: send(first)) for first in range(senders)]  # type: ignore[misc]
    for thread in threads:
        thread.join(30)
    assert sorted(arrived, key=int) == [b'%d' % number for number in range(count)]
    assert memory.broker(url).queues() == {'q': QueueStatus(0, 0, 0)}
    assert memory.broker(url).connections() == []


def test_a_loop_that_ended_without_closing_harms_nobody(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel(prefetch=1)
        held = asyncio.get_running_loop().create_future()
        await channel.declare(Queue('q'))
        await channel.declare(Queue('mine', exclusive=True))
        await channel.consume('q', held.set_result)
        # Woken, but never to wake: what is said to it now is not read.
        channel.publish(Envelope(body=b'1'), 'q')
        await held
        (await connection.open_channel(prefetch=1)).publish(Envelope(), 'mine')

    asyncio.run(leave())

    async def go_on() -> None:
        connection = await memory.dial(url)
        returned: asyncio.Queue[str] = asyncio.Queue()
        channel = await connection.open_channel(on_return=lambda envelope, key: returned.put_nowait(key))
        inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.consume('q', inbox.put_nowait)
        delivery = await inbox.get()
        assert (delivery.envelope.body, delivery.redelivered) == (b'1', True)
        channel.publish(Envelope(), 'mine', mandatory=True)
        assert await returned.get() == 'mine'
        await connection.close()

    asyncio.run(asyncio.wait_for(go_on(), 10))
    assert 'its loop was closed before it' in caplog.text


def test_a_loop_that_ends_while_others_go_on_gives_back_what_it_got(url: str) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel(prefetch=100)
        inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.declare(Queue('q'))
        await channel.consume('q', inbox.put_nowait)

        async def leave() -> None:
            other = await (await memory.dial(url)).open_channel(prefetch=10)
            await other.consume('q', lambda delivery: None)

        def stopped() -> asyncio.AbstractEventLoop:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(leave())
            return loop

        # One loop is closed while it has nothing to read, the other after it was told that it has.
        await asyncio.to_thread(lambda: asyncio.run(leave()))
        loop = await asyncio.to_thread(stopped)
        for number in range(6):
            channel.publish(Envelope(body=b'%d' % number), 'q')
        loop.close()
        for number in range(6, 20):
            channel.publish(Envelope(body=b'%d' % number), 'q')
        assert {(await inbox.get()).envelope.body for _ in range(20)} == {b'%d' % number for number in range(20)}
        assert len(memory.broker(url).connections()) == 1
        await connection.close()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_what_expires_is_timed_by_whoever_is_left(url: str) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel()
        letters: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.declare(Queue('letters'))
        arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'letters'}
        await channel.declare(Queue('q', arguments=arguments))
        await channel.consume('letters', letters.put_nowait, no_ack=True)

        async def leave(close: bool) -> None:
            other = await memory.dial(url)
            (await other.open_channel()).publish(Envelope(body=repr(close).encode(), expiration=50), 'q')
            if close:
                await other.close()

        for close in True, False:
            await asyncio.to_thread(lambda close=close: asyncio.run(leave(close)))  # type: ignore[misc]
            assert (await letters.get()).envelope.body == repr(close).encode()
        await connection.close()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_nothing_runs_while_nothing_happens(url: str) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel()
        await channel.declare(Queue('q'))
        await channel.consume('q', lambda delivery: None)
        channel.publish(Envelope(expiration=60_000), 'q')
        await channel.unbind(Binding('', '', {}))
        loop: Any = asyncio.get_running_loop()
        # Neither a timer nor a callback: the loop would sleep until somebody wakes it.
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == timers
        assert not loop._ready
        await connection.close()

    async def timed() -> None:
        loop: Any = asyncio.get_running_loop()
        timers.extend(loop._scheduled)
        await run()

    timers: list[Any] = []
    asyncio.run(timed())


def test_the_operator_is_heard(url: str) -> None:
    operator = memory.broker(url)

    async def run() -> None:
        connection = await memory.dial(url, name='who')
        blocked: asyncio.Queue[bool] = asyncio.Queue()
        closed: asyncio.Queue[Exception] = asyncio.Queue()
        connection.on_blocked = blocked.put_nowait
        connection.on_close = closed.put_nowait
        channel = await connection.open_channel(confirm=True)
        await channel.declare(Queue('q'))
        operator.set_alarm()
        channel.publish(Envelope(body=b'1'), 'q')
        assert await blocked.get()
        confirmed = asyncio.ensure_future(channel.confirmed())
        await channel.unbind(Binding('', '', {}))
        assert not confirmed.done()
        assert operator.peek('q') == []
        operator.clear_alarm()
        assert not await blocked.get()
        await confirmed
        assert operator.peek('q') == [Envelope(body=b'1')]
        assert operator.queues() == {'q': QueueStatus(1, 0, 0)}
        assert operator.purge('q') == 1
        assert operator.delete('q') == 0
        [name] = operator.connections()
        assert name.startswith('who ')
        await asyncio.to_thread(operator.close_all_connections, 'enough')
        assert '320 CONNECTION_FORCED - enough' in str(await closed.get())
        assert operator.connections() == []

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_name_is_a_broker_until_it_is_forgotten(url: str) -> None:
    async def run() -> None:
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        connection = await memory.dial(url)
        connection.on_close = lost.set_result
        await (await connection.open_channel()).declare(Queue('q'))
        assert memory.broker(url) is memory.broker(url)
        assert 'q' in memory.broker(url).queues()
        memory.forget(url)
        memory.forget(url)
        assert 'the broker was forgotten' in str(await lost)
        assert memory.broker(url).queues() == {}

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize('bad', ['amqp://host', 'memory://user:secret@name', 'memory://name/path', 'memory://a?b=c'])
def test_another_address_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match=r'it should look like memory://name') as raised:
        asyncio.run(memory.dial(bad))
    assert 'secret' not in str(raised.value)


def test_an_address_without_a_name_is_one_broker() -> None:
    assert memory.broker('memory://') is memory.broker('memory:///')
    memory.forget('memory://')


def test_a_callback_that_fails_costs_only_itself(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        returned: list[str] = []

        def on_return(envelope: Envelope, key: str) -> None:
            returned.append(key)
            raise ZeroDivisionError

        channel = await connection.open_channel(on_return=on_return)
        channel.publish(Envelope(), '1', mandatory=True)
        channel.publish(Envelope(), '2', mandatory=True)
        await channel.unbind(Binding('', '', {}))
        assert returned == ['1', '2']
        await connection.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(run(), 10))
    assert 'ZeroDivisionError' in caplog.text


def test_names_that_amqp_cannot_carry_are_an_error_of_the_publisher(url: str) -> None:
    async def run() -> None:
        connection: Connection = await memory.dial(url)
        channel = await connection.open_channel()
        channel.publish(Envelope(correlation_id='é' * 127 + 'x'), 'q')
        for envelope in (
            Envelope(correlation_id='é' * 128),
            Envelope(headers={'é' * 128: 1}),
            Envelope(headers={'a': {1: 'b'}}),
        ):
            with pytest.raises(ValueError, match='AMQP carries'):
                channel.publish(envelope, 'q')
        await connection.close()

    asyncio.run(run())


def test_a_queue_of_more_than_one_turn_is_read_to_its_end(url: str) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel()
        await channel.declare(Queue('q'))
        count = 3 * memory.MOST_AT_ONCE + 1
        for number in range(count):
            channel.publish(Envelope(body=b'%d' % number), 'q')
        inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.consume('q', inbox.put_nowait)
        assert [(await inbox.get()).envelope.body for _ in range(count)] == [b'%d' % each for each in range(count)]
        await connection.close()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_requests_on_their_way_fail_when_the_connection_is_lost(url: str) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel(confirm=True)
        asked = asyncio.gather(
            channel.declare(Queue('q')), channel.confirmed(), connection.open_channel(), return_exceptions=True
        )
        # The broker closes it, but the loop hears of that only after all have asked.
        memory.broker(url).close_all_connections()
        channel.publish(Envelope(), 'q')
        errors = await asked
        await asyncio.gather(connection.close(), connection.close())
        assert all('320 CONNECTION_FORCED' in str(each) for each in errors)
        assert all(isinstance(each, ConnectionError) for each in errors)
        with pytest.raises(ConnectionError, match=r'gone: .*320 CONNECTION_FORCED'):
            await connection.open_channel()
        with pytest.raises(ConnectionError, match='320 CONNECTION_FORCED'):
            await channel.confirmed()
        await channel.close()
        await connection.close()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_message_above_the_limit_is_a_refusal(url: str) -> None:
    async def run() -> None:
        connection = await memory.dial(url)
        channel = await connection.open_channel(confirm=True, on_closed=lambda reason: None)
        channel.publish(Envelope(body=bytes(MAX_MESSAGE_SIZE + 1)), 'q')
        with pytest.raises(BrokerRefused, match='406 PRECONDITION_FAILED - message size'):
            await channel.confirmed()
        await connection.close()

    asyncio.run(asyncio.wait_for(run(), 10))
