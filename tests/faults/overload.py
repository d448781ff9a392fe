"""More is asked for than can be served: who is let in is served, who is not is told so at once, nothing grows."""

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.account import Exchange
from tests.faults.load import Connection, ask
from tests.faults.scenarios import scenario
from tests.faults.stage import Stage

#: How long it goes on, in seconds.
LASTS = float(os.environ.get('CREW_FAULTS_OVERLOAD', '60'))

#: How long a run takes, in seconds, and how many run at once: 40 a second.
RUN, SLOTS = 0.1, 4

#: Ten times of that, a second.
OFFERED = 400

#: How often a client that comes after the load asks, a second, and for how many seconds.
PROBES, PROBED = 5, 3

PAGE = os.sysconf('SC_PAGE_SIZE')


@scenario('overload: tenfold, for a minute', statuses={503}, longest=10.0, recovers=1.0)
def tenfold(stage: Stage) -> None:
    """400 requests a second for workers that can serve 40; the front has its defaults."""
    _overload(stage, LASTS)


@scenario('overload: tenfold, --max-inflight 40', statuses={503}, longest=5.0, recovers=1.0)
def tenfold_bounded(stage: Stage) -> None:
    """The same with a bound of the operator's own."""
    _overload(stage, min(LASTS, 20.0), '--max-inflight', '40')


@scenario('overload: tenfold, for some seconds', statuses={503}, longest=10.0, recovers=1.0, short=True)
def tenfold_briefly(stage: Stage) -> None:
    """The same for some seconds."""
    _overload(stage, 5.0)


def _overload(stage: Stage, lasts: float, *arguments: str) -> None:
    stage.front(*arguments)
    stage.worker('--threads', str(SLOTS))
    sizes = _Sizes(
        {
            'front': [stage.fronts[0].pid],
            'worker': [stage.workers[0].pid, *stage.processes()],
            'broker': [stage.broker.pid],
        }
    )
    flood = _Arrivals(stage, 'flood', OFFERED)
    stage.sleep(1)
    with stage.fault(lasts):
        flood.start()
    flood.stop()
    ended = time.monotonic()
    after = _Arrivals(stage, 'after', PROBES)
    after.start()
    stage.sleep(PROBED)
    after.stop()
    sizes.stop()
    flood.join()
    after.join()
    _check_answers(stage, flood.exchanges, lasts)
    late = [one for one in after.exchanges if one.began > ended + 1 and (one.status != 200 or one.took > RUN + 0.5)]
    stage.check(not late, f'{len(late)} of those that came a second after the load were not served as usual')
    sizes.check(stage)


def _check_answers(stage: Stage, exchanges: Sequence[Exchange], lasts: float) -> None:
    served = [one.took for one in exchanges if one.status == 200]
    refused = [one.took for one in exchanges if one.status == 503]
    stage.check(len(exchanges) > 0.8 * OFFERED * lasts, f'only {len(exchanges)} requests could be offered')
    stage.check(len(served) > 0.7 * SLOTS / RUN * lasts, f'only {len(served)} were served')
    if len(served) < 2 or len(refused) < 2:
        stage.complain(f'{len(served)} were served, {len(refused)} refused')
        return
    stage.note(f'served {len(served)}: {_latencies(served)}; refused {len(refused)}: {_latencies(refused)}')
    stage.check(statistics.median(refused) < 0.05, f'refusals took {_latencies(refused)}')
    stage.check(_percentile(refused, 99) < 0.5, f'refusals took {_latencies(refused)}')


def _latencies(seconds: Sequence[float]) -> str:
    return f'median {statistics.median(seconds) * 1000:.0f} ms, 99 % {_percentile(seconds, 99) * 1000:.0f} ms'


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


class _Arrivals:
    """Requests that come at their own pace, whatever becomes of those before: ``rate`` a second, from :meth:`start`."""

    def __init__(self, stage: Stage, name: str, rate: float) -> None:
        self.exchanges: list[Exchange] = []
        self._stage = stage
        self._name = name
        self._rate = rate
        self._port = stage.fronts[0].port
        self._stopping = threading.Event()
        self._idle: list[Connection] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.start = self._thread.start
        self.stop = self._stopping.set

    def join(self) -> None:
        """Wait for all answers."""
        self._thread.join(60)
        self._stage.check(not self._thread.is_alive(), 'clients still wait for answers')
        self._stage.account.exchanges.extend(self.exchanges)

    async def _main(self) -> None:
        asking: set[asyncio.Task[None]] = set()
        due = began = time.monotonic()
        while not self._stopping.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # What is due is sent, also if we were late: that is what makes it open.
            while due <= time.monotonic():
                task = asyncio.create_task(self._client(f'{self._name}-{round((due - began) * self._rate)}'))
                asking.add(task)
                task.add_done_callback(asking.discard)
                due += 1 / self._rate
        if asking:
            await asyncio.wait(asking)
        for connection in self._idle:
            connection.close()

    async def _client(self, request: str) -> None:
        connection = self._idle.pop() if self._idle else await Connection.open(self._port)
        exchange = Exchange(request, 'POST', time.monotonic())
        await ask(connection, exchange, RUN)
        self.exchanges.append(exchange)
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()


class _Sizes:
    """The resident size of each part, twice a second, until :meth:`stop`."""

    def __init__(self, parts: dict[str, list[int]]) -> None:
        self._parts = parts
        self._samples: dict[str, list[float]] = {name: [] for name in parts}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join(5)

    def check(self, stage: Stage) -> None:
        """Complain of what is larger in the last third than it was in the second, but for what comes and goes."""
        told = []
        for name, samples in self._samples.items():
            third = len(samples) // 3
            before, end = max(samples[third : 2 * third]), max(samples[2 * third :])
            told.append(f'{name} {before:.0f}, then {end:.0f} MB')
            # RabbitMQ's garbage collector takes its time.
            allowed = 1.3 * before + 40 if name == 'broker' else 1.05 * before + 3
            stage.check(end < allowed, f'the {name} grew from {before:.0f} to {end:.0f} MB')
        stage.note('; '.join(told))

    def _watch(self) -> None:
        while not self._stopping.wait(0.5):
            for name, pids in self._parts.items():
                self._samples[name].append(sum(map(_resident, pids)) / 1e6)


def _resident(pid: int) -> int:
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * PAGE
