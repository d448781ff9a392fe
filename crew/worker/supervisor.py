"""The small parent of worker processes: starts them, watches their clocks, kills what hangs, replaces what dies.

It runs no task, holds no connection and no thread, so nothing that a task does can stop it, and it may fork at any
time. It loads nothing that only its children need, so it is small; each child loads that for itself. What a process
cannot say any more because its interpreter is held by C code, the supervisor says for it, from a child forked for just
that.

On ``SIGHUP`` it lets new processes take the place of the old ones, one by one: each runs the program from its
beginning, so that all of it is loaded anew, and an old one is told to end when a new one takes calls. If a new one does
not come to that, nothing more is replaced until the next ``SIGHUP``.
"""

import contextlib
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from crew.worker import ties
from crew.worker.clock import Record
from crew.worker.exits import CANNOT_START, GAVE_UP, end
from crew.worker.sentinel import Sentinel
from crew.worker.signals import SIGNALS, signal_pipe
from crew.worker.terminal import Terminal
from crew.worker.ties import Ties

if TYPE_CHECKING:
    from crew.messages import Accept

__all__ = ['Policy', 'Supervisor', 'supervise']

log = logging.getLogger(__name__)

POLL = 0.25

#: A process that has not told the caller of a run after this long cannot: by itself it would after 50 ms.
MUTE_AFTER = 0.5

#: How much later than the process itself the supervisor acts on what the process should have done.
GRACE = 1.0

#: What the kernel sends for what only C code does.
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}

#: A process that lived this long did not fail at once.
SETTLED = 10.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

#: How long a new process may take to load everything and reach the broker before a reload is given up.
READY_WITHIN = 60.0

#: A terminal that closes may send its signal an instant before it is gone.
HANG_UP_TAKES = 0.1


class Policy(NamedTuple):
    """How the supervisor deals with its processes.

    Args:
        what: what is run and where, for the log.
        processes: how many.
        slots: how many calls each runs at once.
        kill_after: from the end of a run's time until its process is given up, in seconds.
        graceful_timeout: how long running calls may take when told to end, in seconds.
        lifeline: a file descriptor; when it reads end-of-file, whoever started the supervisor is gone, and it ends.
    """

    what: str
    lifeline: int | None = None
    processes: int = 1
    slots: int = 1
    kill_after: float = 5.0
    graceful_timeout: float = 28.0


class _Child:
    """One worker process.

    Args:
        pid: its id.
        ties: what binds it to us.
        born: when it was started.
        generation: how many reloads had been ordered when its code was loaded.

    Attributes:
        left: when it gave itself up.
        ends_by: until when it may finish what it runs, once it has been told to make way for another.
        kill_at: when it will be killed.
        doomed: why.
        doomed_run: what it ran then.
        spoken_for: the runs of which a caller has been told in its place, by the call's id and their beginning.
        stacks_read: how much of what it has written of its stacks has been read, in bytes.
    """

    def __init__(self, pid: int, ties: Ties, born: float, generation: int) -> None:
        self.pid = pid
        self.ties = ties
        self.born = born
        self.generation = generation
        self.left: float | None = None
        self.ends_by: float | None = None
        self.kill_at: float | None = None
        self.doomed = ''
        self.doomed_run: Record | None = None
        self.spoken_for: set[tuple[str, float]] = set()
        self.stacks_read = 0

    @property
    def stays(self) -> bool:
        """Whether it goes on taking calls, as far as anybody knows."""
        return self.left is None and self.ends_by is None

    def new_stacks(self) -> str:
        """Return what it has written of its stacks since the last time; it does so on ``SIGQUIT``."""
        # Not by seeking: the file's position is shared with the child, who writes there.
        data = os.pread(self.ties.stacks.fileno(), 1024 * 1024, self.stacks_read)
        self.stacks_read += len(data)
        return data.decode('utf-8', 'replace').rstrip()


