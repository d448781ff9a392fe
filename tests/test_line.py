"""How long the next call would wait: a guess from what one caller sees, tried on queues that are simulated."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crew.calls import Calls
from crew.codec import encode
from crew.exceptions import ConnectionError, DuplicateTaskId
from crew.line import Line
from crew.messages import Accept, Call, DeadLetter, Failure, Message, Reply, Returned

LIMIT = 30.0


@dataclass
class Simulation:
    """A queue, first come, first served, and a front that asks the line before it lets anybody in.

    Args:
        workers: how many calls run at once, at a given time.
        takes: how long a run takes.
        others: how many of each front's calls another puts into the same queue.
    """

    workers: Callable[[float], int]
    takes: Callable[[], float]
    others: float = 0.0
    limit: float = LIMIT
    hidden: float = 0.05  # a run that is shorter says nothing of its start
    line: Line = field(init=False)
    admitted: int = 0
    refused: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    expired: int = 0
    ends: list[float] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.line = Line(self.limit)
        self._queue: deque[tuple[float, bool]] = deque()
        self._running: list[float] = []
        self._told: list[tuple[float, float, float]] = []
        self._random = random.Random(1)

    def run(self, arrivals: list[float], until: float, changes: tuple[float, ...] = ()) -> None:
        """Let calls arrive at these times, and time pass; ``changes`` are when the number of workers changes."""
        coming = deque(sorted(arrivals))
        moments = deque([*sorted(changes), until])
        while self.now < until:
            told = self._told[0][0] if self._told else until
            self.now = min(moments[0], told, *self._running[:1], coming[0] if coming else until)
            if moments[0] <= self.now:
                moments.popleft()
            self._tell()
            while self._running and self._running[0] <= self.now:
                self.ends.append(heapq.heappop(self._running))
            while coming and coming[0] <= self.now:
                coming.popleft()
                self._arrive()
            self._begin()

    def _arrive(self) -> None:
        if self._random.random() < self.others:
            self._queue.append((self.now, False))
        if not self.line.admit(self.now):
            self.refused.append(self.now)
            return
        self.admitted += 1
        self.line.join()
        self._queue.append((self.now, True))

    def _begin(self) -> None:
        while self._queue and len(self._running) < self.workers(self.now):
            joined, ours = self._queue.popleft()
            if self.now - joined > self.limit:
                if ours:
                    self.expired += 1
                    self.line.leave()
                continue
            takes = self.takes()
            heapq.heappush(self._running, self.now + takes)
            if ours:
                self.waits.append(self.now - joined)
                # A short run is seen when it ends, a longer one says after a while since when it has been running.
                seen = self.now + min(takes, self.hidden)
                began = seen if takes <= self.hidden else self.now
                heapq.heappush(self._told, (seen, began, joined))

    def _tell(self) -> None:
        while self._told and self._told[0][0] <= self.now:
            _, began, joined = heapq.heappop(self._told)
            self.line.start(began, joined)


def evenly(rate: float, start: float, end: float) -> list[float]:
    return [start + number / rate for number in range(int((end - start) * rate))]


def always(number: int) -> Callable[[float], int]:
    return lambda now: number


def steady(takes: float) -> Callable[[], float]:
    return lambda: takes


def varying(takes: float) -> Callable[[], float]:
    source = random.Random(2)
    return lambda: source.expovariate(1 / takes)


# What is not refused


def test_nothing_is_known_and_nobody_refused_before_calls_have_begun() -> None:
    line = Line(LIMIT)
    for number in range(10_000):
        assert line.admit(number / 100) and line.wait(number / 100) == 0
        line.join()
    assert line.waiting == 10_000


@settings(max_examples=25, deadline=None)
@given(
    workers=st.integers(1, 20),
    takes=st.sampled_from([0.005, 0.04, 0.2, 1.0]),
    load=st.floats(0.1, 0.7),
    pause=st.floats(0, 10),
    others=st.sampled_from([0.0, 0.5]),
)
def test_nobody_is_refused_at_low_load_nor_because_of_a_pause(
    workers: int, takes: float, load: float, pause: float, others: float
) -> None:
    rate = load * workers / takes / (1 + others)
    if rate > 300:
        takes *= rate / 300
        rate = 300.0
    simulation = Simulation(lambda now: 0 if 10 <= now < 10 + pause else workers, varying(takes), others=others)
    simulation.run(evenly(rate, 0, 30 + pause), 31 + pause, (10, 10 + pause))
    assert simulation.refused == []


@pytest.mark.parametrize('started', [0.0, 5.0, 20.0])
def test_who_came_before_the_workers_waits_for_them(started: float) -> None:
    simulation = Simulation(lambda now: 4 if now >= started else 0, steady(0.02))
    simulation.run(evenly(50, 0, 30), 31, (started,))
    # As soon as they are there it shows how fast they are; for a moment that is not known well.
    assert len(simulation.refused) < 30 and simulation.expired == 0


def test_a_burst_that_can_be_served_in_time_is_let_in() -> None:
    simulation = Simulation(always(10), steady(0.04))
    simulation.run([*evenly(5, 0, 20), *evenly(4000, 20, 20.25)], 40)
    assert simulation.refused == [] and simulation.expired == 0


# What is


@settings(max_examples=10, deadline=None)
@given(
    workers=st.integers(1, 8),
    takes=st.sampled_from([0.04, 0.1, 0.5]),
    vary=st.booleans(),
    others=st.sampled_from([0.0, 0.05]),
    overload=st.sampled_from([2.0, 10.0]),
)
def test_under_overload_who_is_let_in_is_served_and_no_worker_is_idle(
    workers: int, takes: float, vary: bool, others: float, overload: float
) -> None:
    simulation = Simulation(always(workers), (varying if vary else steady)(takes), others=others)
    rate = min(300.0, overload * workers / takes)
    takes = overload * workers / rate
    simulation.takes = (varying if vary else steady)(takes)
    simulation.run(evenly(rate, 0, 120), 120)
    assert len(simulation.refused) > 0.2 * simulation.admitted
    # What is queued before anybody has waited for long is more than can be served only if calls are very slow.
    assert simulation.expired < 0.1 * simulation.admitted + rate * 2
    assert max(simulation.waits) <= LIMIT
    if takes <= 0.5:
        # Once the line was full, it is kept short.
        late = simulation.waits[len(simulation.waits) * 4 // 5 :]
        assert sum(late) / len(late) < 3
    capacity = workers / takes * 100
    assert len([end for end in simulation.ends if end > 20]) > 0.9 * capacity


@pytest.mark.parametrize('before', [0.5, 5.0, 15.0])
def test_what_was_seen_at_low_load_does_not_count_for_an_overload(before: float) -> None:
    simulation = Simulation(always(2), steady(0.1))
    simulation.run([*evenly(before, 0, 60), *evenly(200, 60, 120)], 150)
    assert simulation.expired < 10 and max(simulation.waits) < 27


def test_when_the_load_ends_everybody_is_let_in_again() -> None:
    simulation = Simulation(always(2), steady(0.1))
    simulation.run(evenly(200, 0, 60), 60)
    assert simulation.refused and simulation.refused[-1] > 59
    simulation.refused.clear()
    simulation.run(evenly(10, 60, 90), 90)
    assert len(simulation.refused) < 5


def test_a_bound_of_the_callers_own_keeps_the_line_short_as_well() -> None:
    line, now = Line(LIMIT), 0.0
    waits: list[float] = []
    joined: deque[float] = deque()
    for number in range(30_000):
        # A thousand ask in a second, a hundred are served.
        now = number / 1000
        if line.admit(now, room=len(joined) < 500):
            line.join()
            joined.append(now)
        if number % 10 == 0 and joined:
            waits.append(now - joined[0])
            line.start(now, joined.popleft())
    assert max(waits) > 4 and max(waits[-1000:]) < 1.2


def test_a_spike_is_let_in_though_there_was_an_overload_before() -> None:
    simulation = Simulation(always(2), steady(0.1))
    simulation.run([*evenly(200, 0, 40), *evenly(5, 40, 60), *evenly(200, 60, 61)], 90)
    assert simulation.refused and max(simulation.refused) < 50


def test_workers_that_are_added_are_noticed() -> None:
    simulation = Simulation(lambda now: 1 if now < 60 else 20, steady(0.1))
    simulation.run(evenly(100, 0, 90), 90, (60,))
    before = [time for time in simulation.refused if time < 60]
    after = [time for time in simulation.refused if time > 65]
    assert len(before) > 1000 and after == []


def test_a_call_that_gives_up_is_in_the_way_no_more() -> None:
    line = Line(10.0)
    for _ in range(200):
        line.join()
    for number in range(20):
        line.start(0.2 * (number + 1), 0.0)
    assert not line.admit(4.0) and line.wait(4.0) == pytest.approx(36.0)
    for _ in range(150):
        line.leave()
    assert line.admit(4.0) and line.wait(4.0) == pytest.approx(6.0)


# In the table of calls


def dead_letter(correlation_id: str) -> DeadLetter:
    envelope = encode(Call(correlation_id=correlation_id, reply_to='crew.master.1', expiration=30.0, timeout=60.0))
    return DeadLetter(
        correlation_id=correlation_id, reason='expired', time=5.0, envelope=envelope, queue='crew.tasks.t'
    )


MESSAGES: dict[str, Callable[[str], Message]] = {
    'accept': lambda id: Accept(correlation_id=id, inbox='crew.worker.1', ask=False, timeout=60.0, ran=0.05),
    'ask': lambda id: Accept(correlation_id=id, inbox='crew.worker.1', ask=True, timeout=60.0),
    'reply': lambda id: Reply(correlation_id=id),
    'failure': lambda id: Failure(correlation_id=id, kind='raised'),
    'returned': lambda id: Returned(correlation_ids=(id,)),
    'dead letter': dead_letter,
}
EVENTS = ['add', 'cancel', 'unroutable', 'lost', 'tick', *MESSAGES]


@settings(max_examples=300, deadline=None)
@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from('abc')), max_size=60))
def test_the_line_is_as_long_as_calls_wait_or_were_cancelled_and_have_not_left_the_queue(
    events: list[tuple[str, str]],
) -> None:
    calls, line, now = Calls[str](), Line(30.0), 0.0
    calls.reply_to = 'crew.master.1'
    for event, id in events:
        now += 1.0
        if event == 'add':
            with suppress(DuplicateTaskId):
                calls.add(id, id, expiration=30.0, idempotent=True, now=now, line=line)
        elif event == 'cancel':
            calls.cancel(id)
        elif event == 'unroutable':
            calls.unroutable(id, 'crew.tasks.t')
        elif event == 'lost':
            calls.fail_sent(ConnectionError('lost'))
        elif event == 'tick':
            calls.expire(now)
        else:
            calls.receive(MESSAGES[event](id), now=now, wall=now)
        waiting = [id for id in 'abc' if id in calls and not calls.inbox(id)]
        assert line.waiting == len(waiting) + calls.forgotten(now)
    calls.expire(now + 1000.0)
    assert calls.forgotten(now + 1000.0) == 0
    assert line.waiting == len(calls) == 0


@pytest.mark.parametrize('event', ['accept', 'ask', 'reply', 'failure', 'dead letter'])
def test_a_cancelled_call_is_counted_until_something_is_heard_of_it(event: str) -> None:
    calls, line = Calls[str](), Line(30.0)
    calls.add('a', 'waiter', expiration=30.0, idempotent=False, now=0.0, line=line)
    calls.cancel('a')
    assert (len(calls), calls.forgotten(20.0), line.waiting) == (0, 1, 1)
    actions = calls.receive(MESSAGES[event]('a'), now=20.0, wall=0.0)
    assert (calls.forgotten(20.0), line.waiting) == (0, 0)
    # The worker is told as if nothing were known of it.
    assert actions == Calls[str]().receive(MESSAGES[event]('a'), now=20.0, wall=0.0)


def test_a_cancelled_call_of_which_nothing_is_heard_is_not_counted_for_ever() -> None:
    calls, line = Calls[str](), Line(30.0)
    calls.add('a', 'waiter', expiration=30.0, idempotent=False, now=0.0, line=line)
    calls.cancel('a')
    assert (calls.forgotten(30.9), line.waiting) == (1, 1)
    assert (calls.forgotten(31.1), line.waiting) == (0, 0)
