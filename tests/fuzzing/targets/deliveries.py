"""A worker's table of deliveries, with a broker, callers and runs that do what bytes choose: each is settled once."""

from collections import Counter
from typing import Any, cast

from crew.envelope import Envelope
from crew.messages import Accept, Call, Cancel, Failure, Go, Reply, Reset, Stop
from crew.transports.base import Channel, Delivery
from crew.worker import deliveries
from crew.worker.deliveries import (
    FRESH,
    MAX_RUNS,
    Ack,
    Action,
    Cancelled,
    Deliveries,
    Drop,
    GiveBack,
    Held,
    Interrupt,
    Limits,
    Ping,
    Publish,
    Replace,
    Republish,
    Start,
    State,
    Terms,
)
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

NO_CHANNEL = cast(Channel, None)
REPLIES = 'crew.master.1'
WALL = 1_700_000_000.0
QUEUES = [Terms('1'), Terms('2', True), Terms('3', False, True), Terms('4', True, True)]
TIMES = [0.001, 0.01, 0.03, 0.06, 0.5, 1.1, 2.1, 6.0, 10.5, 70.0, 2000.0]

#: What acknowledges a run before its end; a version of the table may have none.
EARLY: Any = getattr(deliveries, 'AckEarly', ())


def check(data: bytes) -> None:
    """Play what the bytes choose, then let all runs end."""
    choices = Choices(data)
    worker = Worker(choices)
    for _ in range(300):
        if not choices:
            break
        worker.step()
        worker.check()
    worker.complete()


