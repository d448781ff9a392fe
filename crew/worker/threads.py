"""Run tasks in resident threads, and stop one that runs past its time by an exception raised in it from outside.

``PyThreadState_SetAsyncExc`` sets an exception that the thread meets at its next bytecode – not in C code, not in a
system call, and not at any certain place: it may just have left the task. So no thread here takes a lock, and one
thread, the one that owns the connection, decides everything: it hands out runs, interrupts them, and withdraws an
exception that came too late before it hands the thread its next run.

Logging does take locks, and before a ``try``: a thread that met the exception between the two would keep its lock, and
every thread that logs would stand still, the connection's first. So none is interrupted there.
"""

import ctypes
import faulthandler
import logging
import sys
import tempfile
import threading
import time
from queue import SimpleQueue
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


class ThreadRunner:
    """A thread for each slot.

    Args:
        slots: how many.
        task: what each run does.
        on_finished: told the end of each run, in the thread that ran it.
    """

    def __init__(self, slots: int, task: Task, on_finished: OnFinished) -> None:
        self._threads = [_ResidentThread(slot, task, on_finished) for slot in range(slots)]

    def start(self, run: Run) -> None:
        """Run it in the thread of its slot; see the port."""
        self._threads[run.slot].start_run(run)

    def interrupt(self, run: Run) -> None:
        """Raise ``SystemExit`` in the thread that runs it; see the port."""
        self._threads[run.slot].interrupt(run)

    def make_signal(self) -> 'ThreadSignal':
        """Return what a task can wait for; see the port."""
        return ThreadSignal()

    def stacks(self) -> str:
        """Return every thread's stack; see the port."""
        return thread_stacks()


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

    def __init__(self, slot: int, task: Task, on_finished: OnFinished) -> None:
        self._task = task
        self._on_finished = on_finished
        self._runs: SimpleQueue[Run] = SimpleQueue()
        self._current: Run | None = None
        self._interrupted = False
        # A daemon: a thread that refuses to end must not keep the process.
        self._thread = threading.Thread(target=self._live, name=f'crew-task-{slot}', daemon=True)
        self._thread.start()

    # In the thread that owns the connection

    def start_run(self, run: Run) -> None:
        if self._interrupted:
            self._interrupted = False
            _withdraw_async_exc(self._ident, None)
        self._runs.put(run)

    def interrupt(self, run: Run) -> None:
        # Said first: a thread that has not taken the run up yet sees it then, and does not begin.
        run.interrupted = True
        if self._current is run and not self._interrupted and self._is_interruptible() and self._current is run:
            self._interrupted = True
            _set_async_exc(self._ident, SystemExit)

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
                    self._current = run = self._runs.get()
                    self._on_finished(run, timed_out(run) if run.interrupted else execute(self._task, run))
                    self._current = None
            except BaseException as error:  # what came as the run was ending: it has not been reported, perhaps
                last, self._current = self._current, None
                if last is not None:
                    self._on_finished(last, cut_short(last, error))


def _locks(code: CodeType) -> bool:
    """Return whether this is one of logging's functions that deal with its locks."""
    return code.co_filename == _LOGGING and not _LOCKS.isdisjoint(code.co_names)


def thread_stacks() -> str:
    """Return every thread's stack, innermost call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode('utf-8', 'replace').rstrip()
