"""What a worker holds, from a delivery's arrival to its ack. Sans-IO: events and the time come in, actions come out.

A delivery is in one of four states. State × event:

=======  =====================================  ====================================================================
state    event                                  what follows
=======  =====================================  ====================================================================
–        arrives fresh                          ready
–        arrives redelivered, or waited long    asking: the caller is asked first, for nobody else knows if it may run
–        arrives redelivered, without a caller  idempotent, and not counted yet: published anew, counted; else dropped
asking   go                                     ready
asking   stop, cancel, caller gone, no answer   acked, dropped
ready    a slot is free                         running; asking, if it has waited here for long unasked. A worker that
                                                gives back keeps the slot for a moment if one that came before asks
ready    cancel                                 acked, dropped
ready    no slot will soon be free              given back, if the worker takes calls of several queues or looks ahead
ready    a slot is free, the call has more      running; the caller hears *accept* at once, for the rest goes there
ready    what runs is short                     queued: given to what runs tasks, to begin when a slot is free
queued   a slot is free                         running, in the order in which they were given
queued   what runs is not short                 taken back: ready, if it has not begun
running  50 ms are over, and each 10 s          the caller hears *accept*, so that it can cancel and keep the time; if
                                                it comes back, the caller is gone
running  the answer begins                      the caller hears *accept*, and then the part; its time begins anew
running  it waits for the caller's own end      its time stands still until it has what it waits for; meanwhile it is
                                                looked now and then whether the caller is still there
running  its answer is whole before it ends     reply; its caller hears nothing more
running  finished                               reply, then ack on the same channel, so that no ack overtakes its reply;
                                                *reset* in the reply's place if it failed after its answer began
running  cancel, caller gone                    overdue, if the task is to be stopped then; else it may look and see,
                                                and its time goes on
running  its time is over                       overdue: the caller hears *timeout*, the thread gets ``SystemExit``
running  held for nearly as long as the         the caller hears *accept* that says it is acked, and it is: it looks for
         broker lets it                         this worker itself from then on
ready    held for so long                       given back
overdue  finished                               acked
overdue  ``kill_after`` is over                 the process must be replaced
=======  =====================================  ====================================================================

A worker of several queues has a consumer of each and so may be sent more than it can run, for RabbitMQ's prefetch is
each consumer's own. What it cannot start soon it gives back, or it would wait here while another worker is idle. When
that comes again its caller is asked first, so it would lose every race against a fresh call of another queue, and
starve: hence the moment.

A broker closes the channel of who holds a delivery for longer than its ``consumer_timeout``, and gives all of them to
others, although they run. So what runs for so long is acked before. It keeps its slot, but the broker does not know of
that any more and sends another call in its place: what has no slot is given back then, as if there were several queues.

While runs are short, more calls are fetched than there are slots (``lookahead``). When one is long, that ends, and
what has not begun is given back.

Calls are given to what runs tasks before it has a free slot, so that nobody need be woken up between two short ones.
Which of them have begun follows from the ends that are reported; those that have not can be taken back at any time.

An overdue delivery keeps its slot and its ack: a thread that does not end is no capacity, and the broker must not send
another call to wait behind it.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from crew.messages import Accept, Call, Cancel, Failure, Go, Reply, Reset, Stop
from crew.transports.base import Delivery
from crew.worker.lookahead import SHORT, LookAhead
from crew.worker.settings import Limits, Terms

__all__ = [
    'Ack',
    'AckEarly',
    'Action',
    'Cancelled',
    'Deliveries',
    'Drop',
    'GiveBack',
    'Held',
    'Interrupt',
    'Limits',
    'Look',
    'Ping',
    'Publish',
    'Replace',
    'Republish',
    'Retract',
    'Start',
    'Terms',
]

#: A call that has waited longer may have lost its caller.
FRESH = 1.0

#: A call that runs longer says so.
ACCEPT_AFTER = 0.05

#: And again so often: what comes back tells that the caller's process is gone, and that nobody waits any more.
SAY_AGAIN = 10.0

#: A caller that does not answer a question for so long does not wait for the call either.
ANSWER_WITHIN = 10.0

#: When all slots have been taken for so long, what they run is not short, and nothing waits for them.
GIVE_BACK_AFTER = 0.02

#: How often a worker that waits for its caller's own end looks whether that is still there.
PING_EVERY = 2.0

LONGEST_RUN = 86400.0

#: Which part of the broker's ``consumer_timeout`` a delivery is held for at most.
HELD_AT_MOST = 0.9

MAX_REASON = 1000

#: How often a call is run at most that nobody waits for, and whose task is idempotent.
MAX_RUNS = 2


DEFAULT_TERMS = Terms()


class State(Enum):
    """Where a delivery is on its way."""

    ASKING = 'asking'
    READY = 'ready'
    QUEUED = 'queued'
    RUNNING = 'running'
    OVERDUE = 'overdue'


Key: TypeAlias = tuple[str, str | int]


@dataclass(slots=True, eq=False)
class Held:
    """A delivery in this worker's hands.

    Attributes:
        delivery: where it came in.
        call: what it carries.
        terms: on which terms it is run.
        timeout: how long it may run, in seconds.
        arrived: when it came.
        state: where it is on its way.
        due: when this state ends by itself.
        started: when its run began.
        accepted: whether the caller has heard that it runs.
        orphaned: whether the channel it came in by is gone, so that it cannot be answered or acked.
        finished: whether its run has ended.
        answering: whether a part of its answer has gone.
        replied: whether all of it has, though its run goes on.
        paused: whether its run waits for the caller's own end.
        release_by: when it must not be held any longer; never, once it is acked.
        acked: whether it was acked while it ran.
        key: whose call it is and which. One that nobody waits for is its own: its id need not be the only one.
    """

    delivery: Delivery
    call: Call
    terms: Terms
    timeout: float
    redelivered: bool
    arrived: float = 0.0
    state: State = State.READY
    due: float = 0.0
    started: float = 0.0
    accepted: bool = False
    orphaned: bool = False
    finished: bool = False
    answering: bool = False
    replied: bool = False
    paused: bool = False
    release_by: float = math.inf
    acked: bool = False
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        """Make the key once: it is asked for at each step."""
        reply_to = self.call.reply_to
        self.key = reply_to, self.call.correlation_id if reply_to else id(self)

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for its answer, and can be told."""
        return bool(self.call.reply_to) and not (self.replied or self.orphaned)


