"""What clients ask of the broker in memory, chosen by bytes: no message is lost, doubled, or kept from who has room."""

from collections import Counter
from typing import Any

from crew.envelope import Envelope
from crew.memory_broker import (
    BrokerChannel,
    BrokerConnection,
    ChannelClosed,
    Confirmed,
    ConnectionClosed,
    Delivered,
    Done,
    MemoryBroker,
    Returned,
)
from crew.topology import DEAD_LETTERS, REPLY_KEY, Binding, Queue
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

SHARED = Queue('work', arguments={'x-dead-letter-exchange': DEAD_LETTERS.name, 'x-max-priority': 2})
LETTERS = Queue('letters')
SHORT = Queue('short', arguments={'x-max-length': 2, 'x-message-ttl': 500})
NAMES = ['work', 'work', 'work', 'letters', 'short', 'mine', 'nowhere']

TIMES = [0.0, 0.05, 0.2, 0.6, 3.0]
LIVES = [None, None, 0, 100, 1000]


def check(data: bytes) -> None:
    """Play what the bytes choose."""
    world = World(Choices(data))
    for _ in range(250):
        if not world.choices:
            break
        world.step()
        world.check()
    world.complete()


class Peer:
    """A client: a connection, two channels, and what it was told."""

    def __init__(self, broker: MemoryBroker, choices: Choices) -> None:
        self.connection: BrokerConnection = broker.open('peer')
        self.channels: list[BrokerChannel] = []
        self.requests: Counter[BrokerChannel] = Counter()
        self.done: Counter[BrokerChannel] = Counter()
        self.confirmed: dict[BrokerChannel, int] = {}
        self.published: Counter[BrokerChannel] = Counter()
        #: What was delivered and is not acknowledged: the message and its queue, by tag.
        self.held: dict[BrokerChannel, dict[int, tuple[str, str]]] = {}
        #: Of each consumer, the queue, and whether it acknowledges.
        self.consumers: dict[tuple[BrokerChannel, str], tuple[str, bool]] = {}
        self.tags = 0
        for confirm in (False, True):
            self.open(broker, choices, confirm)

    def open(self, broker: MemoryBroker, choices: Choices, confirm: bool = False) -> None:
        """Open a channel."""
        channel = broker.open_channel(self.connection, prefetch=choices.below(4), confirm=confirm)
        self.channels.append(channel)
        self.requests[channel] += channel.open
        self.held[channel] = {}
        self.confirmed[channel] = 0


