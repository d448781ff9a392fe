"""What all requests of a front share, and which of them are open."""

import asyncio
from typing import Protocol

from crew.master.caller import Caller
from crew_wsgi.forwarded import Proxies
from crew_wsgi.intake import NO_PROXIES, Intake
from crew_wsgi.limits import Limits
from crew_wsgi.problems import TOO_MANY, UNAVAILABLE, Problem
from crew_wsgi.routes import Routes

__all__ = ['Open', 'Server']


class Open(Protocol):
    """A request that is open."""


class Server:
    """What all requests of a front share.

    Args:
        caller: sends calls.
        routes: which application a request is for.
        limits: see :class:`crew_wsgi.limits.Limits`.
        proxies: who is believed about where a request came from.
        root_path: where all applications are for the client, without a slash at its end.
    """

    def __init__(
        self, caller: Caller, routes: Routes, limits: Limits, *, proxies: Proxies = NO_PROXIES, root_path: str = ''
    ) -> None:
        self.caller = caller
        self.limits = limits
        self.intake = Intake(routes, limits, proxies, root_path)
        self.open: set[Open] = set()
        self.refused: set[Open] = set()
        self.draining = False
        self._drained: asyncio.Future[None] | None = None

    def admit(self) -> Problem | None:
        """Return why a request that has entered cannot be taken on now, or None."""
        if len(self.open) > self.limits.max_inflight:
            return TOO_MANY
        if not self.caller.reply_to:
            return UNAVAILABLE
        return None

    def enter(self, request: Open) -> None:
        """Count a request that begins."""
        self.open.add(request)

    def refuse(self, request: Open) -> None:
        """Count a request as no longer in flight, though its client may still send, or read the answer."""
        self.open.discard(request)
        self.refused.add(request)

    def leave(self, request: Open) -> None:
        """Count a request as over: all of the response has been sent, or the client is gone."""
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
