"""One run of a call: what the task is given beside the call, and how its end becomes a message.

The port of what runs tasks stands here too: resident threads (``threads``) and greenlets (``greenlets``) are two of it.
"""

import logging
import time
import traceback
from collections.abc import Callable
from typing import Protocol, TypeAlias

from crew.exceptions import ProtocolError
from crew.messages import Call, Failure, Publication, Reply
from crew.worker.clock import Clock, Record

__all__ = ['OnFinished', 'Outcome', 'Run', 'Runner', 'Task', 'execute', 'timed_out']

log = logging.getLogger(__name__)

Outcome: TypeAlias = Reply | Failure


class Run:
    """One run of a call, in one slot of this process.

    Attributes:
        call: what is to be done.
        task: the id of the task or web application.
        publish: gives a value to subscribers; raises :class:`crew.ConnectionError` without a connection.
        slot: which of the process's slots it has.
        started: when it began, on ``time.monotonic``.
        timeout: how long it may run, in seconds.
        cancelled: whether its caller no longer waits. A long task may look, and stop.
        interrupted: whether its time was over, and ``SystemExit`` was raised in it.
    """

    __slots__ = ('_clock', 'call', 'cancelled', 'interrupted', 'publish', 'slot', 'started', 'task', 'text', 'timeout')

    def __init__(
        self,
        call: Call,
        slot: int,
        timeout: float,
        started: float,
        clock: Clock,
        task: str = '',
        publish: Callable[[Publication], None] = lambda publication: None,
    ) -> None:
        self.call = call
        self.task = task
        self.publish = publish
        self.slot = slot
        self.started = started
        self.timeout = timeout
        self.cancelled = False
        self.interrupted = False
        self.text = f'call {call.correlation_id}'
        self._clock = clock

    def describe(self, text: str) -> None:
        """Say what runs, for logs and for the supervisor: a request line with its id, a task's name."""
        self.text = text
        self._clock.describe(self.slot, text)

    def time_left(self) -> float:
        """Return how long the run may go on, in seconds; negative when its time is over."""
        return self.started + self.timeout - time.monotonic()

    def record(self, accepted: bool) -> Record:
        """Return what the supervisor should know when the run begins."""
        return Record(
            correlation_id=self.call.correlation_id,
            reply_to=self.call.reply_to,
            started=self.started,
            timeout=self.timeout,
            accepted=accepted,
            text=self.text,
        )


Task: TypeAlias = Callable[[Run], Outcome]
OnFinished: TypeAlias = Callable[[Run, Outcome], None]


class Runner(Protocol):
    """What runs tasks, one in each slot. All methods are called by the thread that owns the connection."""

    def start(self, run: Run) -> None:
        """Run the task of a slot that is free; its end is reported from wherever it ran, perhaps twice."""

    def interrupt(self, run: Run) -> None:
        """Raise ``SystemExit`` in it. C code and blocking system calls do not notice before they return."""

    def stacks(self) -> str:
        """Return where everything in this process is now, for the log."""


def execute(task: Task, run: Run) -> Outcome:
    """Run a task to its end, whatever it is: exceptions become a :class:`Failure`, with the traceback in the log."""
    try:
        return task(run)
    except BaseException as error:  # the task may raise anything, and the slot must live on
        if run.interrupted and isinstance(error, SystemExit):
            return timed_out(run)
        log.error('%s raised', run.text, exc_info=error)
        return Failure(
            correlation_id=run.call.correlation_id,
            kind='refused' if isinstance(error, ProtocolError) else 'raised',
            type=type(error).__name__,
            message=_text(error),
            traceback=''.join(traceback.format_exception(error)),
        )


def timed_out(run: Run) -> Failure:
    """Return the end of a run whose time was over."""
    return Failure(correlation_id=run.call.correlation_id, kind='timeout', message='its time was over')


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # the task's own class, and its own mistake
        return f'no text, for str() of it raised {type(failure).__name__}'
