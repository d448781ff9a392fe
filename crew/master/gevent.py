"""The client for gevent programs: waiting is cooperative, whether anything is monkey-patched or not."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import gevent
from gevent.event import Event

from crew.exceptions import TimeoutError
from crew.master.client import BaseClient, Headers
from crew.master.own_thread import OwnThreadClient

__all__ = ['Client', 'Result']

log = logging.getLogger(__name__)

C = TypeVar('C', bound='Client')


class Result:
    """What brings the value of a call. Waited for in the thread that made the call, by any of its greenlets.

    ``get()`` is another name of :meth:`wait`.

    Args:
        on_cancel: called when it is cancelled.

    Attributes:
        headers: what the task put into ``context.headers``; empty before there is a value.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self.headers: Headers = {}
        self._on_cancel = on_cancel
        self._hub = gevent.get_hub()
        self._ready = Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._cancelled = False

    def wait(self, timeout: float | None = None) -> Any:
        """Let other greenlets run until the value is there, and return it.

        Args:
            timeout: how long, in seconds; None for as long as it takes, which the call's own limits bound. When it is
                over the call goes on, and may be waited for again, or cancelled.

        Raises:
            TimeoutError: it took longer.
            CrewError: what ``call`` says.
            gevent.GreenletExit: it was cancelled.
        """
        if not self._ready.is_set() and not _wait(self._hub, self._ready, timeout):
            raise TimeoutError(f'no answer within {timeout:g} s; the call goes on')
        if self._error is not None:
            raise self._error
        return self._value

    get = wait

    def done(self) -> bool:
        """Return whether there is an outcome: a value, an error, or that it was cancelled."""
        return bool(self._ready.is_set())

    def cancel(self) -> bool:
        """Cancel the call; return False if there was an outcome already."""
        if self._ready.is_set():
            return False
        self._cancelled = True
        self._error = gevent.GreenletExit('the call was cancelled')
        self._ready.set()
        self._on_cancel()
        return True

    @property
    def future(self) -> 'Result':
        """Return the result itself, which is what its caller holds."""
        return self

    def resolve(self, value: Any, headers: Headers) -> None:
        """Give the value; in the connection's thread.

        Args:
            value: what the call brought.
            headers: what came with it.
        """
        self._hub.loop.run_callback_threadsafe(self._settle, value, headers, None)

    def reject(self, error: BaseException) -> None:
        """Give the error that took its place; in the connection's thread.

        Args:
            error: what :meth:`wait` raises.
        """
        self._hub.loop.run_callback_threadsafe(self._settle, None, {}, error)

    def _settle(self, value: Any, headers: Headers, error: BaseException | None) -> None:
        if not self._ready.is_set():
            self._value, self.headers, self._error = value, headers, error
            self._ready.set()


def _wait(hub: Any, event: Event, timeout: float | None) -> bool:
    # What sets the event comes from another thread: without a watcher the hub would believe that nothing ever will.
    watcher = _watcher(hub)
    try:
        return bool(event.wait(timeout))
    finally:
        watcher.close()


def _watcher(hub: Any) -> Any:
    watcher = hub.loop.async_()
    watcher.start(lambda: None)
    return watcher


class Client(OwnThreadClient[Result]):
    """A cooperative client.

    How it waits and calls back:
        calls: ``call()`` returns a :class:`Result` at once.
        other methods: return None when they are done, and raise what went wrong; other greenlets run meanwhile. They
            wait for a connection for 30 seconds at most.
        waiting: :meth:`Result.wait`, in any greenlet of the thread that made the call.
        callbacks: each is made in a greenlet of its own, of the thread that made the client.
        the hub: stays alive for callbacks until :meth:`close`.
        closing: ``with`` connects and closes. When the process ends, what was published has five seconds to leave.
    """

    __doc__ = f'{__doc__}\n\n{BaseClient.__doc__}'

    _patience = 30.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hub = gevent.get_hub()
        self._watcher: Any = None

    def __enter__(self: C) -> C:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> Any:
        """Fail what is in flight, send what is still to be sent, and close the connection. May be called again.

        Nothing of this client keeps the hub alive any more then.
        """
        super().close()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _expect_callbacks(self) -> None:
        # They come from another thread: the hub would believe that nothing can happen any more.
        if self._watcher is None and not self._closed:
            self._watcher = _watcher(self._hub)

    def _pending(self, on_cancel: Callable[[], None]) -> Result:
        return Result(on_cancel)

    def _finish(self, pending: Any, timeout: float | None) -> Any:
        return pending.wait(timeout)

    def _invoke(self, callback: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        def call_back() -> None:
            try:
                callback(*args)
            except Exception:  # the application's own
                log.exception('the callback %r failed', callback)
            finally:
                done()

        self._hub.loop.run_callback_threadsafe(gevent.spawn, call_back)
