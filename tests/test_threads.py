"""Tasks in threads: stopped from outside when their time is over, always reported, never hit by another's interrupt."""

import io
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from queue import SimpleQueue

import pytest

from crew.exceptions import ProtocolError
from crew.messages import Call, Failure, Reply
from crew.worker.clock import Clock
from crew.worker.runs import Outcome, Run, Task
from crew.worker.threads import ThreadRunner, thread_stacks
from tests.waiting import wait_until

CLOCK = Clock(1)
NUMBERS = count()
LONG = 10.0


class Bench:
    """One resident thread, whose tasks are given run by run, and what it reports."""

    def __init__(self) -> None:
        self.reports: SimpleQueue[tuple[Run, Outcome]] = SimpleQueue()
        self.tasks: dict[Run, Task] = {}
        self.started: set[Run] = set()
        self.runner = ThreadRunner(1, self.task, self.report)

    def task(self, run: Run) -> Outcome:
        self.started.add(run)
        return self.tasks[run](run)

    def report(self, run: Run, outcome: Outcome) -> None:
        self.reports.put((run, outcome))

    def start(self, task: Task) -> Run:
        run = Run(Call(correlation_id=f'{next(NUMBERS)}'), 60.0, CLOCK)
        self.tasks[run] = task
        self.runner.start(run)
        return run

    def start_and_interrupt(self, task: Task) -> Run:
        run = self.start(task)
        wait_until(lambda: run in self.started, what='the start of the run')
        self.runner.interrupt(run)
        return run

    def outcome(self, run: Run) -> Outcome:
        """The first report of a run; another report of an earlier one may come before."""
        while True:
            reported, outcome = self.reports.get(timeout=LONG)
            self.runner.settled(reported)
            if reported is run:
                return outcome


@pytest.fixture(scope='module')
def bench() -> Bench:
    return Bench()


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def reply(run: Run) -> Reply:
    return Reply(correlation_id=run.call.correlation_id)


def kind(outcome: Outcome) -> str:
    return outcome.kind if isinstance(outcome, Failure) else 'reply'


def test_a_task_that_returns_is_reported_with_its_reply(bench: Bench) -> None:
    run = bench.start(reply)
    assert bench.outcome(run) == reply(run)


def test_a_busy_loop_is_stopped(bench: Bench) -> None:
    def spin(run: Run) -> Outcome:
        while True:
            pass

    run = bench.start_and_interrupt(spin)
    assert kind(bench.outcome(run)) == 'timeout'
    assert run.interrupted


def test_a_task_can_clean_up_when_its_time_is_over(bench: Bench) -> None:
    cleaned: list[str] = []

    def tidy(run: Run) -> Outcome:
        try:
            while True:
                pass
        except SystemExit:
            cleaned.append('caught')
            raise
        finally:
            cleaned.append('finally')

    assert kind(bench.outcome(bench.start_and_interrupt(tidy))) == 'timeout'
    assert cleaned == ['caught', 'finally']


def test_a_task_that_swallows_the_interrupt_is_reported_when_it_ends(bench: Bench) -> None:
    swallowed, enough = threading.Event(), threading.Event()

    def stubborn(run: Run) -> Outcome:
        try:
            while True:
                pass
        except SystemExit:
            swallowed.set()
        enough.wait(LONG)
        return reply(run)

    run = bench.start_and_interrupt(stubborn)
    assert swallowed.wait(LONG)
    assert bench.reports.empty()
    enough.set()
    assert bench.outcome(run) == reply(run)


def test_a_run_is_interrupted_once_only(bench: Bench) -> None:
    swallowed, enough = threading.Event(), threading.Event()

    def stubborn(run: Run) -> Outcome:
        try:
            while True:
                pass
        except SystemExit:
            swallowed.set()
        while not enough.is_set():
            pass
        return reply(run)

    run = bench.start_and_interrupt(stubborn)
    assert swallowed.wait(LONG)
    bench.runner.interrupt(run)
    enough.set()
    assert bench.outcome(run) == reply(run)


