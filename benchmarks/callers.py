"""RPC alone: how many calls a second, with one and with many in flight."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import Caller
from crew.private_node import PrivateNode

__all__ = ['compare_callers']


def compare_callers(
    callers: Sequence[Caller], node: PrivateNode, rounds: int, seconds: float, at_once: Sequence[int], log: Path
) -> dict[str, dict[int, float]]:
    """Measure clients with their workers in turn; return calls a second by name and by calls in flight."""
    rates: dict[str, dict[int, list[float]]] = {caller.name: {many: [] for many in at_once} for caller in callers}
    for number in range(rounds):
        for caller in callers:
            worker = caller.worker(node.url)
            worker.start(log)
            try:
                # What a client takes to connect is not measured, and the worker is to be there.
                time.sleep(3)
                for many in at_once:
                    rates[caller.name][many].append(_rate(caller, node.url, many, seconds, log))
                    print(
                        f'  round {number + 1}: {caller.name}, {many} in flight: {rates[caller.name][many][-1]:.0f}/s'
                    )
            finally:
                worker.stop()
    return {name: {many: statistics.median(found) for many, found in by.items()} for name, by in rates.items()}


def _rate(caller: Caller, url: str, at_once: int, seconds: float, log: Path) -> float:
    client = caller.calls(url, at_once, seconds)
    output = log.with_suffix('.calls')
    output.unlink(missing_ok=True)
    client.start(output)
    assert client.popen is not None
    client.popen.wait(seconds + 60)
    # Some say more when they end.
    return max(int(line) for line in output.read_text().splitlines() if line.isdigit()) / seconds
