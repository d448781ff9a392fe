"""The caller's end of the connection: calls go out, whatever comes back is settled. Lives on an asyncio loop.

What is decided in ``calls`` is carried out here; the faces beside this module turn outcomes into futures and results.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from crew import codec, topology
from crew.calls import Action, Calls, Settle, Tell
from crew.envelope import Envelope
from crew.exceptions import Blocked, ConnectionError, CrewError, ProtocolError
from crew.messages import Call, Reply, Stop
from crew.topology import Queue
from crew.transports.addresses import dial
from crew.transports.alarm import Alarm
from crew.transports.base import Channel, Connection, Delivery
from crew.transports.session import Session

__all__ = ['Client', 'Counters', 'OnSettled']

log = logging.getLogger(__name__)

OnSettled: TypeAlias = Callable[[Reply | CrewError], None]


@dataclass(slots=True)
class Counters:
    """What happened to messages that nobody is told of otherwise."""

    late: int = 0
    refused: int = 0
    republished: int = 0
    stopped: int = 0


@dataclass(slots=True)
class _Link:
    """The connection in use."""

    channel: Channel
    reply_to: str
    blocked: bool = field(default=False)


class Client:
    """Sends calls and settles them.

    Args:
        urls: the brokers of a cluster, tried in turn.
        queues: the shared queues that calls will go to; declared at each connection, so start order never matters.
        name: what the broker's operator sees.
    """

    def __init__(self, urls: Sequence[str], queues: Sequence[Queue], *, name: str = 'crew-client') -> None:
        self._loop = asyncio.get_running_loop()
        self._queues = queues
        self._calls: Calls[OnSettled] = Calls()
        self._alarm = Alarm(self._loop, self._tick)
        self._link: _Link | None = None
        self._session = Session(urls, lambda url: dial(url, name=name), self._prepare, self._on_lost)
        self.counters = Counters()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def reply_to(self) -> str:
        """The reply queue of the connection in use, or empty."""
        return self._link.reply_to if self._link is not None else ''

    def start(self) -> None:
        """Begin to connect, on the running loop."""
        self._session.start()

    async def wait_ready(self) -> None:
        """Wait for the first connection.

        Raises:
            BrokerRefused: the broker refuses us; trying again would not help.
        """
        await self._session.wait_ready()

    async def close(self) -> None:
        """Fail what is in flight, send what is still to be sent, and close."""
        self._do(self._calls.fail_all(ConnectionError('the client was closed', published=True)))
        self._alarm.stop()
        await self._session.close()

    def send(self, call: Call, queue: str, on_settled: OnSettled, *, idempotent: bool = False) -> None:
        """Send a call into a shared queue.

        Args:
            call: what to run; its ``reply_to`` must be :attr:`reply_to`, its ``expiration`` a number of seconds.
            queue: the shared queue's name.
            on_settled: called once with the reply, or with the error that took its place; never from within this call.
            idempotent: whether it may run a second time when its worker dies.

        Raises:
            ConnectionError: there is no connection; nothing was sent.
            Blocked: the broker takes no messages now; nothing was sent.
            DuplicateTaskId: a call with this id is in flight.
            ValueError: the call has no expiration, or more metadata than a message can carry.
        """
        link = self._link
        if link is None:
            raise ConnectionError('there is no connection to the broker')
        if link.blocked:
            raise Blocked('the broker takes no messages now: it has raised a memory or disk alarm')
        if call.expiration is None:
            raise ValueError('a call that is waited for needs an expiration')
        envelope = codec.encode_call(call)
        now = self._loop.time()
        self._calls.add(call.correlation_id, on_settled, expiration=call.expiration, idempotent=idempotent, now=now)
        link.channel.publish(envelope, queue, mandatory=True)
        self._set_alarm()

    def cancel(self, correlation_id: str) -> None:
        """Forget a call: its ``on_settled`` is not called any more, and a worker that runs it is told."""
        self._do(self._calls.cancel(correlation_id))

    # Connecting

    async def _prepare(self, connection: Connection) -> None:
        channel = await connection.open_channel(on_return=self._returned)
        await channel.declare(topology.DEAD_LETTERS)
        for queue in self._queues:
            await channel.declare(queue)
        replies = topology.reply_queue()
        await channel.declare(replies)
        await channel.declare(topology.dead_letter_binding(replies.name))
        # Without acks: what is lost with this process is of no use to another.
        await channel.consume(replies.name, self._arrived, no_ack=True)
        link = _Link(channel, replies.name)
        connection.on_blocked = lambda blocked: self._on_blocked(link, blocked)
        self._calls.reply_to = replies.name
        self._link = link

    def _on_blocked(self, link: _Link, blocked: bool) -> None:
        link.blocked = blocked
        state = 'takes no messages: it has raised a memory or disk alarm' if blocked else 'takes messages again'
        log.warning('the broker %s', state)

    def _on_lost(self, reason: Exception) -> None:
        self._link = None
        self._do(self._calls.fail_all(ConnectionError(str(reason), published=True)))

    # From the broker

    def _arrived(self, delivery: Delivery) -> None:
        try:
            message = codec.decode(delivery.envelope)
        except ProtocolError as error:
            self.counters.refused += 1
            log.warning('dropped message %r from the reply queue: %s', delivery.envelope.correlation_id, error)
            return
        if isinstance(message, Reply) and message.correlation_id not in self._calls:
            self.counters.late += 1
            log.debug('the reply to call %s came too late', message.correlation_id)
            return
        self._do(self._calls.receive(message, now=self._loop.time(), wall=time.time()))

    def _returned(self, envelope: Envelope, routing_key: str) -> None:
        if envelope.type == 'call':
            self._do(self._calls.unroutable(envelope.correlation_id, routing_key))
        else:
            log.info('the worker that was to get %s for call %s is gone', envelope.type, envelope.correlation_id)

    # Carrying out what was decided

    def _do(self, actions: list[Action[OnSettled]]) -> None:
        for action in actions:
            if isinstance(action, Settle):
                self._settle(action.waiter, action.outcome)
            elif self._link is None:
                log.info('not sent, the connection is lost: %r', action)
            elif isinstance(action, Tell):
                self.counters.stopped += isinstance(action.message, Stop)
                self._link.channel.publish(codec.encode(action.message), action.queue, mandatory=True)
            else:
                self.counters.republished += 1
                log.warning('call %s is published once more: its worker died', action.envelope.correlation_id)
                self._link.channel.publish(action.envelope, action.queue, mandatory=True)
        self._set_alarm()

    def _settle(self, on_settled: OnSettled, outcome: Reply | CrewError) -> None:
        try:
            on_settled(outcome)
        except Exception:  # one caller's mistake must not keep the others from their answers
            log.exception('a callback failed')

    def _set_alarm(self) -> None:
        due = self._calls.next_deadline()
        if due is not None:
            self._alarm.set(due)

    def _tick(self) -> None:
        self._do(self._calls.expire(self._loop.time()))
