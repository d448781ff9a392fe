"""What all requests of a front share, and which of them are open."""

import asyncio
import time
from typing import Protocol

from crew.line import Line
from crew.master.caller import Caller
from crew_wsgi.budget import Budget
from crew_wsgi.forwarded import Proxies
from crew_wsgi.intake import NO_PROXIES, Intake
from crew_wsgi.limits import Limits
from crew_wsgi.problems import UNAVAILABLE, Problem, too_long, too_many
from crew_wsgi.routes import Route, Routes

__all__ = ['Open', 'Server']


class Open(Protocol):
    """A request that is open."""


class Server:
    """What all requests of a front share.

    A request is *open* from its head to the last byte of its answer, and *in flight* while a worker is to take it or
    runs it: what a client is slow at, before and after, takes no place from others, but memory, which has a bound of
    its own.

    Args:
        caller: sends calls.
        routes: which application a request is for.
        limits: see :class:`crew_wsgi.limits.Limits`.
        proxies: who is believed about where a request came from.
        root_path: where all applications are for the client, percent-encoded and without a slash at its end.

    Attributes:
        collected: bounds what has come of requests that are not whole.
        untaken: bounds what is left of answers that no worker has more of.
    """

    def __init__(
        self, caller: Caller, routes: Routes, limits: Limits, *, proxies: Proxies = NO_PROXIES, root_path: str = ''
    ) -> None:
        self.caller = caller
        self.limits = limits
        self.intake = Intake(routes, limits, proxies, root_path)
        self.collected = Budget(limits.max_collected)
        self.untaken = Budget(limits.max_untaken)
        self.open: set[Open] = set()
        self.in_flight: set[Open] = set()
        self._lines: dict[Route, Line] = {}
        self.refused: set[Open] = set()
        self.draining = False
        self._drained: asyncio.Future[None] | None = None

    def line(self, route: Route) -> Line:
        """Return the line in which the requests of a route wait for workers."""
        line = self._lines.get(route)
        if line is None:
            line = self._lines[route] = Line(route.queue_timeout or self.limits.queue_timeout)
        return line

    def admit(self, route: Route) -> Problem | None:
        """Return why no request for this route can be sent on now, or None."""
        if not self.caller.takes_calls:
            return UNAVAILABLE
        line, now = self.line(route), time.monotonic()
        # Who has hung up is in the queue still.
        room = len(self.in_flight) + self.caller.forgotten < self.limits.max_inflight
        if line.admit(now, room=room):
            return None
        return too_long(line.wait(now)) if room else too_many(line.wait(now))

    def enter(self, request: Open) -> None:
        """Count a request that begins."""
        self.open.add(request)

    def send(self, request: Open) -> None:
        """Count a request as in flight."""
        self.in_flight.add(request)

    def settle(self, request: Open) -> None:
        """Count a request as no longer in flight: no worker has to do with it any more."""
        self.in_flight.discard(request)

    def refuse(self, request: Open) -> None:
        """Count a request as refused, though its client may still send, or read the answer."""
        self.open.discard(request)
        self.refused.add(request)

    def leave(self, request: Open) -> None:
        """Count a request as over: all of the response has been sent, or the client is gone."""
        self.settle(request)
        self.open.discard(request)
        self.refused.discard(request)
        if not self._busy and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drain(self) -> None:
        """Return when no request is open any more, and who was refused has the answer."""
        self.draining = True
        if self._busy:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    @property
    def _busy(self) -> bool:
        return bool(self.open or self.refused)
