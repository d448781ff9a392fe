"""A broker as plain data: AMQP 0-9-1 with the semantics of RabbitMQ, for ``memory://`` (:mod:`crew.transports.memory`).

Sans-IO: no sockets, threads, loops or clocks. Methods are what comes in; what goes out to a client is appended to the
``outbox`` of its connection, in the order in which a real broker would write it to the socket, the answers to requests
(:class:`Done`) among it. So whoever reads an outbox from front to back sees what an AMQP client sees. The time is what
the last :meth:`MemoryBroker.advance` said; :meth:`MemoryBroker.next_deadline` says when it is due next.

A message is, per queue, in one of two states, and leaves it once. State × event:

========  ====================================  ==========================================================
state     event                                 what follows
========  ====================================  ==========================================================
(new)     published                             unacked, if the queue is empty and a consumer has room; or ready
ready     it is the head, a consumer has room   unacked; gone at once if the consumer is ``no_ack``
ready     it is the head, its time is over      dead letter ``expired``
ready     it is the head, the queue too long    dead letter ``maxlen``
ready     purge; the queue is deleted           gone
unacked   ack                                   gone
unacked   nack; its channel is closed           ready, in its old place, redelivered; gone if the queue is gone
unacked   nack without requeue                  dead letter ``rejected``
========  ====================================  ==========================================================

The head of a queue is the oldest message of its highest level that has any. Only there do messages expire, so one that
waits behind a higher level outlives its time, as in RabbitMQ. A dead letter goes to the queue's
``x-dead-letter-exchange``, or is gone where there is none.

What RabbitMQ has and this has not: permissions, ``x-expires``, ``x-max-length-bytes``, other overflows than the head's,
single active consumers (refused when asked for), ``CC`` and ``BCC`` headers (ignored), delivery limits and the two
levels of quorum queues (a quorum queue is a classic one by another name). Nothing survives the process.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeAlias

from crew.envelope import Envelope
from crew.topology import Binding, Exchange, Queue

__all__ = [
    'MAX_MESSAGE_SIZE',
    'Blocked',
    'BrokerChannel',
    'BrokerConnection',
    'ChannelClosed',
    'Confirmed',
    'ConnectionClosed',
    'ConsumerCancelled',
    'Delivered',
    'Done',
    'Event',
    'MemoryBroker',
    'QueueStatus',
    'Returned',
]

#: How large a body may be, in bytes: what RabbitMQ 4 allows unless it is told otherwise.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024

# RabbitMQ's own limit of times to live: a hundred years in milliseconds.
MAX_EXPIRY = 100 * 365 * 24 * 60 * 60 * 1000

ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED, NOT_IMPLEMENTED = 403, 404, 405, 406, 540
CONNECTION_FORCED = 320

INTEGERS = {'x-max-priority': 255, 'x-message-ttl': MAX_EXPIRY, 'x-max-length': None}
STRINGS = ('x-dead-letter-exchange', 'x-dead-letter-routing-key')
TYPE = 'x-queue-type'
# Others are ignored, as RabbitMQ does; these would be missed.
UNSUPPORTED = ('x-expires', 'x-max-length-bytes', 'x-overflow', 'x-single-active-consumer')

MATCHES = ('all', 'any', 'all-with-x', 'any-with-x')


# What goes out


class Done(NamedTuple):
    """The channel's oldest request that has no answer yet was carried out."""

    channel: 'BrokerChannel'


class Delivered(NamedTuple):
    """A message for a consumer."""

    channel: 'BrokerChannel'
    consumer_tag: str
    tag: int
    redelivered: bool
    envelope: Envelope


class Returned(NamedTuple):
    """A mandatory message that no queue took."""

    channel: 'BrokerChannel'
    envelope: Envelope
    routing_key: str


class Confirmed(NamedTuple):
    """The broker has the first ``number`` messages that were published on the channel."""

    channel: 'BrokerChannel'
    number: int


class ConsumerCancelled(NamedTuple):
    """The broker took a consumer away, because its queue was deleted."""

    channel: 'BrokerChannel'
    consumer_tag: str


class ChannelClosed(NamedTuple):
    """The broker closed the channel; requests without an answer get none."""

    channel: 'BrokerChannel'
    code: int
    text: str


class ConnectionClosed(NamedTuple):
    """The broker closed the connection; nothing comes after this."""

    code: int
    text: str