class World:
    """Two clients and their broker.

    Attributes:
        acked: how often each message was acknowledged, or was delivered where none is wanted.
        dropped: whether anything was dropped by an operator, by a limit, or because nobody took its dead letter.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.broker = MemoryBroker()
        self.now = 0.0
        self.number = 0
        self.sent: list[str] = []
        self.acked: Counter[str] = Counter()
        self.dropped = False
        self.alarm = False
        self.peers = [Peer(self.broker, choices), Peer(self.broker, choices)]
        channel = self.peers[0].channels[0]
        for what in (DEAD_LETTERS, SHARED, LETTERS, SHORT, Binding('letters', DEAD_LETTERS.name, {REPLY_KEY: 'r'})):
            self.broker.declare(channel, what)
            self.peers[0].requests[channel] += 1
        self.read_all()

    # Events

    def step(self) -> None:
        """Let something happen."""
        choices, broker = self.choices, self.broker
        kind = choices.below(16)
        peer = choices.pick(self.peers)
        channel = choices.pick(peer.channels)
        if kind < 5:
            self.publish(peer, channel)
        elif kind == 5:
            self.consume(peer, channel)
        elif kind == 6:
            tags = [tag for each, tag in peer.consumers if each is channel]
            self.request(peer, channel, lambda: broker.cancel(channel, choices.pick(tags) if tags else 'none'))
        elif kind < 10 and peer.held[channel]:
            self.settle(peer, channel)
        elif kind == 10:
            self.now += choices.pick(TIMES)
            broker.advance(self.now, 1_700_000_000 + self.now)
        elif kind == 11 and choices.flag():
            self.request(peer, channel, lambda: broker.declare(channel, Queue('mine', exclusive=True)))
        elif kind == 11:
            self.request(peer, channel, lambda: broker.look_up(channel, choices.pick(NAMES)))
        elif kind == 12:
            self.request(peer, channel, lambda: broker.close_channel(channel))
        elif kind == 13 and choices.rarely():
            broker.close(peer.connection) if choices.flag() else broker.close_all_connections('because')
        elif kind == 14 and choices.rarely():
            self.operate()
        elif kind == 15 and choices.flag():
            self.alarm = not self.alarm
            broker.set_alarm() if self.alarm else broker.clear_alarm()
        self.read_all()
        self.renew()

    def publish(self, peer: Peer, channel: BrokerChannel) -> None:
        """Publish a message of its own name."""
        choices = self.choices
        self.number += 1
        name, key = str(self.number), choices.pick(NAMES)
        envelope = Envelope(
            correlation_id=name,
            headers={} if choices.rarely() else {REPLY_KEY: 'r'},
            expiration=choices.pick(LIVES),
            priority=choices.below(4),
        )
        exchange = 'unknown' if choices.rarely() and choices.rarely() else ''
        if channel.open:
            peer.published[channel] += 1
            # What is held while there is an alarm is lost with its connection, as if it had never been sent.
            if key == 'work' and not exchange and envelope.headers and not self.alarm:
                self.sent.append(name)
        self.broker.publish(channel, envelope, key, exchange=exchange, mandatory=choices.flag())

    def consume(self, peer: Peer, channel: BrokerChannel) -> None:
        """Begin to consume a queue."""
        peer.tags += 1
        tag, no_ack, name = f't{peer.tags}', self.choices.rarely(), self.choices.pick(NAMES)
        if channel.open:
            peer.consumers[channel, tag] = name, no_ack
        self.request(peer, channel, lambda: self.broker.consume(channel, name, tag, no_ack=no_ack))

    def settle(self, peer: Peer, channel: BrokerChannel) -> None:
        """Acknowledge a delivery, or give it back, or drop it; or say so of none."""
        choices = self.choices
        if choices.rarely():
            self.broker.ack(channel, 1_000_000)
            return
        tag = choices.pick(list(peer.held[channel])[:250])
        name, queue = peer.held[channel].pop(tag)
        if not channel.open:
            return
        how = choices.below(4)
        # Only of the shared queue's there are dead letters.
        self.acked[name] += how < 2 or (how == 3 and queue != 'work')
        if how < 2:
            self.broker.ack(channel, tag)
        else:
            self.broker.nack(channel, tag, requeue=how == 2)

    def request(self, peer: Peer, channel: BrokerChannel, ask: Any) -> None:
        """Ask for something that is answered, or costs the channel."""
        if channel.open:
            peer.requests[channel] += 1
        ask()

    def operate(self) -> None:
        """Let an operator meddle."""
        self.dropped = True
        if not self.broker.queues():
            return
        name = self.choices.pick(list(self.broker.queues()))
        self.broker.purge(name) if self.choices.flag() else self.broker.delete(name)
        if 'work' not in self.broker.queues() or 'letters' not in self.broker.queues():
            self.sent.clear()

    def renew(self) -> None:
        """Open what is closed."""
        for at, peer in enumerate(self.peers):
            if not peer.connection.open:
                self.peers[at] = Peer(self.broker, self.choices)
            elif not all(channel.open for channel in peer.channels):
                closed = next(channel for channel in peer.channels if not channel.open)
                peer.channels.remove(closed)
                peer.open(self.broker, self.choices, closed._confirm)
        self.read_all()

    # What the broker says

    def read_all(self) -> None:
        """Read what the clients were told."""
        for peer in self.peers:
            while peer.connection.outbox:
                self.read(peer, peer.connection.outbox.popleft())
        assert not {each for each in self.broker.take_spoken_to() if each.open and each.outbox}

    def read(self, peer: Peer, event: Any) -> None:
        """Read one event, and fail if it must not be."""
        if isinstance(event, ConnectionClosed):
            assert not peer.connection.open
        elif isinstance(event, Done):
            peer.done[event.channel] += 1
            assert peer.done[event.channel] <= peer.requests[event.channel], 'an answer that nobody asked for'
        elif isinstance(event, Confirmed):
            assert peer.confirmed[event.channel] < event.number <= peer.published[event.channel]
            peer.confirmed[event.channel] = event.number
        elif isinstance(event, Returned):
            assert event.routing_key not in self.broker.queues() or self.alarm or self.dropped
        elif isinstance(event, Delivered):
            self.take(peer, event)
        elif isinstance(event, ChannelClosed):
            assert not event.channel.open

    def take(self, peer: Peer, event: Delivered) -> None:
        """Take a delivery."""
        name = event.envelope.correlation_id
        assert event.tag not in peer.held[event.channel]
        queue, no_ack = peer.consumers[event.channel, event.consumer_tag]
        if no_ack:
            self.acked[name] += 1
        elif event.channel.open:
            peer.held[event.channel][event.tag] = name, queue

    # What must be

    def check(self) -> None:
        """Fail if the books do not balance."""
        broker = self.broker
        places: Counter[tuple[str, str]] = Counter()
        unacked: Counter[Any] = Counter()
        for connection in broker._connections:
            for channel in connection._channels:
                for message, consumer in channel._unacked.values():
                    places[consumer.queue.name, message.envelope.correlation_id] += not consumer.queue.gone
                    unacked[consumer] += 1
                    unacked[consumer.queue] += 1
        for queue in broker._queues.values():
            ready = [message for level in reversed(queue.levels) for message in level]
            assert queue.ready == len(ready) and queue.unacked == unacked[queue]
            keys = [(-message.level, message.place) for message in ready]
            assert keys == sorted(keys), 'out of order'
            assert not (ready and queue.free), 'a message waits though a consumer has room'
            assert not ready or ready[0].due is None or ready[0].due > broker._now, 'the head outlives its time'
            assert queue.max_length is None or len(ready) <= queue.max_length
            for message in ready:
                places[queue.name, message.envelope.correlation_id] += 1
            for consumer in queue.consumers:
                assert consumer.unacked == unacked[consumer] and (
                    consumer.no_ack or not consumer.limit or consumer.unacked <= consumer.limit
                )
                assert (consumer in queue.free) == consumer.has_room
        assert not places or max(places.values()) <= 1, 'a message is in two places'
        assert not broker._letters
        self.check_conservation(places)

    def check_conservation(self, places: Counter[tuple[str, str]]) -> None:
        """Fail if a message of the shared queue is neither there, nor a dead letter, nor acknowledged."""
        if self.dropped:
            return
        held = {name for _, name in places}
        for name in self.sent:
            assert name in held or self.acked[name], f'message {name} is lost'

    def complete(self) -> None:
        """Let everybody go: what was not acknowledged is ready, and everything private is gone."""
        for peer in self.peers:
            self.broker.close(peer.connection)
            # What one held goes to the other.
            self.read_all()
        self.check()
        assert all(status.unacked == status.consumers == 0 for status in self.broker.queues().values())
        assert 'mine' not in self.broker.queues()


def seeds() -> list[bytes]:
    """Return a message that is taken, and one that expires."""
    return [
        bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 5, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0]),
        bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0, 0, 10, 0, 0, 4, 5, 1, 0, 0, 3]),
    ]