def supervise(policy: Policy, serve: Callable[[Ties], int], speak: Callable[[str, 'Accept'], None]) -> int:
    """Be what this program is to be: its supervisor, or one of that one's worker processes. Return the exit code.

    Args:
        policy: see :class:`Policy`.
        serve: what a worker process does; returns its exit code. Without that of a supervisor, this process is one.
        speak: sends a message to a caller's reply queue; called in a process of its own.
    """
    try:
        inherited = ties.inherited()
    except ValueError as error:
        log.error('%s', error)
        return CANNOT_START
    if inherited is not None:
        _be_child(serve, inherited)
    supervisor = Supervisor(policy, serve, speak)
    # Only now: whoever reads it may send signals.
    log.info('starting %s', policy.what)
    return supervisor.run()


class Supervisor:
    """Keeps worker processes alive until told to end. Handles this process's signals from the moment it is made.

    Args:
        policy: see :class:`Policy`.
        serve: what a worker process does; returns its exit code.
        speak: sends a message to a caller's reply queue; called in a process of its own.
    """

    def __init__(self, policy: Policy, serve: Callable[[Ties], int], speak: Callable[[str, 'Accept'], None]) -> None:
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
        self._terminal = Terminal()
        # As nohup asks for it.
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._generation = 0  # how often a reload was ordered
        self._loaded = 0  # the last generation of which a process has become ready
        self._reloading = False
        self._reload_again = False
        self._candidate: _Child | None = None
        self._lifeline, self._lifeline_held = os.pipe()
        self._sentinel = Sentinel(policy.graceful_timeout + 2 * GRACE, self._lifeline_held)
        self._signals = signal_pipe((*SIGNALS, signal.SIGQUIT))

    def run(self) -> int:
        """Supervise until ``SIGTERM`` or ``SIGINT``; return the exit code.

        The first signal lets the processes finish what they run, a second one ends them at once. ``SIGHUP`` replaces
        them by new ones that load everything anew.
        """
        try:
            while self._children or self._ending is None:
                now = time.monotonic()
                self._terminal.look(now)
                if self._ending is None:
                    self._reload_on(now)
                    self._fill(now)
                for child in list(self._children.values()):
                    self._watch(child, now)
                self._await_event()
                self._reap()
        finally:
            for child in self._children.values():
                _kill(child.pid, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            self._sentinel.close()
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
                elif number == signal.SIGHUP:
                    self._hung_up()
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
        self._end_all()

    def _end_all(self) -> None:
        self._ending = time.monotonic() + self._policy.graceful_timeout + GRACE
        for pid in self._children:
            _kill(pid, signal.SIGTERM)

    def _end_now(self) -> None:
        self._exit_code = 1
        self._ending = time.monotonic()
        for pid in self._children:
            _kill(pid, signal.SIGKILL)

    def _hung_up(self) -> None:
        """Take a ``SIGHUP``: an order to reload, unless a terminal that closes has sent it."""
        if self._ending is not None:
            return
        time.sleep(HANG_UP_TAKES)
        if not self._terminal.has_just_gone(time.monotonic()):
            self._reload()
        elif self._outlives_terminal:
            log.info('the terminal is gone; going on, for SIGHUP was to be ignored')
        else:
            self._end_gracefully('the terminal is gone')

    # Reloading

    def _reload(self) -> None:
        if self._reloading:
            log.info('told to reload while that is under way: beginning anew when it is done')
            self._reload_again = True
            return
        self._reloading = True
        self._generation += 1
        log.info('told to reload: replacing the %d worker processes one by one', self._policy.processes)

    def _reload_on(self, now: float) -> None:
        """Take the next step of a reload: another process first, and then one less of the old ones."""
        candidate = self._candidate
        if not self._reloading:
            return
        if candidate is None:
            if not self._old:
                log.info('reloaded: all worker processes are new')
                self._end_reload()
            else:
                try:
                    self._candidate = self._spawn(now, self._generation)
                except OSError as error:
                    self._give_up_reload(f'no process can be made: {error}')
        elif candidate.ties.clock.was_ready:
            self._candidate = None
            self._loaded = self._generation
            if self._old:
                old = min(self._old, key=lambda child: child.born)
                log.info('worker process %d is ready; telling %d to finish what it runs', candidate.pid, old.pid)
                self._retire(old, now + self._policy.graceful_timeout)
        elif now >= candidate.born + READY_WITHIN:
            self._give_up_reload(f'the new process {candidate.pid} was not ready within {READY_WITHIN:g} s')
            self._retire(candidate, now + self._policy.kill_after)

    @property
    def _old(self) -> list[_Child]:
        return [child for child in self._children.values() if child.stays and child.generation < self._generation]

    def _retire(self, child: _Child, ends_by: float) -> None:
        child.ends_by = ends_by + GRACE
        _kill(child.pid, signal.SIGTERM)

    def _give_up_reload(self, why: str) -> None:
        self._candidate = None
        log.error(
            'the reload has stopped: %s. The %d worker processes that are left of before go on; '
            'put it right and send SIGHUP again',
            ' '.join(why.split()),
            len(self._old),
        )
        self._end_reload()

    def _end_reload(self) -> None:
        self._reloading = False
        if self._reload_again:
            self._reload_again = False
            self._reload()

    # Starting

    def _fill(self, now: float) -> None:
        staying = sum(child.stays and child is not self._candidate for child in self._children.values())
        if now >= self._spawn_at:
            for _ in range(self._policy.processes - staying):
                try:
                    # During a reload it is one of the old ones, until it is known that the new code can be loaded.
                    self._spawn(now, self._loaded)
                except OSError as error:  # too many processes or open files, no memory: what there is goes on
                    pause = self._pause()
                    self._failures += 1
                    self._spawn_at = now + pause
                    log.error('no process can be made: %s; trying again in %g s', error, pause)
                    return

    def _pause(self) -> float:
        return min(FIRST_PAUSE * 2.0 ** max(0, self._failures - 1), LONGEST_PAUSE)

    def _spawn(self, now: float, generation: int) -> _Child:
        its = Ties.make(self._policy.slots, self._lifeline)
        try:
            pid = self._fork()
        except OSError:
            its.close()
            raise
        if pid == 0:
            if generation:
                self._be_program_anew(its)
            _be_child(self._serve, its)
        self._sentinel.watch(pid)
        child = self._children[pid] = _Child(pid, its, now, generation)
        log.debug('worker process %d started', pid)
        return child

    def _fork(self) -> int:
        """Fork; the child keeps :data:`SIGNALS` blocked, for until it has handlers of its own they are ours."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if pid:
            return pid
        # The lifeline must end with the supervisor, so no child may hold it.
        os.close(self._lifeline_held)
        self._sentinel.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return 0

    @staticmethod
    def _be_program_anew(its: Ties) -> NoReturn:
        try:
            ties.run_program_anew(its)
        except BaseException as error:  # a forked child must never return into its parent's frames
            its.clock.set_reason(f'the program cannot be run anew: {error}')
        end(CANNOT_START)

    # Watching

    def _watch(self, child: _Child, now: float) -> None:
        self._proven = self._proven or child.ties.clock.was_ready
        if child.ties.clock.leaving and child.left is None:
            child.left = now
        if self._ending is not None and now >= self._ending:
            self._doom(child, f'it did not end within {self._policy.graceful_timeout:g} s', now)
        elif child.left is not None and now >= child.left + self._policy.kill_after + GRACE:
            self._doom(child, 'it gave itself up and did not end', now)
        elif child.ends_by is not None and now >= child.ends_by:
            self._doom(child, 'it was told to end for another to take its place, and did not in time', now)
        else:
            for record in child.ties.clock.running():
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
        unable = record.accepted or not record.reply_to or not child.ties.clock.inbox
        if unable or age < MUTE_AFTER or run in child.spoken_for:
            return
        child.spoken_for.add(run)
        log.warning('worker process %d cannot speak while it runs %s; telling its caller', child.pid, record.text)
        self._speak_for(child.ties.clock.inbox, record, max(0.0, age))

    def _speak_for(self, inbox: str, record: Record, ran: float) -> None:
        try:
            pid = self._fork()
        except OSError as error:
            log.error('could not speak for a worker process: %s', error)
            return
        if pid:
            self._speakers.add(pid)
            return
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            # Only here: the supervisor itself sends nothing.
            from crew.messages import Accept

            accept = Accept(
                correlation_id=record.correlation_id, inbox=inbox, ask=False, ran=ran, timeout=record.timeout
            )
            self._speak(record.reply_to, accept)
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
        if run is not None and all(run.started != record.started for record in child.ties.clock.running()):
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
            # Not reaped yet: the id is nobody else's.
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._sentinel.forget(child.pid)
                pid, status, usage = os.wait4(child.pid, 0)
                del self._children[pid]
                self._bury(child, os.waitstatus_to_exitcode(status), usage)
                child.ties.close()

    def _bury(self, child: _Child, code: int, usage: resource.struct_rusage) -> None:
        now = time.monotonic()
        was_ready = child.ties.clock.was_ready
        if self._ending is not None:
            # One that was told to end while it was loading has abandoned nothing.
            abandoned = code != 0 and (was_ready or code != -signal.SIGTERM)
            self._exit_code = self._exit_code or (1 if abandoned else 0)
            return
        if code == CANNOT_START and not self._proven:
            self._exit_code = 2
            self._end_all()
            return
        if child is self._candidate and not (code == 0 and was_ready):
            self._give_up_reload(f'the new process {child.pid} {_ending(code, usage, was_ready)}{_reason(child)}')
            return
        if child is self._candidate:
            self._candidate = None
        if now - child.born >= SETTLED:
            self._failures = 0
        running = _while(child)
        if (code == 0 and was_ready and not running) or not child.stays or child.doomed:
            log.info('worker process %d ended, another takes its place', child.pid)
            return
        # What dies while it runs something has died of that, and would not die again: others wait in the queue.
        at_once = bool(running) or self._failures == 0
        pause = 0.0 if at_once else self._pause()
        self._failures += not running
        self._spawn_at = max(self._spawn_at, now + pause)
        again = f'in {pause:g} s' if pause else 'now'
        stacks = child.new_stacks()
        log.error(
            'worker process %d %s%s%s; starting another %s%s',
            child.pid,
            _ending(code, usage, was_ready),
            running,
            _reason(child),
            again,
            f'; it was here:\n{stacks}' if stacks else '',
        )


def _be_child(serve: Callable[[Ties], int], its: Ties) -> NoReturn:
    code = GAVE_UP
    try:
        code = serve(its)
    except BaseException:  # a forked child must never return into its parent's frames
        log.exception('the worker process failed')
    end(code)


def _kill(pid: int, number: signal.Signals) -> None:
    # It may have ended just now; it is not reaped yet, so the id is nobody else's.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _ending(code: int, usage: resource.struct_rusage, was_ready: bool) -> str:
    """Say how a process ended, and what to do about it."""
    if code == -signal.SIGKILL:
        # macOS counts bytes.
        most = usage.ru_maxrss / (1024 if sys.platform != 'darwin' else 1024 * 1024)
        return (
            "was killed by SIGKILL (kill -9, or the kernel's out-of-memory killer: dmesg tells; "
            f'it had {most:.0f} MiB at most)'
        )
    if -code in CRASHES:
        return f'was killed by {signal.Signals(-code).name} (a crash in C code: see which extension module it was in)'
    if code < 0:
        return f'was killed by {_signal_name(-code)}'
    if code == GAVE_UP:
        return f'gave itself up (exit code {code}; the lines before tell why)'
    if not was_ready:
        return f'exited with code {code} before it was ready'
    return f'exited with code {code} (by os._exit() or the exit() of C code: sys.exit() ends only a request)'


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f'signal {number}'


def _while(child: _Child) -> str:
    running = ', '.join(record.text for record in child.ties.clock.running())
    return f' while it ran {running}' if running else ''


def _reason(child: _Child) -> str:
    reason = child.ties.clock.reason
    return f': {reason}' if reason else ''
