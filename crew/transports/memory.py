"""A broker in this process behind the port of ``transports.base``, for tests and trials: ``memory://name``.

Every name is a broker of its own (:class:`crew.memory_broker.MemoryBroker`), made when it is first dialled or asked for
(:func:`broker`), and kept until it is forgotten (:func:`forget`). Connections may live on several loops in several
threads. One lock guards a broker. Under it a message goes straight into its queues and into the outboxes of whoever
gets it; the loops of these are then woken, once for much, and call their owners back from there, never from within
somebody's ``publish``. So a connection sees its deliveries, returns, confirms and answers in the order in which an AMQP
client reads them from its socket.

Nothing polls: what expires is timed by the loops of the connections, and without messages that may expire no timer is
set. A connection whose loop was closed without it is dropped as soon as anything else happens, and what it held goes
back.

Processes share nothing. After a fork the child has a copy of every broker, connected to nobody who still runs, and its
lock may be held for ever; a child that wants one takes another name. Nothing is done about it here.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from functools import partial
from itertools import count
from threading import Lock
from time import monotonic, time
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from crew.envelope import MAX_SHORT_STRING, Envelope
from crew.exceptions import BrokerRefused, ConnectionError, CrewError
from crew.memory_broker import (
    NOT_FOUND,
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
from crew.transports.addresses import MEMORY, safe_url
from crew.transports.alarm import SLACK, Alarm
from crew.transports.base import Delivery, OnClosed, OnConfirm, OnDelivery, OnReturn

__all__ = ['MemoryChannel', 'MemoryConnection', 'SharedBroker', 'broker', 'dial', 'forget']

log = logging.getLogger(__name__)

T = TypeVar('T')

# The AMQP reply codes that transports.asyncio takes for a wrong set-up, too.
REFUSALS = {403, 406, 530, 540}

# So many events are handed over before the loop's other callbacks have their turn.
MOST_AT_ONCE = 256


def _native_lock() -> Lock:
    # Under gevent a patched lock belongs to the hub of one thread. This one is never held while anybody waits.
    if 'gevent.monkey' not in sys.modules:
        return Lock()
    from gevent.monkey import get_original

    return cast(Lock, get_original('_thread', 'allocate_lock')())


_brokers: dict[str, 'SharedBroker'] = {}
_brokers_lock = _native_lock()


def broker(url: str) -> 'SharedBroker':
    """Return the broker that an address names, made if there was none: the operator's way to look and to interfere.

    Args:
        url: ``memory://name``.

    Raises:
        ValueError: it is not such an address.
    """
    name = _name(url)
    with _brokers_lock:
        if name not in _brokers:
            _brokers[name] = SharedBroker(f'{MEMORY}://{name}')
        return _brokers[name]


def forget(url: str) -> None:
    """Close all connections to a broker and drop all that it holds; whoever dials the address then finds a new one.

    Args:
        url: ``memory://name``; a broker that does not exist is fine.

    Raises:
        ValueError: it is not such an address.
    """
    with _brokers_lock:
        forgotten = _brokers.pop(_name(url), None)
    if forgotten is not None:
        forgotten.close_all_connections('the broker was forgotten')


async def dial(url: str, *, name: str = 'crew') -> 'MemoryConnection':
    """Connect to a broker in this process, on the running loop.

    Args:
        url: ``memory://name``, or ``memory://`` for the broker without a name.
        name: what :meth:`SharedBroker.connections` shows.

    Raises:
        ValueError: it is not such an address.
    """
    return MemoryConnection(broker(url), f'{name} {os.getpid()}')


def _name(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != MEMORY or '@' in parts.netloc or parts.path.strip('/') or parts.query or parts.fragment:
        raise ValueError(f'bad address {safe_url(url)!r}: it should look like {MEMORY}://name')
    return parts.netloc


class SharedBroker:
    """A broker that several threads use; made by :func:`broker`. Its methods may be called from any thread.

    Attributes:
        url: its address.
        core: what the lock guards; for use in :meth:`run` only.
        armed: for when all loops have set their alarms, or were told to, on the clock of ``time.monotonic``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.armed: float | None = None
        self.core = MemoryBroker()
        self._lock = _native_lock()
        self._members: dict[BrokerConnection, MemoryConnection] = {}

    # The operator

    def queues(self) -> dict[str, QueueStatus]:
        """Return by name how many messages are ready and unacked in each queue, and how many consumers it has."""
        return self._operate(self.core.queues)

    def peek(self, queue: str) -> list[Envelope]:
        """Return the messages that are ready in a queue, in the order of their delivery.

        Raises:
            KeyError: there is no such queue.
        """
        return self._operate(partial(self.core.peek, queue))

    def connections(self) -> list[str]:
        """Return the names of the open connections."""
        return self._operate(self.core.connections)

    def purge(self, queue: str) -> int:
        """Drop what is ready in a queue; return how many messages that were.

        Raises:
            KeyError: there is no such queue.
        """
        return self._operate(partial(self.core.purge, queue))

    def delete(self, queue: str) -> int:
        """Delete a queue, used or not; return how many messages were ready in it.

        Raises:
            KeyError: there is no such queue.
        """
        return self._operate(partial(self.core.delete, queue))

    def close_all_connections(self, reason: str = 'closed by the operator') -> None:
        """Close all connections, as ``rabbitmqctl close_all_connections`` does.

        Args:
            reason: what the clients read.
        """
        self._operate(partial(self.core.close_all_connections, reason))

    def set_alarm(self) -> None:
        """Take no more messages, as RabbitMQ out of memory does: who publishes is told, and the messages are held."""
        self._operate(self.core.set_alarm)

    def clear_alarm(self) -> None:
        """Take messages again, first those that were held."""
        self._operate(self.core.clear_alarm)

    def _operate(self, operation: Callable[[], T]) -> T:
        self._sweep()
        return self.run(operation)

    # For the connections

    def join(self, member: 'MemoryConnection', name: str) -> BrokerConnection:
        """Open a connection.

        Args:
            member: is woken when the broker has said something to it.
            name: what the operator sees.
        """

        def enter() -> BrokerConnection:
            connection = self.core.open(name)
            self._members[connection] = member
            return connection

        self._sweep()
        return self.run(enter)

    def leave(self, connection: BrokerConnection) -> None:
        """Close a connection; for use in :meth:`run`."""
        self.core.close(connection)
        self._members.pop(connection, None)

    def run(self, operation: Callable[[], T], here: asyncio.AbstractEventLoop | None = None) -> T:
        """Do something with the broker under the lock, then wake those to whom it spoke.

        Args:
            operation: what to do.
            here: the loop on which this is called, or None for any other thread.
        """
        with self._lock:
            try:
                self.core.advance(monotonic(), time())
                result = operation()
            finally:
                wake = self._to_wake()
        if wake:
            self._wake(wake, here)
        return result

    def ring(self, here: asyncio.AbstractEventLoop) -> None:
        """Let expire what is due.

        Args:
            here: the loop on which this is called.
        """

        def rung() -> None:
            if self.armed is not None and self.armed <= monotonic():
                self.armed = None

        self.run(rung, here)

    def rest(self, member: 'MemoryConnection') -> bool:
        """Return whether a connection has read all, and see to it that it is woken for what comes next."""
        with self._lock:
            member.woken = bool(member.wire.outbox)
            return not member.woken

    def _to_wake(self) -> 'list[MemoryConnection]':
        """Return whose loops are to be woken now, with the lock held."""
        members = self._members
        wake = [members[each] for each in self.core.take_spoken_to() if each in members]
        due = self.core.next_deadline()
        # All loops keep the time, not one: the one could be closed, and nobody would know. Their alarms stay set until
        # this deadline, so later ones cost nothing.
        if due is not None and (self.armed is None or due < self.armed - SLACK):
            self.armed = due
            wake = list(members.values())
        result = []
        for member in wake:
            # A loop that was woken and closed since has to be found out, too.
            if not member.woken or member.loop.is_closed():
                member.woken = True
                result.append(member)
        return result

    def _wake(self, members: 'list[MemoryConnection]', here: asyncio.AbstractEventLoop | None) -> None:
        dead = []
        for member in members:
            try:
                if member.loop is here:
                    member.loop.call_soon(member.read)
                else:
                    member.loop.call_soon_threadsafe(member.read)
            except RuntimeError:  # it is closed
                dead.append(member)
        self._drop(dead)

    def _sweep(self) -> None:
        with self._lock:
            dead = [member for member in self._members.values() if member.loop.is_closed()]
        self._drop(dead)

    def _drop(self, dead: 'list[MemoryConnection]') -> None:
        for member in dead:
            log.warning('a connection to %s was dropped: its loop was closed before it', self.url)
            self.run(partial(self.leave, member.wire))