def test_an_interrupt_of_a_run_that_has_ended_hits_nobody(bench: Bench) -> None:
    first = bench.start(reply)
    bench.outcome(first)
    bench.runner.interrupt(first)
    second = bench.start(lambda run: Reply(correlation_id=str(sum([1 for _ in range(10_000)]))))
    assert kind(bench.outcome(second)) == 'reply'


def test_a_run_whose_time_is_over_before_its_thread_takes_it_up_does_not_begin() -> None:
    reported, let_go = threading.Event(), threading.Event()
    began: list[Run] = []
    reports: SimpleQueue[tuple[Run, Outcome]] = SimpleQueue()

    def task(run: Run) -> Outcome:
        began.append(run)
        return reply(run)

    def report(run: Run, outcome: Outcome) -> None:
        reports.put((run, outcome))
        reported.set()
        let_go.wait(LONG)

    runner = ThreadRunner(1, task, report)
    first, second = (Run(Call(correlation_id=name), 60.0, CLOCK) for name in 'ab')
    runner.start(first)
    assert reported.wait(LONG)
    runner.start(second)  # the thread is still on its way back from the first
    runner.interrupt(second)
    let_go.set()
    assert [(run, kind(outcome)) for run, outcome in (reports.get(timeout=LONG) for _ in 'ab')] == [
        (first, 'reply'),
        (second, 'timeout'),
    ]
    assert began == [first]


@pytest.mark.parametrize('error', [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError, RecursionError])
def test_whatever_a_task_raises_by_itself_is_its_failure(bench: Bench, error: type[BaseException]) -> None:
    def fail(run: Run) -> Outcome:
        raise error('by myself')

    outcome = bench.outcome(bench.start(fail))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type, outcome.message) == ('raised', error.__name__, 'by myself')
    assert 'raise error' in outcome.traceback


