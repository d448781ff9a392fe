"""Messages in any order to a caller's table, as no honest world sends them: each call has one outcome, in time."""

import math
from collections import Counter
from typing import Any

from crew import codec
from crew.calls import MAX_RUNS, Action, Calls, Part, Republish, Settle, Tell
from crew.exceptions import BrokerRefused, ConnectionError, DuplicateTaskId, TimeoutError
from crew.messages import (
    Accept,
    Call,
    Cancel,
    Chunk,
    Credit,
    DeadLetter,
    Failure,
    Go,
    Message,
    Publication,
    Reply,
    Reset,
    Returned,
    Stop,
)
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

IDS = 'abc'
REPLIES = 'crew.master.1'
TIMES = [0.0, 0.001, 0.05, 0.5, 1.0, 1.5, 2.0, 9.9, 31.0, 60.5, 100.0, 1e4]
LIMITS = [0.001, 1.0, 30.0, 60.0, 2.0**31]


def check(data: bytes) -> None:
    """Play what the bytes choose, then let all time pass."""
    table = Table(Choices(data))
    for _ in range(300):
        if not table.choices:
            break
        table.step()
        table.check()
    table.complete()


class Table:
    """The calls of one caller, and what is known of each from outside.

    Attributes:
        names: of all calls that ever were, by number.
        current: the call in flight of each name.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.calls: Calls[int] = Calls()
        self.calls.reply_to = REPLIES
        self.now = 0.0
        self.names: dict[int, str] = {}
        self.current: dict[str, int] = {}
        self.unsent: set[int] = set()
        self.idempotent: dict[int, bool] = {}
        self.settled: set[int] = set()
        self.starts: Counter[int] = Counter()
        self.spent: set[int] = set()

    # Events

    def step(self) -> None:
        """Let something happen."""
        choices = self.choices
        kind, name = choices.below(16), choices.pick(IDS)
        if kind < 2:
            self.add(name)
        elif kind < 11:
            self.receive(self.message(name))
        elif kind == 11:
            self.pass_time(choices.pick(TIMES))
        elif kind == 12:
            self.calls.pause(name) if choices.flag() else self.calls.resume(name, now=self.now)
        elif kind == 13:
            self.take(self.calls.worker_gone(name))
        elif kind == 14:
            self.end(name)
        else:
            self.connection(choices.below(3))

    def add(self, name: str) -> None:
        """Call, under an id that may be taken."""
        number = len(self.names) + 1
        expiration, known, sent = self.choices.pick(TIMES), self.choices.flag(), not self.choices.rarely()
        try:
            self.calls.add(name, number, expiration=expiration, idempotent=known, now=self.now, sent=sent)
        except DuplicateTaskId:
            assert name in self.current
            return
        assert name not in self.current
        self.names[number] = name
        self.current[name] = number
        self.idempotent[number] = known
        if not sent:
            self.unsent.add(number)

    def receive(self, message: Message) -> None:
        """Let a message come."""
        before = dict(self.current)
        if isinstance(message, Accept) and (number := self.current.get(message.correlation_id)):
            self.idempotent[number] |= message.idempotent
        if isinstance(message, Returned):
            for each in message.correlation_ids:
                # It may have been the delivery that was told to go.
                if each in self.current and self.starts[self.current[each]]:
                    self.starts[self.current[each]] -= 1
        actions = self.calls.receive(message, now=self.now, wall=1_700_000_000.0)
        for action in actions:
            if isinstance(action, Tell) and isinstance(action.message, Go):
                assert isinstance(message, Accept) and message.ask and action.queue == message.inbox
                number = before[message.correlation_id]
                assert number not in self.spent, 'it goes on elsewhere without what it has had'
                self.starts[number] += 1
            elif isinstance(action, Tell) and isinstance(action.message, Stop):
                assert isinstance(message, Accept) and message.ask
            elif isinstance(action, Republish):
                assert isinstance(message, DeadLetter)
                number = before[message.correlation_id]
                assert self.idempotent[number] and number not in self.spent
                assert codec.decode(action.envelope).correlation_id == message.correlation_id  # type: ignore[union-attr]
            elif isinstance(action, Part):
                self.spent.add(action.waiter)
        if isinstance(message, Accept) and message.ask:
            # Who asks is always answered, and once.
            answers = [each for each in actions if isinstance(each, Tell) and isinstance(each.message, Go | Stop)]
            assert len(answers) == 1
        self.take(actions)

    def message(self, name: str) -> Message:
        """Choose a message."""
        choices = self.choices
        kind = choices.below(13)
        if kind < 4:
            return Accept(
                correlation_id=name,
                inbox=choices.pick(['crew.worker.1', 'crew.worker.2']),
                ask=choices.flag(),
                redelivered=choices.flag(),
                idempotent=choices.rarely(),
                ran=choices.pick(TIMES),
                timeout=choices.pick(LIMITS),
                **_further(choices),
            )
        if kind == 4:
            return Returned(correlation_ids=tuple(choices.pick('abc?') for _ in range(choices.below(4))))
        if kind == 5:
            envelope = codec.encode(Call(correlation_id=name, reply_to=REPLIES, expiration=1.0, timeout=1.0))
            return DeadLetter(correlation_id=name, reason='expired', time=None, envelope=envelope, queue='q')
        others: list[Message] = [
            Reply(correlation_id=name),
            Reply(correlation_id=name, more=True),
            Chunk(correlation_id=name, offset=choices.byte(), last=choices.rarely()),
            Credit(correlation_id=name, offset=choices.byte()),
            Reset(correlation_id=name, timeout=choices.flag()),
            Failure(correlation_id=name, kind=choices.pick(['raised', 'timeout', 'refused'])),
            choices.pick(
                [
                    Go(correlation_id=name, reply_to=REPLIES),
                    Cancel(correlation_id=name, reply_to=REPLIES),
                    Publication(channel=name),
                    Call(correlation_id=name),
                ]
            ),
        ]
        return others[kind - 6]

    def end(self, name: str) -> None:
        """Let a call end from this side."""
        how = self.choices.below(3)
        if how == 0:
            actions = self.calls.cancel(name)
            assert len(actions) <= 1
            self.forget(name)
        elif how == 1:
            actions = self.calls.unroutable(name, 'q')
        else:
            actions = self.calls.fail(name, ConnectionError('no such exchange'))
        self.take(actions)
        assert name not in self.current

    def connection(self, what: int) -> None:
        """Let the connection come or go, or be refused."""
        if what == 0:
            sent = set(self.current.values()) - self.unsent
            actions = self.calls.fail_sent(ConnectionError('lost', published=True))
            assert {each.waiter for each in actions if isinstance(each, Settle)} == sent
            self.take(actions)
        elif what == 1:
            self.take(self.calls.fail_unsent(BrokerRefused('who are you?')))
            assert not self.unsent
        else:
            for number in sorted(self.unsent):
                assert self.calls.time_left(self.names[number], self.now) > -math.inf
                self.calls.sent(self.names[number], now=self.now)
            self.unsent.clear()

    def pass_time(self, seconds: float) -> None:
        """Let time pass; nobody looks before it is over."""
        self.now += seconds
        actions = self.calls.expire(self.now)
        told = [each.message for each in actions if isinstance(each, Tell)]
        late = [each for each in actions if isinstance(each, Settle) and isinstance(each.outcome, TimeoutError)]
        assert sum(isinstance(message, Cancel) for message in told) == len(late), 'a worker was not told'
        self.take(actions)
        due = self.calls.next_deadline()
        assert due is None or due > self.now

    # What is decided

    def take(self, actions: list[Action[int]]) -> None:
        """Take note of outcomes."""
        for action in actions:
            if isinstance(action, Part):
                assert action.waiter in self.current.values()
            if isinstance(action, Settle):
                assert action.waiter not in self.settled, 'settled twice'
                self.settled.add(action.waiter)
                self.forget(self.names[action.waiter], action.waiter)

    def forget(self, name: str, number: int | None = None) -> None:
        """Take note that a call is in flight no more."""
        found = self.current.pop(name, None)
        assert number is None or number == found, 'one was settled that was not in flight'
        self.unsent.discard(found or 0)

    def check(self) -> None:
        """Fail if a call is lost from sight, may run too often, or has no end."""
        assert len(self.calls) == len(self.current) and all(name in self.calls for name in self.current)
        for number, starts in self.starts.items():
            assert starts <= (MAX_RUNS if self.idempotent[number] else 1), 'it is started too often'
        flights: Any = self.calls._flights.values()
        paused = [flight for flight in flights if flight.deadline == math.inf]
        assert all(flight.running for flight in paused)
        due = self.calls.next_deadline()
        earliest = min((flight.deadline for flight in flights), default=math.inf)
        assert (math.inf if due is None else due) <= earliest, 'nobody looks when it is due'
        assert len(self.calls._deadlines) <= 2 * len(self.calls) + 66

    def complete(self) -> None:
        """Let all time pass: every call has its outcome then."""
        for name in IDS:
            self.calls.resume(name, now=self.now)
        self.check()
        for _ in range(3):
            self.pass_time(2.0**32)
        self.check()
        assert not self.current, 'a call waits for ever'
        assert self.calls.next_deadline() is None


def _further(choices: Choices) -> dict[str, bool]:
    """Choose what an accept may say beside the rest."""
    return {'acked': choices.flag()} if 'acked' in Accept.__dataclass_fields__ else {}


def seeds() -> list[bytes]:
    """Return a call that is answered, and one that is asked about."""
    return [
        bytes([0, 0, 8, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 7]),
        bytes([0, 0, 8, 1, 0, 2, 0, 0, 0, 1, 1, 0, 0, 1, 0, 2, 0, 5, 2, 0, 7, 2, 0, 8, 3]),
    ]
