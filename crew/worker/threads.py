"""Run tasks in resident threads, and stop one that runs past its time by an exception raised in it from outside.

``PyThreadState_SetAsyncExc`` sets an exception that the thread meets at its next bytecode – not in C code, not in a
system call, and not at any certain place: it may just have left the task. So no thread here takes a lock, and one
thread, the one that owns the connection, decides everything: it hands out runs, interrupts them, and withdraws an
exception that came too late before the thread takes its next run: one that was interrupted waits for that.

All threads take their runs from one queue, in which a few more may wait than there are threads: whoever ends one takes
the next at once. What nobody has taken can be taken back.

Logging does take locks, and before a ``try``: a thread that met the exception between the two would keep its lock, and
every thread that logs would stand still, the connection's first. So none is interrupted there. Nor is one
that ends, for then it takes locks of threading's: threads end when they are closed, and from then on nobody interrupts
them.
"""

import contextlib
import ctypes
import faulthandler
import logging
import sys
import tempfile
import threading
import time
from queue import Empty, SimpleQueue
from types import CodeType

from crew.worker.runs import OnFinished, Run, Task, cut_short, execute, timed_out

__all__ = ['ThreadRunner', 'thread_stacks']

#: How long a thread that is to be interrupted may take to leave a lock of logging's alone, in seconds. One that takes
#: longer is not interrupted, so its process will be replaced.
UNLOCKED_WITHIN = 0.1

_LOGGING = logging.Handler.handle.__code__.co_filename
_LOCKS = {'acquire', 'release', 'lock', '_acquireLock', '_releaseLock', '_lock'}

# PYFUNCTYPE keeps the interpreter lock during the call, which this function needs.
_set_async_exc = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ('PyThreadState_SetAsyncExc', ctypes.pythonapi)
)
_withdraw_async_exc = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ('PyThreadState_SetAsyncExc', ctypes.pythonapi)
)


#: How many runs may wait in the queue: enough that threads and connection wake up for many at once.
AHEAD = 16


class ThreadRunner:
    """A thread for each slot.

    Args:
        slots: how many.
        task: what each run does.
        on_finished: told the end of each run, in the thread that ran it.
    """

    def __init__(self, slots: int, task: Task, on_finished: OnFinished) -> None:
        self.ahead = AHEAD
        self._runs: SimpleQueue[Run | None] = SimpleQueue()
        self._threads = [_ResidentThread(slot, self._runs, task, on_finished) for slot in range(slots)]

    def start(self, run: Run) -> None:
        """Run it in the next thread that is free; see the port."""
        self._runs.put(run)

    def retract(self) -> list[Run]:
        """Take back what no thread has taken; see the port."""
        runs: list[Run] = []
        with contextlib.suppress(Empty):
            while (run := self._runs.get_nowait()) is not None:
                runs.append(run)
            # That was for a thread, to end it.
            self._runs.put(None)
        return runs

    def interrupt(self, run: Run) -> None:
        """Raise ``SystemExit`` in the thread that runs it; see the port."""
        # Said first: a thread that has not taken the run up yet sees it then, and does not begin.
        run.interrupted = True
        if run.slot >= 0:
            self._threads[run.slot].interrupt(run)

    def settled(self, run: Run) -> None:
        """Withdraw an exception that came too late; see the port."""
        if run.interrupted and run.slot >= 0:
            self._threads[run.slot].calm()

    def make_signal(self) -> 'ThreadSignal':
        """Return what a task can wait for; see the port."""
        return ThreadSignal()

    def stacks(self) -> str:
        """Return every thread's stack; see the port."""
        return thread_stacks()

    def close(self) -> None:
        """Let each thread end, after what it runs. Nobody waits for that, and no run is interrupted any more."""
        for thread in self._threads:
            thread.close()
        for _ in self._threads:
            self._runs.put(None)


class ThreadSignal:
    """What a thread waits for and another sets: a queue, for an interrupt must not meet a lock that is held."""

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def wait(self) -> None:
        """Return when it has been set since the last wait."""
        self._tokens.get()

    def set(self) -> None:
        """Wake who waits."""
        if self._tokens.empty():
            self._tokens.put(None)


class _ResidentThread:
    """One thread that takes run after run."""

    def __init__(self, slot: int, runs: 'SimpleQueue[Run | None]', task: Task, on_finished: OnFinished) -> None:
        self._slot = slot
        self._task = task
        self._on_finished = on_finished
        self._runs = runs
        self._current: Run | None = None
        self._interrupted = False
        self._closed = False
        self._calmed: SimpleQueue[None] = SimpleQueue()
        # A daemon: a thread that refuses to end must not keep the process.
        self._thread = threading.Thread(target=self._live, name=f'crew-task-{slot}', daemon=True)
        self._thread.start()

    # In the thread that owns the connection

    def interrupt(self, run: Run) -> None:
        if self._closed or self._current is not run or self._interrupted or not self._is_interruptible():
            return
        # Said before it is looked again: a thread that is still at this run then waits behind it until it is calmed.
        self._interrupted = True
        if self._current is run:
            _set_async_exc(self._ident, SystemExit)
        else:
            self.calm()

    def calm(self) -> None:
        """Let the thread go on with other runs."""
        # Once it is closed, it may have ended, and another have got its number.
        if self._interrupted and not self._closed:
            _withdraw_async_exc(self._ident, None)
            self._interrupted = False
            self._calmed.put(None)

    def close(self) -> None:
        """Let the thread alone from now on: it calms itself."""
        self._closed = True
        self._calmed.put(None)

    def _is_interruptible(self) -> bool:
        """Return whether the thread holds no lock of logging's that it might keep, after a moment if need be."""
        deadline = time.monotonic() + UNLOCKED_WITHIN
        while time.monotonic() < deadline:
            # A new turn with the interpreter lock lasts 5 ms: the thread stays where it is seen until that is done.
            time.sleep(0)
            frame = sys._current_frames().get(self._ident)
            if frame is None or not _locks(frame.f_code):
                return True
        return False

    @property
    def _ident(self) -> int:
        assert self._thread.ident is not None
        return self._thread.ident

    # In the thread itself

    def _live(self) -> None:
        while True:
            try:
                # A loop of its own: an interrupt may be met as it jumps back, which must not be outside of the try.
                while True:
                    while self._interrupted:
                        self._wait_until_calm()
                    self._current = run = self._runs.get()
                    if run is None:
                        return
                    run.begin_in(self._slot)
                    outcome = timed_out(run) if run.interrupted else execute(self._task, run)
                    run.end()
                    self._on_finished(run, outcome)
                    self._current = None
            except BaseException as error:  # what came as the run was ending: it has not been reported, perhaps
                last, self._current = self._current, None
                if last is not None:
                    last.end()
                    self._on_finished(last, cut_short(last, error))

    def _wait_until_calm(self) -> None:
        if self._closed:
            # Nobody raises it anew, so it cannot be met in the next run, or where the thread ends.
            _withdraw_async_exc(self._ident, None)
            self._interrupted = False
        else:
            self._calmed.get()


def _locks(code: CodeType) -> bool:
    """Return whether this is one of logging's functions that deal with its locks."""
    return code.co_filename == _LOGGING and not _LOCKS.isdisjoint(code.co_names)


def thread_stacks() -> str:
    """Return every thread's stack, innermost call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode('utf-8', 'replace').rstrip()
