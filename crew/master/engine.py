"""One client's connection and all that lives on it: calls, subscriptions, consumers. On one asyncio loop.

The faces beside this module turn outcomes into their framework's futures and results; the loop is theirs (asyncio,
Tornado) or runs in a thread of its own (``transports.threads``).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from crew.exceptions import BrokerRefused, ConnectionError, CrewError
from crew.master.caller import Caller, Counters
from crew.master.consumers import Consumers, OnMessage
from crew.master.subscriptions import OnPublication, Subscriptions
from crew.messages import Publication
from crew.topology import Queue
from crew.transports.addresses import dial
from crew.transports.base import Connection
from crew.transports.futures import look_at
from crew.transports.session import Session

__all__ = ['Engine']

log = logging.getLogger(__name__)

#: How long what is being published may take to leave when the client is closed, in seconds.
PUBLISHED_WITHIN = 2.0


class Engine:
    """A client's end of the connection.

    Args:
        loop: the loop that it lives on; all methods are called there.
        urls: the brokers of a cluster, tried in turn.
        queues: the shared queues that it declares itself, so that start order never matters.
        on_publication: gets what is published on channels that are subscribed to.
        on_refused: told when the broker refuses us, so that there never will be a connection.
        counters: where it counts, if not in one of its own.
        name: what the broker's operator sees.

    Attributes:
        caller: sends calls.
        subscriptions: what is published to everybody.
        consumers: queues of others.
        counters: what happened to messages that nobody is told of otherwise.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        urls: Sequence[str],
        queues: Sequence[Queue] = (),
        *,
        on_publication: OnPublication = lambda publication, done: done(),
        on_refused: Callable[[CrewError], None] = lambda error: None,
        counters: Counters | None = None,
        name: str = 'crew-client',
    ) -> None:
        self.counters = counters or Counters()
        self.caller = Caller(loop, queues, self.counters, several=len(urls) > 1)
        self.subscriptions = Subscriptions(self.counters, on_publication)
        self.consumers = Consumers(loop)
        self._loop = loop
        self._on_refused = on_refused
        self._session = Session(urls, lambda url: dial(url, name=name), self._prepare, self._lost)
        self._watching: asyncio.Task[None] | None = None
        self._publishing: set[asyncio.Future[None]] = set()
        self._in_order = asyncio.Lock()
        self._closed = False

    def start(self) -> None:
        """Begin to connect."""
        self._session.start()
        self._watching = self._loop.create_task(self._watch_refusal())

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait for a connection.

        Args:
            timeout: for how many seconds, or None for as long as it takes.

        Raises:
            BrokerRefused: the broker refuses us; trying again would not help.
            ConnectionError: there was none in time, or the client is closed.
        """
        if self._closed:
            raise ConnectionError('the client is closed')
        try:
            await asyncio.wait_for(self._session.wait_ready(), timeout)
        except asyncio.TimeoutError:
            raise ConnectionError(f'the broker could not be reached within {timeout:g} s') from None
        except asyncio.CancelledError:
            if self._closed:
                raise ConnectionError('the client was closed') from None
            raise

    async def publish(self, publication: Publication, timeout: float) -> None:
        """Publish as soon as there is a connection; return when the broker has it.

        Raises:
            Blocked: the broker takes no messages now.
            BrokerRefused: there will never be a connection, or we may not publish.
            ConnectionError: there was none in time, or it was lost, or the broker did not say in time that it has it.
        """
        if self._closed:
            raise ConnectionError('the client is closed')
        publishing = asyncio.ensure_future(self._publish(publication))
        self._publishing.add(publishing)
        publishing.add_done_callback(self._publishing.discard)
        # Whoever gives up, or is told that it took too long, looks no more; the loop must not complain of that.
        publishing.add_done_callback(look_at)
        try:
            await asyncio.wait_for(publishing, timeout)
        except asyncio.TimeoutError:
            raise ConnectionError(f'the broker did not take the publication within {timeout:g} s') from None

    async def _publish(self, publication: Publication) -> None:
        # First come, first served: whoever comes when there is a connection must not overtake who waited for it.
        async with self._in_order:
            if not self._session.ready:
                await self.wait_ready()
            self.caller.check_blocked()
            sent = await self.subscriptions.publish(publication)
        await sent.last_confirmed()

    async def subscribe(self, channel: str, timeout: float | None = None) -> None:
        """Subscribe to a channel, now or with the next connection, and again after each reconnect.

        Returns when what is published from then on is on its way here.

        Raises:
            BrokerRefused: there will never be a connection, or we may not subscribe.
            ConnectionError: there was no connection within ``timeout`` seconds, or the client was closed. In the first
                case the subscription is made with the next connection.
        """
        self.subscriptions.add(channel)
        while True:
            await self.wait_ready(timeout)
            try:
                await self.subscriptions.bind(channel)
                return
            except ConnectionError as error:
                log.debug('subscribing to %r once more: %s', channel, error)

    async def consume(self, queue: str, prefetch: int, on_message: OnMessage, timeout: float | None = None) -> None:
        """Consume a queue; see :meth:`Consumers.consume`.

        Raises:
            BrokerRefused, ValueError: as there.
            ConnectionError: as there, and if there was no connection within ``timeout`` seconds; consuming then begins
                with the next one.
        """
        begun = self.consumers.consume(queue, prefetch, on_message)
        waiting: asyncio.Future[None] = asyncio.ensure_future(self.wait_ready(timeout))
        # When the client is closed both end, and only one of them is looked at.
        waiting.add_done_callback(look_at)
        try:
            await asyncio.wait({begun, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                await waiting
            await asyncio.shield(begun)
        finally:
            waiting.cancel()

    async def close(self) -> None:
        """Fail what is in flight, send what is still to be sent, and close. May be called again."""
        if self._closed:
            return
        self._closed = True
        self.caller.close()
        if self._publishing and self._session.ready:
            await asyncio.wait(self._publishing, timeout=PUBLISHED_WITHIN)
        if self._watching is not None:
            self._watching.cancel()
        await self._session.close()
        self.consumers.close()

    async def _watch_refusal(self) -> None:
        # The first connection is made or refused; later ones are tried for ever.
        try:
            await self._session.wait_ready()
        except BrokerRefused as error:
            self._on_refused(error)
            self.caller.refuse(error)

    async def _prepare(self, connection: Connection) -> None:
        await self.subscriptions.prepare(connection)
        await self.consumers.prepare(connection)
        # Last, for it sends what waits: a call's task may publish what is subscribed to here.
        await self.caller.prepare(connection)

    def _lost(self, reason: Exception) -> None:
        self.consumers.lost(reason)
        self.subscriptions.lost(reason)
        self.caller.lost(reason)