class MemoryConnection:
    """A connection to a broker in this process, behind the port of ``transports.base``; made by :func:`dial`.

    Attributes:
        loop: where everything of the connection happens.
        wire: the broker's side of it.
        woken: whether the loop was told to :meth:`read`; guarded by the broker's lock.
    """

    def __init__(self, shared: SharedBroker, name: str) -> None:
        self.on_close: Callable[[Exception], None] = lambda reason: None
        self.on_blocked: Callable[[bool], None] = lambda blocked: None
        self.loop = asyncio.get_running_loop()
        self.woken = False
        self._shared = shared
        self._alarm = Alarm(self.loop, self._ring)
        self._channels: dict[BrokerChannel, MemoryChannel] = {}
        self._lost: ConnectionError | None = None
        self._closed = asyncio.Event()
        self.wire = shared.join(self, name)
        self._set_alarm()

    async def open_channel(
        self,
        *,
        prefetch: int = 0,
        confirm: bool = False,
        on_confirm: OnConfirm | None = None,
        on_return: OnReturn | None = None,
        on_closed: OnClosed | None = None,
    ) -> 'MemoryChannel':
        """Open a channel; see the port."""
        if self._lost is not None:
            raise ConnectionError(f'the connection to the broker is gone: {self._lost}')
        confirm = confirm or on_confirm is not None
        open_wire = partial(self._shared.core.open_channel, self.wire, prefetch=prefetch, confirm=confirm)
        wire = self.run(open_wire)
        channel = self._channels[wire] = MemoryChannel(self, wire, confirm, on_confirm, on_return, on_closed)
        await channel.answer()
        return channel

    async def ensure(self, *shared: Queue | Exchange) -> None:
        """See that shared queues and exchanges are there; see the port. Here everybody may declare everything."""
        channel = await self.open_channel(on_closed=lambda reason: None)
        for what in shared:
            await channel.declare(what)
        await channel.close()

    async def exists(self, queue: str) -> bool:
        """Return whether there is a queue of this name; see the port."""
        # As with AMQP, the broker's way to say no is to close the channel.
        channel = await self.open_channel(on_closed=lambda reason: None)
        try:
            await channel.look_up(queue)
        except CrewError as error:
            if isinstance(error.__cause__, _ClosedByBroker) and error.__cause__.code == NOT_FOUND:
                return False
            raise
        await channel.close()
        return True

    async def close(self) -> None:
        """Close; see the port."""
        self._end('it was closed')
        await self._closed.wait()

    def run(self, operation: Callable[[], T]) -> T:
        """Do something with the broker, from the connection's loop."""
        return self._shared.run(operation, self.loop)

    @property
    def core(self) -> MemoryBroker:
        """The broker, for use in :meth:`run` only."""
        return self._shared.core

    # From the broker

    def read(self) -> None:
        """Hand over what the broker said; called by the loop."""
        outbox = self.wire.outbox
        try:
            for _ in range(MOST_AT_ONCE):
                if not outbox or self._lost is not None:
                    break
                self._hand_over(outbox.popleft())
        except Exception:  # a callback's; one event must not cost the others
            log.exception('a callback of the connection to %s failed', self._shared.url)
        finally:
            # Also when it was interrupted: nobody else would read on.
            if self._lost is not None:
                outbox.clear()
            if not self._shared.rest(self):
                self.loop.call_soon(self.read)
        self._set_alarm()

    def _hand_over(self, event: Event) -> None:
        if isinstance(event, ConnectionClosed):
            self._end(f'{event.code} {event.text}')
        elif isinstance(event, Blocked):
            self.on_blocked(event.blocked)
        elif (channel := self._channels.get(event.channel)) is not None:
            channel.hand_over(event)

    def _ring(self) -> None:
        self._shared.ring(self.loop)
        self._set_alarm()

    def _set_alarm(self) -> None:
        armed = self._shared.armed
        if armed is not None and self._lost is None:
            self._alarm.set(self.loop.time() + armed - monotonic())

    # Closing

    def forget(self, wire: BrokerChannel) -> None:
        """Take a channel off the list: it is closed."""
        self._channels.pop(wire, None)

    def give_up(self, reason: Exception, heard: bool) -> None:
        """Close the connection because a channel was lost whose owner does not want to know.

        Args:
            reason: why the channel was closed.
            heard: whether anybody waited for the channel, who then reports it.
        """
        level = logging.DEBUG if heard else logging.WARNING
        log.log(level, 'the broker closed a channel, so the connection is made anew: %s', reason)
        self._end(str(reason))

    def _end(self, words: str) -> None:
        if self._lost is not None:
            return
        self._lost = ConnectionError(f'the connection to the broker at {self._shared.url} was lost: {words}')
        self._alarm.stop()
        self.run(partial(self._shared.leave, self.wire))
        # In a turn of its own, as with a socket: whoever closes is not called back meanwhile.
        self.loop.call_soon(self._ended, self._lost)

    def _ended(self, reason: ConnectionError) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.lost(reason)
        self._closed.set()
        self.on_close(reason)


