"""The body of a request on its way to the worker: collected until the request is sent on, then as the worker asks."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from tornado.iostream import IOStream

from crew.master.caller import Caller
from crew.messages import Credit
from crew.streams import Sender
from crew_wsgi.timer import Timer

__all__ = ['Upload', 'is_reset']

#: How often a client is looked for whose body is not read now, in seconds.
LOOK_EVERY = 1.0

#: States of a connection in Linux's ``tcp_states.h``: it was reset, and the other end sends no more.
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8


class Upload:
    """The body of one request.

    Args:
        stream: where it comes from.
        caller: sends it on.
        patience: how long the client may send nothing while more is wanted, in seconds.
        on_late: called when it was silent for so long.
        on_gone: called when it hung up while nothing was read.

    Attributes:
        size: how many bytes have come.
        ended: whether all have come.
        expects: whether the client waits to be told to go on (RFC 9110 §10.1.1).
    """

    def __init__(
        self,
        stream: IOStream,
        caller: Caller,
        patience: float,
        *,
        on_late: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.size = 0
        self.ended = False
        self.expects = False
        self._stream = stream
        self._caller = caller
        self._patience = patience
        self._on_late = on_late
        self._on_gone = on_gone
        self._collected: list[bytes] = []
        self._sender: Sender | None = None
        self._held_back: asyncio.Future[None] | None = None
        self._wanted = True
        self._timer = Timer()

    # From the client

    def watch(self) -> None:
        """Begin to wait for the client's next bytes."""
        self._timer.stop()
        if self._wanted:
            self._timer.start(self._patience, self._on_late)

    def take(self, data: bytes) -> Awaitable[None] | None:
        """Take a piece; the next is to be read when what is returned is done."""
        self.size += len(data)
        self.watch()
        if self._sender is None:
            self._collected.append(data)
            return None
        self._sender.write(data)
        return self.send()

    def end(self) -> None:
        """Take note that this was all."""
        self._timer.stop()
        self.ended = True
        if self._sender is not None:
            self._sender.end()
            self.send()

    # To the worker

    @property
    def collected(self) -> bytes:
        """What has come and was not sent on."""
        return b''.join(self._collected)

    def begin(self, correlation_id: str) -> None:
        """Take note that the call was sent with what was collected; the rest goes when the worker asks for it."""
        self._collected.clear()
        if not self.ended:
            # Nothing goes before the application reads, and nothing of the body is read either.
            self._sender = Sender(correlation_id, credit=0)
            self._timer.stop()

    def grant(self, credit: Credit) -> bool:
        """Take the worker's word for how far the body may go; return whether it is news."""
        # The same once more is how a worker looks whether anybody is here.
        return self._sender is not None and self._sender.grant(credit.offset)

    def send(self) -> Awaitable[None] | None:
        """Send what the worker takes; return what is done when more may be read."""
        assert self._sender is not None
        for chunk in self._sender.take():
            self._caller.tell(chunk)
        if not self._sender.pending:
            return None
        # Whoever reads slowly is the application; the client is not to blame.
        self._timer.start(LOOK_EVERY, self._look_for_client)
        if self._held_back is None:
            self._held_back = asyncio.get_running_loop().create_future()
        return self._held_back

    def go_on(self) -> None:
        """Read on, if the worker has taken all that came."""
        assert self._sender is not None
        if not self._sender.pending:
            self._release()
            if not self.ended:
                self.watch()

    @property
    def starving(self) -> bool:
        """Whether the worker waits for what the client has not sent."""
        sender = self._sender
        return sender is not None and not self.ended and not sender.pending and sender.wanted

    def _look_for_client(self) -> None:
        """Find out whether the client is still there: Tornado finds out by reading, and nothing is read now."""
        if self._stream.closed() or _tcp_state(self._stream.socket) in (TCP_CLOSE, TCP_CLOSE_WAIT):
            self._stream.close()
            self._on_gone()
        elif self._held_back is not None:
            self._timer.start(LOOK_EVERY, self._look_for_client)

    # Giving up

    def clear(self) -> None:
        """Forget what was collected."""
        self._collected.clear()

    def abandon(self) -> None:
        """Take note that nobody waits for the rest, so that the client may take its time."""
        self._wanted = False
        self._timer.stop()

    def discard(self) -> None:
        """Read the rest, to throw it away."""
        self._timer.stop()
        self._sender = None
        self._release()

    def stop(self) -> None:
        """Stop the clock."""
        self._timer.stop()

    def _release(self) -> None:
        held_back, self._held_back = self._held_back, None
        if held_back is not None and not held_back.done():
            held_back.set_result(None)


def is_reset(connection: socket.socket) -> bool:
    """Return whether a connection was reset, whatever of it is still to be read."""
    return _tcp_state(connection) == TCP_CLOSE


def _tcp_state(connection: socket.socket) -> int:
    """Return the state of a connection; 0 if it is not one of TCP."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return 0