class Blocked(NamedTuple):
    """The broker takes no messages now (True), or takes them again (False)."""

    blocked: bool


Event: TypeAlias = (
    Done | Delivered | Returned | Confirmed | ConsumerCancelled | ChannelClosed | ConnectionClosed | Blocked
)


# What a client holds


class BrokerConnection:
    """The broker's side of one connection; made by :meth:`MemoryBroker.open`.

    Attributes:
        name: for the operator.
        outbox: what the client was told and has not read yet; its reader takes it from the left.
        open: whether the connection is.
    """

    __slots__ = ('_blocked', '_channels', 'name', 'open', 'outbox')

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox: deque[Event] = deque()
        self.open = True
        self._channels: list[BrokerChannel] = []
        self._blocked = False


class BrokerChannel:
    """The broker's side of one channel; made by :meth:`MemoryBroker.open_channel`.

    Attributes:
        connection: the channel's connection.
        open: whether the channel is.
    """

    __slots__ = (
        '_confirm',
        '_consumers',
        '_last_tag',
        '_prefetch',
        '_published',
        '_refused',
        '_unacked',
        'connection',
        'open',
    )

    def __init__(self, connection: BrokerConnection, prefetch: int, confirm: bool) -> None:
        self.connection = connection
        self.open = True
        self._prefetch = prefetch
        self._confirm = confirm
        self._consumers: dict[str, _Consumer] = {}
        self._unacked: dict[int, tuple[_Message, _Consumer]] = {}
        self._last_tag = 0
        self._published = 0
        self._refused = False


class QueueStatus(NamedTuple):
    """What ``rabbitmqctl list_queues`` tells of a queue."""

    ready: int
    unacked: int
    consumers: int


# What the broker holds


@dataclass(slots=True, eq=False)
class _Message:
    """A message in one queue."""

    envelope: Envelope
    exchange: str
    routing_key: str
    place: int
    level: int
    due: float | None
    redelivered: bool = False


@dataclass(slots=True, eq=False)
class _Consumer:
    """A consumer; while it has room, it stands in its queue's ``free``."""

    channel: BrokerChannel
    tag: str
    queue: '_Queue'
    limit: int
    no_ack: bool
    priority: int = 0
    unacked: int = 0
    gone: bool = False

    @property
    def has_room(self) -> bool:
        return self.no_ack or not self.limit or self.unacked < self.limit


@dataclass(slots=True, eq=False)
class _Queue:
    """A queue, and its messages by level; within a level they stand in the order of their places."""

    declared: Queue
    owner: BrokerConnection | None
    levels: list[deque[_Message]]
    ttl: int | None
    max_length: int | None
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None
    ready: int = 0
    unacked: int = 0
    last_place: int = 0
    consumers: list[_Consumer] = field(default_factory=list)
    free: deque[_Consumer] = field(default_factory=deque)
    watched: float | None = None
    gone: bool = False

    @property
    def name(self) -> str:
        return self.declared.name

    def head(self) -> _Message:
        """Return the first message; there must be one."""
        return next(level for level in reversed(self.levels) if level)[0]

    def pop(self) -> _Message:
        """Take the first message; there must be one."""
        self.ready -= 1
        return next(level for level in reversed(self.levels) if level).popleft()

    def append(self, message: _Message) -> None:
        self.levels[message.level].append(message)
        self.ready += 1

    def make_free(self, consumer: _Consumer) -> None:
        """Let a consumer wait for messages, behind those of its priority and before those of a lower one."""
        place = len(self.free)
        while place and self.free[place - 1].priority < consumer.priority:
            place -= 1
        self.free.insert(place, consumer)

    def put_back(self, message: _Message) -> None:
        """Put a message into the place that it had."""
        level = self.levels[message.level]
        self.ready += 1
        if not level or message.place < level[0].place:
            level.appendleft(message)
            return
        behind = (index for index, other in enumerate(level) if other.place > message.place)
        level.insert(next(behind, len(level)), message)


