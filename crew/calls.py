"""Calls in flight, from the caller's side: who waits for what, until when, and whether a call may run (again).

Sans-IO: messages and the time come in, actions come out. The caller is the only one who knows whether anybody still
waits and whether the call may have run already, so workers ask here before they start a call that they did not get
fresh (docs/protocol.md, Questions).

A call is in one of four states. State × event:

=========  ==================================  =====================================================================
state      event                               what follows
=========  ==================================  =====================================================================
unsent     sent                                waiting
unsent     queue time over                     :class:`ExpirationError`: there was no connection in all that time
unsent     connection lost                     it goes on waiting for another
unsent     no connection soon enough           what it was held back with, if it does not wait for all its queue time
waiting    no confirm in time                  :class:`ExpirationError`; if a queue has it yet, its worker will ask
waiting    accept                              running; a run is counted
waiting    accept that asks                    *go* and running, or *stop* and :class:`WorkerLost`, by the rule below
waiting    dead letter, queue time over        :class:`ExpirationError`; :class:`WorkerLost` if it had run
running    accept that asks                    the worker died: *go*, or *stop* and :class:`WorkerLost`
running    dead letter                         the worker died: published again, or :class:`WorkerLost`
running    run time over                       :class:`TimeoutError`; the worker is told
running    accept that says it is acked        the worker is looked for every 2 s: no other will ask if it dies
running    reply that says there is more       streaming; the caller gets this part
running    credit                              the caller gets it: more of the call's own body may go; time begins anew
streaming  chunk                               the caller gets it; settled with the last one
streaming  no chunk for as long as a run may   :class:`TimeoutError`, unless the caller's own end is what is slow
streaming  accept that asks, dead letter       the worker died: *stop*, :class:`WorkerLost`
sent       reset                               :class:`TimeoutError` or :class:`RemoteError`
sent       a message to its worker comes back  :class:`WorkerLost`, if a body is under way, or it is acked
sent       reply, error                        settled
sent       returned                            waiting; the delivery does not count as a run
sent       returned by the broker              :class:`Unroutable`
sent       connection lost                     :class:`ConnectionError`; unsent again, if the rule lets it run once more
any        cancelled by the caller             forgotten; a worker that runs it is told
forgotten  what a worker says of it            it has left the queue, and its line
unknown    accept that asks                    *stop*
unknown    accept                              *cancel*
=========  ==================================  =====================================================================

(*sent* is all but unsent.) The rule: a call may start if no run of it can have begun; or once more, if it is
idempotent, which its caller may know beforehand or its worker says in *accept*, and if no worker has had leave to
receive more of its body than the call itself carries. A redelivery without a *returned* note counts as a run that
began, and so does every *go*, and every loss of the connection.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from crew.codec import republish
from crew.envelope import Envelope
from crew.exceptions import (
    CrewError,
    DuplicateTaskId,
    ExpirationError,
    RemoteError,
    TaskError,
    TimeoutError,
    Unroutable,
    WorkerLost,
)
from crew.line import Line
from crew.messages import (
    Accept,
    Cancel,
    Chunk,
    Credit,
    DeadLetter,
    Failure,
    Go,
    Message,
    Reply,
    Reset,
    Returned,
    Stop,
)
from crew.values import value_class

__all__ = ['Action', 'Calls', 'Hold', 'Part', 'Republish', 'Settle', 'Tell']

Waiter = TypeVar('Waiter')

MAX_RUNS = 2

#: The queue's own TTL is a hint: a message expires only at the head of its queue. The caller's timer fires after it.
QUEUE_GRACE = 1.0

#: How long a call that may run once more waits for another connection when one was lost.
RECONNECTED_WITHIN = 3.0

#: How long after a run's limit the caller answers by itself when the worker, who should, says nothing.
RUN_GRACE = 0.5

#: How often a worker is looked for that has acked the call, so that no redelivery would tell of its death.
PING_EVERY = 2.0

#: RabbitMQ's reason in ``x-death`` when a quorum queue has delivered a message too often: from 4.0 on, 20 times.
DELIVERY_LIMIT = 'delivery_limit'

NOBODY = 'the caller no longer waits'


@value_class(frozen=True, slots=True)
class Settle(Generic[Waiter]):
    """Give the outcome to whoever waits; never twice for one call."""

    waiter: Waiter
    outcome: Reply | Chunk | CrewError


@value_class(frozen=True, slots=True)
class Part(Generic[Waiter]):
    """Give whoever waits a part of the answer, or leave to send more of the call's body; the outcome is to come."""

    waiter: Waiter
    message: Reply | Chunk | Credit


