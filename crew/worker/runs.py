"""One run of a call: what the task is given beside the call, and how its end becomes a message.

The port of what runs tasks stands here too: resident threads (``threads``) and greenlets (``greenlets``) are two of it.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeAlias

from crew.exceptions import ProtocolError
from crew.messages import Call, Failure, Publication, Reply
from crew.worker.bodies import Input, Output, Signal
from crew.worker.clock import Clock
from crew.worker.exits import GAVE_UP

__all__ = [
    'OnFinished',
    'Outcome',
    'Owner',
    'Run',
    'Runner',
    'Task',
    'cut_short',
    'execute',
    'out_of_memory',
    'timed_out',
]

log = logging.getLogger(__name__)

FOREVER = 1e9

#: A process that cannot have so many bytes is of no use: it would fail at every request, so quickly that it got most.
NEEDED = 1024 * 1024

NO_MEMORY = b'a worker process has no memory left, not even to say whose request took it, and is replaced\n'

#: The longest text of an exception that the log has in full.
MAX_LOGGED = 64 * 1024

Outcome: TypeAlias = Reply | Failure | None


class Owner(Protocol):
    """What a run can ask of the thread that owns the connection; all methods may be called from any thread."""

    def publish(self, publication: Publication) -> None:
        """Give a value to subscribers; raises :class:`crew.ConnectionError` without a connection."""

    def make_signal(self) -> Signal:
        """Return what a task can wait for, in the way of its runner."""

    def answered(self, run: 'Run') -> None:
        """Take note that the run has something of its answer to send, or all of it."""

    def wanted(self, run: 'Run', offset: int, waiting: bool) -> None:
        """Take note that the run has read its body up to ``offset``, and needs more; perhaps it waits for that."""

    def exhausted(self, run: 'Run') -> None:
        """Take note that there is hardly any memory left after this run, though what it held is freed."""


class _Nobody:
    """The owner of a run outside of any worker, who has nothing to give to anybody."""

    def publish(self, publication: Publication) -> None:
        """Drop it."""

    def make_signal(self) -> Signal:
        """Refuse: nobody would set it."""
        raise RuntimeError('a run outside of any worker has no bodies in parts')

    def answered(self, run: 'Run') -> None:
        """Drop it."""

    def wanted(self, run: 'Run', offset: int, waiting: bool) -> None:
        """Drop it."""

    def exhausted(self, run: 'Run') -> None:
        """Drop it."""


NOBODY = _Nobody()


class Run:
    """One run of a call, in one slot of this process.

    Attributes:
        call: what is to be done.
        task: the id of the task or web application.
        owner: what it can ask of the connection.
        input: the body of the call, if that comes in parts.
        output: the answer, if it goes in parts; see :meth:`begin`.
        reply: the whole answer, if it is to go before the run ends and has not; see :meth:`answer`.
        slot: which of the process's slots it has, once it has begun.
        started: when it began, on ``time.monotonic``; when it was made, before.
        ended: when it ended; 0 before.
        timeout: how long it may run, in seconds.
        cancelled: whether its caller no longer waits. A long task may look, and stop.
        interrupted: whether its time was over, and ``SystemExit`` was raised in it.
        broken: why nothing more comes of its body, and nobody takes its answer; None while all is well.
    """

    __slots__ = (
        '_accepted',
        '_clock',
        'broken',
        'call',
        'cancelled',
        'ended',
        'input',
        'interrupted',
        'output',
        'owner',
        'reply',
        'slot',
        'started',
        'task',
        'text',
        'timeout',
    )

    def __init__(
        self,
        call: Call,
        timeout: float,
        clock: Clock,
        task: str = '',
        owner: Owner = NOBODY,
        *,
        accepted: bool = False,
    ) -> None:
        self.call = call
        self.task = task
        self.owner = owner
        self.output: Output | None = None
        self.reply: Reply | None = None
        self.input: Input | None = None
        if call.more:
            self.input = Input(owner.make_signal(), lambda offset, waiting: owner.wanted(self, offset, waiting))
        self.slot = -1
        self.started = time.monotonic()
        self.ended = 0.0
        self.timeout = timeout
        self.cancelled = False
        self.interrupted = False
        self.broken: Exception | None = None
        self.text = f'call {call.correlation_id}'
        self._accepted = accepted
        self._clock = clock

    # What runs it calls these, where it runs

    def begin_in(self, slot: int) -> None:
        """Take note that it begins in this slot, for the supervisor too."""
        self.slot = slot
        self.started = time.monotonic()
        call = self.call
        self._clock.start(
            slot, call.correlation_id, call.reply_to, self.started, self.timeout, self._accepted, self.text
        )

    def end(self) -> None:
        """Take note that it has ended, and that its slot is free."""
        self.ended = time.monotonic()
        self._clock.stop(self.slot)

    # The connection's thread calls these

    def accept(self) -> None:
        """Take note that its caller has heard of it."""
        self._accepted = True
        if self.slot >= 0 and not self.ended:
            self._clock.accept(self.slot)

    def describe(self, text: str) -> None:
        """Say what runs, for logs and for the supervisor: a request line with its id, a task's name."""
        # An id or a target with a line end in it must not look like a line of the log.
        self.text = text if text.isprintable() else ''.join(each if each.isprintable() else '?' for each in text)
        if self.slot >= 0:
            self._clock.describe(self.slot, self.text)

    def begin(self, reply: Reply) -> Output:
        """Begin an answer that goes in parts; the task then returns None. To be called by the task, once.

        Args:
            reply: the beginning, without a body; its ``more`` must be set.
        """
        owner = self.owner
        self.output = Output(
            self.call.correlation_id,
            owner.make_signal(),
            lambda: owner.answered(self),
            wanted=bool(self.call.reply_to),
        )
        if self.broken is not None:
            # That may have come just before there was an output to be told.
            self.output.fail(self.broken)
        self.output.begin(reply)
        return self.output

    def answer(self, reply: Reply) -> None:
        """Send the whole answer, although the run goes on. To be called by the task, once; it returns the same then.

        Nobody waits for what it still does, and hears of it.
        """
        self.reply = reply
        self.owner.answered(self)

    def fail_bodies(self, error: Exception) -> None:
        """Let the task know that nothing more will come of its body, and that nobody takes its answer."""
        self.broken = error
        if self.input is not None:
            self.input.fail(error)
        if self.output is not None:
            self.output.fail(error)

    def renew(self, now: float, *, paused: bool) -> None:
        """Let the time of the run begin anew, or stand still, for the supervisor too."""
        if self.slot >= 0 and not self.ended:
            self.started = now
            self._clock.renew(self.slot, now, FOREVER if paused else self.timeout)

    def time_left(self) -> float:
        """Return how long the run may go on, in seconds; negative when its time is over."""
        return self.started + self.timeout - time.monotonic()


