"""Calls go out, whatever comes back is settled. Lives on an asyncio loop; what is decided in ``calls`` is done here."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from crew import codec, topology
from crew.calls import RECONNECTED_WITHIN, Action, Calls, Hold, Part, Settle, Tell
from crew.envelope import Envelope
from crew.exceptions import Blocked, BrokerRefused, ConnectionError, CrewError, ProtocolError, Unroutable
from crew.line import Line
from crew.messages import Accept, Call, Chunk, Credit, Message, Reply, Stop
from crew.topology import Queue
from crew.transports.alarm import Alarm
from crew.transports.base import Channel, Connection, Delivery
from crew.values import value_class

__all__ = ['Caller', 'Counters', 'OnSettled']

log = logging.getLogger(__name__)

#: How long the broker may take to confirm that a quorum queue has a call, in seconds. A queue that has lost its
#: majority confirms nothing.
CONFIRMED_WITHIN = 10.0

#: Between the broker's word that a queue does not take a call and the next attempt, in seconds; doubled each time.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0

#: How long the answer of a worker that has lost its connection may still come when another worker has got the call and
#: must not run it, in seconds.
LAST_CHANCE = 0.3

#: How many calls through exchanges are on their way to the broker at once, for each takes a channel: RabbitMQ allows
#: 2047 of them, and pika takes the longer to open one the more there are.
THROUGH_AT_ONCE = 100

_SHARED = (ConnectionError, BrokerRefused)

#: Called with the outcome of a call: a whole reply, the last chunk, or an error. Before that, parts of a long one: a
#: reply that says there is more, chunks, and credits for a call that has more itself.
OnSettled: TypeAlias = Callable[[Reply | Chunk | Credit | CrewError], None]


#: A call, its routing key and its exchange.
_Unsent: TypeAlias = tuple[Call, str, str]


@dataclass(slots=True)
class Counters:
    """What happened to messages that nobody is told of otherwise.

    Attributes:
        late: replies to calls that were settled or cancelled before.
        refused: messages that made no sense.
        republished: calls that were published a second time because their worker died or the connection was lost.
        stopped: calls that a worker asked about and that must not run.
        dropped: publications that could not be sent, or that a subscriber could not read.
    """

    late: int = 0
    refused: int = 0
    republished: int = 0
    stopped: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Link:
    """The connection in use."""

    connection: Connection
    channel: Channel
    calls: Channel  # where calls are published: a channel of its own if they are confirmed
    reply_to: str
    blocked: bool = field(default=False)
    refused: list[tuple[Envelope, str]] = field(default_factory=list)
    renewing: 'asyncio.Task[None] | None' = None
    retired: Channel | None = None
    pause: float = FIRST_PAUSE


@value_class(frozen=True, slots=True)
class _Terms:
    """On which terms a call is remembered; see :meth:`Calls.add`."""

    idempotent: bool = False
    confirmed_within: float | None = None
    line: Line | None = None
    again: _Unsent | None = None


DEFAULT_TERMS = _Terms()


class Caller:
    """Sends calls and settles them.

    Args:
        loop: the loop that it lives on.
        queues: the shared queues that it declares itself at each connection, so that start order never matters.
        counters: where it counts.
        several: whether there are other nodes to go to. Then it is not for long that there is no connection, so calls
            are kept for the next one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, queues: Sequence[Queue], counters: Counters, *, several: bool = False
    ) -> None:
        self._loop = loop
        self._queues = queues
        # A queue that is led by one of several nodes may lose a message without a word, unless it is asked to confirm.
        self._confirms = any(queue.arguments.get('x-queue-type') == 'quorum' for queue in queues)
        self._calls: Calls[OnSettled] = Calls()
        self._unsent: dict[str, _Unsent] = {}
        self._alarm = Alarm(loop, self._tick)
        self._link: _Link | None = None
        self._several = several
        self._reconnected_by = -math.inf
        self._refused: CrewError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = counters
        self._going_through = asyncio.Semaphore(THROUGH_AT_ONCE)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def forgotten(self) -> int:
        """How many calls with a line are in a queue still, though they were cancelled: no worker has dropped them."""
        return self._calls.forgotten(self._loop.time())

    @property
    def reply_to(self) -> str:
        """The reply queue of the connection in use, or empty."""
        return self._link.reply_to if self._link is not None else ''

    @property
    def takes_calls(self) -> bool:
        """Whether :meth:`send` sends now or soon: there is a connection, or was one just now and will be one."""
        return self._link is not None or (self._refused is None and self._loop.time() <= self._reconnected_by)

    # Calling

    def send(
        self,
        call: Call,
        queue: str,
        on_settled: OnSettled,
        *,
        idempotent: bool = False,
        line: Line | None = None,
    ) -> None:
        """Send a call into a shared queue now, or with the next connection if one was lost just now, or say why not.

        Args:
            call: what to run; its ``expiration`` must be a number of seconds.
            queue: the shared queue's name.
            on_settled: called once with the reply, or with the error that took its place; never from within this call.
            idempotent: whether it may run a second time when its worker dies.
            line: of those that wait in the same queue, if they are to be counted.

        Raises:
            ConnectionError: there is no connection; nothing was sent.
            Blocked: the broker takes no messages now; nothing was sent.
            DuplicateTaskId: a call with this id is in flight.
            ValueError: the call has no expiration, or more metadata than a message can carry.
        """
        link = self._usable()
        if call.expiration is None:
            raise ValueError('a call that is waited for needs an expiration')
        terms = _Terms(idempotent, CONFIRMED_WITHIN if self._confirms else None, line, (call, queue, ''))
        if link is not None:
            self._send(link, call, queue, on_settled, terms)
            return
        error = ConnectionError('there is no connection to the broker')
        if not self.takes_calls:
            raise error
        self._keep(call, queue, '', on_settled, terms)
        self._calls.hold(call.correlation_id, error, until=self._reconnected_by)
        self._set_alarm()

    def _send(self, link: _Link, call: Call, queue: str, on_settled: OnSettled, terms: _Terms = DEFAULT_TERMS) -> None:
        envelope = codec.encode_call(call, link.reply_to)
        self._remember(call, on_settled, terms, sent=True)
        link.calls.publish(envelope, queue, mandatory=True)
        self._set_alarm()

    def _keep(
        self, call: Call, routing_key: str, exchange: str, on_settled: OnSettled, terms: _Terms = DEFAULT_TERMS
    ) -> None:
        """Keep a call for the next connection."""
        codec.encode_call(call)  # a mistake is told now, not when there is a connection
        self._remember(call, on_settled, terms, sent=False)
        self._unsent[call.correlation_id] = call, routing_key, exchange

    def _remember(self, call: Call, on_settled: OnSettled, terms: _Terms, *, sent: bool) -> None:
        assert call.expiration is not None
        self._calls.add(
            call.correlation_id,
            on_settled,
            expiration=call.expiration,
            idempotent=terms.idempotent,
            now=self._loop.time(),
            sent=sent,
            line=terms.line,
            confirmed_within=terms.confirmed_within,
            again=terms.again if terms.idempotent and self._several else None,
        )

    def submit(self, call: Call, routing_key: str, on_settled: OnSettled, *, exchange: str = '') -> None:
        """Send a call now, or as soon as there is a connection within its expiration.

        Args:
            call: what to run; its ``expiration`` must be a number of seconds.
            routing_key: the shared queue's name, or what ``exchange`` routes by.
            on_settled: as for :meth:`send`.
            exchange: where to publish it; the default exchange routes by the queue's name.

        Raises:
            Blocked, BrokerRefused, DuplicateTaskId, ValueError: as for :meth:`send`; ``BrokerRefused`` if the broker
                has refused this client, so that there never will be a connection.
        """
        link = self._usable()
        if self._refused is not None:
            raise copy(self._refused)
        if link is not None and not exchange:
            self._send(link, call, routing_key, on_settled)
            return
        self._keep(call, routing_key, exchange, on_settled)
        self._set_alarm()
        if link is not None:
            self._send_unsent(link)

    def tell(self, message: Chunk | Credit) -> None:
        """Send a part of a call's body, or leave to send more of its answer, to the worker that runs it."""
        inbox = self._calls.inbox(message.correlation_id)
        if self._link is None or not inbox:
            return
        addressed = replace(message, reply_to=self._link.reply_to)
        self._link.channel.publish(codec.encode(addressed), inbox, mandatory=True)

    def pause(self, correlation_id: str) -> None:
        """Stop the clock of a run: it waits for the caller's own end."""
        self._calls.pause(correlation_id)

    def resume(self, correlation_id: str) -> None:
        """Let the clock of a run go on, from zero."""
        self._calls.resume(correlation_id, now=self._loop.time())
        self._set_alarm()

    def cancel(self, correlation_id: str) -> None:
        """Forget a call: its ``on_settled`` is not called any more, and a worker that runs it is told."""
        self._unsent.pop(correlation_id, None)
        self._do(self._calls.cancel(correlation_id))

    def check_blocked(self) -> None:
        """Look whether the broker takes messages.

        Raises:
            Blocked: it has said that it takes none now.
        """
        if self._link is not None and self._link.blocked:
            raise Blocked('the broker takes no messages now: it has raised a memory or disk alarm')

    def _usable(self) -> _Link | None:
        self.check_blocked()
        return self._link

    def _send_unsent(self, link: _Link) -> None:
        unsent, self._unsent = self._unsent, {}
        now, wall = self._loop.time(), time.time()
        for id, (call, routing_key, exchange) in unsent.items():
            left = max(0.0, self._calls.time_left(id, now))
            envelope = codec.encode_call(replace(call, reply_to=link.reply_to, expiration=left, sent=wall))
            self._calls.sent(id, now=now)
            if exchange:
                self._spawn(self._send_through(link, id, envelope, exchange, routing_key))
            else:
                link.calls.publish(envelope, routing_key, mandatory=True)
        self._set_alarm()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> 'asyncio.Task[None]':
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send_through(
        self, link: _Link, correlation_id: str, envelope: Envelope, exchange: str, routing_key: str
    ) -> None:
        def on_return(envelope: Envelope, routing_key: str) -> None:
            error = Unroutable(f'the exchange {exchange!r} has no queue bound that takes {routing_key!r}')
            self._do(self._calls.fail(correlation_id, error))

        async with self._going_through:
            if correlation_id not in self._calls:
                return
            # On a channel of its own: the broker closes the channel if there is no such exchange.
            try:
                channel = await link.connection.open_channel(
                    confirm=True, on_return=on_return, on_closed=lambda reason: None
                )
                channel.publish(envelope, routing_key, exchange=exchange, mandatory=True)
                await channel.confirmed()
                await channel.close()
            except CrewError as error:
                self._do(self._calls.fail(correlation_id, error))

    # Connecting

    async def prepare(self, connection: Connection) -> None:
        """Set up a new connection: a reply queue under a new name, and what waits is sent."""
        await connection.ensure(topology.DEAD_LETTERS, *self._queues)
        replies = topology.reply_queue()
        await self._declare_replies(connection, replies)
        channel = await connection.open_channel(on_return=self._returned)
        # Without acks: what is lost with this process is of no use to another.
        await channel.consume(replies.name, self._arrived, no_ack=True)
        calls = await self._open_confirming(connection) if self._confirms else channel
        link = _Link(connection, channel, calls, replies.name)
        connection.on_blocked = lambda blocked: self._on_blocked(link, blocked)
        self._calls.reply_to = replies.name
        self._link = link
        self._send_unsent(link)

    @staticmethod
    async def _declare_replies(connection: Connection, replies: Queue) -> None:
        # On a channel of its own, which the broker closes if we may not bind. Who may, can hear those of others, too.
        # Before any other, for the broker may allow but one.
        channel = await connection.open_channel(on_closed=lambda reason: None)
        await channel.declare(replies)
        try:
            await channel.declare(topology.dead_letter_binding(replies.name))
        except BrokerRefused as error:
            log.warning('calls that expire are told by our own clock, a second later: %s', error)
            return
        await channel.close()

    async def _open_confirming(self, connection: Connection) -> Channel:
        return await connection.open_channel(on_confirm=self._confirmed, on_return=self._returned)

    def _confirmed(self, envelope: Envelope, queue: str, taken: bool) -> None:
        link = self._link
        if taken or link is None:
            self._calls.confirmed(envelope.correlation_id)
            return
        log.info('%s did not take call %s; trying again', queue, envelope.correlation_id)
        link.refused.append((envelope, queue))
        if link.renewing is None:
            link.renewing = self._spawn(self._publish_refused(link))

    async def _publish_refused(self, link: _Link) -> None:
        """Publish once more what a queue did not take.

        On a new channel: in a channel, RabbitMQ remembers the node that led the queue when it was first published to,
        and goes on to refuse when that node is gone.
        """
        try:
            await asyncio.sleep(link.pause)
            link.pause = min(2 * link.pause, LONGEST_PAUSE)
            retired, link.retired = link.retired, link.calls
            link.calls = await self._open_confirming(link.connection)
            refused, link.refused = link.refused, []
            link.renewing = None
            for envelope, queue in refused:
                if envelope.correlation_id in self._calls:
                    link.calls.publish(envelope, queue, mandatory=True)
            # Not the last one: what it has published may still be confirmed.
            if retired is not None:
                await retired.close()
        except CrewError as error:
            log.debug('not published again, for the connection is lost: %s', error)

    def _on_blocked(self, link: _Link, blocked: bool) -> None:
        link.blocked = blocked
        state = 'takes no messages: it has raised a memory or disk alarm' if blocked else 'takes messages again'
        log.warning('the broker %s', state)

    def lost(self, reason: Exception) -> None:
        """Take note that the connection is gone: what was in flight may have run, and cannot be answered."""
        now = self._loop.time()
        if self._link is not None:
            if self._several:
                self._reconnected_by = now + RECONNECTED_WITHIN
            self._stop_renewing()
            self._link = None
        self._do(self._calls.lost(ConnectionError(str(reason), published=True), now=now))

    def _stop_renewing(self) -> None:
        if self._link is not None and self._link.renewing is not None:
            self._link.renewing.cancel()

    def refuse(self, reason: CrewError) -> None:
        """Take note that there will never be a connection."""
        self._refused = reason
        self._unsent.clear()
        self._do(self._calls.fail_unsent(reason))

    def close(self) -> None:
        """Fail what is in flight, and what is called from now on."""
        self._stop_renewing()
        self._do(self._calls.fail_sent(ConnectionError('the client was closed', published=True)))
        self.refuse(ConnectionError('the client is closed'))
        self._alarm.stop()

    # From the broker

    def _arrived(self, delivery: Delivery) -> None:
        try:
            message = codec.decode(delivery.envelope)
        except ProtocolError as error:
            self._counters.refused += 1
            log.warning('dropped message %r from the reply queue: %s', delivery.envelope.correlation_id, error)
            return
        if isinstance(message, Reply) and message.correlation_id not in self._calls:
            self._counters.late += 1
            log.debug('the reply to call %s came too late', message.correlation_id)
        if isinstance(message, Accept) and message.redelivered and self._calls.put_off(message):
            # Only the connection of its first worker may be gone: then the answer comes on another.
            self._loop.call_later(LAST_CHANCE, self._receive, message)
            return
        self._receive(message)

    def _receive(self, message: Message) -> None:
        self._do(self._calls.receive(message, now=self._loop.time(), wall=time.time()))

    def _returned(self, envelope: Envelope, routing_key: str) -> None:
        if envelope.type == 'call':
            self._do(self._calls.unroutable(envelope.correlation_id, routing_key))
        else:
            log.info('the worker that was to get %s for call %s is gone', envelope.type, envelope.correlation_id)
            self._do(self._calls.worker_gone(envelope.correlation_id))

    # Carrying out what was decided

    def _do(self, actions: list[Action[OnSettled]]) -> None:
        for action in actions:
            if isinstance(action, Settle):
                outcome = action.outcome
                # One error may be many callers'; raised again and again, its traceback would grow.
                self._give(action.waiter, copy(outcome) if isinstance(outcome, _SHARED) else outcome)
            elif isinstance(action, Part):
                self._give(action.waiter, action.message)
            elif isinstance(action, Hold):
                call, queue, _ = self._unsent[action.correlation_id] = cast(_Unsent, action.again)
                log.info('call %s is sent once more to %s: the connection was lost', call.correlation_id, queue)
                self._counters.republished += 1
            elif self._link is None:
                log.info('not sent, the connection is lost: %r', action)
            elif isinstance(action, Tell):
                self._counters.stopped += isinstance(action.message, Stop)
                self._link.channel.publish(codec.encode(action.message), action.queue, mandatory=True)
            else:
                self._counters.republished += 1
                log.warning('call %s is published once more: its worker died', action.envelope.correlation_id)
                self._link.calls.publish(action.envelope, action.queue, mandatory=True)
        self._set_alarm()

    def _give(self, on_settled: OnSettled, outcome: Reply | Chunk | Credit | CrewError) -> None:
        try:
            on_settled(outcome)
        except Exception:  # one caller's mistake must not keep the others from their answers
            log.exception('a callback failed')

    def _set_alarm(self) -> None:
        due = self._calls.next_deadline()
        if due is not None:
            self._alarm.set(due)

    def _tick(self) -> None:
        actions = self._calls.expire(self._loop.time())
        if self._unsent:
            self._unsent = {id: unsent for id, unsent in self._unsent.items() if id in self._calls}
        self._do(actions)