@value_class(frozen=True, slots=True)
class Tell:
    """Send a message to a private queue."""

    queue: str
    message: Go | Stop | Cancel | Credit


@value_class(frozen=True, slots=True)
class Republish:
    """Publish a call once more into its shared queue."""

    queue: str
    envelope: Envelope


@value_class(frozen=True, slots=True)
class Hold:
    """Send a call once more with the next connection."""

    correlation_id: str
    again: object


Action: TypeAlias = Settle[Waiter] | Part[Waiter] | Tell | Republish | Hold


@dataclass(slots=True)
class _Flight(Generic[Waiter]):
    """One call in flight."""

    waiter: Waiter
    idempotent: bool
    expiration: float
    deadline: float
    sent: bool = True
    inbox: str = ''
    running: bool = False
    runs: int = 0
    counted: bool = False  # whether the delivery that is out now is among the runs
    returned: bool = False  # whether the delivery before was put back unstarted
    put_off: bool = False  # whether a worker asks about the delivery that is out, and is to be told that it is too late
    timeout: float = 0.0  # of a run, as the worker says
    streaming: bool = False  # whether a part of the answer has come
    spent: bool = False  # whether more of the body may have gone to a worker
    ping: float = math.inf  # when to look next whether its worker is there; never, while the broker would tell
    line: Line | None = None  # of those that wait in the same queue
    joined: float | None = None  # when it began to wait there, while it does
    confirmed_within: float | None = None  # how long the broker may take to confirm it
    again: object = None  # what its owner needs to send it once more
    held: CrewError | None = None  # what it is settled with when there is no connection soon
    owed: float = 0.0  # of its queue time, what is not in the deadline while it is held

    @property
    def unseen(self) -> bool:
        """Whether a run may have begun with the delivery that was out, of which nothing was heard."""
        return not self.counted and not self.returned