class MemoryChannel:
    """A channel of a :class:`MemoryConnection`, behind the port of ``transports.base``."""

    def __init__(
        self,
        connection: MemoryConnection,
        wire: BrokerChannel,
        confirm: bool,
        on_confirm: OnConfirm | None,
        on_return: OnReturn | None,
        on_closed: OnClosed | None,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._confirm = confirm
        self._on_confirm = on_confirm
        self._outstanding: deque[tuple[Envelope, str]] = deque()
        self._on_return = on_return
        self._on_closed = on_closed
        self._consumers: dict[str, OnDelivery] = {}
        self._tags = count(1)
        # The broker answers in order.
        self._asked: deque[asyncio.Future[None]] = deque()
        self._published = 0
        self._confirmed = 0
        self._unconfirmed: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._error: Exception | None = None
        self._closing = False

    # Declaring and consuming

    async def declare(self, what: Queue | Exchange | Binding) -> None:
        """Declare it; see the port."""
        await self._ask(partial(self._connection.core.declare, self._wire, what))

    async def unbind(self, binding: Binding) -> None:
        """Take a binding away; see the port."""
        await self._ask(partial(self._connection.core.unbind, self._wire, binding))

    async def look_up(self, queue: str) -> None:
        """Ask for a queue, which closes the channel when there is none."""
        await self._ask(partial(self._connection.core.look_up, self._wire, queue))

    async def consume(
        self,
        queue: str,
        on_delivery: OnDelivery,
        *,
        no_ack: bool = False,
        prefetch: int | None = None,
        priority: int = 0,
    ) -> str:
        """Start to consume; see the port."""

        def on_message(delivery: Delivery) -> None:
            try:
                on_delivery(delivery)
            except Exception:  # one message must not cost the connection, nor come back for ever
                envelope = delivery.envelope
                log.exception('a message was dropped: %s %r', envelope.type, envelope.correlation_id)
                if not no_ack:
                    self.ack(delivery.tag)

        tag = f'ctag{next(self._tags)}'
        self._consumers[tag] = on_message
        consume = partial(
            self._connection.core.consume, self._wire, queue, tag, no_ack=no_ack, prefetch=prefetch, priority=priority
        )
        await self._ask(consume)
        return tag

    async def cancel(self, consumer_tag: str) -> None:
        """Stop to consume; see the port."""
        await self._ask(partial(self._connection.core.cancel, self._wire, consumer_tag))
        self._consumers.pop(consumer_tag, None)

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery; see the port."""
        if self._usable:
            self._connection.run(partial(self._connection.core.ack, self._wire, tag))

    def nack(self, tag: int) -> None:
        """Put a delivery back; see the port."""
        if self._usable:
            self._connection.run(partial(self._connection.core.nack, self._wire, tag))

    # Publishing

    def publish(self, envelope: Envelope, routing_key: str, *, exchange: str = '', mandatory: bool = False) -> None:
        """Send a message; see the port.

        Raises:
            ValueError: AMQP could not carry it.
        """
        if not self._usable:
            log.debug('dropped a %s message for %s: the channel is closed', envelope.type, routing_key)
            self._error = self._error or ConnectionError('the channel is closed')
            return
        publish = self._connection.core.publish
        carried = _carried(envelope, routing_key, exchange)
        self._connection.run(partial(publish, self._wire, carried, routing_key, exchange=exchange, mandatory=mandatory))
        if self._confirm:
            self._published += 1
            if self._on_confirm is not None:
                self._outstanding.append((envelope, routing_key))

    async def confirmed(self) -> None:
        """Wait for the broker's confirms; see the port."""
        if self._error is not None:
            raise self._error
        if self._confirmed < self._published:
            future = self._connection.loop.create_future()
            self._unconfirmed.append((self._published, future))
            await future

    async def last_confirmed(self) -> None:
        """Wait for the broker's confirm of what has just been published; see the port."""
        # Confirms come in order here, and none is a refusal.
        await self.confirmed()

    # Closing

    async def close(self) -> None:
        """Close the channel; see the port."""
        if self._usable:
            self._closing = True
            self._connection.run(partial(self._connection.core.close_channel, self._wire))
            # When the connection is lost meanwhile, the channel is closed as well.
            with contextlib.suppress(ConnectionError, BrokerRefused):
                await self.answer()

    def lost(self, reason: Exception) -> bool:
        """Fail whoever waits on this channel, for it is gone; return whether anybody did."""
        self._error = self._error or reason
        waiting = [*self._asked, *(future for _, future in self._unconfirmed)]
        self._asked.clear()
        self._unconfirmed.clear()
        failed = [future for future in waiting if not future.done()]
        for future in failed:
            future.set_exception(self._error)
        return bool(failed)

    # From the broker

    def hand_over(self, event: Done | Delivered | Returned | Confirmed | ConsumerCancelled | ChannelClosed) -> None:
        """Take what the broker said of this channel."""
        if isinstance(event, Delivered):
            if not self._closing:
                delivery = Delivery(event.envelope, event.tag, event.redelivered, self)
                self._consumers[event.consumer_tag](delivery)
        elif isinstance(event, Confirmed):
            confirmed, self._confirmed = self._confirmed, event.number
            if self._on_confirm is not None:
                for _ in range(confirmed, event.number):
                    self._on_confirm(*self._outstanding.popleft(), True)
            while self._unconfirmed and self._unconfirmed[0][0] <= event.number:
                _settle(self._unconfirmed.popleft()[1])
        elif isinstance(event, Done):
            _settle(self._asked.popleft())
            if self._closing and not self._asked:
                self._connection.forget(self._wire)
                self.lost(ConnectionError('the channel is closed'))
        elif isinstance(event, Returned):
            if self._on_return is not None:
                self._on_return(event.envelope, event.routing_key)
        elif isinstance(event, ChannelClosed):
            self._report(_channel_error(event.code, event.text))
        elif not self._closing:
            self._consumer_lost()

    def _consumer_lost(self) -> None:
        # Closing the channel makes everything anew, the queue included.
        self._connection.run(partial(self._connection.core.close_channel, self._wire))
        self._report(ConnectionError('the broker cancelled a consumer: its queue was deleted or has moved'))

    def _report(self, reason: Exception) -> None:
        self._connection.forget(self._wire)
        heard = self.lost(reason)
        if self._closing:
            return
        if self._on_closed is not None:
            self._on_closed(reason)
        else:
            self._connection.give_up(reason, heard)

    # Asking the broker

    @property
    def _usable(self) -> bool:
        return self._error is None and not self._closing

    async def _ask(self, request: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise ConnectionError('the channel is closed')
        self._connection.run(request)
        await self.answer()

    async def answer(self) -> None:
        """Wait until the broker has answered what it was asked last.

        Raises:
            BrokerRefused: it closed the channel, because we may not.
            ConnectionError: the channel or its connection was lost.
        """
        future = self._connection.loop.create_future()
        self._asked.append(future)
        await future


class _ClosedByBroker(Exception):
    """What AMQP says when the broker closes a channel or a connection."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f'{code} {text}')
        self.code = code


def _channel_error(code: int, text: str) -> Exception:
    reason: Exception
    if code in REFUSALS:
        hint = '; delete it or use another name' if 'inequivalent arg' in text else ''
        reason = BrokerRefused(f'{code} {text}{hint}')
    else:
        reason = ConnectionError(f'the channel was closed: {code} {text}')
    reason.__cause__ = _ClosedByBroker(code, text)
    return reason


def _settle(future: 'asyncio.Future[None]') -> None:
    if not future.done():
        future.set_result(None)


# What AMQP makes of a message on its way

# Nobody can change them, and they arrive as they are.
_PLAIN = frozenset({str, bool, bytes, type(None)})


def _carried(envelope: Envelope, routing_key: str, exchange: str) -> Envelope:
    """Return the message as it arrives, with headers that are nobody else's.

    Raises:
        ValueError: AMQP could not carry it.
    """
    for value in (
        routing_key,
        exchange,
        envelope.type,
        envelope.correlation_id,
        envelope.reply_to,
        envelope.content_type,
        envelope.content_encoding,
    ):
        _check_short(value)
    return replace(envelope, headers=_table(envelope.headers)) if envelope.headers else envelope


def _check_short(value: str) -> None:
    # No character of UTF-8 takes more than four bytes.
    if len(value) > MAX_SHORT_STRING // 4 and len(value.encode()) > MAX_SHORT_STRING:
        raise ValueError(f'AMQP carries at most {MAX_SHORT_STRING} bytes here: {value[:40]!r}…')


def _table(table: Mapping[Any, Any]) -> dict[str, Any]:
    result = {}
    for key, value in table.items():
        if not isinstance(key, str):
            raise ValueError(f'AMQP carries no such key: {key!r:.40}')
        _check_short(key)
        result[key] = value if type(value) in _PLAIN else _value(value)
    return result


def _value(value: Any) -> Any:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f'AMQP carries no number as large as {value}')
    elif isinstance(value, dict):
        return _table(value)
    elif isinstance(value, list):
        return [_value(each) for each in value]
    elif isinstance(value, datetime):
        # Without a zone it counts as UTC, and AMQP has whole seconds.
        return (
            (value if value.tzinfo else value.replace(tzinfo=timezone.utc))
            .astimezone(timezone.utc)
            .replace(microsecond=0)
        )
    elif not isinstance(value, (str, bytes, Decimal, type(None))):
        # pika encodes no float, either.
        raise ValueError(f'AMQP carries no {type(value).__name__} in headers')
    return value