# Three actions that each call needs are not frozen: that would make each of them three times as dear.


@dataclass(slots=True)
class Publish:
    """Send a message to the caller on the channel of the delivery."""

    held: Held
    message: Accept | Reply | Failure | Reset


@dataclass(slots=True)
class Ack:
    """Acknowledge the delivery."""

    held: Held


@dataclass(frozen=True, slots=True)
class AckEarly:
    """Acknowledge the delivery although it runs, and take nothing in its place."""

    held: Held


@dataclass(frozen=True, slots=True)
class Drop:
    """Acknowledge the delivery without having run it, and say why in the log."""

    held: Held
    reason: str


@dataclass(slots=True)
class Start:
    """Run the call."""

    held: Held


@dataclass(frozen=True, slots=True)
class Retract:
    """Take back all that was given to be run and has not begun, and say so (:meth:`Deliveries.retracted`)."""

    held: Held


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raise ``SystemExit`` in what runs the call, and say why in the log."""

    held: Held
    reason: str


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Put the delivery back into its queue, unstarted, and take nothing more from there for now."""

    held: Held


@dataclass(frozen=True, slots=True)
class Republish:
    """Publish the call anew with this number of runs that may have begun, and acknowledge the delivery."""

    held: Held
    runs: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Let the run know that nobody waits for it."""

    held: Held


@dataclass(frozen=True, slots=True)
class Ping:
    """Send the caller something that it knows already: it comes back if the caller is gone."""

    held: Held


@dataclass(frozen=True, slots=True)
class Look:
    """Fetch so many calls before there is a slot for them from now on; if 0, none."""

    window: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Give the process up: the run of this delivery does not end."""

    held: Held


Action: TypeAlias = (
    Publish
    | Ack
    | AckEarly
    | Drop
    | Start
    | Retract
    | Interrupt
    | Cancelled
    | GiveBack
    | Republish
    | Ping
    | Look
    | Replace
)


