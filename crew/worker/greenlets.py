"""Run tasks in greenlets of the main thread's hub; the connection lives in a native thread of its own.

A greenlet that computes keeps its hub from everything, so the connection must not depend on it: the native thread has
a hub of its own and goes on with heartbeats meanwhile. Commands to the main hub go through a queue and one of libev's
``async`` watchers, its only call that another thread may make.

Runs wait in a queue, too, and are not bound to a greenlet: each that begins takes the first of them. So what no
greenlet has taken can be taken back by the connection's thread, even while the hub does not turn.
"""

import contextlib
from collections import deque
from collections.abc import Callable

import gevent
import gevent.hub
from gevent.event import Event
from gevent.util import format_run_info

from crew.worker.runs import OnFinished, Run, Task, execute, timed_out

__all__ = ['GreenletRunner']


class GreenletRunner:
    """A greenlet for each run. Made in the main thread, after monkey-patching.

    Args:
        task: what each run does.
    """

    def __init__(self, task: Task) -> None:
        # A greenlet begins at once.
        self.ahead = 0
        self._slots: list[int] = []
        self._made = 0
        self._task = task
        self._on_finished: OnFinished = lambda run, outcome: None
        self._runs: deque[Run] = deque()
        self._begun: dict[Run, gevent.Greenlet] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_up = gevent.get_hub().loop.async_()
        self._wake_up.start(self._obey)

    # In the thread that owns the connection

    def report_to(self, on_finished: OnFinished) -> 'GreenletRunner':
        """Set who is told the end of each run, in the main thread; return self."""
        self._on_finished = on_finished
        return self

    def start(self, run: Run) -> None:
        """Run it in a greenlet of its own; see the port."""
        self._runs.append(run)
        self._command(self._spawn)

    def interrupt(self, run: Run) -> None:
        """Raise ``SystemExit`` in the greenlet at its next switch; see the port."""
        run.interrupted = True
        self._command(lambda: self._kill(run))

    def retract(self) -> list[Run]:
        """Take back what no greenlet has taken: a hub that does not turn has begun none; see the port."""
        runs: list[Run] = []
        # A greenlet may take the last one just now, so asking first whether there is any tells nothing.
        with contextlib.suppress(IndexError):
            while True:
                runs.append(self._runs.popleft())
        return runs

    def settled(self, run: Run) -> None:
        """Do nothing: what is killed is a greenlet, and each run has its own; see the port."""

    def make_signal(self) -> '_Signal':
        """Return what a task can wait for; see the port."""
        return _Signal(self._command)

    def stacks(self) -> str:
        """Return the stack of every thread and greenlet; see the port."""
        return '\n'.join(format_run_info())

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake_up.send()

    # In the main thread

    def _obey(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _spawn(self) -> None:
        gevent.spawn(self._live)

    def _kill(self, run: Run) -> None:
        # gevent takes a SystemExit that leaves a greenlet for the whole process's, so one that has not begun must not
        # get it: it looks for itself when it begins.
        if run in self._begun:
            self._begun[run].kill(SystemExit, block=False)

    def _live(self) -> None:
        try:
            run = self._runs.popleft()
        except IndexError:  # it was taken back
            return
        self._begun[run] = gevent.getcurrent()
        run.begin_in(self._slot())
        try:
            outcome = timed_out(run) if run.interrupted else execute(self._task, run)
        except SystemExit:  # the interrupt came as the run was ending
            outcome = timed_out(run)
        finally:
            del self._begun[run]
            run.end()
            self._slots.append(run.slot)
        self._on_finished(run, outcome)

    def _slot(self) -> int:
        if self._slots:
            return self._slots.pop()
        self._made += 1
        return self._made - 1


class _Signal:
    """What a greenlet waits for and another thread sets."""

    def __init__(self, command: Callable[[Callable[[], None]], None]) -> None:
        self._event = Event()
        self._command = command

    def wait(self) -> None:
        """Let other greenlets run until it has been set since the last wait."""
        self._event.wait()
        self._event.clear()

    def set(self) -> None:
        """Wake who waits, in the main thread's hub."""
        self._command(self._event.set)
