"""Who ends worker processes when nobody else can: their supervisor was killed, and C code holds their interpreter.

A worker process sees by its lifeline that its supervisor is gone, and ends by itself if it can. For one that cannot,
the supervisor leaves this behind: a process that does nothing but read a pipe, outlives the supervisor, waits as long
as an end may take, and kills what is left.
"""

import contextlib
import logging
import os
import select
import signal
import time
from typing import NoReturn

__all__ = ['Sentinel']

log = logging.getLogger(__name__)

POLL = 0.5

#: Whoever tells the whole family to end does not mean that nobody should see to it.
IGNORED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


class Sentinel:
    """The supervisor's end of it. Made before any worker process.

    Args:
        patience: how long processes may take to end when the supervisor is gone, in seconds.
        others: descriptors that it must not hold open.
    """

    def __init__(self, patience: float, *others: int) -> None:
        reading, self._pipe = os.pipe()
        # Until it has handlers of its own, the supervisor's would write what comes to it into the supervisor's pipe.
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        child = os.fork()
        if child == 0:
            # Nobody's child: the supervisor's are its worker processes, and it is to outlive the supervisor.
            if os.fork():
                os._exit(0)
            for descriptor in (self._pipe, *others):
                os.close(descriptor)
            _stand_by(reading, patience)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        os.close(reading)
        os.waitpid(child, 0)

    def watch(self, pid: int) -> None:
        """Let it know of a process that has just been made."""
        self._tell(f'+{pid}\n')

    def forget(self, pid: int) -> None:
        """Let it know that a process has ended; to be called before its id is free for others."""
        self._tell(f'-{pid}\n')

    def close(self) -> None:
        """Let go of it: it ends when all that it watches has ended. In a forked child: it is the parent's."""
        os.close(self._pipe)

    def _tell(self, line: str) -> None:
        # It may have been killed; then there is none.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, line.encode())


def _stand_by(pipe: int, patience: float) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        _end(_watched(pipe), patience)
        code = 0
    except BaseException:  # it must never return into the supervisor's frames
        log.exception('nobody is left to end worker processes that hang')
    finally:
        os._exit(code)


def _watched(pipe: int) -> dict[int, int]:
    """Read the pipe to its end; return the processes that had not ended by then, each with a descriptor of it."""
    watched: dict[int, int] = {}
    with os.fdopen(pipe) as lines:
        for line in lines:
            pid = int(line[1:])
            if line.startswith('+'):
                watched[pid] = _descriptor(pid)
            elif (descriptor := watched.pop(pid, -1)) >= 0:
                os.close(descriptor)
    return watched


def _end(watched: dict[int, int], patience: float) -> None:
    deadline = time.monotonic() + patience
    while watched and time.monotonic() < deadline:
        # Those without a descriptor are looked at each time.
        select.select([descriptor for descriptor in watched.values() if descriptor >= 0], [], [], POLL)
        watched = {pid: descriptor for pid, descriptor in watched.items() if _alive(pid, descriptor)}
    for pid, descriptor in watched.items():
        log.error(
            'worker process %d is killed: its supervisor is gone, and it did not end within %g s; C code holds it',
            pid,
            patience,
        )
        with contextlib.suppress(ProcessLookupError):
            _send(pid, descriptor, signal.SIGKILL)


def _descriptor(pid: int) -> int:
    """Return a descriptor of a process, for its id may be another's later; -1 if that is not to be had."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _alive(pid: int, descriptor: int) -> bool:
    if descriptor >= 0:
        return not select.select([descriptor], [], [], 0)[0]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _send(pid: int, descriptor: int, number: signal.Signals) -> None:
    if descriptor >= 0:
        signal.pidfd_send_signal(descriptor, number)
    else:
        os.kill(pid, number)
