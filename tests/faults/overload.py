"""More is asked for than can be served: who is let in is served, who is not is told so at once, nothing grows."""

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Sequence

from crew_wsgi.limits import Limits
from tests.faults.account import Exchange
from tests.faults.load import Connection, ask
from tests.faults.scenarios import scenario
from tests.faults.sizes import Sizes
from tests.faults.stage import Stage

#: How long it goes on, in seconds.
LASTS = float(os.environ.get('CREW_FAULTS_OVERLOAD', '60'))

#: How long a run takes, in seconds.
RUN = 0.1

#: How many times more is asked for than can be served.
TIMES = 10

#: How often a client that comes after the load asks, a second, and for how many seconds.
PROBES, PROBED = 5, 2.5


@scenario('overload: tenfold, for a minute', statuses={503}, longest=Limits().queue_timeout, recovers=2.0)
def tenfold(stage: Stage) -> None:
    """200 requests a second for workers that can serve 20; the front has its defaults, so a spike waits that long."""
    _overload(stage, LASTS, 2)


@scenario('overload: tenfold, --max-inflight 10', statuses={503}, longest=10.0, recovers=2.0)
def tenfold_bounded(stage: Stage) -> None:
    """The same with a bound of the operator's own."""
    _overload(stage, min(LASTS, 20.0), 2, '--max-inflight', '10')


@scenario('overload: tenfold of one thread, --max-inflight 5', statuses={503}, longest=10.0, recovers=2.0, short=True)
def tenfold_briefly(stage: Stage) -> None:
    """The same with 100 requests a second for one thread, for four seconds."""
    _overload(stage, 4.0, 1, '--max-inflight', '5')


def _overload(stage: Stage, lasts: float, threads: int, *arguments: str) -> None:
    stage.front(*arguments)
    stage.worker('--threads', str(threads))
    served = threads / RUN
    sizes = Sizes(
        {
            'front': [stage.fronts[0].pid],
            'worker': [stage.workers[0].pid, *stage.processes()],
            'broker': [stage.broker.pid],
        }
    )
    before = _probe(stage, 'before', 1.0)
    flood = _Arrivals(stage, 'flood', TIMES * served)
    with stage.fault(lasts):
        flood.start()
    flood.stop()
    ended = time.monotonic()
    after = _probe(stage, 'after', PROBED)
    sizes.stop()
    flood.join()
    _check_answers(stage, flood, served * lasts)
    usual = max(one.took for one in before)
    late = [one.took for one in after if one.began > ended + 1 and (one.status != 200 or one.took > 2 * usual + 0.3)]
    stage.check(not late, f'{len(late)} that came a second after the load took up to {max(late, default=0):.2f} s')
    _check_sizes(stage, sizes)


def _probe(stage: Stage, name: str, lasts: float) -> Sequence[Exchange]:
    """Ask now and then, and return what came of it."""
    probes = _Arrivals(stage, name, PROBES)
    probes.start()
    stage.sleep(lasts)
    probes.stop()
    probes.join()
    return probes.exchanges


def _check_answers(stage: Stage, flood: '_Arrivals', possible: float) -> None:
    served = [one.took for one in flood.exchanges if one.status == 200]
    refused = [one.took for one in flood.exchanges if one.status == 503]
    stage.check(len(flood.exchanges) > 0.8 * TIMES * possible, f'only {len(flood.exchanges)} requests could be offered')
    stage.check(len(served) > 0.3 * possible, f'only {len(served)} were served')
    if len(served) < 2 or len(refused) < 2:
        stage.complain(f'{len(served)} were served, {len(refused)} refused')
        return
    stage.note(f'served {len(served)}: {_latencies(served)}; refused {len(refused)}: {_latencies(refused)}')
    stage.note(f'clients were late: {_latencies(flood.lateness)}')
    # On a machine where all have to wait for a processor, the front has to, too.
    for percent, allowed in ((50, 0.05), (99, 0.5)):
        allowed += 3 * _percentile(flood.lateness, percent)
        stage.check(_percentile(refused, percent) < allowed, f'refusals took {_latencies(refused)}')


def _latencies(seconds: Sequence[float]) -> str:
    return f'median {statistics.median(seconds) * 1000:.0f} ms, 99 % {_percentile(seconds, 99) * 1000:.0f} ms'


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


class _Arrivals:
    """Requests that come at their own pace, whatever becomes of those before: ``rate`` a second, from :meth:`start`."""

    def __init__(self, stage: Stage, name: str, rate: float) -> None:
        self.exchanges: list[Exchange] = []
        #: How late each was sent: how long this machine lets a process wait that has something to do.
        self.lateness: list[float] = []
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
                self.lateness.append(time.monotonic() - due)
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


def _check_sizes(stage: Stage, sizes: Sizes) -> None:
    """Complain of what is larger in the last third than it was in the second, but for what comes and goes."""
    told = []
    for name, samples in sizes.samples.items():
        megabytes = [size / 1e6 for _, size in samples]
        third = len(megabytes) // 3
        before, end = max(megabytes[third : 2 * third]), max(megabytes[2 * third :])
        told.append(f'{name} {before:.0f}, then {end:.0f} MB')
        # RabbitMQ's garbage collector takes its time.
        allowed = 1.3 * before + 40 if name == 'broker' else 1.05 * before + 3
        stage.check(end < allowed, f'the {name} grew from {before:.0f} to {end:.0f} MB')
    stage.note('; '.join(told))
