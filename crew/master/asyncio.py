"""The client for asyncio programs.

>>> async with Client('amqp://guest:guest@127.0.0.1:5672/%2F') as client:
...     print(await client.call('test', 42))
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from crew.exceptions import ConnectionError
from crew.master.client import BaseClient, Headers, Pending
from crew.master.engine import Engine
from crew.transports.futures import look_at

__all__ = ['CallFuture', 'Client']

log = logging.getLogger(__name__)

C = TypeVar('C', bound='Client')


class CallFuture(asyncio.Future[Any]):
    """What brings the value. Cancelling it cancels the call.

    Attributes:
        headers: what the task put into ``context.headers``; empty before there is a value.
    """

    headers: Headers
    _on_cancel: Callable[[], None] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call, unless it is over.

        Args:
            msg: goes into the ``CancelledError``, as in :meth:`asyncio.Future.cancel`.

        Returns:
            False if it was over.
        """
        cancelled = super().cancel(msg)
        if cancelled and self._on_cancel is not None:
            # A callback for its end would cost a turn of the loop for each call, and only few are cancelled.
            self.get_loop().call_soon(self._on_cancel)
        return cancelled


class Client(BaseClient[CallFuture]):
    """A client on the event loop that runs when it is first used; all its methods are called there.

    How it waits and calls back:
        calls: ``call()`` returns a :class:`CallFuture` at once, which may be awaited or not.
        other methods: return futures too, which may be awaited or not.
        waiting: ``await``. ``asyncio.wait_for()`` cancels the call when its time is over.
        callbacks: are made on the loop. They may be coroutine functions, which are awaited.
        closing: ``async with`` connects and closes; or ``await client.close()``.
    """

    __doc__ = f'{__doc__}\n\n{BaseClient.__doc__}'

    _running: Engine | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _closed = False

    async def __aenter__(self: C) -> C:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def close(self) -> Awaitable[None]:
        """Fail what is in flight, send what is still to be sent, and close the connection. May be called again.

        Returns:
            A future, done when it is closed.
        """
        self._closed = True
        if self._running is None or self._loop is None or self._loop.is_closed():
            return self._done()
        return self._do(lambda engine: engine.close())

    # The loop

    def _forget_parent(self) -> None:
        super()._forget_parent()
        if self._running is not None:
            _inherited.append(self._running)
        self._running = self._loop = None

    def _post(self, action: Callable[[Engine], None]) -> None:
        action(self._started())

    def _started(self) -> Engine:
        loop = self._current_loop()
        # Whoever calls asyncio.run() twice has another loop the second time.
        if self._running is None or (self._loop is not loop and self._loop is not None and self._loop.is_closed()):
            if self._closed:
                raise ConnectionError('the client is closed')
            # What was in flight on the first one was lost with it.
            self._ids.clear()
            self._loop = loop
            self._running = self._engine(loop)
            self._running.start()
        elif self._loop is not loop:
            raise RuntimeError('this client lives on another event loop, where it was used first')
        return self._running

    def _current_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    # Waiting and calling back

    def _do(self, action: Callable[[Engine], Awaitable[None]]) -> CallFuture:
        pending = self._pending(lambda: _cancel(task))
        # Nobody needs to look: what goes wrong is logged where it does.
        pending.future.add_done_callback(look_at)

        async def run() -> None:
            try:
                await action(self._started())
            except Exception as error:  # whatever it is, it is for the one who waits
                pending.reject(error)
            else:
                pending.resolve(None, {})

        task = self._current_loop().create_task(run())
        return pending.future

    def _done(self) -> CallFuture:
        pending = self._pending(lambda: None)
        pending.resolve(None, {})
        return pending.future

    def _pending(self, on_cancel: Callable[[], None]) -> '_Pending':
        return _Pending(self._current_loop(), on_cancel)

    def _finish(self, pending: Pending[CallFuture], timeout: float | None) -> Any:
        return pending.future

    def _invoke(self, callback: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        # Not from here: this may be within the very call that the callback was given to.
        self._current_loop().call_soon(self._call_back, callback, args, done)

    def _call_back(self, callback: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        try:
            result = callback(*args)
        except Exception:  # the application's own, and the loop must live on
            log.exception('the callback %r failed', callback)
            done()
            return
        if not isinstance(result, Awaitable):
            done()
            return

        def awaited(future: 'asyncio.Future[Any]') -> None:
            _called.discard(future)
            if not future.cancelled() and future.exception() is not None:
                log.error('the callback %r failed', callback, exc_info=future.exception())
            done()

        future = asyncio.ensure_future(result)
        _called.add(future)
        future.add_done_callback(awaited)


# Kept in a child process as they are: to close or collect them would reach into the parent's sockets.
_inherited: list[Engine] = []

# Callbacks that are awaited: the loop itself holds its tasks weakly.
_called: 'set[asyncio.Future[Any]]' = set()


def _cancel(task: 'asyncio.Task[None]') -> None:
    task.cancel()


class _Pending:
    """The future, and how it is told its outcome."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_cancel: Callable[[], None]) -> None:
        self.future = CallFuture(loop=loop)
        self.future.headers = {}
        self.future._on_cancel = on_cancel

    def resolve(self, value: Any, headers: Headers) -> None:
        if not self.future.done():
            self.future.headers = headers
            self.future.set_result(value)

    def reject(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