class Calls(Generic[Waiter]):
    """The calls in flight of one client.

    ``Waiter`` is whatever the owner wants back when a call is settled.

    Attributes:
        reply_to: the reply queue of the current connection; set by the owner before it adds calls.
    """

    def __init__(self) -> None:
        self.reply_to = ''
        self._flights: dict[str, _Flight[Waiter]] = {}
        self._deadlines: list[tuple[float, str]] = []
        # What is in a queue still, though nobody waits for it. Who waits longest comes first, or nearly.
        self._forgotten: dict[str, _Flight[None]] = {}
        # Until when the broker must confirm which call; in order, for all have the same time.
        self._unconfirmed: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, correlation_id: object) -> bool:
        return correlation_id in self._flights

    # Adding and forgetting

    def add(
        self,
        correlation_id: str,
        waiter: Waiter,
        *,
        expiration: float,
        idempotent: bool,
        now: float,
        sent: bool = True,
        line: Line | None = None,
        confirmed_within: float | None = None,
        again: object = None,
    ) -> None:
        """Remember a call that is being published, or will be.

        Args:
            correlation_id: its id.
            waiter: who gets the outcome.
            expiration: how long it may wait for a worker, in seconds.
            idempotent: whether it may run a second time when its worker dies.
            now: the time, in seconds on any clock that is used throughout.
            sent: whether it is on its way; if not, :meth:`sent` tells when it is.
            line: where it waits from when it is sent, if that is to be counted.
            confirmed_within: how long the broker may take to confirm that a queue has it, in seconds; the same for all
                calls for which it is not None.
            again: what :class:`Hold` gives back when the call may be sent once more; None if it must not be.

        Raises:
            DuplicateTaskId: a call with this id is in flight.
        """
        if correlation_id in self._flights:
            raise DuplicateTaskId(f'a call with the id {correlation_id!r} is in flight already')
        self._leave(self._forgotten.pop(correlation_id, None))
        deadline = now + expiration + (QUEUE_GRACE if sent else 0.0)
        flight = self._flights[correlation_id] = _Flight(
            waiter,
            idempotent,
            expiration,
            deadline,
            sent,
            line=line,
            confirmed_within=confirmed_within,
            again=again,
        )
        self._watch(correlation_id, deadline)
        if sent:
            self._set_out(correlation_id, flight, now)

    def hold(self, correlation_id: str, error: CrewError, *, until: float) -> None:
        """Let a call that is not sent be settled with ``error`` if it is not by then, on the clock of :meth:`add`."""
        flight = self._flights[correlation_id]
        until = min(until, flight.deadline)
        flight.held = error
        flight.owed = flight.deadline - until
        flight.deadline = until
        self._watch(correlation_id, until)

    def sent(self, correlation_id: str, *, now: float) -> None:
        """Take note that a call which had to wait for a connection is on its way."""
        flight = self._flights[correlation_id]
        flight.sent = True
        flight.held = None
        flight.deadline += flight.owed + QUEUE_GRACE
        flight.owed = 0.0
        self._watch(correlation_id, flight.deadline)
        self._set_out(correlation_id, flight, now)

    def _set_out(self, correlation_id: str, flight: _Flight[Waiter], now: float) -> None:
        self._join(flight, now)
        if flight.confirmed_within is not None:
            self._unconfirmed[correlation_id] = now + flight.confirmed_within

    def confirmed(self, correlation_id: str) -> None:
        """Take the broker's word that a queue has the call."""
        self._unconfirmed.pop(correlation_id, None)

    def time_left(self, correlation_id: str, now: float) -> float:
        """Return how long a call that is not sent may still wait in a queue, in seconds."""
        flight = self._flights[correlation_id]
        return flight.deadline + flight.owed - now

    def cancel(self, correlation_id: str, reason: str = NOBODY) -> list[Action[Waiter]]:
        """Forget a call; nobody is given its outcome. Unknown ids are fine: it may have been settled just now."""
        flight = self._flights.pop(correlation_id, None)
        if flight is None:
            return []
        if flight.joined is not None:
            # Its waiter is not to be kept.
            self._forgotten[correlation_id] = _Flight(
                None, flight.idempotent, flight.expiration, flight.deadline, line=flight.line, joined=flight.joined
            )
        if not flight.running:
            return []
        return [self._cancel(flight.inbox, correlation_id, reason)]

    def lost(self, error: CrewError, *, now: float) -> list[Action[Waiter]]:
        """Take note that the way to the broker is lost, the reply queue with it.

        A call that may run once more is sent again if there is a connection within ``RECONNECTED_WITHIN`` seconds; all
        others that were sent are settled with ``error``.
        """
        self._unconfirmed.clear()
        self._forget_forgotten()
        actions: list[Action[Waiter]] = []
        for correlation_id, flight in list(self._flights.items()):
            if not flight.sent:
                continue
            flight.runs += flight.unseen
            if flight.again is None or not self._may_run(flight):
                actions += self._settle(correlation_id, error)
                continue
            self._leave(flight)
            flight.sent = flight.running = flight.counted = flight.returned = flight.put_off = False
            flight.ping = math.inf
            flight.deadline = now + flight.expiration
            self.hold(correlation_id, error, until=now + RECONNECTED_WITHIN)
            actions.append(Hold(correlation_id, flight.again))
        return actions

    def fail_sent(self, error: CrewError) -> list[Action[Waiter]]:
        """Settle every call that was sent with ``error``: nobody waits for them any more."""
        failed = [flight for flight in self._flights.values() if flight.sent]
        self._flights = {id: flight for id, flight in self._flights.items() if not flight.sent}
        for flight in failed:
            self._leave(flight)
        self._forget_forgotten()
        return [Settle(flight.waiter, error) for flight in failed]

    def _forget_forgotten(self) -> None:
        for forgotten in self._forgotten.values():
            self._leave(forgotten)
        self._forgotten.clear()

    def fail_unsent(self, error: CrewError) -> list[Action[Waiter]]:
        """Settle every call that was not sent with ``error``: there will be no connection."""
        failed = [flight for flight in self._flights.values() if not flight.sent]
        self._flights = {id: flight for id, flight in self._flights.items() if flight.sent}
        return [Settle(flight.waiter, error) for flight in failed]

    def fail(self, correlation_id: str, error: CrewError) -> list[Action[Waiter]]:
        """Settle one call with ``error``."""
        return self._settle(correlation_id, error)

    # In the line

    def forgotten(self, now: float) -> int:
        """Return how many calls with a line are still in a queue, though they have been cancelled."""
        while self._forgotten:
            correlation_id, flight = next(iter(self._forgotten.items()))
            if flight.deadline > now:
                break
            # The broker has dropped it by now.
            self._leave(self._forgotten.pop(correlation_id))
        return len(self._forgotten)

    @staticmethod
    def _join(flight: _Flight[Any], now: float) -> None:
        if flight.line is not None and flight.joined is None:
            flight.joined = now
            flight.line.join()

    @staticmethod
    def _start(flight: _Flight[Any], now: float) -> None:
        if flight.line is not None and flight.joined is not None:
            flight.line.start(now, flight.joined)
            flight.joined = None

    @staticmethod
    def _leave(flight: _Flight[Any] | None) -> None:
        if flight is not None and flight.line is not None and flight.joined is not None:
            flight.line.leave()
            flight.joined = None

    def _see_off(self, message: Message, now: float) -> None:
        """Take note that a cancelled call has left its queue, if that is what a message shows."""
        if isinstance(message, DeadLetter):
            self._leave(self._forgotten.pop(message.correlation_id, None))
        elif isinstance(message, (Accept, Reply, Failure)):
            flight = self._forgotten.pop(message.correlation_id, None)
            if flight is not None:
                self._start(flight, now)

    # A body or an answer in parts

    def inbox(self, correlation_id: str) -> str:
        """Return where the worker that runs a call listens, or an empty string."""
        flight = self._flights.get(correlation_id)
        return flight.inbox if flight is not None and flight.running else ''

    def pause(self, correlation_id: str) -> None:
        """Take note that a run waits for the caller's own end: what it reads from, or what it writes to, is slow."""
        flight = self._flights.get(correlation_id)
        if flight is not None and flight.running:
            flight.deadline = math.inf

    def resume(self, correlation_id: str, *, now: float) -> None:
        """Take note that a run has what it waited for, and that its time begins anew."""
        flight = self._flights.get(correlation_id)
        if flight is not None and flight.running:
            self._renew(correlation_id, flight, now)

    def _renew(self, correlation_id: str, flight: _Flight[Waiter], now: float) -> None:
        flight.deadline = now + flight.timeout + RUN_GRACE
        self._watch(correlation_id, flight.deadline)

    # Messages

    def receive(self, message: Message, *, now: float, wall: float) -> list[Action[Waiter]]:
        """Take a message from the reply queue.

        Args:
            message: what came.
            now: the time, on the clock of :meth:`add`.
            wall: the time in seconds since the epoch, for a call that is published again.

        Returns:
            What to do. An empty list for a reply that nobody waits for.
        """
        if self._forgotten:
            self._see_off(message, now)
        if isinstance(message, Reply) and not message.more:
            return self._settle(message.correlation_id, message, began=now)
        if isinstance(message, (Reply, Chunk, Credit)):
            return self._part(message, now)
        if isinstance(message, Reset):
            return self._settle(message.correlation_id, _reset_error(message))
        if isinstance(message, Accept):
            return self._accepted(message, now)
        if isinstance(message, Failure):
            return self._settle(message.correlation_id, _failure_error(message), began=now)
        if isinstance(message, DeadLetter):
            return self._dead_lettered(message, now, wall)
        if isinstance(message, Returned):
            for correlation_id in message.correlation_ids:
                self._put_back(correlation_id, now)
        return []

    def _part(self, message: Reply | Chunk | Credit, now: float) -> list[Action[Waiter]]:
        flight = self._flights.get(message.correlation_id)
        if flight is None or not flight.running:
            return []
        if isinstance(message, Reply):
            flight.streaming = True
        elif isinstance(message, Credit):
            # What goes now is gone: it could not be given to another worker.
            flight.spent = True
        elif not flight.streaming:
            return []
        if isinstance(message, Chunk) and message.last:
            return self._settle(message.correlation_id, message)
        if flight.deadline != math.inf:
            self._renew(message.correlation_id, flight, now)
        return [Part(flight.waiter, message)]

    def worker_gone(self, correlation_id: str) -> list[Action[Waiter]]:
        """Take the broker's word that a message to the worker of a call could not be routed: its process is gone."""
        flight = self._flights.get(correlation_id)
        if flight is None or not (flight.streaming or flight.spent or flight.ping < math.inf):
            # Another worker will ask.
            return []
        return self._settle(correlation_id, _worker_lost(flight))

    def unroutable(self, correlation_id: str, queue: str) -> list[Action[Waiter]]:
        """Take the broker's word that a call could not be routed."""
        flight = self._flights.get(correlation_id)
        if flight is None:
            return []
        text = f'there is no queue {queue!r} at the broker: no worker has ever been there for it'
        return self._settle(correlation_id, Unroutable(text, expiration=flight.expiration))

    def put_off(self, accept: Accept) -> bool:
        """Put a worker's question off if its answer is that the call is lost; return whether it is.

        What its worker gives back meanwhile is the delivery that it asks about. With that one nothing has begun; so it
        takes back no run that began with another.
        """
        flight = self._flights.get(accept.correlation_id)
        if flight is None or not accept.ask or flight.streaming or flight.spent:
            return False
        runs = flight.runs + (accept.redelivered and flight.unseen)
        if _allowed(runs, flight.idempotent or accept.idempotent):
            return False
        flight.put_off = True
        return True

    def _accepted(self, accept: Accept, now: float) -> list[Action[Waiter]]:
        flight = self._flights.get(accept.correlation_id)
        if flight is None:
            return [self._stop(accept) if accept.ask else self._cancel(accept.inbox, accept.correlation_id, NOBODY)]
        flight.idempotent = flight.idempotent or accept.idempotent
        if not accept.ask and flight.running:
            # Said again, to find out whether we are still here, or to say that it is acked.
            self._look_for_worker(flight, accept, now)
            return []
        if not accept.ask:
            flight.runs += not flight.counted
            self._run(flight, accept, now)
            self._look_for_worker(flight, accept, now)
            return []
        if accept.redelivered:
            flight.runs += flight.unseen
            flight.returned = False
        if not self._may_run(flight):
            return [self._stop(accept), *self._settle(accept.correlation_id, _worker_lost(flight))]
        flight.runs += 1
        self._run(flight, accept, now)
        return [Tell(accept.inbox, Go(correlation_id=accept.correlation_id, reply_to=self.reply_to))]

    def _run(self, flight: _Flight[Waiter], accept: Accept, now: float) -> None:
        flight.counted = True
        flight.running = True
        self._start(flight, now - accept.ran)
        flight.inbox = accept.inbox
        flight.timeout = accept.timeout
        flight.ping = math.inf
        flight.deadline = now + max(0.0, accept.timeout - accept.ran) + RUN_GRACE
        self._watch(accept.correlation_id, flight.deadline)

    def _look_for_worker(self, flight: _Flight[Waiter], accept: Accept, now: float) -> None:
        if accept.acked and flight.ping == math.inf:
            flight.ping = now + PING_EVERY
            self._watch(accept.correlation_id, flight.ping)

    def _put_back(self, correlation_id: str, now: float) -> None:
        flight = self._flights.get(correlation_id)
        if flight is None or flight.put_off:
            return
        flight.runs -= flight.counted
        flight.counted = False
        flight.returned = True
        self._join(flight, now)
        if flight.running:
            # Its wait began anew: the broker keeps the message's own expiry, so a dead letter tells if it was too long.
            flight.running = False
            flight.ping = math.inf
            flight.deadline = now + flight.expiration + QUEUE_GRACE
            self._watch(correlation_id, flight.deadline)

    def _dead_lettered(self, letter: DeadLetter, now: float, wall: float) -> list[Action[Waiter]]:
        flight = self._flights.get(letter.correlation_id)
        if flight is None:
            return []
        left = flight.deadline - QUEUE_GRACE - now
        if letter.reason == DELIVERY_LIMIT and not flight.runs and left > 0:
            # None has begun it, but the queue has had it back too often.
            return [Republish(letter.queue, republish(letter, expiration=left, sent=wall))]
        if flight.running and self._may_run(flight):
            # It was with a worker that died, and its time in the queue is over: so it gets another.
            flight.running = flight.counted = flight.returned = flight.put_off = False
            flight.ping = math.inf
            flight.deadline = now + flight.expiration + QUEUE_GRACE
            self._watch(letter.correlation_id, flight.deadline)
            self._join(flight, now)
            return [Republish(letter.queue, republish(letter, expiration=flight.expiration, sent=wall))]
        error: TaskError = _worker_lost(flight)
        if flight.runs == 0:
            error = ExpirationError(reason=letter.reason, time=letter.time, expiration=flight.expiration)
        return self._settle(letter.correlation_id, error)

    @staticmethod
    def _may_run(flight: _Flight[Waiter]) -> bool:
        if flight.streaming or flight.spent:
            return False
        return _allowed(flight.runs, flight.idempotent)

    def _settle(
        self, correlation_id: str, outcome: Reply | Chunk | CrewError, *, began: float | None = None
    ) -> list[Action[Waiter]]:
        flight = self._flights.pop(correlation_id, None)
        if flight is None:
            return []
        if began is not None:
            # A short run says nothing before it ends.
            self._start(flight, began)
        self._leave(flight)
        return [Settle(flight.waiter, outcome)]

    def _stop(self, accept: Accept) -> Tell:
        return Tell(accept.inbox, Stop(correlation_id=accept.correlation_id, reply_to=self.reply_to))

    def _cancel(self, inbox: str, correlation_id: str, reason: str) -> Tell:
        return Tell(inbox, Cancel(correlation_id=correlation_id, reply_to=self.reply_to, reason=reason))

    def _ping(self, inbox: str, correlation_id: str) -> Tell:
        # It says nothing: a credit below another is late. But it comes back if the inbox is gone.
        return Tell(inbox, Credit(correlation_id=correlation_id, reply_to=self.reply_to, offset=0))

    # Time

    def next_deadline(self) -> float | None:
        """Return when :meth:`expire` is due next, on the clock of :meth:`add`; None if nothing is in flight."""
        due = self._next_over()
        if self._unconfirmed:
            due = min(due, next(iter(self._unconfirmed.values())))
        return None if due == math.inf else due

    def _next_over(self) -> float:
        deadlines = self._deadlines
        while deadlines and not self._is_current(deadlines[0]):
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else math.inf

    def expire(self, now: float) -> list[Action[Waiter]]:
        """Settle what is overdue, and look for workers."""
        actions = self._expire_unconfirmed(now)
        for correlation_id in self._overdue(now):
            flight = self._flights[correlation_id]
            if flight.deadline > now:
                flight.ping = now + PING_EVERY
                self._watch(correlation_id, flight.ping)
                actions.append(self._ping(flight.inbox, correlation_id))
                continue
            del self._flights[correlation_id]
            self._leave(flight)
            if flight.held is not None:
                actions.append(Settle(flight.waiter, flight.held))
                continue
            if flight.running:
                actions.append(self._cancel(flight.inbox, correlation_id, 'its time is over'))
                actions.append(Settle(flight.waiter, TimeoutError('the task ran past its time')))
            elif flight.runs:
                actions.append(Settle(flight.waiter, _worker_lost(flight)))
            elif not flight.sent:
                text = 'the broker could not be reached in time'
                error = ExpirationError(text, reason='unconnected', expiration=flight.expiration)
                actions.append(Settle(flight.waiter, error))
            else:
                actions.append(Settle(flight.waiter, ExpirationError(expiration=flight.expiration)))
        return actions

    def _expire_unconfirmed(self, now: float) -> list[Action[Waiter]]:
        actions: list[Action[Waiter]] = []
        while self._unconfirmed and (oldest := next(iter(self._unconfirmed.items())))[1] <= now:
            del self._unconfirmed[oldest[0]]
            flight = self._flights.get(oldest[0])
            if flight is not None and not flight.running:
                # What a queue has after all has waited for so long that its worker asks before it runs. But if nothing
                # comes from the broker any more, a worker may have run it whose word did not come either.
                text = f'the broker has not confirmed within {flight.confirmed_within:g} s that a queue has the call'
                error = ExpirationError(text, reason='unconfirmed', expiration=flight.expiration)
                actions += self._settle(oldest[0], error)
        return actions

    def _overdue(self, now: float) -> Iterator[str]:
        while (over := self._next_over()) <= now and over < math.inf:
            yield heapq.heappop(self._deadlines)[1]

    def _watch(self, correlation_id: str, deadline: float) -> None:
        if deadline == math.inf:
            return
        heapq.heappush(self._deadlines, (deadline, correlation_id))
        # Calls are settled long before their time is over: without this the heap would keep a minute's worth of them.
        if len(self._deadlines) > 2 * len(self._flights) + 64:
            self._deadlines = [entry for entry in self._deadlines if self._is_current(entry)]
            heapq.heapify(self._deadlines)

    def _is_current(self, entry: tuple[float, str]) -> bool:
        flight = self._flights.get(entry[1])
        return flight is not None and entry[0] in (flight.deadline, flight.ping)


def _allowed(runs: int, idempotent: bool) -> bool:
    return runs == 0 or (idempotent and runs < MAX_RUNS)


def _worker_lost(flight: _Flight[Waiter]) -> WorkerLost:
    times = 'once' if flight.runs == 1 else f'{flight.runs} times'
    return WorkerLost(f'the worker died while it ran the call; it has been started {times} and may not run again')


def _reset_error(reset: Reset) -> TaskError:
    if reset.timeout:
        return TimeoutError(reset.reason or 'the task ran past its time')
    return RemoteError('Reset', reset.reason)


def _failure_error(failure: Failure) -> TaskError:
    if failure.kind == 'timeout':
        return TimeoutError(failure.message or 'the task ran past its time')
    return RemoteError(failure.type, failure.message, failure.traceback, refused=failure.kind == 'refused')