class Deliveries:
    """The deliveries that one worker process holds.

    Args:
        slots: how many calls may run at once.
        limits: the worker's own limits.
        give_back: whether to give back what cannot be started soon.
        ahead: how many calls may be given to what runs tasks beyond its slots.
        look_ahead: learns how many may be fetched beyond them; None: what is fetched is not this one's to say.
    """

    def __init__(
        self,
        slots: int,
        limits: Limits,
        *,
        give_back: bool = False,
        ahead: int = 0,
        look_ahead: LookAhead | None = None,
    ) -> None:
        self.inbox = ''
        self._slots = slots
        self._limits = limits
        self._hold = HELD_AT_MOST * limits.consumer_timeout
        self._give_back = give_back
        self._asking: dict[Key, Held] = {}
        self._ready: deque[Held] = deque()
        self._ahead = ahead
        self._look = look_ahead
        self._queued: dict[Key, Held] = {}
        self._running: dict[Key, Held] = {}
        self._orphans: set[Held] = set()
        self._draining = False
        self._began = 0.0  # when a run last began, or went on: while no slot is free, the youngest of those there are
        self._acked = 0  # how many of those that run the broker does not know of any more
        self._soonest = math.inf  # nothing is due before; a lower bound, so that finishing costs no search

    @property
    def running(self) -> list[Held]:
        """The calls that occupy a slot now, those that were given up on by the caller included."""
        return [*self._running.values(), *self._orphans]

    @property
    def busy(self) -> bool:
        """Whether any call is running that may come to an end: that of a stopped one is its clean-up."""
        return any(held.state is State.RUNNING or held.due < math.inf for held in self.running)

    @property
    def window(self) -> int:
        """How many calls to fetch before there is a slot for them."""
        return 0 if self._look is None else self._look.window

    @property
    def has_room(self) -> bool:
        """Whether a call could begin now."""
        return not self._draining and len(self._ready) + len(self._queued) < self._free

    @property
    def _gives_back(self) -> bool:
        return self._give_back or self._acked > 0

    @property
    def _free(self) -> int:
        return self._slots - len(self._running) - len(self._orphans)

    def __len__(self) -> int:
        return len(self._asking) + len(self._ready) + len(self._queued) + len(self._running) + len(self._orphans)

    # Arriving

    def arrive(
        self, delivery: Delivery, call: Call, *, terms: Terms = DEFAULT_TERMS, now: float, wall: float
    ) -> list[Action]:
        """Take a delivery.

        Args:
            delivery: where it came in.
            call: what it carries.
            terms: on which terms it is run.
            now: the time on a clock that never goes back, in seconds.
            wall: the time since the epoch, in seconds.
        """
        held = Held(delivery, call, terms, self._timeout(call, wall), delivery.redelivered, arrived=now)
        held.release_by = now + self._hold
        self._look_at(held.release_by)
        if not call.reply_to:
            return self._arrive_alone(held, now)
        key = held.key
        if self._has(key):
            return [Drop(held, 'a call with the same id and the same caller is here already')]
        waited = _waited(call, wall)
        # When draining too: put back without a question, a redelivery would count as never started.
        if not (held.redelivered or waited > FRESH):
            self._ready.append(held)
            return self._fill(now)
        return [self._ask(held, now)]

    def _has(self, key: Key) -> bool:
        if key in self._running or key in self._queued or key in self._asking:
            return True
        return bool(self._ready) and any(key == other.key for other in self._ready)

    def _arrive_alone(self, held: Held, now: float) -> list[Action]:
        """Take a call that nobody waits for, so that nobody can be asked about it."""
        if not held.redelivered:
            self._ready.append(held)
            return self._fill(now)
        runs = held.call.runs + 1
        if not held.terms.idempotent:
            return [Drop(held, 'it may have run, nobody can be asked, and its task is not idempotent')]
        if runs >= MAX_RUNS:
            return [Drop(held, f'its worker has died {runs} times')]
        return [Republish(held, runs)]

    def _ask(self, held: Held, now: float) -> Action:
        held.state = State.ASKING
        self._set_due(held, now + ANSWER_WITHIN)
        self._asking[held.key] = held
        return Publish(held, self._accept(held, ask=True))

    def _timeout(self, call: Call, wall: float) -> float:
        timeout = call.timeout
        if timeout is None and call.expiration is not None:
            timeout = max(0.001, call.expiration - _waited(call, wall))
        if self._limits.timeout is not None:
            timeout = self._limits.timeout if timeout is None else min(timeout, self._limits.timeout)
        return LONGEST_RUN if timeout is None else timeout

    def _fill(self, now: float) -> list[Action]:
        actions = self._start_ready(now)
        if self._ready and not self._draining and not self._free and not self._gives_back and self._look is not None:
            # It is looked later: what runs may have ended, and not be reported yet.
            self._look_at(self._began + SHORT)
        return actions

    def _start_ready(self, now: float) -> list[Action]:
        actions: list[Action] = []
        free = self._free
        while self._queued and free > 0:
            self._begin(self._queued.pop(next(iter(self._queued))), now)
            free -= 1
        while self._ready and not self._draining and self._may_start(free, now):
            held = self._ready.popleft()
            if now - held.arrived > FRESH and held.call.reply_to and not held.accepted:
                # It waited here for a slot. After a *go* there is no need to ask: its caller knows where to cancel it.
                actions.append(self._ask(held, now))
                continue
            if free > 0:
                held.started = now
                if held.call.more and not held.accepted:
                    actions.append(self._say_accept(held, now))
                self._begin(held, now)
                free -= 1
            else:
                held.state = State.QUEUED
                self._queued[held.key] = held
                self._look_at(self._began + SHORT)
            actions.append(Start(held))
        if self._ready and free <= 0 and self._gives_back and not self._draining:
            actions += self._give_back_late(now)
        return actions

    def _begin(self, held: Held, now: float) -> None:
        held.state = State.RUNNING
        held.started = self._began = now
        self._set_due(held, now + min(held.timeout, SAY_AGAIN if held.accepted else ACCEPT_AFTER))
        self._running[held.key] = held
        if self.window and not self._free:
            self._look_at(now + SHORT)

    def _may_start(self, free: int, now: float) -> bool:
        """Return whether the next call may begin, or be given away before there is a slot for it."""
        kept = self._kept(now) if self._asking else 0
        if free > kept:
            return True
        if free or kept or len(self._queued) >= self._ahead or self._ready[0].call.more:
            return False
        return now < self._began + SHORT

    def retracted(self, unbegun: Sequence[Held], *, now: float) -> list[Action]:
        """Take back calls that were given away too early, in their order; those that are not among them have begun."""
        self._take_back(unbegun)
        return self._start_ready(now) + self._look_back(now)

    def _take_back(self, unbegun: Sequence[Held]) -> None:
        for held in reversed(unbegun):
            # Who made way for the first of them may have been reported before that was taken up.
            known = self._queued.pop(held.key, None) or self._running.pop(held.key, None)
            if known is not None:
                held.state = State.READY
                self._ready.appendleft(held)

    def _kept(self, now: float) -> int:
        """Return how many slots are kept for calls that came before the next one and are being asked about."""
        kept = 0
        if self._gives_back or self._look is not None:
            for held in self._asking.values():
                until = held.due - ANSWER_WITHIN + GIVE_BACK_AFTER
                if held.arrived < self._ready[0].arrived and now < until:
                    kept += 1
                    self._look_at(until)
        return kept

    def _make_ready(self, held: Held) -> None:
        """Put a call that was asked about where it came, before those that came while it was."""
        held.state = State.READY
        after = sum(other.arrived > held.arrived for other in self._ready)
        self._ready.insert(len(self._ready) - after, held)

    def _give_back_late(self, now: float) -> list[Action]:
        """Give back what waits for slots that have been taken for long; look again when they have been."""
        late = self._began + GIVE_BACK_AFTER
        if now < late:
            self._look_at(late)
            return []
        return self._give_back_ready()

    def _give_back_ready(self) -> list[Action]:
        unstarted, self._ready = self._ready, deque()
        return [GiveBack(held) for held in unstarted]

    def _look_back(self, now: float) -> list[Action]:
        """Let nothing wait behind runs that are not short; look again when they may have become so."""
        if self._free or not (self.window or self._queued or (self._ready and self._look is not None)):
            return []
        late = self._began + SHORT
        if now < late:
            self._look_at(late)
            return []
        actions: list[Action] = []
        if self._look is not None and self._look.window:
            self._look.stop()
            actions.append(Look(0))
        if self._queued:
            actions.append(Retract(next(iter(self._queued.values()))))
        elif self._look is not None and not self._draining:
            actions += self._give_back_ready()
        return actions

    # What the caller says

    def told(self, message: Go | Stop | Cancel, *, now: float) -> list[Action]:
        """Take a message from the inbox. What is not about anything here is late, and means nothing any more."""
        key = message.reply_to, message.correlation_id
        if isinstance(message, Cancel) and key in self._running:
            return self._cancelled(self._running[key], now)
        if isinstance(message, Cancel) and key in self._queued:
            return [Cancelled(self._queued[key])]
        held = self._asking.pop(key, None)
        if held is None:
            return self._unready(key) if isinstance(message, Cancel) else []
        if isinstance(message, Go):
            # The caller counts the run from its go, and knows our inbox.
            held.accepted = True
            self._make_ready(held)
            return self._fill(now)
        return [Drop(held, 'its caller says that it must not run'), *self._fill(now)]

    def caller_gone(self, reply_to: str, correlation_id: str, *, now: float) -> list[Action]:
        """Take the broker's word that a message to the caller could not be routed: its process is gone."""
        key = reply_to, correlation_id
        if key in self._running:
            return self._cancelled(self._running[key], now)
        held = self._asking.pop(key, None)
        return [] if held is None else [Drop(held, 'its caller is gone'), *self._fill(now)]

    def _cancelled(self, held: Held, now: float) -> list[Action]:
        if held.state is not State.RUNNING or not held.terms.stop_on_cancel:
            return [Cancelled(held)]
        held.state = State.OVERDUE
        self._set_due(held, now + self._limits.kill_after)
        return [Cancelled(held), Interrupt(held, 'its caller no longer waits')]

    def _unready(self, key: Key) -> list[Action]:
        for held in self._ready:
            if held.key == key:
                self._ready.remove(held)
                return [Drop(held, 'its caller no longer waits')]
        return []

    # Running

    def find(self, reply_to: str, correlation_id: str) -> Held | None:
        """Return the delivery of a call that runs here, or None."""
        return self._running.get((reply_to, correlation_id))

    def _say_accept(self, held: Held, now: float) -> Publish:
        held.accepted = True
        return Publish(held, self._accept(held, ask=False, ran=now - held.started))

    def answer(self, held: Held, part: Reply, *, now: float) -> list[Action]:
        """Take the beginning of an answer that comes in parts; the chunks that follow are its stream's own."""
        if held.state is not State.RUNNING or not held.awaited:
            return []
        held.answering = True
        actions: list[Action] = [] if held.accepted else [self._say_accept(held, now)]
        self.progress(held, now=now)
        return [*actions, Publish(held, part)]

    def reply(self, held: Held, reply: Reply) -> list[Action]:
        """Take the whole answer of a run that goes on."""
        if held.state is not State.RUNNING or held.answering or not held.awaited:
            return []
        self.all_sent(held)
        return [Publish(held, reply)]

    def all_sent(self, held: Held) -> None:
        """Take note that the whole answer has gone, also if it went in parts: its caller hears nothing more."""
        held.replied = True

    def progress(self, held: Held, *, now: float) -> None:
        """Take note that a run goes on: its time begins anew."""
        held.paused = False
        if held.state is State.RUNNING:
            held.started = self._began = now
            self._set_due(held, now + min(held.timeout, SAY_AGAIN if held.accepted else ACCEPT_AFTER))

    def pause(self, held: Held, *, now: float) -> None:
        """Take note that a run waits for the caller's own end, which is not its own time."""
        if held.state is State.RUNNING and not held.paused:
            held.paused = True
            self._set_due(held, now + PING_EVERY)

    def finished(self, held: Held, outcome: Reply | Failure | None, *, now: float, took: float = 0.0) -> list[Action]:
        """Take the end of a run. The same end may be reported twice.

        Args:
            held: the delivery.
            outcome: the whole reply or why there is none; None if all of the answer has gone in parts.
            now: the time.
            took: how long it ran, in seconds, by whoever ran it.
        """
        if held.finished:
            return []
        held.finished = True
        self._acked -= held.acked
        if held.orphaned:
            self._orphans.discard(held)
            return self._fill(now)
        if held.state is State.QUEUED:
            # The report of who made way for it was cut short.
            self._begin(self._queued.pop(held.key), now)
        del self._running[held.key]
        actions: list[Action] = []
        if outcome is not None and held.state is State.RUNNING and held.awaited:
            actions.append(Publish(held, self._ending(held, outcome)))
        if not held.acked:
            actions.append(Ack(held))
        if self._look is not None and not self._draining:
            window = self._look.window
            self._look.ran(took)
            if self._look.window != window:
                actions.append(Look(self._look.window))
        actions += self._fill(now)
        return actions

    # Time

    def next_deadline(self) -> float | None:
        """Return when :meth:`tick` is due next: nothing is due before, perhaps nothing then. None when idle."""
        return None if self._soonest == math.inf else self._soonest

    def _set_due(self, held: Held, due: float) -> None:
        held.due = due
        self._look_at(due)

    def _look_at(self, due: float) -> None:
        """Have :meth:`tick` called at this time or before."""
        if due < self._soonest:
            self._soonest = due

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        actions: list[Action] = []
        for held in [held for held in self._asking.values() if held.due <= now]:
            del self._asking[held.key]
            actions.append(Drop(held, f'its caller did not answer within {ANSWER_WITHIN:g} s'))
        for held in self.running:
            if held.release_by <= now:
                actions += self._ack_early(held, now)
            if held.due <= now:
                actions += self._due(held, now)
        for held in [held for held in self._ready if held.release_by <= now]:
            self._ready.remove(held)
            actions.append(GiveBack(held))
        self._soonest = min(
            (
                *(held.due for held in self._asking.values()),
                *(min(held.due, held.release_by) for held in self.running),
                *(held.release_by for held in self._ready),
            ),
            default=math.inf,
        )
        actions += self._start_ready(now)
        return actions + self._look_back(now)

    def _ack_early(self, held: Held, now: float) -> list[Action]:
        held.release_by = math.inf
        held.acked = True
        self._acked += 1
        if held.state is not State.RUNNING or not held.awaited:
            return [AckEarly(held)]
        if not held.paused and now < held.started + held.timeout:
            held.due = min(held.started + held.timeout, now + SAY_AGAIN)
        return [self._say_accept(held, now), AckEarly(held)]

    def _due(self, held: Held, now: float) -> list[Action]:
        over = held.started + held.timeout
        if held.state is State.OVERDUE:
            held.due = held.release_by = math.inf
            return [Replace(held)]
        if held.paused:
            held.due = now + PING_EVERY
            return [Ping(held)]
        if now < over:
            held.due = min(over, now + SAY_AGAIN)
            if not held.awaited:
                return []
            return [self._say_accept(held, now)]
        held.state = State.OVERDUE
        held.due = now + self._limits.kill_after
        limit = _rounded(held.timeout)
        message = f'the task ran past its limit of {limit} s'
        failure = Failure(correlation_id=held.call.correlation_id, kind='timeout', message=message)
        reason = f'it ran past its limit of {limit} s'
        if not held.awaited:
            return [Interrupt(held, reason)]
        answer = Publish(held, self._ending(held, failure))
        return [answer, Interrupt(held, f'{reason}; its caller has been told')]

    @staticmethod
    def _ending(held: Held, outcome: Reply | Failure) -> Reply | Failure | Reset:
        """Return what ends an answer: what ran, or if a part has gone already, that there will be no more."""
        if not held.answering or isinstance(outcome, Reply):
            return outcome
        reason = f'{outcome.type}: {outcome.message}' if outcome.type else outcome.message
        return Reset(
            correlation_id=outcome.correlation_id, reason=reason[:MAX_REASON], timeout=outcome.kind == 'timeout'
        )

    def _accept(self, held: Held, *, ask: bool, ran: float = 0.0) -> Accept:
        return Accept(
            correlation_id=held.call.correlation_id,
            inbox=self.inbox,
            ask=ask,
            redelivered=held.redelivered,
            idempotent=held.terms.idempotent,
            acked=held.acked,
            ran=ran,
            timeout=held.timeout,
        )

    # Ending

    def drain(self) -> None:
        """Start nothing any more."""
        self._draining = True

    def take_unstarted(self) -> list[Held]:
        """Hand over what was not started, to be put back into the queue; what was given away is taken back before."""
        unstarted = [*self._asking.values(), *self._ready]
        self._asking.clear()
        self._ready.clear()
        return unstarted

    def lost(self, unbegun: Sequence[Held] = ()) -> None:
        """Take note that the connection is gone. The broker gives what we held to others; runs go on, unanswerable.

        Args:
            unbegun: what was given away, and has been taken back, for it has not begun.
        """
        self._take_back(unbegun)
        self.take_unstarted()
        for held in (*self._running.values(), *self._queued.values()):
            held.orphaned = True
            # The broker has taken it back, unless it was acked.
            held.release_by = math.inf
        self._orphans.update(self._running.values(), self._queued.values())
        self._running.clear()
        self._queued.clear()
        if self._look is not None:
            self._look.stop()


def _rounded(seconds: float) -> str:
    """Return seconds for a person: of a limit that is what another has left, nobody needs microseconds."""
    return f'{seconds:.0f}' if seconds >= 100 else f'{seconds:.3g}'


def _waited(call: Call, wall: float) -> float:
    """Return how long a call has waited, by two machines' clocks, held to what can be true."""
    if call.sent is None:
        return 0.0
    longest = LONGEST_RUN if call.expiration is None else call.expiration
    return min(max(0.0, wall - call.sent), longest)
