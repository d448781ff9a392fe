"""The main table: who answers how many requests, how soon, and for how much of the machine."""

import statistics
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.processes import Service, Usage, await_port, free_port, measuring
from benchmarks.wrk import Result, load
from crew.private_node import PrivateNode

__all__ = ['Figures', 'compare', 'running']


@dataclass(slots=True)
class Figures:
    """What one contender did, a round each."""

    results: list[Result] = field(default_factory=list)
    usages: list[dict[str, Usage]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests a second, the median of the rounds."""
        return statistics.median(result.rate for result in self.results)

    @property
    def p50(self) -> float:
        """Median latency in seconds, the median of the rounds."""
        return statistics.median(result.p50 for result in self.results)

    @property
    def p99(self) -> float:
        """99th percentile of the latency in seconds, the median of the rounds."""
        return statistics.median(result.p99 for result in self.results)

    @property
    def errors(self) -> int:
        """Requests that were not answered well, of all rounds."""
        return sum(result.errors for result in self.results)

    def cpu(self, role: str) -> float:
        """Milliseconds of a role for each request, the median of the rounds."""
        rounds = zip(self.results, self.usages, strict=True)
        return statistics.median(
            usage[role].cpu / max(result.requests, 1) * 1e3 if role in usage else 0.0 for result, usage in rounds
        )

    def peak(self, role: str) -> int:
        """The largest resident size of a process of this role, in bytes."""
        return max((usage[role].peak for usage in self.usages if role in usage), default=0)


@contextmanager
def running(services: Sequence[Service], port: int, log: Path) -> Iterator[dict[str, list[int]]]:
    """Run a contender's commands; yields the process ids of each role once it answers."""
    roles: dict[str, list[int]] = {}
    started: list[Service] = []
    try:
        for service in services:
            service.start(log)
            started.append(service)
            assert service.popen is not None
            roles.setdefault(service.role, []).append(service.popen.pid)
        await_port(port)
        _await_answer(port)
        yield roles
    finally:
        for service in reversed(started):
            service.stop()


def compare(
    contenders: Sequence[Contender], node: PrivateNode, rounds: int, seconds: int, log: Path, connections: int = 32
) -> dict[str, Figures]:
    """Measure contenders in turn, several times, so that what disturbs the machine disturbs all of them."""
    figures = {contender.name: Figures() for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            port = free_port()
            with running(contender.services(node.url, port), port, log) as roles:
                url = f'http://127.0.0.1:{port}/'
                load(url, 1, connections)
                with measuring({**roles, 'broker': [node.pid]}) as usage:
                    result = load(url, seconds, connections)
            figures[contender.name].results.append(result)
            figures[contender.name].usages.append(usage)
            print(
                f'  round {number + 1}: {contender.name}: {result.rate:.0f} req/s, {result.errors} errors', flush=True
            )
    return figures


def _await_answer(port: int, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=timeout):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
