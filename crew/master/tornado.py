"""The client for Tornado applications: Tornado's loop is asyncio's, so it is asyncio's client.

It may be made, connected and used before the loop runs, at import say; what was asked for then is done when it does.
"""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.ioloop import IOLoop

from crew.master import asyncio as face
from crew.master.asyncio import CallFuture
from crew.master.client import BaseClient
from crew.master.engine import Engine

__all__ = ['CallFuture', 'Client']


class Client(face.Client):
    """A client on Tornado's loop, where all its methods are called.

    How it waits and calls back:
        calls: ``call()`` returns a :class:`CallFuture` at once, which may be waited for or not.
        other methods: return futures too, which may be waited for or not.
        waiting: ``await``, or ``yield`` in ``gen.coroutine``.
        callbacks: are made on the loop. They may be coroutine functions, which are awaited.
        closing: ``async with`` connects and closes; or ``await client.close()``.
    """

    __doc__ = f'{__doc__}\n\n{BaseClient.__doc__}'

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._early: list[Callable[[Engine], None]] = []

    __init__.__doc__ = None

    def _post(self, action: Callable[[Engine], None]) -> None:
        if self._running is None and not _is_running():
            self._early.append(action)
            if len(self._early) == 1:
                _coming_loop().add_callback(self._catch_up)
            return
        super()._post(action)

    def _catch_up(self) -> None:
        if self._early and self._closed:
            # An engine that never connects: it tells whoever waits that the client is closed.
            engine = self._engine(self._current_loop())
            engine.caller.close()
            self._do_early(engine)
        elif self._early:
            self._started()

    def _started(self) -> Engine:
        engine = super()._started()
        self._do_early(engine)
        return engine

    def _do_early(self, engine: Engine) -> None:
        early, self._early = self._early, []
        for action in early:
            action(engine)

    def _do(self, action: Callable[[Engine], Awaitable[None]]) -> CallFuture:
        if self._running is None and not _is_running():
            pending = self._pending(lambda: None)

            def ended(future: 'asyncio.Future[Any]') -> None:
                # If another loop than expected runs in the end, what was asked for is done there.
                if future.cancelled() or future.get_loop() is not pending.future.get_loop():
                    return
                error = future.exception()
                if error is None:
                    pending.resolve(None, {})
                else:
                    pending.reject(error)
                    pending.future.exception()  # seen, as nobody needs to look

            self._post(lambda engine: super(Client, self)._do(action).add_done_callback(ended))
            return pending.future
        return super()._do(action)

    def _current_loop(self) -> asyncio.AbstractEventLoop:
        if _is_running():
            return asyncio.get_running_loop()
        return _coming_loop().asyncio_loop  # type: ignore[attr-defined, no-any-return]


def _coming_loop() -> IOLoop:
    """Return the loop that ``IOLoop.current().start()`` will run."""
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn of the loop that Tornado means to make here.
        warnings.simplefilter('ignore', DeprecationWarning)
        return IOLoop.current()


def _is_running() -> bool:
    return asyncio._get_running_loop() is not None
