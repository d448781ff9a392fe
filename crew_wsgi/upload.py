"""The body of a request on its way to the worker: collected until the request is sent on, then as the worker asks."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol

from crew.master.caller import Caller
from crew.messages import Credit
from crew.streams import Sender
from crew_wsgi.budget import Budget
from crew_wsgi.connections import Connection
from crew_wsgi.patience import Patience
from crew_wsgi.tcp import is_gone
from crew_wsgi.timer import Timer

__all__ = ['Upload', 'Uploader']

#: How often a client is looked for whose body is not read now, in seconds.
LOOK_EVERY = 1.0


class Uploader(Protocol):
    """Whose request it is."""

    def body_late(self) -> None:
        """Take note that the client has been too slow."""

    def body_crowded(self) -> None:
        """Take note that what was collected has to give way to others'."""

    def on_connection_close(self) -> None:
        """Take note that the client hung up while nothing was read."""


class Upload:
    """The body of one request.

    Args:
        owner: hears of what it cannot decide itself.
        connection: where it comes from.
        caller: sends it on.
        budget: bounds what is collected of all bodies.
        patience: with the client, while it is to send more.
        expects: the attribute of this name.

    Attributes:
        size: how many bytes have come.
        ended: whether all have come.
        expects: whether the client waits to be told to go on (RFC 9110 §10.1.1).
        interactive: whether the answer has begun: then client and application talk to each other, at their own pace.
    """

    def __init__(
        self,
        owner: Uploader,
        connection: Connection,
        caller: Caller,
        budget: Budget,
        patience: Patience,
        *,
        expects: bool,
    ) -> None:
        self.size = 0
        self.ended = False
        self.expects = expects
        self.interactive = False
        self._connection = connection
        self._caller = caller
        self._budget = budget
        self._patience = patience
        self._owner = owner
        self._collected: list[bytes] = []
        self._sender: Sender | None = None
        self._held_back: asyncio.Future[None] | None = None
        self._wanted = True
        self._clock = Timer()
        self._look = Timer()

    # From the client

    def watch(self) -> None:
        """Begin to wait for the client's next bytes."""
        if self._wanted:
            self._patience.wait(time.monotonic())
            self._check()

    def take(self, data: bytes) -> Awaitable[None] | None:
        """Take a piece; the next is to be read when what is returned is done."""
        self.size += len(data)
        if self.interactive:
            self._patience.renew(time.monotonic())
        else:
            self._patience.moved(len(data), time.monotonic())
        if self._sender is None:
            self._collected.append(data)
            self._budget.hold(self, self.size)
            return None
        self._sender.write(data)
        return self.send()

    def end(self) -> None:
        """Take note that this was all."""
        self.stop()
        self.ended = True
        if self._sender is not None:
            self._sender.end()
            self.send()

    def _check(self) -> None:
        """Look whether the client has been too slow; what it sends meanwhile sets no timer anew."""
        deadline, now = self._patience.deadline, time.monotonic()
        if deadline is None:
            return
        if deadline > now:
            self._clock.start(deadline - now, self._check)
        else:
            self._owner.body_late()

    # To the worker

    @property
    def collected(self) -> bytes:
        """What has come and was not sent on."""
        return b''.join(self._collected)

    def begin(self, correlation_id: str) -> None:
        """Take note that the call was sent with what was collected; the rest goes when the worker asks for it."""
        self.clear()
        if not self.ended:
            # Nothing goes before the application reads, and nothing of the body is read either.
            self._sender = Sender(correlation_id, credit=0)
            self._await_worker()

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
        self._await_worker()
        self._look.start(LOOK_EVERY, self._look_for_client)
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

    def _await_worker(self) -> None:
        # Whoever reads slowly is the application; the client is not to blame.
        self._patience.stop(time.monotonic())
        self._clock.stop()

    def _look_for_client(self) -> None:
        """Find out whether the client is still there: one finds out by reading, and nothing is read now."""
        if self._connection.closed or is_gone(self._connection.socket):
            self._connection.abort()
            self._owner.on_connection_close()
        elif self._held_back is not None:
            self._look.start(LOOK_EVERY, self._look_for_client)

    # Giving up

    def give_way(self) -> None:
        """Give up a body that is not whole: together they take too much."""
        self._collected.clear()
        self._owner.body_crowded()

    def clear(self) -> None:
        """Forget what was collected."""
        self._collected.clear()
        self._budget.release(self)

    def abandon(self) -> None:
        """Take note that nobody waits for the rest, so that the client may take its time."""
        self._wanted = False
        self.clear()
        self.stop()

    def discard(self) -> None:
        """Read the rest, to throw it away."""
        self.abandon()
        self._sender = None
        self._release()

    def stop(self) -> None:
        """Stop the clocks."""
        if self._patience.waits:
            self._patience.stop(time.monotonic())
        self._clock.stop()
        self._look.stop()

    def _release(self) -> None:
        held_back, self._held_back = self._held_back, None
        if held_back is not None and not held_back.done():
            held_back.set_result(None)
