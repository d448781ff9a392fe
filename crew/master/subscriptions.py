"""What one client publishes to everybody, and what it has subscribed to. Lives on an asyncio loop.

A client has one private queue for all its subscriptions, bound once for each channel, made when the first subscription
is. After a reconnect there is a new one, bound to the same channels; what was published meanwhile is missed.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from crew import codec, topology
from crew.exceptions import BrokerRefused, ConnectionError, CrewError, ProtocolError
from crew.master.caller import Counters
from crew.messages import Publication
from crew.transports.base import Channel, Connection, Delivery
from crew.transports.futures import look_at

__all__ = ['OnPublication', 'Subscriptions']

log = logging.getLogger(__name__)

#: Called with a publication and with what is to be called when it has been dealt with.
OnPublication: TypeAlias = Callable[[Publication, Callable[[], None]], None]

#: How many publications a client holds that its callbacks have not dealt with; the rest waits at the broker.
PREFETCH = 200


class Subscriptions:
    """One client's subscriptions and publications.

    Args:
        counters: where it counts what was dropped.
        on_publication: gets what is published on the channels that are subscribed to.
    """

    def __init__(self, counters: Counters, on_publication: OnPublication) -> None:
        self._counters = counters
        self._on_publication = on_publication
        self._channels: set[str] = set()
        self._connection: Connection | None = None
        self._publishing: Channel | None = None
        self._subscribing: Channel | None = None
        self._queue = ''
        self._changing = asyncio.Lock()

    async def prepare(self, connection: Connection) -> None:
        """Set up a new connection, with all that is subscribed to."""
        self._connection = connection
        async with self._changing:
            if self._channels:
                try:
                    await self._bind_all(connection)
                except BrokerRefused as error:
                    # Whoever waits for a subscription will hear it, too.
                    log.error('nothing that was subscribed to comes: %s', error)

    def lost(self, reason: Exception) -> None:
        """Take note that the connection is gone."""
        self._connection = self._publishing = self._subscribing = None

    async def publish(self, publication: Publication) -> Channel:
        """Give a value to everybody who has subscribed.

        Returns:
            The channel, which confirms when the broker has it.

        Raises:
            BrokerRefused: we may not.
            ConnectionError: there is no connection.
        """
        channel = self._publishing or await self._open_publishing()
        channel.publish(codec.encode(publication), '', exchange=topology.PUBLICATIONS.name)
        return channel

    async def _open_publishing(self) -> Channel:
        async with self._changing:
            if self._publishing is not None:
                return self._publishing
            connection = self._connection
            if connection is None:
                raise ConnectionError('there is no connection to the broker')
            await connection.ensure(topology.PUBLICATIONS)
            # The broker closes the channel of who may not publish.
            channel = await connection.open_channel(confirm=True, on_closed=self._publishing_closed)
            if connection is self._connection:
                self._publishing = channel
            return channel

    def _publishing_closed(self, reason: Exception) -> None:
        self._publishing = None

    def add(self, channel: str) -> None:
        """Remember that a channel is subscribed to, from the next connection on; :meth:`bind` does it now."""
        self._channels.add(channel)

    async def bind(self, channel: str) -> None:
        """Return when what is published on a channel is on its way here.

        Raises:
            BrokerRefused: we may not.
            ConnectionError: there is no connection, or it was lost meanwhile.
        """
        # One who gives up must not leave half of it behind: a queue that nobody reads, or a second one that is read.
        binding = asyncio.ensure_future(self._bind(channel))
        # Who has given up does not look at it; the loop must not complain of that.
        binding.add_done_callback(look_at)
        await asyncio.shield(binding)

    async def _bind(self, channel: str) -> None:
        async with self._changing:
            if self._connection is None:
                raise ConnectionError('there is no connection to the broker')
            if self._subscribing is None:
                await self._bind_all(self._connection)
            elif channel in self._channels:
                await self._subscribing.declare(topology.subscription(self._queue, channel))

    async def remove(self, channel: str) -> None:
        """Get nothing more from a channel.

        Raises:
            ConnectionError: the connection was lost meanwhile; the next one is without this subscription.
        """
        self._channels.discard(channel)
        async with self._changing:
            if self._subscribing is not None and channel not in self._channels:
                await self._subscribing.unbind(topology.subscription(self._queue, channel))

    async def _bind_all(self, connection: Connection) -> None:
        await connection.ensure(topology.PUBLICATIONS)
        queue = topology.subscriber_queue()
        # On a channel of its own: if we may not, the broker closes it, and calls go on.
        binding = await connection.open_channel(on_closed=lambda reason: None)
        await binding.declare(queue)
        for name in list(self._channels):
            await binding.declare(topology.subscription(queue.name, name))
        await binding.close()
        channel = await connection.open_channel(prefetch=PREFETCH)
        await channel.consume(queue.name, self._arrived)
        self._queue, self._subscribing = queue.name, channel

    def _arrived(self, delivery: Delivery) -> None:
        try:
            publication = codec.decode(delivery.envelope)
            if not isinstance(publication, Publication):
                raise ProtocolError(f'a {delivery.envelope.type} message is no publication')
        except ProtocolError as error:
            self._counters.refused += 1
            log.warning('dropped a publication: %s', error)
            delivery.channel.ack(delivery.tag)
            return
        try:
            self._on_publication(publication, lambda: delivery.channel.ack(delivery.tag))
        except CrewError as error:
            self._counters.dropped += 1
            log.warning('dropped a publication on %r: %s', publication.channel, error)
            delivery.channel.ack(delivery.tag)
