"""Keep one connection to the broker alive: dial, prepare, use, lose, wait, dial again.

The wait grows and is jittered, so that a broker that comes back is not met by everybody at once. What is prepared
(queues, consumers) is prepared anew at each connection, so nothing is assumed to have survived.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from crew.exceptions import BrokerRefused, ConnectionError, CrewError
from crew.transports.addresses import safe_url
from crew.transports.base import Connection

__all__ = ['Session']

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
#: An attempt costs little, and whoever waits for the broker waits up to so much longer than it was away.
LONGEST_PAUSE = 5.0

#: How long declaring and consuming may take, in seconds.
PREPARED_WITHIN = 30.0

#: How long opening a connection may take while there are other URLs to be tried, in seconds.
HASTE = 3.0

#: A connection that was in use for so long was a good one, so its loss is no reason to wait, in seconds.
SETTLED = 2.0

Dial = Callable[[str], Awaitable[Connection]]
Prepare = Callable[[Connection], Awaitable[None]]


class Session:
    """A connection that comes back.

    Args:
        urls: the nodes of a cluster, tried in turn: after a loss the next one at once, and a pause only when all have
            failed.
        dial: opens a connection to one of them.
        prepare: called with each new connection; when it returns, the connection is in use.
        on_lost: called with the reason whenever a connection that was handed to ``prepare`` is gone.
    """

    def __init__(
        self,
        urls: Sequence[str],
        dial: Dial,
        prepare: Prepare,
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._urls = list(urls)
        self._dial = dial
        self._prepare = prepare
        self._on_lost = on_lost
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._refused: asyncio.Future[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a connection is in use now."""
        return self._ready.is_set()

    def start(self) -> None:
        """Begin to connect, on the running loop."""
        self._refused = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep())

    async def wait_ready(self) -> None:
        """Wait until a connection is in use.

        Raises:
            BrokerRefused: the broker refused the very first connection; trying again would not help.
        """
        assert self._refused is not None, 'start() comes first'
        ready = asyncio.ensure_future(self._ready.wait())
        either: set[asyncio.Future[Any]] = {ready, self._refused}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._refused.done():
            self._refused.result()

    async def close(self) -> None:
        """Close the connection after sending what is still to be sent, and do not come back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._refused is not None:
            self._refused.cancel()

    async def _keep(self) -> None:
        pause, turn, failures = FIRST_PAUSE, 0, 0
        refusals: float = 0  # one after the other, before the first connection
        loop, several = asyncio.get_running_loop(), len(self._urls) > 1
        while True:
            url = self._urls[turn % len(self._urls)]
            turn += 1
            began = loop.time()
            # The first time round, a node that accepts connections and says nothing must not keep us from the others.
            hasty = several and failures < len(self._urls)
            try:
                await self._use(url, hasty)
                pause, refusals = FIRST_PAUSE, -math.inf
                failures = 0 if several and loop.time() > began + SETTLED else failures + 1
            except BrokerRefused as error:
                failures += 1
                refusals += 1
                # All of them: a node that is just leaving its cluster does not know the users any more.
                if refusals == len(self._urls) and self._refused is not None:
                    self._refused.set_exception(error)
                    # Also when nobody asks: the loop must not complain of an exception never retrieved.
                    self._refused.exception()
                    return
                log.error('the broker refuses us: %s; trying again in about %.1f s', error, pause)
            except (CrewError, OSError) as error:
                failures, refusals = failures + 1, min(refusals, 0)
                log.warning('%s; trying %s', error, self._when(failures, pause))
            except Exception:  # the edge of the task: whatever it is, the next connection may do without it
                failures, refusals = failures + 1, min(refusals, 0)
                log.exception('connecting failed; trying %s', self._when(failures, pause))
            if failures and failures % len(self._urls) == 0:
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                pause = min(pause * 2, LONGEST_PAUSE)

    def _when(self, failures: int, pause: float) -> str:
        return 'the next URL' if failures % len(self._urls) else f'again in about {pause:.1f} s'

    async def _connect(self, url: str, hasty: bool) -> Connection:
        if not hasty:
            return await self._dial(url)
        try:
            return await asyncio.wait_for(self._dial(url), HASTE)
        except asyncio.TimeoutError:
            raise ConnectionError(f'no answer from the broker at {safe_url(url)} within {HASTE:g} s') from None

    async def _use(self, url: str, hasty: bool) -> None:
        """Connect and return when the connection, once in use, is lost."""
        connection = await self._connect(url, hasty)
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        def on_close(reason: Exception) -> None:
            if not lost.done():
                lost.set_result(reason)

        connection.on_close = on_close
        reason: Exception = ConnectionError('the connection was closed')
        try:
            await self._prepare_or_lose(connection, lost)
            self._ready.set()
            log.info('connected to the broker')
            reason = await lost
            log.warning('%s', reason)
        except CrewError as error:
            reason = error
            raise
        finally:
            self._ready.clear()
            # Also when it was lost before it was ready: its owner may have begun to use it.
            self._on_lost(reason)
            await connection.close()

    async def _prepare_or_lose(self, connection: Connection, lost: 'asyncio.Future[Exception]') -> None:
        preparing = asyncio.ensure_future(self._prepare(connection))
        either: set[asyncio.Future[Any]] = {preparing, lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=PREPARED_WITHIN)
        finally:
            if not preparing.done():
                preparing.cancel()
        if preparing.done() and not preparing.cancelled():
            preparing.result()
        if lost.done():
            raise lost.result() if isinstance(lost.result(), CrewError) else ConnectionError(str(lost.result()))
        if not preparing.done():
            raise ConnectionError(f'the broker did not answer within {PREPARED_WITHIN:g} s')
