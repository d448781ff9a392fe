"""What clients of programs without an asyncio loop share: the connection lives on a loop in a native thread."""

import asyncio
import atexit
import logging
import os
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from crew.exceptions import ConnectionError, TimeoutError
from crew.master.client import BaseClient
from crew.master.engine import Engine
from crew.transports.threads import LoopThread

__all__ = ['OwnThreadClient']

F = TypeVar('F')

log = logging.getLogger(__name__)

#: How long what is still to be sent may take to leave when the client is closed, in seconds.
CLOSED_WITHIN = 5.0


class _Connection:
    """The thread, and the engine on its loop.

    Raises:
        ConnectionError: there can be no thread now, or no file descriptor for it.
    """

    def __init__(self, make: Callable[[Any], Engine]) -> None:
        self._engine: Engine | None = None
        self._closing = False
        self._ended = False
        # A signal's handler may close a client that is just being used.
        self._lock = threading.RLock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = LoopThread('crew-client')
        self._thread.post(lambda: self._start(make))
        try:
            self._thread.start()
        except (OSError, RuntimeError) as error:
            raise ConnectionError(f'the thread of the connection cannot be started: {error}') from error
        _open.add(self)

    def _start(self, make: Callable[[Any], Engine]) -> None:
        self._engine = make(asyncio.get_running_loop())
        self._engine.start()

    def post(self, action: Callable[[Engine], None]) -> None:
        """Do something with the engine, on its loop; from any thread.

        Raises:
            ConnectionError: the client is closed.
        """

        def act() -> None:
            assert self._engine is not None
            action(self._engine)

        # Without the lock, it could be posted to a loop that has just done its last work.
        with self._lock:
            if self._ended:
                raise ConnectionError('the client is closed')
            self._thread.post(act)

    def run(self, action: Callable[[Engine], Awaitable[None]], done: Callable[[BaseException | None], None]) -> None:
        """Do something with the engine that takes a while, and tell how it ended; from any thread.

        Raises:
            ConnectionError: the client is closed.
        """

        async def run(engine: Engine) -> None:
            try:
                await action(engine)
            except asyncio.CancelledError:
                done(ConnectionError('the client was closed'))
            except Exception as error:  # whatever it is, it is for the one who waits
                done(error)
            else:
                done(None)

        def start(engine: Engine) -> None:
            if self._ended:
                done(ConnectionError('the client is closed'))
                return
            task = asyncio.get_running_loop().create_task(run(engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.post(start)

    def close(self, closed: Callable[[], None] = lambda: None) -> None:
        """Close the engine and end the thread, and tell when that is done. Only the first one counts."""
        with self._lock:
            closing, self._closing = self._closing, True
        if closing:
            return

        async def close(engine: Engine) -> None:
            await engine.close()
            # They know by now, but may not have come to say so.
            while others := self._tasks - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                await asyncio.wait(others)

        def end(error: BaseException | None) -> None:
            with self._lock:
                self._ended = True
                self._thread.stop()
            _open.discard(self)
            closed()

        self.run(close, end)

    def is_current(self) -> bool:
        """Return whether this is called in the connection's thread."""
        return self._thread.is_current()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most so many seconds."""
        self._thread.join(timeout)


class OwnThreadClient(BaseClient[F]):
    """The base of clients whose connection lives in a thread of its own; they may be used from many threads at once.

    The thread is started when the client is first used, and anew in a child process that was forked since. When it
    cannot be started, that use fails with :class:`crew.ConnectionError`, and the next one tries again.
    """

    _connection: _Connection | None = None
    _finalizer: 'weakref.finalize[Any, Any] | None' = None
    _closed = False

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is not None and not self._closed:
            return connection
        with self._lock:
            if self._closed:
                raise ConnectionError('the client is closed')
            if self._connection is None:
                self._connection = _Connection(self._engine)
                # A client that nobody has any more: closed without waiting, for this may be any thread.
                self._finalizer = weakref.finalize(self, self._connection.close)
                self._finalizer.atexit = False
            return self._connection

    def _forget_parent(self) -> None:
        super()._forget_parent()
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._connection is not None:
            _inherited.append(self._connection)
        self._connection = self._finalizer = None

    def _post(self, action: Callable[[Engine], None]) -> None:
        self._connected().post(action)

    def _check_thread(self) -> None:
        """Refuse to wait in the thread that would have to bring what is waited for.

        Raises:
            RuntimeError: this is a callback of a result, which is called there.
        """
        if self._connection is not None and self._connection.is_current():
            raise RuntimeError("this waits for the connection in the connection's own thread: use callback= instead")

    def _do(self, action: Callable[[Engine], Awaitable[None]]) -> Any:
        pending = self._pending(lambda: None)

        def done(error: BaseException | None) -> None:
            if error is None:
                pending.resolve(None, {})
            else:
                pending.reject(error)

        try:
            self._connected().run(action, done)
        except ConnectionError as error:
            done(error)
        return self._finish(pending, None)

    def close(self) -> Any:
        """Fail what is in flight, send what is still to be sent, and close the connection. May be called again.

        Returns:
            What the framework waits on, until it is closed; nothing, when it is closed, where waiting is blocking.
        """
        pending = self._pending(lambda: None)
        with self._lock:
            self._closed = True
            connection, finalizer = self._connection, self._finalizer
        if connection is None or finalizer is None or not finalizer.detach():
            pending.resolve(None, {})
        else:
            connection.close(lambda: pending.resolve(None, {}))
        try:
            return self._finish(pending, CLOSED_WITHIN)
        except TimeoutError:
            # A broker that has stopped reading, perhaps for an alarm; nobody can do anything about it here.
            log.warning('the connection is not closed after %g s: the broker does not answer', CLOSED_WITHIN)

    @abstractmethod
    def _pending(self, on_cancel: Callable[[], None]) -> Any:
        """Make what somebody waits on; it is told its outcome in the connection's thread."""


# What is open in this process, so that it can be closed when that ends: what was published is to arrive.
_open: set[_Connection] = set()

# Kept in a child process as they are: to close or collect them would reach into the parent's sockets.
_inherited: list[_Connection] = []


def _inherit() -> None:
    # Also those whose clients are gone, and which are just closing: there is no thread here that could.
    _inherited.extend(_open)
    _open.clear()


os.register_at_fork(after_in_child=_inherit)


@atexit.register
def _close_all() -> None:
    connections = list(_open)
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + CLOSED_WITHIN
    for connection in connections:
        connection.join(max(0.0, deadline - time.monotonic()))
