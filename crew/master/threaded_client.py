"""The client for scripts and other programs that wait by blocking. It may be used from many threads at once.

>>> client = Client()
>>> results = [client.call('sleep') for _ in range(30)]
>>> for result in results:
...     print(result.wait(timeout=50))
"""

import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

from crew.exceptions import TimeoutError
from crew.master.client import BaseClient, Headers
from crew.master.own_thread import OwnThreadClient

__all__ = ['Client', 'Result']

log = logging.getLogger(__name__)

C = TypeVar('C', bound='Client')


class Result(concurrent.futures.Future[Any]):
    """What brings the value of a call: a future of ``concurrent.futures``, with :meth:`wait`.

    ``done()``, ``cancel()`` (which cancels the call), ``add_done_callback()`` (which calls back in the connection's
    thread) and ``concurrent.futures.as_completed`` work as for every such future.

    Args:
        check_thread: raises ``RuntimeError`` in the thread that would have to bring the outcome.

    Attributes:
        headers: what the task put into ``context.headers``; empty before there is a value.
    """

    def __init__(self, check_thread: Callable[[], None]) -> None:
        super().__init__()
        self.headers: Headers = {}
        self._check_thread = check_thread

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the value and return it.

        Args:
            timeout: how long, in seconds; None for as long as it takes, which the call's own limits bound. When it is
                over the call goes on, and may be waited for again, or cancelled.

        Raises:
            TimeoutError: it took longer.
            CrewError: what ``call`` says.
            RuntimeError: there is no outcome yet, and this is the connection's own thread.
        """
        try:
            return self.result(timeout)
        except concurrent.futures.TimeoutError:
            if self.done():
                # The task's own, or it has ended just now.
                return self.result()
            raise TimeoutError(f'no answer within {timeout:g} s; the call goes on') from None

    def result(self, timeout: float | None = None) -> Any:
        """Wait as every such future does: the timeout's exception is that of ``concurrent.futures``.

        Args:
            timeout: as for :meth:`wait`.

        Raises:
            RuntimeError: as for :meth:`wait`.
        """
        self._check_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait in the same way, and return what :meth:`result` would raise, or None.

        Args:
            timeout: as for :meth:`wait`.

        Raises:
            RuntimeError: as for :meth:`wait`.
        """
        self._check_wait()
        return super().exception(timeout)

    def _check_wait(self) -> None:
        if not self.done():
            self._check_thread()


class Client(OwnThreadClient[Result]):
    """A blocking client.

    How it waits and calls back:
        calls: ``call()`` returns a :class:`Result` at once.
        other methods: return None when they are done, and raise what went wrong. They wait for a connection for 30
            seconds at most.
        waiting: :meth:`Result.wait`, in any thread.
        callbacks: are made one after the other in a thread of their own, where they may call and wait.
        closing: ``with`` connects and closes. When the process ends, what was published has five seconds to leave.
        forks: a child connects anew; the calls are its parent's.
    """

    __doc__ = f'{__doc__}\n\n{BaseClient.__doc__}'

    _patience = 30.0
    _callbacks: 'SimpleQueue[Callable[[], None] | None] | None' = None
    _callbacks_of = 0

    def __enter__(self: C) -> C:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pending(self, on_cancel: Callable[[], None]) -> '_Pending':
        return _Pending(on_cancel, self._check_thread)

    def _finish(self, pending: Any, timeout: float | None) -> Any:
        self._check_thread()
        return pending.future.wait(timeout)

    def _invoke(self, callback: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        if self._callbacks is None or self._callbacks_of != os.getpid():
            self._callbacks, self._callbacks_of = SimpleQueue(), os.getpid()
            Thread(target=_call_back, args=(self._callbacks,), name='crew-callbacks', daemon=True).start()

        def call_back() -> None:
            try:
                callback(*args)
            except BaseException:  # the application's own, sys.exit() too, and the thread must live on
                log.exception('the callback %r failed', callback)
            finally:
                done()

        self._callbacks.put(call_back)

    def __del__(self) -> None:
        if self._callbacks is not None:
            self._callbacks.put(None)


def _call_back(callbacks: 'SimpleQueue[Callable[[], None] | None]') -> None:
    while (callback := callbacks.get()) is not None:
        callback()
        del callback


class _Pending:
    """The result, and how it is told its outcome."""

    def __init__(self, on_cancel: Callable[[], None], check_thread: Callable[[], None]) -> None:
        self.future = Result(check_thread)
        self.future.add_done_callback(lambda future: on_cancel() if future.cancelled() else None)

    def resolve(self, value: Any, headers: Headers) -> None:
        # From here on it cannot be cancelled any more.
        if self.future.set_running_or_notify_cancel():
            self.future.headers = headers
            with _outlived():
                self.future.set_result(value)

    def reject(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            with _outlived():
                self.future.set_exception(error)


@contextlib.contextmanager
def _outlived() -> Iterator[None]:
    """Log what a future's callback raises and the future lets through: sys.exit() must not end the connection."""
    try:
        yield
    except BaseException:
        log.exception('a callback of a result failed')
