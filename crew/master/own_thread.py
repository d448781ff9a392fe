"""What clients of programs without an asyncio loop share: the connection lives on a loop in a native thread."""

import asyncio
import atexit
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from crew.exceptions import ConnectionError
from crew.master.client import BaseClient
from crew.master.engine import Engine
from crew.transports.threads import LoopThread

__all__ = ['OwnThreadClient']

F = TypeVar('F')

#: How long what is still to be sent may take to leave when the client is closed, in seconds.
CLOSED_WITHIN = 5.0


class _Connection:
    """The thread, and the engine on its loop."""

    def __init__(self, make: Callable[[Any], Engine]) -> None:
        self.pid = os.getpid()
        self._engine: Engine | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = LoopThread('crew-client')
        self._thread.post(lambda: self._start(make))
        self._thread.start()
        _open.add(self)

    def _start(self, make: Callable[[Any], Engine]) -> None:
        self._engine = make(asyncio.get_running_loop())
        self._engine.start()

    def post(self, action: Callable[[Engine], None]) -> None:
        """Do something with the engine, on its loop; from any thread."""

        def act() -> None:
            assert self._engine is not None
            action(self._engine)

        self._thread.post(act)

    def run(self, action: Callable[[Engine], Awaitable[None]], done: Callable[[BaseException | None], None]) -> None:
        """Do something with the engine that takes a while, and tell how it ended; from any thread."""

        async def run(engine: Engine) -> None:
            try:
                await action(engine)
            except Exception as error:  # whatever it is, it is for the one who waits
                done(error)
            else:
                done(None)

        def start(engine: Engine) -> None:
            task = asyncio.get_running_loop().create_task(run(engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.post(start)

    def close(self, closed: Callable[[], None] = lambda: None) -> None:
        """Close the engine and end the thread, and tell when that is done; from any thread."""

        def end(error: BaseException | None) -> None:
            _open.discard(self)
            closed()
            self._thread.stop()

        self.run(lambda engine: engine.close(), end)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most so many seconds."""
        self._thread.join(timeout)


class OwnThreadClient(BaseClient[F]):
    """The base of clients whose connection lives in a thread of its own; they may be used from many threads at once.

    The thread is started when the client is first used, and anew in a child process that was forked since.
    """

    _connection: _Connection | None = None
    _finalizer: 'weakref.finalize[Any, Any] | None' = None
    _closed = False

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is not None and connection.pid == os.getpid():
            return connection
        with self._lock:
            connection = self._connection
            if connection is None or connection.pid != os.getpid():
                if self._closed:
                    raise ConnectionError('the client is closed')
                if self._finalizer is not None:
                    # The connection is our parent's, who goes on using it.
                    self._finalizer.detach()
                    _open.clear()
                self._ids.clear()
                connection = self._connection = _Connection(self._engine)
                # A client that nobody has any more: closed without waiting, for this may be any thread.
                self._finalizer = weakref.finalize(self, connection.close)
                self._finalizer.atexit = False
        return connection

    def _post(self, action: Callable[[Engine], None]) -> None:
        self._connected().post(action)

    def _do(self, action: Callable[[Engine], Awaitable[None]]) -> Any:
        pending = self._pending(lambda: None)

        def done(error: BaseException | None) -> None:
            if error is None:
                pending.resolve(None, {})
            else:
                pending.reject(error)

        self._connected().run(action, done)
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
            if finalizer is None or not finalizer.detach() or connection is None or connection.pid != os.getpid():
                pending.resolve(None, {})
            else:
                connection.close(lambda: pending.resolve(None, {}))
        return self._finish(pending, CLOSED_WITHIN)

    @abstractmethod
    def _pending(self, on_cancel: Callable[[], None]) -> Any:
        """Make what somebody waits on; it is told its outcome in the connection's thread."""


# What is open in this process, so that it can be closed when that ends: what was published is to arrive.
_open: set[_Connection] = set()


@atexit.register
def _close_all() -> None:
    connections = [connection for connection in _open if connection.pid == os.getpid()]
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + CLOSED_WITHIN
    for connection in connections:
        connection.join(max(0.0, deadline - time.monotonic()))
