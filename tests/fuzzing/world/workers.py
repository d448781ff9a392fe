"""A worker process: the consumer that is in use, and tasks that do what was chosen for their call, a step at a time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crew.exceptions import PayloadError
from crew.messages import Failure, Reply
from crew.worker.bodies import Output
from crew.worker.clock import Clock as Records
from crew.worker.consumer import Consumer, Settings
from crew.worker.runs import OnFinished, Outcome, Run, timed_out
from tests.fuzzing.world.loops import Clock, Loop

__all__ = ['CONTENT', 'Job', 'Play', 'Worker']

#: All long bodies are pieces of this, so that what is read can be told from what is not.
CONTENT = bytes(at * at % 251 for at in range(4093)) * 1024


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
    """

    works: float = 0.0
    reads: int = 0
    pieces: tuple[int, ...] = ()
    pause: float = 0.0
    raises: bool = False
    obeys: bool = True
    twice: bool = False


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
        wake: until when it works.
        read: how much of the call's body it has read.
        written: how much it has answered.
        ended: whether it is over.
    """

    run: Run
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
        play: says what a call's task does, and takes note that it begins.
        on_end: takes note of what it came to.
    """

    def __init__(
        self,
        clock: Clock,
        settings: Settings,
        skew: float,
        play: Callable[[Run], Play],
        on_end: Callable[[Job, Outcome], None],
    ) -> None:
        self.loop = Loop(clock, skew)
        self.settings = settings
        self.jobs: list[Job] = []
        self.overdue: set[str] = set()
        self.paused = False
        self.dead = False
        self.stopping = False
        self._clock = clock
        self._play = play
        self._on_end = on_end
        self._report: OnFinished
        with self.loop.running():
            self.stop = asyncio.Event()
            records = Records(settings.slots)
            self.consumer = Consumer(settings, self._runner, records)
            self.serving = self.loop.create_task(self.consumer.run(self.stop))

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
        """Run a task."""
        play = self._play(run)
        self.jobs.append(Job(run, play, self._clock.now + play.works, left=list(play.pieces)))
        assert len(self.jobs) <= self.settings.slots, 'more runs than slots'

    def interrupt(self, run: Run) -> None:
        """Interrupt it."""
        assert any(job.run is run for job in self.jobs)
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
        moved = False
        for job in list(self.jobs):
            before = job.read, job.written, job.ended, job.whole
            self._go_on(job)
            moved = moved or before != (job.read, job.written, job.ended, job.whole)
        return moved

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
        self._report(job.run, outcome)
        if job.play.twice and job.run.interrupted:
            self._report(job.run, timed_out(job.run))