class Worker:
    """A worker process seen from outside.

    Attributes:
        unacked: what the broker waits for on the connection in use, by tag.
        runs: what runs.
        ended: what has run to its end.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.slots = 1 + choices.below(3)
        self.give_back = choices.flag()
        self.kill_after = 5.0
        limits = Limits(choices.pick([None, 0.02, 30.0]), self.kill_after)
        self.table = Deliveries(self.slots, limits, give_back=self.give_back)
        self.table.inbox = 'crew.worker.1'
        self.now = 0.0
        self.tag = 0
        self.unacked: dict[int, Held | None] = {}
        self.runs: list[Held] = []
        self.ended: set[Held] = set()
        self.gone: set[Held] = set()
        self.acked_early: set[Held] = set()
        self.answers: Counter[Held] = Counter()
        self.asked: set[Held] = set()
        self.allowed: set[Held] = set()
        self.silenced: set[Held] = set()
        self.interrupted: set[Held] = set()
        self.draining = False

    # Events

    def step(self) -> None:
        """Let something happen."""
        choices = self.choices
        kind = choices.below(12)
        if kind < 3:
            self.arrive()
        elif kind < 5:
            self.tell(choices.pick([Go, Go, Go, Stop, Cancel]), choices.pick('abcd'))
        elif kind == 5:
            self.caller_gone(choices.pick('abcd'))
        elif kind < 8:
            self.pass_time(choices.pick(TIMES), late=choices.rarely())
        elif kind == 8 and self.runs:
            self.stream(choices.pick(self.runs))
        elif kind < 11 and self.runs:
            self.finish(choices.pick(self.runs), twice=choices.rarely())
        elif kind == 11 and choices.rarely():
            self.lose()
        elif kind == 11 and choices.rarely():
            self.drain()

    def arrive(self) -> None:
        """Let a delivery come."""
        choices = self.choices
        self.tag += 1
        alone = choices.rarely()
        call = Call(
            correlation_id=choices.pick('abcd'),
            reply_to='' if alone else REPLIES,
            timeout=choices.pick([None, 0.03, 30.0]),
            expiration=choices.pick([None, 0.0, 60.0]),
            sent=choices.pick([None, WALL, WALL - 0.5, WALL - 5, WALL + 1000]),
            more=choices.rarely() and not alone,
            runs=choices.below(3) if alone else 0,
        )
        delivery = Delivery(Envelope(), self.tag, choices.byte() % 3 == 0, NO_CHANNEL)
        self.unacked[self.tag] = None
        self.take(self.table.arrive(delivery, call, terms=choices.pick(QUEUES), now=self.now, wall=WALL))
        if self.draining:
            # Its consumer may deliver until it is cancelled; the rest is put back.
            self.put_back()

    def tell(self, what: type[Go] | type[Stop] | type[Cancel], name: str) -> None:
        """Let a caller say something."""
        asked = [held for held in self.asked if held.call.correlation_id == name and held.state is State.ASKING]
        self.asked -= set(asked)
        if what is Go:
            self.allowed |= set(asked)
        if what is Cancel:
            self.silence(name)
        self.take(self.table.told(what(correlation_id=name, reply_to=REPLIES), now=self.now))
        if what is not Go:
            assert self.gone.issuperset(asked), 'it waits for an answer that has come'

    def caller_gone(self, name: str) -> None:
        """Let a message to a caller come back."""
        asked = {held for held in self.asked if held.call.correlation_id == name}
        self.asked -= asked
        self.silence(name)
        self.take(self.table.caller_gone(REPLIES, name, now=self.now))
        assert self.gone >= asked

    def silence(self, name: str) -> None:
        """Take note of what must be stopped now, because its caller no longer waits."""
        for held in self.runs:
            key = held.call.reply_to, held.call.correlation_id
            if (
                held.state is State.RUNNING
                and held.terms.stop_on_cancel
                and not held.orphaned
                and key == (REPLIES, name)
            ):
                self.silenced.add(held)

    def stream(self, held: Held) -> None:
        """Let a run answer in parts, or wait for its caller's end."""
        what = self.choices.below(3)
        if what == 0 and not held.answering:
            self.take(self.table.answer(held, Reply(correlation_id=held.call.correlation_id, more=True), now=self.now))
        elif what == 1:
            self.table.progress(held, now=self.now)
        elif held.accepted:
            self.table.pause(held, now=self.now)

    def finish(self, held: Held, *, twice: bool = False) -> None:
        """Let a run end."""
        self.runs.remove(held)
        self.ended.add(held)
        outcome: Reply | Failure | None = Reply(correlation_id=held.call.correlation_id)
        if held.answering:
            outcome = None
            if self.choices.flag():
                outcome = Failure(correlation_id=held.call.correlation_id, kind='raised', type='E', message='m')
            self.answers[held] += outcome is None and held.state is State.RUNNING
        self.take(self.table.finished(held, outcome, now=self.now))
        if twice:
            assert self.table.finished(held, outcome, now=self.now) == []

    def pass_time(self, seconds: float, *, late: bool = False) -> None:
        """Let time pass; with ``late`` nobody looks before it is over."""
        end = self.now + seconds
        ticks = 0
        while not late and (due := self.table.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.tick()
            ticks += 1
            assert ticks < 100 * (len(self.table) + 1) * (1 + seconds), 'it looks all the time'
        self.now = end
        self.tick()

    def tick(self) -> None:
        """Let it look what is due."""
        self.take(self.table.tick(self.now))
        due = self.table.next_deadline()
        assert due is None or due > self.now

    def lose(self) -> None:
        """Lose the connection."""
        self.table.lost()
        self.unacked.clear()
        self.asked.clear()

    def drain(self) -> None:
        """Tell it to end."""
        self.table.drain()
        self.draining = True
        self.put_back()

    def put_back(self) -> None:
        """Let it put back what it has not begun."""
        for held in self.table.take_unstarted():
            assert held not in self.runs
            self.settle(held)
            self.asked.discard(held)

    # What is decided

    def take(self, actions: list[Action]) -> None:
        """Carry out, and fail if it must not be."""
        for action in actions:
            held = action.held
            if isinstance(action, Start):
                self.start(held)
            elif isinstance(action, Publish):
                self.publish(held, action.message)
            elif isinstance(action, Ack):
                heard = bool(held.call.reply_to) and held not in self.silenced
                assert held in self.ended and self.answers[held] == heard, 'acked and not answered, or both in vain'
                self.settle(held)
            elif isinstance(action, Drop | GiveBack | Republish):
                assert held not in self.runs and held not in self.ended
                self.asked.discard(held)
                self.settle(held)
                self.leave(action)
            elif EARLY and isinstance(action, EARLY):
                assert held in self.runs
                self.acked_early.add(held)
                self.settle(held)
            else:
                assert held in self.runs
                self.disturb(action)

    def start(self, held: Held) -> None:
        """Fail if it must not run."""
        assert not self.draining and held not in self.runs and held not in self.ended and held not in self.gone
        waited = 0.0 if held.call.sent is None else WALL - held.call.sent
        longest = 86400.0 if held.call.expiration is None else held.call.expiration
        fresh = not held.redelivered and min(waited, longest) <= FRESH and self.now - held.arrived <= FRESH
        if held.call.reply_to:
            assert held in self.allowed or fresh, 'nobody was asked'
            assert held.key not in [other.key for other in self.runs if not other.orphaned], 'it runs already'
        else:
            assert not held.redelivered
        assert held.delivery.tag in self.unacked
        self.runs.append(held)

    def publish(self, held: Held, message: Accept | Reply | Failure | Reset) -> None:
        """Fail if it must not be said now."""
        assert held.call.reply_to and not held.orphaned
        assert held.delivery.tag in self.unacked or held in self.acked_early, 'it is said after the ack'
        assert isinstance(message, Reset) <= held.answering
        if isinstance(message, Accept):
            # Of a call that has more, the caller hears first.
            assert message.ask == (held.state is State.ASKING) and not self.answers[held]
            if message.ask:
                self.asked.add(held)
        elif isinstance(message, Reply) and message.more:
            assert held.accepted and held in self.runs and not self.answers[held]
        else:
            self.answers[held] += 1
            assert self.answers[held] == 1, 'answered twice'

    def leave(self, action: Drop | GiveBack | Republish) -> None:
        """Fail if it must not go unstarted."""
        held = action.held
        if isinstance(action, Republish):
            assert held.redelivered and held.terms.idempotent and not held.call.reply_to
            assert held.call.runs < action.runs < MAX_RUNS

    def disturb(self, action: Interrupt | Cancelled | Ping | Replace) -> None:
        """Fail if a run must be left alone."""
        held = action.held
        if isinstance(action, Ping):
            assert held.paused and held.state is State.RUNNING
        elif isinstance(action, Interrupt):
            assert held in self.silenced or self.now >= held.started + held.timeout
            assert held not in self.interrupted, 'interrupted twice'
            self.interrupted.add(held)
        elif isinstance(action, Replace):
            assert held in self.interrupted

    def settle(self, held: Held) -> None:
        """Take note that the broker need not wait any more: it hears so once of each delivery."""
        assert held not in self.gone, 'settled twice'
        self.gone.add(held)
        assert held.delivery.tag in self.unacked, 'settled on a channel that is gone'
        del self.unacked[held.delivery.tag]

    def check(self) -> None:
        """Fail if a delivery is lost, or a slot taken twice."""
        assert len(self.runs) <= self.slots
        assert set(self.table.running) == set(self.runs)
        alive = [held for held in self.runs if not held.orphaned and held not in self.acked_early]
        assert len(self.unacked) == len(self.table) - len(self.runs) + len(alive), 'the broker waits for what is lost'
        assert all(held.state is State.OVERDUE for held in self.runs if held in self.silenced)
        due = self.table.next_deadline()
        for held in self.runs:
            assert held.due >= (float('inf') if due is None else due)

    def complete(self) -> None:
        """Let callers answer, and runs end: nothing is left."""
        for _ in range(1000):
            if not len(self.table):
                break
            while self.runs:
                self.finish(self.runs[0])
            self.pass_time(11.0)
            self.check()
            if self.draining:
                self.put_back()
        assert not len(self.table) and not self.unacked
        self.tick()
        assert self.table.next_deadline() is None


def seeds() -> list[bytes]:
    """Return a call that runs, one that is asked about, and one that is too long."""
    return [
        bytes([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 9, 0, 0]),
        bytes([1, 1, 0, 0, 0, 0, 2, 2, 1, 0, 0, 1, 3, 0, 0, 9, 0, 0]),
        bytes([0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 2, 6, 2, 0, 7, 7, 0, 9, 0, 0]),
    ]