@dataclass(slots=True)
class _Bound:
    """An exchange and its bindings: a queue's name with the arguments of ``queue.bind``."""

    type: str
    bindings: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class _Refusal(Exception):
    """A request cannot be granted: the channel is closed with this reply."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class MemoryBroker:
    """Exchanges, queues, consumers and their messages.

    Every method that a client's request stands for answers into the outbox of the client's connection. A request on a
    channel that is closed is ignored; so is everything of a connection that is closed.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._wall = 0.0
        self._alarm = False
        self._held: list[tuple[BrokerChannel, Envelope, str, str, bool]] = []
        self._connections: list[BrokerConnection] = []
        self._spoken_to: set[BrokerConnection] = set()
        self._queues: dict[str, _Queue] = {}
        self._letters: deque[tuple[_Queue, _Message, str]] = deque()
        self._deadlines: list[tuple[float, int, _Queue]] = []
        self._deadlines_made = 0
        # The default exchange is no entry: its bindings are the queues' names.
        self._exchanges = {
            'amq.direct': _Bound('direct'),
            'amq.fanout': _Bound('fanout'),
            'amq.headers': _Bound('headers'),
            'amq.match': _Bound('headers'),
            'amq.topic': _Bound('topic'),
        }

    # Time, and who is to be told

    def advance(self, now: float, wall: float) -> None:
        """Say how late it is, before any other method that should know; what is overdue expires.

        Args:
            now: the time in seconds, on a clock that never goes back.
            wall: the time in seconds since the epoch, which dead letters carry.
        """
        self._now, self._wall = now, wall
        while self._deadlines and self._deadlines[0][0] <= now:
            due, _, queue = heapq.heappop(self._deadlines)
            if queue.watched == due:
                queue.watched = None
                self._run(queue)
        self._route_letters()

    def next_deadline(self) -> float | None:
        """Return when :meth:`advance` is due next, on the clock of ``now``, or None. It may be earlier than needed."""
        return self._deadlines[0][0] if self._deadlines else None

    def take_spoken_to(self) -> set[BrokerConnection]:
        """Return the connections whose outbox got something since the last call of this."""
        spoken_to = self._spoken_to
        if spoken_to:
            self._spoken_to = set()
        return spoken_to

    def _watch(self, queue: _Queue, due: float | None) -> None:
        if due is None or (queue.watched is not None and queue.watched <= due):
            return
        queue.watched = due
        self._deadlines_made += 1
        heapq.heappush(self._deadlines, (due, self._deadlines_made, queue))
        # An earlier deadline leaves the later one of its queue behind.
        if len(self._deadlines) > 2 * len(self._queues) + 64:
            latest = {id(entry[2]): entry for entry in sorted(self._deadlines, reverse=True)}
            self._deadlines = [entry for entry in latest.values() if not entry[2].gone]
            heapq.heapify(self._deadlines)

    # Connections and channels

    def open(self, name: str = '') -> BrokerConnection:
        """Open a connection.

        Args:
            name: what the operator sees.
        """
        connection = BrokerConnection(name)
        self._connections.append(connection)
        return connection

    def close(self, connection: BrokerConnection) -> None:
        """Close a connection at its client's wish, or because the client is gone.

        What it held unacknowledged goes back, its exclusive queues are deleted, and its outbox gets nothing any more.
        """
        if not connection.open:
            return
        connection.open = False
        self._connections.remove(connection)
        self._spoken_to.discard(connection)
        self._held = [held for held in self._held if held[0].connection is not connection]
        for queue in [queue for queue in self._queues.values() if queue.owner is connection]:
            self._delete(queue)
        # First all consumers, lest one of them gets what is put back.
        for channel in connection._channels:
            self._remove_all(channel)
        for channel in list(connection._channels):
            self._end(channel)
        self._route_letters()

    def open_channel(self, connection: BrokerConnection, *, prefetch: int = 0, confirm: bool = False) -> BrokerChannel:
        """Open a channel.

        Args:
            connection: where.
            prefetch: how many deliveries each consumer may hold unacknowledged; 0 is any number.
            confirm: whether the channel is told what the broker has (:class:`Confirmed`).
        """
        channel = BrokerChannel(connection, prefetch, confirm)
        channel.open = connection.open
        if channel.open:
            connection._channels.append(channel)
            self._tell(connection, Done(channel))
        return channel

    def close_channel(self, channel: BrokerChannel) -> None:
        """Close a channel at its client's wish; what it held unacknowledged goes back."""
        if channel.open:
            self._end(channel)
            self._tell(channel.connection, Done(channel))
            self._route_letters()

    def _end(self, channel: BrokerChannel) -> None:
        channel.open = False
        channel.connection._channels.remove(channel)
        self._remove_all(channel)
        held, channel._unacked = channel._unacked, {}
        self._put_back(held.values())

    def _remove_all(self, channel: BrokerChannel) -> None:
        for consumer in channel._consumers.values():
            self._remove(consumer)
        channel._consumers = {}

    def _refuse(self, channel: BrokerChannel, refusal: _Refusal) -> None:
        if not channel.open:
            return  # its client closed it while a message was held
        channel._refused = True
        self._end(channel)
        self._tell(channel.connection, ChannelClosed(channel, refusal.code, refusal.text))

    def _tell(self, connection: BrokerConnection, event: Event) -> None:
        if connection.open:
            connection.outbox.append(event)
            self._spoken_to.add(connection)

    # Declaring

    def declare(self, channel: BrokerChannel, what: Queue | Exchange | Binding) -> None:
        """Declare something, or find that it exists as wanted; otherwise the channel is closed."""
        if not channel.open:
            return
        try:
            if isinstance(what, Queue):
                self._declare_queue(channel.connection, what)
            elif isinstance(what, Exchange):
                self._declare_exchange(what)
            else:
                self._bind(channel.connection, what)
        except _Refusal as refusal:
            self._refuse(channel, refusal)
        else:
            self._tell(channel.connection, Done(channel))
        self._route_letters()

    def unbind(self, channel: BrokerChannel, binding: Binding) -> None:
        """Take a binding away, if it is there."""
        if not channel.open:
            return
        exchange = self._exchanges.get(binding.exchange)
        entry = (binding.queue, binding.arguments)
        if exchange is not None and entry in exchange.bindings:
            exchange.bindings.remove(entry)
        self._tell(channel.connection, Done(channel))

    def look_up(self, channel: BrokerChannel, queue: str) -> None:
        """Ask for a queue (a passive declare), which closes the channel when there is none."""
        self._request(channel, queue)

    def _request(self, channel: BrokerChannel, name: str) -> '_Queue | None':
        """Answer, and return the queue if the channel's connection may use it; otherwise close the channel."""
        if not channel.open:
            return None
        try:
            queue = self._find(channel.connection, name)
        except _Refusal as refusal:
            self._refuse(channel, refusal)
            self._route_letters()
            return None
        self._tell(channel.connection, Done(channel))
        return queue

    def _find(self, connection: BrokerConnection, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            raise _Refusal(NOT_FOUND, f"NOT_FOUND - no queue '{name}' in vhost '/'")
        if queue.owner not in (None, connection):
            raise _locked(name)
        return queue

    def _declare_queue(self, connection: BrokerConnection, wanted: Queue) -> None:
        queue = self._queues.get(wanted.name)
        if queue is not None:
            if queue.owner is not (connection if wanted.exclusive else None):
                raise _locked(wanted.name)
            _check_equivalence(queue.declared, wanted)
            return
        if wanted.name.startswith('amq.'):
            raise _Refusal(ACCESS_REFUSED, f"ACCESS_REFUSED - queue name '{wanted.name}' {RESERVED}")
        _check_arguments(wanted)
        arguments = wanted.arguments
        levels = arguments.get('x-max-priority') or 0
        self._queues[wanted.name] = _Queue(
            # Its maker may use the mapping for something else next.
            wanted._replace(arguments=dict(arguments)),
            connection if wanted.exclusive else None,
            [deque() for _ in range(levels + 1)],
            arguments.get('x-message-ttl'),
            arguments.get('x-max-length'),
            arguments.get('x-dead-letter-exchange'),
            arguments.get('x-dead-letter-routing-key'),
        )

    def _declare_exchange(self, wanted: Exchange) -> None:
        if not wanted.name:
            raise _Refusal(ACCESS_REFUSED, 'ACCESS_REFUSED - operation not permitted on the default exchange')
        exchange = self._exchanges.get(wanted.name)
        if exchange is None:
            if wanted.name.startswith('amq.'):
                raise _Refusal(ACCESS_REFUSED, f"ACCESS_REFUSED - exchange name '{wanted.name}' {RESERVED}")
            self._exchanges[wanted.name] = _Bound(wanted.type)
        elif exchange.type != wanted.type:
            what = f"exchange '{wanted.name}' in vhost '/': received '{wanted.type}' but current is '{exchange.type}'"
            raise _Refusal(PRECONDITION_FAILED, f"PRECONDITION_FAILED - inequivalent arg 'type' for {what}")

    def _bind(self, connection: BrokerConnection, binding: Binding) -> None:
        if not binding.exchange:
            raise _Refusal(ACCESS_REFUSED, 'ACCESS_REFUSED - operation not permitted on the default exchange')
        exchange = self._exchanges.get(binding.exchange)
        if exchange is None:
            raise _Refusal(NOT_FOUND, f"NOT_FOUND - no exchange '{binding.exchange}' in vhost '/'")
        self._find(connection, binding.queue)
        arguments = binding.arguments
        if exchange.type == 'headers' and arguments['x-match'] not in MATCHES:
            expected = 'expected all, any, all-with-x, or any-with-x'
            text = f'PRECONDITION_FAILED - Invalid x-match field value <<"{arguments["x-match"]}">>; {expected}'
            raise _Refusal(PRECONDITION_FAILED, text)
        if (binding.queue, arguments) not in exchange.bindings:
            exchange.bindings.append((binding.queue, arguments))

    # Publishing

    def publish(
        self,
        channel: BrokerChannel,
        envelope: Envelope,
        routing_key: str,
        *,
        exchange: str = '',
        mandatory: bool = False,
    ) -> None:
        """Take a message; it is in its queues, on its way to their consumers, or returned, when this returns.

        Args:
            channel: where it came in.
            envelope: the message; kept as it is, so nobody may change its headers.
            routing_key: with the default exchange, the queue's name.
            exchange: an exchange's name; one that is unknown costs the channel.
            mandatory: whether it is returned when no queue takes it.
        """
        connection = channel.connection
        if not channel.open:
            return
        if self._alarm:
            if not connection._blocked:
                connection._blocked = True
                self._tell(connection, Blocked(True))
            self._held.append((channel, envelope, routing_key, exchange, mandatory))
        else:
            self._accept(channel, envelope, routing_key, exchange, mandatory)

    def _accept(
        self, channel: BrokerChannel, envelope: Envelope, routing_key: str, exchange: str, mandatory: bool
    ) -> None:
        try:
            _check_message(envelope)
            queues = self._route(exchange, routing_key, envelope.headers)
        except _Refusal as refusal:
            self._refuse(channel, refusal)
        else:
            if mandatory and not queues:
                self._tell(channel.connection, Returned(channel, envelope, routing_key))
            for queue in queues:
                self._enqueue(queue, envelope, exchange, routing_key)
            if channel._confirm:
                self._confirm(channel)
        if self._letters:
            self._route_letters()

    def _confirm(self, channel: BrokerChannel) -> None:
        channel._published += 1
        self._tell(channel.connection, Confirmed(channel, channel._published))

    def _route(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> list[_Queue]:
        if not exchange:
            queue = self._queues.get(routing_key)
            return [] if queue is None else [queue]
        bound = self._exchanges.get(exchange)
        if bound is None:
            raise _Refusal(NOT_FOUND, f"NOT_FOUND - no exchange '{exchange}' in vhost '/'")
        if bound.type == 'fanout':
            names = [name for name, _ in bound.bindings]
        elif bound.type == 'headers':
            names = [name for name, arguments in bound.bindings if _headers_match(arguments, headers)]
        else:
            # A binding of the port names no routing key; pika then takes the queue's name for it.
            names = [name for name, _ in bound.bindings if name == routing_key]
        return [self._queues[name] for name in dict.fromkeys(names)]

    def _enqueue(self, queue: _Queue, envelope: Envelope, exchange: str, routing_key: str) -> None:
        ttl = queue.ttl
        if envelope.expiration is not None:
            ttl = envelope.expiration if ttl is None else min(ttl, envelope.expiration)
        queue.last_place += 1
        message = _Message(
            envelope,
            exchange,
            routing_key,
            queue.last_place,
            min(envelope.priority, len(queue.levels) - 1),
            None if ttl is None else self._now + ttl / 1000,
        )
        # A consumer with room means that nothing waits; it gets even what would expire at once.
        if queue.free:
            self._deliver(queue.free.popleft(), message)
            return
        queue.append(message)
        self._trim(queue)
        self._run(queue)

    # Delivering

    def consume(
        self,
        channel: BrokerChannel,
        queue: str,
        consumer_tag: str,
        *,
        no_ack: bool = False,
        prefetch: int | None = None,
        priority: int = 0,
    ) -> None:
        """Start to consume; a queue that does not exist costs the channel.

        Args:
            channel: where the deliveries go.
            queue: its name.
            consumer_tag: the consumer's name, unique on its channel.
            no_ack: whether a delivery counts as acknowledged at once; then there is no limit to them.
            prefetch: how many deliveries this consumer and those that follow may hold; None: as was said before.
            priority: those of a lower one get what those of a higher one have no room for.
        """
        if prefetch is not None:
            channel._prefetch = prefetch
        found = self._request(channel, queue)
        if found is None:
            return
        consumer = _Consumer(channel, consumer_tag, found, channel._prefetch, no_ack, priority)
        channel._consumers[consumer_tag] = consumer
        found.consumers.append(consumer)
        found.make_free(consumer)
        self._run(found)
        self._route_letters()

    def cancel(self, channel: BrokerChannel, consumer_tag: str) -> None:
        """Stop to consume; deliveries that were made stay to be acknowledged."""
        if not channel.open:
            return
        consumer = channel._consumers.pop(consumer_tag, None)
        if consumer is not None:
            self._remove(consumer)
        self._tell(channel.connection, Done(channel))

    def ack(self, channel: BrokerChannel, tag: int) -> None:
        """Acknowledge a delivery; an unknown tag costs the channel."""
        if (settled := self._settle(channel, tag)) is not None:
            self._free(settled[1])
            self._run(settled[1].queue)
            self._route_letters()

    def nack(self, channel: BrokerChannel, tag: int, *, requeue: bool = True) -> None:
        """Put a delivery back into its queue, or with ``requeue=False`` make a dead letter of it."""
        if (settled := self._settle(channel, tag)) is not None:
            message, consumer = settled
            if requeue:
                self._put_back([settled])
            else:
                self._free(consumer)
                self._bury(consumer.queue, message, 'rejected')
                self._run(consumer.queue)
            self._route_letters()

    def _settle(self, channel: BrokerChannel, tag: int) -> tuple[_Message, _Consumer] | None:
        if not channel.open:
            return None
        settled = channel._unacked.pop(tag, None)
        if settled is None:
            text = f'PRECONDITION_FAILED - unknown delivery tag {tag}'
            self._refuse(channel, _Refusal(PRECONDITION_FAILED, text))
            self._route_letters()
        return settled

    def _deliver(self, consumer: _Consumer, message: _Message) -> None:
        channel = consumer.channel
        channel._last_tag += 1
        tag = channel._last_tag
        if not consumer.no_ack:
            channel._unacked[tag] = message, consumer
            consumer.unacked += 1
            consumer.queue.unacked += 1
        if consumer.has_room:
            consumer.queue.make_free(consumer)
        self._tell(channel.connection, Delivered(channel, consumer.tag, tag, message.redelivered, message.envelope))

    def _free(self, consumer: _Consumer) -> None:
        """Take one delivery off a consumer's account."""
        had_room = consumer.has_room
        consumer.unacked -= 1
        consumer.queue.unacked -= 1
        if not had_room and not consumer.gone:
            consumer.queue.make_free(consumer)

    def _remove(self, consumer: _Consumer) -> None:
        consumer.gone = True
        consumer.queue.consumers.remove(consumer)
        if consumer.has_room:
            consumer.queue.free.remove(consumer)

    def _put_back(self, settled: Iterable[tuple[_Message, _Consumer]]) -> None:
        queues: dict[_Queue, None] = {}
        # The youngest first: each of the others then goes to the front, which costs nothing.
        for message, consumer in sorted(settled, key=lambda each: -each[0].place):
            self._free(consumer)
            if not consumer.queue.gone:
                message.redelivered = True
                consumer.queue.put_back(message)
                queues[consumer.queue] = None
        for queue in queues:
            self._trim(queue)
            self._run(queue)

    def _run(self, queue: _Queue) -> None:
        """Deliver and expire from the head until it is neither due nor wanted."""
        while queue.ready:
            head = queue.head()
            if head.due is not None and head.due <= self._now:
                self._bury(queue, queue.pop(), 'expired')
            elif queue.free:
                self._deliver(queue.free.popleft(), queue.pop())
            else:
                self._watch(queue, head.due)
                return

    def _trim(self, queue: _Queue) -> None:
        if queue.max_length is not None:
            while queue.ready > queue.max_length:
                self._bury(queue, queue.pop(), 'maxlen')

    # Dead letters

    def _bury(self, queue: _Queue, message: _Message, reason: str) -> None:
        if queue.dead_letter_exchange is not None and not queue.gone:
            self._letters.append((queue, message, reason))

    def _route_letters(self) -> None:
        # One after the other rather than each from within the one before: a letter may make the next.
        while self._letters:
            queue, message, reason = self._letters.popleft()
            exchange = queue.dead_letter_exchange or ''
            routing_key = queue.dead_letter_routing_key
            if routing_key is None:
                routing_key = message.routing_key
            envelope = self._dead_letter(queue, message, reason)
            try:
                queues = self._route(exchange, routing_key, envelope.headers)
            except _Refusal:
                continue  # without that exchange the letter is dropped, and nobody is told
            for each in queues:
                if reason == 'rejected' or not _is_cycle(each.name, envelope.headers['x-death']):
                    self._enqueue(each, envelope, exchange, routing_key)

    def _dead_letter(self, queue: _Queue, message: _Message, reason: str) -> Envelope:
        envelope = message.envelope
        death: dict[str, Any] = {
            'count': 1,
            'reason': reason,
            'queue': queue.name,
            'time': datetime.fromtimestamp(int(self._wall), timezone.utc),
            'exchange': message.exchange,
            'routing-keys': [message.routing_key],
        }
        if envelope.expiration is not None:
            death['original-expiration'] = str(envelope.expiration)
        others = []
        earlier = envelope.headers.get('x-death')
        for each in earlier if isinstance(earlier, list) else []:
            if isinstance(each, dict) and (each.get('queue'), each.get('reason')) == (queue.name, reason):
                count = each.get('count')
                death = {**each, 'count': count + 1 if isinstance(count, int) else 1}
            else:
                others.append(each)
        headers = {**envelope.headers, 'x-death': [death, *others]}
        for key, value in (('exchange', message.exchange), ('queue', queue.name), ('reason', reason)):
            headers.setdefault(f'x-first-death-{key}', value)
        return replace(envelope, headers=headers, expiration=None)

    # The operator

    def queues(self) -> dict[str, QueueStatus]:
        """Return what there is of each queue, by name."""
        return {
            queue.name: QueueStatus(queue.ready, queue.unacked, len(queue.consumers)) for queue in self._queues.values()
        }

    def peek(self, name: str) -> list[Envelope]:
        """Return the messages that are ready in a queue, in the order of their delivery.

        Raises:
            KeyError: there is no such queue.
        """
        return [message.envelope for level in reversed(self._queues[name].levels) for message in level]

    def connections(self) -> list[str]:
        """Return the names of the open connections."""
        return [connection.name for connection in self._connections]

    def purge(self, name: str) -> int:
        """Drop what is ready in a queue; return how many messages that were.

        Raises:
            KeyError: there is no such queue.
        """
        queue = self._queues[name]
        count, queue.ready = queue.ready, 0
        for level in queue.levels:
            level.clear()
        return count

    def delete(self, name: str) -> int:
        """Delete a queue, whoever uses it; return how many messages were ready in it.

        Its consumers are told (:class:`ConsumerCancelled`), its messages are gone, also the unacked.

        Raises:
            KeyError: there is no such queue.
        """
        count = self._queues[name].ready
        self._delete(self._queues[name])
        return count

    def _delete(self, queue: _Queue) -> None:
        queue.gone = True
        queue.ready = 0
        queue.levels.clear()
        del self._queues[queue.name]
        for exchange in self._exchanges.values():
            exchange.bindings = [binding for binding in exchange.bindings if binding[0] != queue.name]
        for consumer in list(queue.consumers):
            self._remove(consumer)
            del consumer.channel._consumers[consumer.tag]
            self._tell(consumer.channel.connection, ConsumerCancelled(consumer.channel, consumer.tag))

    def close_all_connections(self, reason: str) -> None:
        """Close every connection, as ``rabbitmqctl close_all_connections`` does.

        Args:
            reason: what the clients read.
        """
        for connection in list(self._connections):
            self._tell(connection, ConnectionClosed(CONNECTION_FORCED, f'CONNECTION_FORCED - {reason}'))
            self.close(connection)
            # They are to read it, though nothing comes after it.
            self._spoken_to.add(connection)

    def set_alarm(self) -> None:
        """Take no more messages, as RabbitMQ does when it runs out of memory or disk.

        A connection is told when it next publishes; what it publishes is held until :meth:`clear_alarm`. (RabbitMQ then
        reads nothing at all from the connection; here its acks and declarations go through.)
        """
        self._alarm = True

    def clear_alarm(self) -> None:
        """Take messages again, first those that were held."""
        self._alarm = False
        for connection in self._connections:
            if connection._blocked:
                connection._blocked = False
                self._tell(connection, Blocked(False))
        held, self._held = self._held, []
        for channel, envelope, routing_key, exchange, mandatory in held:
            if not channel._refused:
                self._accept(channel, envelope, routing_key, exchange, mandatory)


RESERVED = "contains reserved prefix 'amq.*'"


def _locked(name: str) -> _Refusal:
    return _Refusal(
        RESOURCE_LOCKED,
        f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{name}' in vhost '/'. It could be "
        'originally declared on another connection or the exclusive property value does not match that of the '
        'original declaration.',
    )


def _check_equivalence(declared: Queue, wanted: Queue) -> None:
    for key in (TYPE, *STRINGS, *INTEGERS):
        default = 'classic' if key == TYPE else None
        current, received = (queue.arguments.get(key, default) for queue in (declared, wanted))
        if current != received:
            words = f"inequivalent arg '{key}' for queue '{wanted.name}' in vhost '/'"
            values = f'received {_shown(received)} but current is {_shown(current)}'
            raise _Refusal(PRECONDITION_FAILED, f'PRECONDITION_FAILED - {words}: {values}')


def _shown(value: object) -> str:
    if value is None:
        return 'none'
    kind = 'signedint' if isinstance(value, int) else 'longstr'
    return f"the value '{value}' of type '{kind}'"


def _check_arguments(queue: Queue) -> None:
    arguments = queue.arguments

    def refusal(key: str, why: str) -> _Refusal:
        where = f"invalid arg '{key}' for queue '{queue.name}' in vhost '/'"
        return _Refusal(PRECONDITION_FAILED, f'PRECONDITION_FAILED - {where}: {why}')

    for key in UNSUPPORTED:
        if key in arguments:
            raise _Refusal(NOT_IMPLEMENTED, f"NOT_IMPLEMENTED - arg '{key}' is not supported by memory://")
    if arguments.get(TYPE, 'classic') not in ('classic', 'quorum'):
        raise refusal(TYPE, f'"unsupported queue type \'{arguments[TYPE]}\'"')
    for key in STRINGS:
        if not isinstance(arguments.get(key, ''), str):
            raise refusal(key, 'expected longstr')
    if STRINGS[1] in arguments and STRINGS[0] not in arguments:
        raise refusal(STRINGS[1], 'routing_key_but_no_dlx_defined')
    for key, limit in INTEGERS.items():
        value = arguments.get(key, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise refusal(key, '"expected integer"')
        if value < 0:
            raise refusal(key, f'{{value_negative,{value}}}')
        if limit is not None and value > limit:
            raise refusal(key, f'{{max_value_exceeded,{value}}}')


def _check_message(envelope: Envelope) -> None:
    if len(envelope.body) > MAX_MESSAGE_SIZE:
        sizes = f'{len(envelope.body)} is larger than configured max size {MAX_MESSAGE_SIZE}'
        raise _Refusal(PRECONDITION_FAILED, f'PRECONDITION_FAILED - message size {sizes}')
    expiration = envelope.expiration
    if expiration is not None and not 0 <= expiration <= MAX_EXPIRY:
        why = 'value_negative' if expiration < 0 else 'value_too_large'
        text = f"PRECONDITION_FAILED - invalid expiration '{expiration}': {{{why},{expiration}}}"
        raise _Refusal(PRECONDITION_FAILED, text)


def _headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Return whether a message's headers are what a binding asks for."""
    kind = arguments['x-match']
    with_x = kind.endswith('-with-x')
    asked = (
        _equal(wanted, headers[key]) if key in headers else False
        for key, wanted in arguments.items()
        if key != 'x-match' and (with_x or not key.startswith('x-'))
    )
    return any(asked) if kind.startswith('any') else all(asked)


def _equal(wanted: object, value: object) -> bool:
    # A value of None asks only that the header is there. To AMQP, unlike Python, True is not 1.
    return wanted is None or (wanted == value and isinstance(wanted, bool) == isinstance(value, bool))


def _is_cycle(queue: str, deaths: list[Any]) -> bool:
    """Return whether a dead letter was in a queue before and came back by itself, with no consumer rejecting it."""
    since = []
    for death in deaths:
        if isinstance(death, dict):
            since.append(death.get('reason'))
            if death.get('queue') == queue:
                return 'rejected' not in since
    return False