Task: TypeAlias = Callable[[Run], Outcome]
OnFinished: TypeAlias = Callable[[Run, Outcome], None]


class Runner(Protocol):
    """What runs tasks, one in each slot. All methods are called by the thread that owns the connection."""

    #: How many runs may be given to it beyond its slots: they begin as soon as others end, without being asked for.
    ahead: int

    def start(self, run: Run) -> None:
        """Run the task in a slot that is free, or when one is; its end is reported from wherever it ran, perhaps twice.

        Runs begin in the order in which they were given.
        """

    def retract(self) -> list[Run]:
        """Take back, in their order, the runs that have not begun."""

    def settled(self, run: Run) -> None:
        """Take note that the end of a run is known here, so that its slot need not fear a late interrupt any more."""

    def interrupt(self, run: Run) -> None:
        """Raise ``SystemExit`` in it. C code and blocking system calls do not notice before they return."""

    def make_signal(self) -> Signal:
        """Return what a task can wait for; in any thread."""

    def stacks(self) -> str:
        """Return where everything in this process is now, for the log."""


def execute(task: Task, run: Run) -> Outcome:
    """Run a task to its end, whatever it is: exceptions become a :class:`Failure`, with the traceback in the log."""
    process = os.getpid()
    try:
        outcome = task(run)
    except BaseException as error:  # the task may raise anything, and the slot must live on
        if os.getpid() != process:
            _end_fork(run, error)
        if run.interrupted and isinstance(error, SystemExit):
            return timed_out(run)
        try:
            if isinstance(error, MemoryError):
                _let_go(run, error)
            return _failed(run, error)
        except MemoryError:
            return cut_short(run, error)
    if os.getpid() != process:
        _end_fork(run, None)
    return outcome


def _end_fork(run: Run, error: BaseException | None) -> NoReturn:
    """End a process that the task has forked: it would be one more worker, and run again what waits in this one."""
    code: object = None
    if isinstance(error, SystemExit):
        code = error.code
    elif error is not None:
        code = 1
        log.error('%s raised in a process that it has forked', run.text, exc_info=error)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    # As the interpreter does it: what is no number is a message, and a failure.
    os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


def _failed(run: Run, error: BaseException) -> Failure:
    if run.broken is not None and error.__cause__ is run.broken:
        log.info('%s has ended early: %s', run.text, error)
    else:
        _log(run, error)
    return Failure(
        correlation_id=run.call.correlation_id,
        kind='refused' if isinstance(error, ProtocolError) else 'raised',
        type=type(error).__name__,
        message=_text(error),
        traceback=''.join(traceback.format_exception(error)),
    )


def _let_go(run: Run, error: BaseException | None) -> None:
    """Free what the frames of an exception hold: what there was not enough memory for is in their variables."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    _check_memory(run)


def _check_memory(run: Run) -> None:
    """See that there is memory to go on with, or let the process be replaced."""
    try:
        bytes(NEEDED)
        return
    except MemoryError:
        pass
    try:
        run.owner.exhausted(run)
    except MemoryError:
        out_of_memory()


def cut_short(run: Run, error: BaseException) -> Failure:
    """Return the end of a run that an exception has ended outside of its task: an interrupt, or a lack of memory."""
    try:
        if isinstance(error, SystemExit):
            return timed_out(run)
        if isinstance(error, MemoryError):
            _check_memory(run)
        # Without memory, the interpreter raises all kinds of errors.
        return Failure(correlation_id=run.call.correlation_id, kind='raised', type=type(error).__name__)
    except MemoryError:
        out_of_memory()


def out_of_memory() -> NoReturn:
    """End the process, for it can do nothing more; its supervisor starts another."""
    os.write(2, NO_MEMORY)
    os._exit(GAVE_UP)


def _log(run: Run, error: BaseException) -> None:
    if len(_text(error)) > MAX_LOGGED:
        text = ''.join(traceback.format_exception(error))
        log.error('%s raised %s, cut here: %s …', run.text, type(error).__name__, text[:MAX_LOGGED])
    else:
        log.error('%s raised', run.text, exc_info=error)


def timed_out(run: Run) -> Failure:
    """Return the end of a run whose time was over."""
    return Failure(correlation_id=run.call.correlation_id, kind='timeout', message='its time was over')


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as failure:  # the task's own class, and its own mistake
        return f'no text, for str() of it raised {type(failure).__name__}'
