"""A worker process: the consumer that is in use, and tasks that do what was chosen for their call, a step at a time.

As threads do, slots take their runs from one queue in which some may wait, and one that was interrupted takes none
before the consumer knows the end of the last.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crew.exceptions import PayloadError
from crew.messages import Failure, Reply
from crew.worker.bodies import Output
from crew.worker.clock import Clock as Records
from crew.worker.consumer import Consumer, Settings
from crew.worker.deliveries import FRESH, SHORT
from crew.worker.runs import OnFinished, Outcome, Run, timed_out
from tests.fuzzing.world.loops import Clock, Loop

__all__ = ['CONTENT', 'Job', 'Play', 'Worker']

#: All long bodies are pieces of this, so that what is read can be told from what is not.
#: As much as the longest answer, four pieces of the largest.
CONTENT = bytes(at * at % 251 for at in range(4093)) * 1280

#: By how much the consumer may be late to see that a run is not short: its alarms may ring a moment late.
LATE = 0.003

#: How long a call may wait behind short ones in the end.
LONGEST_WAIT = 0.2


@dataclass(slots=True)
class Play:
    """What a task is to do.

    Args:
        works: for so many seconds it does, before anything else.
        reads: how much of the call's body it reads, in bytes.
        pieces: what it answers in parts, in bytes each; a whole answer if there are none.
        pause: how long it works between pieces.
        raises: whether it fails in the end.
        obeys: whether it ends when it is interrupted.
        twice: whether an end by an interrupt is reported twice.
        rests: whether its slot is slow to take the next run.
    """

    works: float = 0.0
    reads: int = 0
    pieces: tuple[int, ...] = ()
    pause: float = 0.0
    raises: bool = False
    obeys: bool = True
    twice: bool = False
    rests: bool = False


class Blocked(Exception):
    """Raised where a task would wait."""


class Signal:
    """What a task waits for; when it is set, the task is tried again.

    Attributes:
        awaited: whether a task stands still for it.
    """

    def __init__(self) -> None:
        self.awaited = False
        self._set = False

    def wait(self) -> None:
        """Go on if it has been set since the last time; else stop the task where it is."""
        self.awaited = not self._set
        self._set = False
        if self.awaited:
            raise Blocked

    def set(self) -> None:
        """Let the task go on."""
        self._set = True
        self.awaited = False


@dataclass(slots=True, eq=False)
class Job:
    """A run under way.

    Attributes:
        slot: which it has.
        wake: until when it works.
        read: how much of the call's body it has read.
        written: how much it has answered.
        ended: whether it is over.
    """

    run: Run
    slot: int
    play: Play
    wake: float
    output: Output | None = None
    read: int = 0
    written: int = 0
    left: list[int] = field(default_factory=list)
    writing: bool = False
    whole: bool = False
    ended: bool = False

    @property
    def blocked(self) -> bool:
        """Whether it waits for something that has not come."""
        bodies: list[Any] = [self.run.input, self.output]
        return any(body is not None and body._signal.awaited for body in bodies)


class Worker:
    """One process.

    Args:
        clock: the time.
        settings: of its consumer.
        skew: how far its wall clock is off.
        ahead: how many runs may wait for a slot.
        play: says what a call's task does, and takes note that it begins.
        on_end: takes note of what it came to.

    Attributes:
        jobs: what runs.
        waiting: the runs that have no slot yet.
        overdue: the calls that were interrupted.
        kept: the calls that were asked about and have waited for a slot then, fetched ahead.
        stood: when it has stood still last.
    """

    def __init__(
        self,
        clock: Clock,
        settings: Settings,
        skew: float,
        ahead: int,
        play: Callable[[Run], Play],
        on_end: Callable[[Job, Outcome], None],
    ) -> None:
        self.loop = Loop(clock, skew)
        self.settings = settings
        self.ahead = ahead
        self.jobs: list[Job] = []
        self.waiting: deque[Run] = deque()
        self.overdue: set[str] = set()
        self.kept: set[str] = set()
        self.stood = 0.0
        self._paused = False
        self.dead = False
        self.stopping = False
        self._clock = clock
        self._play = play
        self._on_end = on_end
        self._report: OnFinished
        self._slots = list(range(settings.slots))
        # Slots that are free, and take no run yet.
        self._resting: list[int] = []
        # What has ended and is not settled, and the slot of what was interrupted, which keeps it until then.
        self._unsettled: dict[Run, int | None] = {}
        with self.loop.running():
            self.stop = asyncio.Event()
            records = Records(settings.slots)
            self.consumer = Consumer(settings, self._runner, records)
            self.serving = self.loop.create_task(self.consumer.run(self.stop))

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self.stood = self._clock.now

    @property
    def dawdles(self) -> bool:
        """Whether a run waits behind one that has turned out not to be short."""
        latest = max((job.run.started for job in self.jobs), default=0.0)
        return bool(self.waiting) and not self._slots and self._clock.now > latest + SHORT + LATE

    def check(self) -> None:
        """Fail if the consumer takes something else for what runs or waits than what does."""
        known = {*self.waiting, *self._unsettled, *(job.run for job in self.jobs)}
        assert known == set(self.consumer._held) == set(self.consumer._runs.values()), 'it has lost sight of a run'

    def note_kept(self) -> None:
        """Take note of what waits for a slot, was asked about, and is not given back."""
        if self.settings.prefetch > self.settings.slots:
            ready = self.consumer._deliveries._ready
            self.kept.update(held.call.correlation_id for held in ready if held.accepted)

    def _runner(self, on_finished: OnFinished) -> 'Worker':
        self._report = on_finished
        return self

    def told_to_end(self) -> None:
        """Take SIGTERM."""
        self.stopping = True
        with self.loop.running():
            self.stop.set()

    # The runner

    def start(self, run: Run) -> None:
        """Run a task when there is a slot."""
        assert run not in self.waiting and run.slot < 0 and not run.ended, 'it was given before'
        self.waiting.append(run)
        known = len(self.waiting) + len(self.jobs) + len(self._unsettled)
        assert known <= self.settings.slots + self.ahead, 'more runs than slots, and more wait than may'

    def retract(self) -> list[Run]:
        """Give back what has no slot."""
        runs = list(self.waiting)
        self.waiting.clear()
        return runs

    def settled(self, run: Run) -> None:
        """Let the slot of a run that was interrupted take another."""
        slot = self._unsettled.pop(run)
        if slot is not None:
            self._slots.append(slot)

    def interrupt(self, run: Run) -> None:
        """Interrupt it."""
        assert run in self.waiting or run in self._unsettled or any(job.run is run for job in self.jobs)
        run.interrupted = True
        self.overdue.add(run.call.correlation_id)

    def make_signal(self) -> Signal:
        """Return what a task can wait for."""
        return Signal()

    def stacks(self) -> str:
        """Return nothing."""
        return ''

    # The tasks

    def due(self) -> float | None:
        """Return when a task goes on by itself."""
        return min((job.wake for job in self.jobs if job.wake > self._clock.now), default=None)

    def go_on(self) -> bool:
        """Let every task go on as far as it can; return whether any did."""
        self._slots += self._resting
        self._resting.clear()
        moved, at = self._take_up(), 0
        while at < len(self.jobs):
            job = self.jobs[at]
            before = job.read, job.written, job.ended, job.whole
            self._go_on(job)
            moved = moved or before != (job.read, job.written, job.ended, job.whole)
            # The next ones begin before the consumer hears of this one's end.
            self._take_up()
            at += not job.ended
        return moved

    def _take_up(self) -> bool:
        moved = False
        while self.waiting and self._slots:
            self._begin(self.waiting.popleft())
            moved = True
        return moved

    def _begin(self, run: Run) -> None:
        held = self.consumer._held.get(run)
        assert held is not None, 'it begins, and nobody knows of it'
        waited = self._clock.now - held.arrived
        asked = held.accepted or not held.call.reply_to
        assert asked or held.arrived <= self.stood or waited < FRESH + LONGEST_WAIT, f'nobody was asked in {waited} s'
        for other in self.consumer._deliveries._ready:
            overtaken = other.delivery.channel is held.delivery.channel and other.delivery.tag < held.delivery.tag
            assert asked or other.accepted or not overtaken, 'it begins before one that came before it'
        slot = self._slots.pop(0)
        run.begin_in(slot)
        if run.interrupted:
            # Its time was over before it was taken up.
            self._finish(run, slot, timed_out(run), rests=False)
            return
        play = self._play(run)
        self.jobs.append(Job(run, slot, play, self._clock.now + play.works, left=list(play.pieces)))

    def _go_on(self, job: Job) -> None:
        run = job.run
        if run.interrupted:
            # One that does not obey is in C code, which returns when its work is done; or never.
            if job.play.obeys:
                self._end(job, timed_out(run))
            return
        if job.wake > self._clock.now or job.blocked:
            return
        try:
            outcome = self._act(job)
        except Blocked:
            return
        except OSError as error:
            assert run.broken is not None or run.input is None or run.interrupted
            outcome = self._failure(run, error)
        self._end(job, outcome)

    def _act(self, job: Job) -> Outcome:
        run, play = job.run, job.play
        if run.input is not None:
            self._read(job)
        while job.left or job.writing:
            if job.output is None:
                job.output = run.begin(Reply(correlation_id=run.call.correlation_id, more=True))
            if not job.writing:
                self._write(job, job.output, job.left.pop(0))
            else:
                self._go_on_writing(job, job.output)
            if play.pause:
                job.wake = self._clock.now + play.pause
                raise Blocked
        if play.raises:
            return self._failure(run, PayloadError('it is meant to'))
        if job.output is not None:
            return None
        # Which run it was tells one answer from another's.
        return Reply(correlation_id=run.call.correlation_id, body=run.call.correlation_id.encode())

    def _read(self, job: Job) -> None:
        body = job.run.input
        assert body is not None
        buffer = bytearray(min(job.play.reads, 200_000))
        while job.read < job.play.reads and not job.whole:
            size = body.readinto(memoryview(buffer)[: job.play.reads - job.read])
            job.whole = not size
            assert CONTENT.startswith(buffer[:size], job.read), 'it reads what was not written'
            job.read += size

    @staticmethod
    def _write(job: Job, output: Output, size: int) -> None:
        job.written += size
        job.writing = True
        output.write(CONTENT[job.written - size : job.written])
        job.writing = False

    @staticmethod
    def _go_on_writing(job: Job, output: Output) -> None:
        """Come back from where the task stood still in the middle of ``write``."""
        while output._error is None and output._written > output._granted:
            output._signal.wait()
        output._check()
        job.writing = False

    @staticmethod
    def _failure(run: Run, error: Exception) -> Failure:
        return Failure(
            correlation_id=run.call.correlation_id, kind='raised', type=type(error).__name__, message=str(error)
        )

    def _end(self, job: Job, outcome: Outcome) -> None:
        job.ended = True
        self.jobs.remove(job)
        self._on_end(job, outcome)
        self._finish(job.run, job.slot, outcome, rests=job.play.rests)
        if job.play.twice and job.run.interrupted:
            self._report(job.run, timed_out(job.run))

    def _finish(self, run: Run, slot: int, outcome: Outcome, *, rests: bool) -> None:
        run.end()
        self._unsettled[run] = slot if run.interrupted else None
        if not run.interrupted:
            (self._resting if rests else self._slots).append(slot)
        self._report(run, outcome)
