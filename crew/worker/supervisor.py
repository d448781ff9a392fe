"""The small parent of worker processes: starts them, watches their clocks, kills what hangs, replaces what dies.

It runs no task, holds no connection and no thread, so nothing that a task does can stop it, and it may fork at any
time. What a process cannot say any more because its interpreter is held by C code, the supervisor says for it, from a
child forked for just that.
"""

import contextlib
import logging
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from crew.messages import Accept
from crew.worker.clock import Clock, Record
from crew.worker.process import CANNOT_START, GAVE_UP, SIGNALS, Ties, end, signal_pipe

__all__ = ['Policy', 'Supervisor']

log = logging.getLogger(__name__)

POLL = 0.25

#: A process that has not told the caller of a run after this long cannot: by itself it would after 50 ms.
MUTE_AFTER = 0.5

#: How much later than the process itself the supervisor acts on what the process should have done.
GRACE = 1.0

#: A process that lived this long did not fail at once.
SETTLED = 10.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the supervisor deals with its processes.

    Args:
        processes: how many.
        slots: how many calls each runs at once.
        kill_after: from the end of a run's time until its process is given up, in seconds.
        graceful_timeout: how long running calls may take when told to end, in seconds.
        lifeline: a file descriptor; when it reads end-of-file, whoever started the supervisor is gone, and it ends.
    """

    lifeline: int | None = None
    processes: int = 1
    slots: int = 1
    kill_after: float = 5.0
    graceful_timeout: float = 28.0


@dataclass(slots=True, eq=False)
class _Child:
    """One worker process."""

    pid: int
    clock: Clock
    stacks: IO[bytes]
    born: float
    left: float | None = None
    kill_at: float | None = None
    doomed: str = ''
    doomed_run: Record | None = None
    spoken_for: set[tuple[str, float]] = field(default_factory=set)
    stacks_read: int = 0

    def new_stacks(self) -> str:
        """Return what it has written of its stacks since the last time; it does so on ``SIGQUIT``."""
        # Not by seeking: the file's position is shared with the child, who writes there.
        data = os.pread(self.stacks.fileno(), 1024 * 1024, self.stacks_read)
        self.stacks_read += len(data)
        return data.decode('utf-8', 'replace').rstrip()


class Supervisor:
    """Keeps worker processes alive until told to end. Handles this process's signals from the moment it is made.

    Args:
        policy: see :class:`Policy`.
        serve: what a worker process does; returns its exit code.
        speak: sends a message to a caller's reply queue; called in a process of its own.
    """

    def __init__(self, policy: Policy, serve: Callable[[Ties], int], speak: Callable[[str, Accept], None]) -> None:
        self._policy = policy
        self._serve = serve
        self._speak = speak
        self._children: dict[int, _Child] = {}
        self._speakers: set[int] = set()
        self._proven = False
        self._failures = 0
        self._spawn_at = 0.0
        self._ending: float | None = None
        self._exit_code = 0
        self._owner = policy.lifeline
        self._lifeline, self._lifeline_held = os.pipe()
        self._signals = signal_pipe((*SIGNALS, signal.SIGQUIT))

    def run(self) -> int:
        """Supervise until ``SIGTERM`` or ``SIGINT``; return the exit code.

        The first signal lets the processes finish what they run, a second one ends them at once.
        """
        try:
            while self._children or self._ending is None:
                now = time.monotonic()
                if self._ending is None:
                    self._fill(now)
                for child in list(self._children.values()):
                    self._watch(child, now)
                self._await_event()
                self._reap()
        finally:
            for child in self._children.values():
                _kill(child.pid, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
        return self._exit_code

    # Signals

    def _await_event(self) -> None:
        watched = [self._signals] if self._owner is None else [self._signals, self._owner]
        readable = select.select(watched, [], [], POLL)[0]
        if self._owner in readable and not os.read(self._owner, 4096):
            self._owner = None
            self._end_gracefully('standard input has ended')
        if self._signals in readable:
            for number in os.read(self._signals, 4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._told_to_end()
                elif number == signal.SIGQUIT:
                    for pid in self._children:
                        _kill(pid, signal.SIGQUIT)

    def _told_to_end(self) -> None:
        if self._ending is not None:
            log.warning('told to end at once: what runs is abandoned')
            self._end_now()
            return
        self._end_gracefully('told to end')

    def _end_gracefully(self, why: str) -> None:
        log.info('%s: finishing what runs, for at most %g s', why, self._policy.graceful_timeout)
        self._ending = time.monotonic() + self._policy.graceful_timeout + GRACE
        for pid in self._children:
            _kill(pid, signal.SIGTERM)

    def _end_now(self) -> None:
        self._exit_code = 1
        self._ending = time.monotonic()
        for pid in self._children:
            _kill(pid, signal.SIGKILL)

    # Starting

    def _fill(self, now: float) -> None:
        staying = sum(child.left is None for child in self._children.values())
        if now >= self._spawn_at:
            for _ in range(self._policy.processes - staying):
                self._spawn(now)

    def _spawn(self, now: float) -> None:
        clock = Clock(self._policy.slots)
        stacks = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the child
        pid = self._fork()
        if pid == 0:
            self._be_child(Ties(clock, self._lifeline, stacks))
        self._children[pid] = _Child(pid, clock, stacks, now)
        log.debug('worker process %d started', pid)

    def _fork(self) -> int:
        """Fork; the child keeps :data:`SIGNALS` blocked, for until it has handlers of its own they are ours."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return pid
        # The lifeline must end with the supervisor, so no child may hold it.
        os.close(self._lifeline_held)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return 0

    def _be_child(self, ties: Ties) -> None:
        code = GAVE_UP
        try:
            code = self._serve(ties)
        except BaseException:  # a forked child must never return into its parent's frames
            log.exception('the worker process failed')
        finally:
            end(code)

    # Watching

    def _watch(self, child: _Child, now: float) -> None:
        self._proven = self._proven or child.clock.was_ready
        if child.clock.leaving and child.left is None:
            child.left = now
        if self._ending is not None and now >= self._ending:
            self._doom(child, f'it did not end within {self._policy.graceful_timeout:g} s', now)
        elif child.left is not None and now >= child.left + self._policy.kill_after + GRACE:
            self._doom(child, 'it gave itself up and did not end', now)
        else:
            for record in child.clock.running():
                self._watch_run(child, record, now)
        if child.kill_at is not None:
            if now >= child.kill_at:
                self._execute(child)
        elif stacks := child.new_stacks():
            log.warning('worker process %d is here:\n%s', child.pid, stacks)

    def _watch_run(self, child: _Child, record: Record, now: float) -> None:
        age = now - record.started
        if child.left is None and age >= record.timeout + self._policy.kill_after + GRACE:
            why = f'{record.text} has run for {age:.1f} s; its limit is {record.timeout:g} s'
            self._doom(child, why, now, record)
        run = record.correlation_id, record.started
        unable = record.accepted or not record.reply_to or not child.clock.inbox
        if unable or age < MUTE_AFTER or run in child.spoken_for:
            return
        child.spoken_for.add(run)
        accept = Accept(
            correlation_id=record.correlation_id,
            inbox=child.clock.inbox,
            ask=False,
            ran=max(0.0, age),
            timeout=record.timeout,
        )
        log.warning('worker process %d cannot speak while it runs %s; telling its caller', child.pid, record.text)
        self._speak_for(record.reply_to, accept)

    def _speak_for(self, reply_to: str, accept: Accept) -> None:
        pid = self._fork()
        if pid:
            self._speakers.add(pid)
            return
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._speak(reply_to, accept)
            code = 0
        except BaseException as error:  # a forked child must never return into its parent's frames
            log.error('could not speak for a worker process: %s', error)
        finally:
            os._exit(code)

    def _doom(self, child: _Child, why: str, now: float, run: Record | None = None) -> None:
        """Ask a process for its stacks, which works whatever holds its interpreter, and kill it soon after.

        With ``run``, only if that still runs then.
        """
        if child.kill_at is None:
            child.doomed = why
            child.doomed_run = run
            child.kill_at = now + POLL
            _kill(child.pid, signal.SIGQUIT)

    def _execute(self, child: _Child) -> None:
        run = child.doomed_run
        if run is not None and all(run.started != record.started for record in child.clock.running()):
            log.warning('worker process %d lives on: %s ended at the last moment', child.pid, run.text)
            child.doomed, child.doomed_run, child.kill_at = '', None, None
            return
        log.error('worker process %d is killed: %s; it is here:\n%s', child.pid, child.doomed, child.new_stacks())
        child.kill_at = float('inf')
        _kill(child.pid, signal.SIGKILL)

    # Burying

    def _reap(self) -> None:
        for pid in self._speakers.copy():
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._speakers.discard(pid)
        for child in list(self._children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                del self._children[pid]
                self._bury(child, os.waitstatus_to_exitcode(status))
                child.clock.close()
                child.stacks.close()

    def _bury(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        if self._ending is not None:
            self._exit_code = self._exit_code or (1 if code else 0)
            return
        if code == CANNOT_START and not self._proven:
            self._exit_code = 2
            self._ending = now + self._policy.graceful_timeout
            for pid in self._children:
                _kill(pid, signal.SIGTERM)
            return
        if now - child.born >= SETTLED:
            self._failures = 0
        if (code == 0 and child.clock.was_ready) or child.left is not None or child.doomed:
            log.info('worker process %d ended, another takes its place', child.pid)
            return
        running = _while(child)
        # What dies while it runs something has died of that, and would not die again: others wait in the queue.
        at_once = bool(running) or self._failures == 0
        pause = 0.0 if at_once else min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE)
        self._failures += not running
        self._spawn_at = max(self._spawn_at, now + pause)
        again = f'in {pause:g} s' if pause else 'now'
        log.error('worker process %d %s%s; starting another %s', child.pid, _ending(code), running, again)


def _kill(pid: int, number: signal.Signals) -> None:
    # It may have ended just now; it is not reaped yet, so the id is nobody else's.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (kill -9, or the kernel's out-of-memory killer)"
    if code < 0:
        return f'was killed by {signal.Signals(-code).name}'
    return f'exited with code {code}'


def _while(child: _Child) -> str:
    running = ', '.join(record.text for record in child.clock.running())
    return f' while it ran {running}' if running else ''