@pytest.mark.parametrize('error', [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_exception_without_a_text_is_a_failure_like_any_other(bench: Bench, error: type[BaseException]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise error

    def fail(run: Run) -> Outcome:
        raise Mute

    outcome = bench.outcome(bench.start(fail))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type) == ('raised', 'Mute')


@pytest.mark.parametrize(
    ('error', 'expected'), [(ProtocolError, 'refused'), (type('ProtocolError', (Exception,), {}), 'raised')]
)
def test_only_what_crew_cannot_read_is_refused(bench: Bench, error: type[Exception], expected: str) -> None:
    def fail(run: Run) -> Outcome:
        raise error('?')

    assert kind(bench.outcome(bench.start(fail))) == expected


def test_a_failure_in_a_run_whose_time_is_over_is_still_the_tasks_own(bench: Bench) -> None:
    def fail(run: Run) -> Outcome:
        try:
            while True:
                pass
        except SystemExit:
            raise ValueError('rolled back') from None

    assert kind(bench.outcome(bench.start_and_interrupt(fail))) == 'raised'


def test_each_slot_has_a_thread_of_its_own() -> None:
    both = threading.Barrier(2, timeout=LONG)
    done: SimpleQueue[Outcome] = SimpleQueue()

    def meet(run: Run) -> Outcome:
        both.wait()
        return reply(run)

    runner = ThreadRunner(2, meet, lambda run, outcome: done.put(outcome))
    for _ in range(2):
        runner.start(Run(Call(correlation_id='1'), 60.0, Clock(2)))
    assert [kind(done.get(timeout=LONG)) for _ in range(2)] == ['reply', 'reply']


def test_the_stacks_show_where_a_task_is(bench: Bench) -> None:
    enough = threading.Event()

    def wait_in_here(run: Run) -> Outcome:
        enough.wait(LONG)
        return reply(run)

    run = bench.start(wait_in_here)
    wait_until(lambda: 'wait_in_here' in bench.runner.stacks())
    assert threading.current_thread().name and 'test_the_stacks_show_where_a_task_is' in thread_stacks()
    enough.set()
    assert bench.outcome(run) == reply(run)


# Where hypothesis has hung a callback into the collector, an interrupt may land in that, and Python drops it there.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('catches', [False, True], ids=['let through', 'caught'])
def test_no_interrupt_is_lost_or_leaks_into_another_run(bench: Bench, hasty_switches: None, catches: bool) -> None:
    """Thousands of tiny runs, half of them interrupted about when they end: all are reported, the rest are unharmed."""
    dice = random.Random(1)

    def spin(turns: int) -> Callable[[Run], Outcome]:
        def task(run: Run) -> Outcome:
            try:
                for _ in range(turns):
                    pass
            except SystemExit:
                if not catches:
                    raise
            return reply(run)

        return task

    for _ in range(10_000):
        hit = dice.random() < 0.5
        run = bench.start(spin(dice.randrange(300)))
        for _ in range(dice.randrange(400)):
            pass
        if hit:
            bench.runner.interrupt(run)
        outcome = bench.outcome(run)
        assert kind(outcome) in (('reply', 'timeout') if hit else ('reply',))
        del bench.tasks[run]


def test_a_task_that_is_stopped_while_it_logs_leaves_the_lock_to_others(bench: Bench) -> None:
    handler = logging.StreamHandler(io.StringIO())
    logger = logging.Logger('a task')
    logger.addHandler(handler)

    def logs(run: Run) -> Outcome:
        while True:
            logger.info('a line')

    for _ in range(200):
        assert kind(bench.outcome(bench.start_and_interrupt(logs))) == 'timeout'
        assert handler.lock is not None
        assert handler.lock.acquire(timeout=1), 'a thread has kept the lock'
        handler.lock.release()


# The end


@pytest.fixture
def escaped(monkeypatch: pytest.MonkeyPatch) -> list[threading.ExceptHookArgs]:
    """What threads have ended with, ``SystemExit`` too, of which nobody would hear."""
    escaped: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, 'excepthook', escaped.append)
    return escaped


def new_threads(before: list[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before]


def test_threads_end_when_they_are_closed(escaped: list[threading.ExceptHookArgs]) -> None:
    before = threading.enumerate()
    runner = ThreadRunner(3, reply, lambda run, outcome: None)
    assert len(new_threads(before)) == 3
    runner.close()
    wait_until(lambda: not new_threads(before), LONG, 'the end of the threads')
    assert escaped == []


def test_a_thread_that_is_closed_in_a_task_ends_after_it() -> None:
    before = threading.enumerate()
    bench, enough = Bench(), threading.Event()

    def wait(run: Run) -> Outcome:
        enough.wait(LONG)
        return reply(run)

    run = bench.start(wait)
    wait_until(lambda: run in bench.started)
    bench.runner.close()
    bench.runner.interrupt(run)
    assert bench.runner.retract() == []
    assert len(new_threads(before)) == 1
    enough.set()
    assert bench.outcome(run) == reply(run)
    wait_until(lambda: not new_threads(before), LONG, 'the end of the thread')


def test_a_thread_that_is_closed_in_a_task_that_hangs_ends_after_it(escaped: list[threading.ExceptHookArgs]) -> None:
    before = threading.enumerate()
    bench = Bench()

    def hang(run: Run) -> Outcome:
        time.sleep(0.5)
        return reply(run)

    bench.start_and_interrupt(hang)
    bench.runner.close()
    wait_until(lambda: not new_threads(before), LONG, 'the end of the thread')
    assert kind(bench.reports.get(timeout=LONG)[1]) == 'timeout'
    assert escaped == []


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_thread_that_is_closed_meets_no_interrupt_where_it_ends(
    hasty_switches: None, escaped: list[threading.ExceptHookArgs]
) -> None:
    """Runs that are interrupted about when they end: met behind that, it would keep threading's locks taken."""
    before = threading.enumerate()
    dice = random.Random(1)
    for _ in range(1000):
        bench = Bench()
        turns = dice.randrange(300)

        def spin(run: Run, turns: int = turns) -> Outcome:
            for _ in range(turns):
                pass
            return reply(run)

        run = bench.start(spin)
        for _ in range(dice.randrange(400)):
            pass
        bench.runner.interrupt(run)
        bench.runner.close()
        assert kind(bench.outcome(run)) in ('reply', 'timeout')
    wait_until(lambda: not new_threads(before), LONG, 'the end of the threads')
    assert escaped == []
