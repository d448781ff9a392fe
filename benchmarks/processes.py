"""Starting what is measured, and what it takes of the machine."""

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ['RIVALS', 'Service', 'Usage', 'await_port', 'family_of', 'free_port', 'measuring']

RIVALS = Path(__file__).parent / 'rivals'


@dataclass(slots=True)
class Usage:
    """What one role took while it was measured.

    Args:
        cpu: seconds, user and system.
        peak: resident size of its largest process, in bytes.
    """

    cpu: float = 0.0
    peak: int = 0


@dataclass(slots=True)
class Service:
    """One command that belongs to a contender.

    Args:
        role: ``front`` or ``worker``.
        command: what to run.
        environ: added to the environment.
    """

    role: str
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    popen: 'subprocess.Popen[bytes] | None' = None

    def start(self, log: Path) -> None:
        """Start it, with its output in a file."""
        with log.open('ab') as output:
            self.popen = subprocess.Popen(
                self.command,
                cwd=RIVALS,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environ},
            )

    def stop(self) -> None:
        """Tell it to end, and end what does not, children too."""
        assert self.popen is not None
        family = family_of(self.popen.pid)
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait(10)


def family_of(pid: int) -> list[psutil.Process]:
    """Return a process and all that came from it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


@contextlib.contextmanager
def measuring(roles: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Usage]]:
    """Measure what roles take while the block runs.

    Args:
        roles: of each role the processes, whose children count with them.

    Returns:
        What each has taken, complete when the block has ended.
    """
    usage = {role: Usage() for role in roles}
    families = {role: [process for pid in pids for process in family_of(pid)] for role, pids in roles.items()}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.2):
            for role, processes in families.items():
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        usage[role].peak = max(usage[role].peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    before = {role: _cpu(processes) for role, processes in families.items()}
    yield usage
    for role, processes in families.items():
        usage[role].cpu = _cpu(processes) - before[role]
    ended.set()
    sampler.join()


def _cpu(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


def await_port(port: int, timeout: float = 30.0) -> None:
    """Wait until somebody listens there."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
