"""The client for Twisted programs: what is waited on is a Deferred, and callbacks are made in the reactor's thread."""

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from crew.master.client import BaseClient, Headers
from crew.master.own_thread import OwnThreadClient

__all__ = ['CallDeferred', 'Client']

log = Logger()

reactor: Any = _reactor


class CallDeferred(Deferred[Any]):
    """What brings the value of a call. ``cancel()`` cancels the call.

    Attributes:
        headers: what the task put into ``context.headers``; empty before there is a value.
    """

    headers: Headers


class Client(OwnThreadClient[CallDeferred]):
    """A client for Twisted; its methods are called in the reactor's thread.

    How it waits and calls back:
        calls: ``call()`` returns a :class:`CallDeferred` at once.
        other methods: return Deferreds too.
        waiting: ``addCallback``, ``yield`` in ``inlineCallbacks``, or ``await``; they fire in the reactor's thread.
        callbacks: are made in the reactor's thread. They may return Deferreds, which are waited for.
        closing: by itself when the reactor shuts down; or ``client.close()``.
    """

    __doc__ = f'{__doc__}\n\n{BaseClient.__doc__}'

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._trigger = reactor.addSystemEventTrigger('before', 'shutdown', self._shut_down)

    def close(self) -> Any:
        """Fail what is in flight, send what is still to be sent, and close the connection. May be called again.

        Returns:
            A Deferred, fired when it is closed.
        """
        trigger, self._trigger = self._trigger, None
        if trigger is not None:
            # The reactor would keep a client that is closed, with all that it knows, until the end.
            reactor.removeSystemEventTrigger(trigger)
        return super().close()

    def _shut_down(self) -> Any:
        self._trigger = None
        return self.close()

    def _pending(self, on_cancel: Callable[[], None]) -> '_Pending':
        return _Pending(on_cancel)

    def _finish(self, pending: Any, timeout: float | None) -> Any:
        return pending.future

    def _invoke(self, callback: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        def call_back() -> None:
            deferred = maybeDeferred(callback, *args)
            deferred.addErrback(lambda failure: log.failure('the callback {name} failed', failure, name=repr(callback)))
            deferred.addBoth(lambda _: done())

        reactor.callFromThread(call_back)


class _Pending:
    """The Deferred, and how it is told its outcome."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self.future = CallDeferred(lambda _: on_cancel())
        self.future.headers = {}

    def resolve(self, value: Any, headers: Headers) -> None:
        reactor.callFromThread(self._settle, value, headers)

    def reject(self, error: BaseException) -> None:
        reactor.callFromThread(self._settle, error, {})

    def _settle(self, outcome: Any, headers: Headers) -> None:
        if self.future.called:
            return
        self.future.headers = headers
        if isinstance(outcome, BaseException):
            self.future.errback(outcome)
        else:
            self.future.callback(outcome)
