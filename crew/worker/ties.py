"""What binds a worker process to its supervisor: a clock, a lifeline, a file for stacks. They outlive an ``exec``.

A process that is forked has them anyway. One that is to load everything anew runs the program from its beginning, and
finds them by an environment variable that only it can read as its own: the process id in it is no other process's.
"""

import os
import signal
import sys
from typing import IO, NamedTuple, NoReturn

from crew.worker.clock import Clock

__all__ = ['Ties', 'inherited', 'run_program_anew']

VARIABLE = 'CREW_WORKER_TIES'

#: The supervisor may be of an older crew than the program that it runs anew; then this may differ.
LAYOUT = f'1{Clock.LAYOUT}'


class Ties(NamedTuple):
    """What binds a worker process to its supervisor.

    Args:
        clock: shared memory, where the process writes what it runs.
        lifeline: a pipe's end that reads end-of-file when the supervisor is gone.
        stacks: a file that the stacks of all threads are written to on ``SIGQUIT``, whatever holds the interpreter.
        memory: the file that the clock is a view of.
    """

    clock: Clock
    lifeline: int
    stacks: IO[bytes]
    memory: IO[bytes]

    @classmethod
    def make(cls, slots: int, lifeline: int) -> 'Ties':
        """Return those of a process that is yet to be made."""
        memory = _shared_file('crew-clock')
        memory.truncate(Clock.size_of(slots))
        return cls(Clock(slots, memory.fileno()), lifeline, _shared_file('crew-stacks'), memory)

    def close(self) -> None:
        """Free what this process holds of them; the lifeline is the supervisor's."""
        self.clock.close()
        self.stacks.close()
        self.memory.close()


def run_program_anew(ties: Ties) -> NoReturn:
    """Replace this forked process by the program that it was forked from, from its beginning, with these ties.

    Raises:
        OSError: the interpreter is gone.
    """
    descriptors = ties.memory.fileno(), ties.lifeline, ties.stacks.fileno()
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    fields = LAYOUT, os.getpid(), ties.clock.slots, *descriptors
    os.environ[VARIABLE] = ' '.join(map(str, fields))
    # While it has no handlers of its own: what a terminal sends to all is for the supervisor to decide, and the order
    # to end ends what has not begun. Ignored, for what is blocked its own children would have blocked too.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def inherited() -> Ties | None:
    """Return the ties of this process if a supervisor has run this program anew to be a worker process, else None.

    Raises:
        ValueError: the supervisor is of another version of crew.
    """
    fields = os.environ.get(VARIABLE, '').split()
    if len(fields) < 2 or fields[1] != str(os.getpid()):
        return None
    del os.environ[VARIABLE]
    if fields[0] != LAYOUT:
        raise ValueError('crew itself has changed: end the worker and start it again')
    slots, memory, lifeline, stacks = map(int, fields[2:])
    for descriptor in (memory, lifeline, stacks):
        os.set_inheritable(descriptor, False)
    memory_file = os.fdopen(memory, 'r+b', buffering=0)
    return Ties(Clock(slots, memory), lifeline, os.fdopen(stacks, 'r+b', buffering=0), memory_file)


def _shared_file(name: str) -> IO[bytes]:
    # Memory where that can be had: what is written into a file that is mapped goes to the disk now and then.
    if hasattr(os, 'memfd_create'):
        return os.fdopen(os.memfd_create(name), 'r+b', buffering=0)
    # It loads OpenSSL, for names that nobody can guess.
    import tempfile

    return tempfile.TemporaryFile()
