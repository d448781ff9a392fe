"""Find out that the other end of a connection has gone silent, sooner than by AMQP's heartbeats.

RabbitMQ proposes a heartbeat of 60 seconds, and pika gives up after two that were missed and some seconds more: for two
minutes everything would go to a node that is frozen, or to a machine that is gone, while the others of its cluster
wait. A shorter heartbeat would help here, but it binds both sides: the broker would give up workers whose interpreter
is held by C code for half a minute. So a silent broker is asked something, and a process that is held up itself is
never to blame, for it reads before it looks at the clock, and looks more than once.
"""

import asyncio
from collections.abc import Callable

__all__ = ['Pulse']

#: How often it is looked; after so long without a byte, in seconds, the broker is asked.
QUIET = 5.0

#: How many looks later it must have said something.
LOOKS = 2


class Pulse:
    """Watches one connection, from now until :meth:`stop`.

    Args:
        loop: which reads from the connection.
        heard: when something last came from the broker, on the loop's clock.
        ask: asks for any answer; returns False if it cannot be asked now.
        silent: called when none came, with how long that was waited for, in seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        heard: Callable[[], float],
        ask: Callable[[], bool],
        silent: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._heard = heard
        self._ask = ask
        self._silent = silent
        self._asked: float | None = None
        self._looks = 0
        self._timer = loop.call_later(QUIET, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(QUIET, self._look)
        now, heard = self._loop.time(), self._heard()
        if self._asked is not None and heard < self._asked:
            self._looks += 1
            if self._looks == LOOKS:
                self._silent(now - self._asked)
            return
        self._asked, self._looks = None, 0
        if now >= heard + QUIET and self._ask():
            self._asked = now
