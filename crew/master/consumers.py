"""Queues of others that one client consumes. Lives on an asyncio loop.

Each consumer has a channel of its own, so that a queue which is deleted or refused costs no call. It comes back by
itself, after a reconnect and when its queue is gone, which is then declared anew.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from crew import topology
from crew.envelope import Envelope
from crew.exceptions import ConnectionError, CrewError
from crew.transports.base import Channel, Connection, Delivery

__all__ = ['Consumers', 'OnMessage']

log = logging.getLogger(__name__)

#: Called with a message and with what acknowledges it.
OnMessage: TypeAlias = Callable[[Envelope, Callable[[], None]], None]

#: How long after a queue is gone it is looked for again, in seconds.
RETRY = 1.0

SETTLED = 0.1


class _Consumer:
    """One queue that is consumed."""

    def __init__(self, queue: str, prefetch: int, on_message: OnMessage, begun: 'asyncio.Future[None]') -> None:
        self.queue = queue
        self.begun = begun
        self._prefetch = prefetch
        self._on_message = on_message
        self._channel: Channel | None = None
        self._tag = ''

    async def start(self, connection: Connection, on_closed: Callable[[Exception], None]) -> None:
        """Begin to consume.

        Raises:
            BrokerRefused: we may not.
            ConnectionError: the connection was lost, or the channel alone.
        """
        channel = await connection.open_channel(prefetch=self._prefetch, on_closed=on_closed)
        if not await connection.exists(self.queue):
            # Whoever will publish there must not find that there is no queue.
            await channel.declare(topology.named_queue(self.queue))
        self._tag = await channel.consume(self.queue, self._arrived)
        self._channel = channel
        if not self.begun.done():
            self.begun.set_result(None)

    def _arrived(self, delivery: Delivery) -> None:
        self._on_message(delivery.envelope, lambda: delivery.channel.ack(delivery.tag))

    def fail(self, error: CrewError) -> None:
        """Tell who waits for the begin that it will not come."""
        if not self.begun.done():
            self.begun.set_exception(error)
            self.begun.exception()  # seen: perhaps nobody waits any more

    async def stop(self) -> None:
        """Consume no more; what was not acknowledged goes back into the queue.

        Raises:
            ConnectionError: the connection was lost meanwhile, so nothing is consumed any more anyway.
        """
        self.fail(ConnectionError(f'the queue {self.queue!r} is consumed no more'))
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.cancel(self._tag)
            await channel.close()


class Consumers:
    """All that one client consumes.

    Args:
        loop: the loop that they live on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._consumers: dict[str, _Consumer] = {}
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self, connection: Connection) -> None:
        """Set up a new connection, with all that is consumed."""
        self._connection = connection
        for consumer in self._consumers.values():
            self._start_later(consumer, connection, 0.0)

    def lost(self, reason: Exception) -> None:
        """Take note that the connection is gone."""
        self._connection = None
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """Fail whatever has not begun: there will be no connection any more."""
        for consumer in self._consumers.values():
            consumer.fail(ConnectionError('the client was closed'))

    async def consume(self, queue: str, prefetch: int, on_message: OnMessage) -> None:
        """Consume a queue, now or with the next connection, and again after each reconnect; return when it has begun.

        Args:
            queue: its name; it is declared (durable, classic) if there is none.
            prefetch: how many messages are held unacknowledged.
            on_message: gets each message, and what acknowledges it.

        Raises:
            BrokerRefused: we may not.
            ConnectionError: somebody else has the queue for himself.
            ValueError: it is being consumed already.
        """
        if queue in self._consumers:
            raise ValueError(f'the queue {queue!r} is being consumed already')
        consumer = self._consumers[queue] = _Consumer(queue, prefetch, on_message, self._loop.create_future())
        if self._connection is not None:
            self._start_later(consumer, self._connection, 0.0)
        await asyncio.shield(consumer.begun)

    async def cancel(self, queue: str) -> None:
        """Consume a queue no more; unknown ones are fine.

        Raises:
            ConnectionError: the connection was lost meanwhile, so nothing is consumed any more anyway.
        """
        consumer = self._consumers.pop(queue, None)
        if consumer is not None:
            await consumer.stop()

    def _start_later(self, consumer: _Consumer, connection: Connection, delay: float) -> None:
        task = self._loop.create_task(self._start(consumer, connection, delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, consumer: _Consumer, connection: Connection, delay: float) -> None:
        await asyncio.sleep(delay)
        started = False

        def is_wanted() -> bool:
            return self._consumers.get(consumer.queue) is consumer and self._connection is connection

        def on_closed(reason: Exception) -> None:
            # Before it has started, start() raises it.
            if started:
                try_again(reason)

        def try_again(reason: Exception) -> None:
            if is_wanted():
                log.warning('%s is consumed no more: %s; trying again in %g s', consumer.queue, reason, RETRY)
                self._start_later(consumer, connection, RETRY)

        if not is_wanted():
            return
        try:
            await consumer.start(connection, on_closed)
            started = True
        except CrewError as error:
            # Whether only the channel was lost, or the connection with it, is known a moment later.
            await asyncio.sleep(SETTLED)
            if consumer.begun.done():
                try_again(error)
            elif is_wanted():
                del self._consumers[consumer.queue]
                consumer.fail(error)
