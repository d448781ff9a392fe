"""Keep one connection to the broker alive: dial, prepare, use, lose, wait, dial again.

The wait grows and is jittered, so that a broker that comes back is not met by everybody at once. What is prepared
(queues, consumers) is prepared anew at each connection, so nothing is assumed to have survived.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from crew.exceptions import BrokerRefused, ConnectionError, CrewError
from crew.transports.base import Connection

__all__ = ['Session']

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0

Dial = Callable[[str], Awaitable[Connection]]
Prepare = Callable[[Connection], Awaitable[None]]


class Session:
    """A connection that comes back.

    Args:
        urls: the brokers of a cluster, tried in turn.
        dial: opens a connection to one of them.
        prepare: called with each new connection; when it returns, the connection is in use.
        on_lost: called with the reason whenever a connection in use is gone.
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
        self._connection: Connection | None = None
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
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._ready.clear()
            connection.on_close = lambda reason: None
            await connection.close()

    async def _keep(self) -> None:
        pause, attempt, used = FIRST_PAUSE, 0, False
        while True:
            url = self._urls[attempt % len(self._urls)]
            attempt += 1
            try:
                await self._use(url)
                pause, used = FIRST_PAUSE, True
            except BrokerRefused as error:
                if not used and self._refused is not None and attempt >= len(self._urls):
                    self._refused.set_exception(error)
                    # Also when nobody asks: the loop must not complain of an exception never retrieved.
                    self._refused.exception()
                    return
                log.error('the broker refuses us: %s; trying again in about %.1f s', error, pause)
            except (CrewError, OSError) as error:
                log.warning('%s; trying again in about %.1f s', error, pause)
            if attempt % len(self._urls) == 0:
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _use(self, url: str) -> None:
        """Connect and return when the connection, once in use, is lost."""
        connection = await self._dial(url)
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        connection.on_close = lost.set_result
        try:
            await self._prepare_or_lose(connection, lost)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        self._ready.set()
        log.info('connected to the broker')
        reason = await lost
        self._connection = None
        self._ready.clear()
        log.warning('%s', reason)
        self._on_lost(reason)

    async def _prepare_or_lose(self, connection: Connection, lost: 'asyncio.Future[Exception]') -> None:
        preparing = asyncio.ensure_future(self._prepare(connection))
        either: set[asyncio.Future[Any]] = {preparing, lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not preparing.done():
                preparing.cancel()
        if preparing.done() and not preparing.cancelled():
            preparing.result()
        if lost.done():
            raise lost.result() if isinstance(lost.result(), CrewError) else ConnectionError(str(lost.result()))
