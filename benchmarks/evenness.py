"""How long a request waits while another worker is idle: what looking ahead costs when some requests are long."""

import asyncio
import bisect
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bridges import running
from benchmarks.contenders import crew_of
from benchmarks.processes import free_port
from crew.private_node import PrivateNode

__all__ = ['CONNECTIONS', 'LONG', 'RARE', 'Waits', 'waits']

CONNECTIONS = 8
WORKERS = 2

#: One in so many requests takes so long, in seconds; the others take hardly any time.
RARE, LONG = 50, 0.1


@dataclass(frozen=True, slots=True)
class _Run:
    """One request: when it was sent, when it ran, and where."""

    sent: float
    process: str
    began: float
    ended: float
    long: bool


@dataclass(frozen=True, slots=True)
class Waits:
    """How long short requests had waited while a worker was idle, in seconds."""

    requests: int
    p50: float
    p99: float
    longest: float


def waits(node: PrivateNode, options: Sequence[str], seconds: float, log: Path) -> Waits:
    """Return how requests wait for two worker processes with these options."""
    port = free_port()
    front, worker = crew_of('--processes', str(WORKERS), *options)(node.url, port)
    worker.command = ['uneven:app' if part == 'hello:app' else part for part in worker.command]
    with running((front, worker), port, log):
        runs = asyncio.run(_ask(port, seconds))
    # By then all processes have been seen, and look ahead if they are to.
    begun = sorted(runs, key=lambda run: run.began)[len(runs) // 4 :]
    idle = {process: _gaps([run for run in begun if run.process == process]) for process in {r.process for r in begun}}
    found = sorted(_idle_while(run, idle) for run in begun if not run.long)
    return Waits(len(found), statistics.median(found), found[len(found) * 99 // 100], found[-1])


async def _ask(port: int, seconds: float) -> list[_Run]:
    chance = random.Random(1)
    runs: list[_Run] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        while time.monotonic() < end:
            long = not chance.randrange(RARE)
            sent = time.monotonic()
            writer.write(f'GET /?{LONG if long else 0} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
            head = await reader.readuntil(b'\r\n\r\n')
            length = int(head.lower().partition(b'content-length:')[2].split(b'\r\n')[0])
            process, began, ended = (await reader.readexactly(length)).decode().split()
            runs.append(_Run(sent, process, float(began), float(ended), long))
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return runs


def _gaps(runs: Sequence[_Run]) -> list[tuple[float, float]]:
    """Return when a process ran nothing, between its first run and its last."""
    return [(before.ended, after.began) for before, after in itertools.pairwise(runs)]


def _idle_while(run: _Run, idle: dict[str, list[tuple[float, float]]]) -> float:
    """Return for how long some other process than that of a run was idle while it waited, at most."""
    return max((_shared(run, gaps) for process, gaps in idle.items() if process != run.process), default=0.0)


def _shared(run: _Run, gaps: list[tuple[float, float]]) -> float:
    """Return how much of the wait of a run lies in these gaps."""
    total = 0.0
    first = bisect.bisect_left(gaps, run.sent, key=lambda gap: gap[1])
    for start, end in itertools.islice(gaps, first, None):
        if start >= run.began:
            break
        total += min(end, run.began) - max(start, run.sent)
    return total
