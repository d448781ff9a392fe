"""All faults mixed at random, for long: nothing grows, nothing is left over."""

import contextlib
import os
import signal
import statistics
import time
from pathlib import Path

from tests.faults.load import Work
from tests.faults.proxy import Proxy, Way
from tests.faults.scenarios import scenario
from tests.faults.sizes import Sizes
from tests.faults.stage import Stage
from tests.waiting import wait_until

#: How long it goes on, in seconds.
LASTS = float(os.environ.get('CREW_FAULTS_SOAK', '600'))

#: How long sizes may grow, and over how long a level is taken, in seconds.
WARM, WINDOW = 60.0, 30.0

#: How much higher than after the first minute a level may be: a part of it, and bytes.
GROWTH, SLACK = 0.05, 2 * 1024 * 1024


@scenario(
    'soak: all faults at random',
    statuses={502, 503, 504},
    doomed={500, 502, 503, 504},
    unanswered=True,
    longest=15.0,
    recovers=10.0,
    own_broker=True,
)
def soak(stage: Stage) -> None:
    """Processes, workers, fronts and the broker are killed, stopped, replaced, cut off, slowed down; ten minutes.

    A front and two workers are spared. They do not grow after the first minute, and have no more files and threads in
    the end than in the beginning; there are as many queues and consumers as processes.
    """
    mix = _Mix(stage)
    wait_until(lambda: mix.is_whole(), 10, 'all queues')
    before = mix.holdings()
    sizes = Sizes({name: [pid] for name, pid in mix.spared.items()})
    ends = time.monotonic() + LASTS
    with stage.load(work=Work(pause=0.02)):
        while time.monotonic() < ends:
            with stage.fault():
                mix.one()
            stage.sleep(stage.choose.uniform(0.5, 3))
        wait_until(lambda: mix.worker.alive() and len(mix.worker.children()) >= 2, 30, 'processes')
    sizes.stop()
    try:
        wait_until(lambda: mix.is_whole() and mix.holds_no_more_than(before), 30, 'all as before')
    except AssertionError:
        stage.complain(f'left over: {mix.told}; files and threads {before} before, {mix.holdings()} now')
    stage.note('faults: ' + ', '.join(f'{name} {count}' for name, count in sorted(mix.counts.items())))
    if LASTS >= WARM + 2 * WINDOW:
        _judge(stage, sizes)


class _Mix:
    """The stack that is broken, and the ways to break it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        direct = stage.stack.amqp_url
        self._proxy = Proxy(direct, stage.choose)
        stage.at_close.callback(self._proxy.close)
        self._front = stage.front()
        threads, greenlets = stage.worker('--threads', '2'), stage.worker('--gevent', '10')
        self.spared: dict[str, int] = {'front': self._front.pid}
        for name, worker in (('--threads 2', threads), ('--gevent 10', greenlets)):
            self.spared[f'supervisor of {name}'] = worker.pid
            (self.spared[f'worker {name}'],) = worker.children()
        stage.stack.amqp_url = self._proxy.url
        self._fronts = [stage.front()]
        self.worker = stage.worker('--threads', '2', processes=2)
        self.counts: dict[str, int] = {}
        self.told = ''
        # What takes long or breaks all comes less often.
        self._ways = {
            self.kill_process: 4,
            self.stop_process: 2,
            self.raise_something: 2,
            self.kill_worker: 1,
            self.end_worker: 2,
            self.reload: 2,
            self.kill_front: 2,
            self.end_front: 2,
            self.slow_down: 2,
            self.cut: 2,
            self.close_connections: 1,
            self.alarm: 1,
            self.kill_broker: 1,
        }

    def one(self) -> None:
        """Break something."""
        (way,) = self._stage.choose.choices([*self._ways], [*self._ways.values()])
        name = way.__name__.replace('_', ' ')
        self.counts[name] = self.counts.get(name, 0) + 1
        way()

    def _any_process(self) -> int | None:
        processes = self.worker.children()
        return self._stage.choose.choice(processes) if processes else None

    def kill_process(self) -> None:
        if (pid := self._any_process()) is not None:
            _signal(pid, signal.SIGKILL)

    def stop_process(self) -> None:
        if (pid := self._any_process()) is not None:
            _signal(pid, signal.SIGSTOP)
            self._stage.sleep(self._stage.choose.uniform(0.1, 2))
            _signal(pid, signal.SIGCONT)

    def raise_something(self) -> None:
        self._stage.doom_later('POST', self._stage.choose.choice(('exit', 'interrupt', 'exhaust', 'recurse')))

    def kill_worker(self) -> None:
        self.worker.signal(signal.SIGKILL)
        self._another_worker()

    def end_worker(self) -> None:
        self.worker.signal(signal.SIGTERM)
        self._another_worker()

    def _another_worker(self) -> None:
        old = self.worker
        self.worker = self._stage.worker('--threads', '2', processes=2)
        old.wait(40)

    def reload(self) -> None:
        self.worker.signal(signal.SIGHUP)

    def kill_front(self) -> None:
        self._fronts[-1].signal(signal.SIGKILL)
        self._fronts[-1].wait()
        self._fronts.append(self._stage.front())

    def end_front(self) -> None:
        self._fronts[-1].signal(signal.SIGTERM)
        self._fronts.append(self._stage.front())
        self._stage.check(self._fronts[-2].wait(40) == 0, 'a front has abandoned something')

    def slow_down(self) -> None:
        way = Way(delay=0.1, jitter=0.1)
        self._proxy.set(to=way, back=way)
        self._stage.sleep(2)
        self._proxy.set()

    def cut(self) -> None:
        self._proxy.reset(in_frame=self._stage.choose.random() < 0.5)

    def close_connections(self) -> None:
        self._stage.broker.ctl('close_all_connections', 'the soak')

    def alarm(self) -> None:
        self._stage.broker.ctl('set_vm_memory_high_watermark', '0.00001')
        self._stage.sleep(1)
        self._stage.broker.ctl('set_vm_memory_high_watermark', '0.4')

    def kill_broker(self) -> None:
        self._stage.broker.kill()
        self._stage.broker.start()

    # What there is

    def is_whole(self) -> bool:
        """Return whether each front and worker process has its private queue, and each worker process its consumers."""
        fronts = sum(front.alive() for front in self._stage.fronts)
        workers = len(self._stage.processes())
        queues = self._stage.broker.ctl('list_queues', 'name', 'consumers', '--no-table-headers').splitlines()
        consumers = dict(line.rsplit('\t', 1) for line in queues)
        self.told = f'{fronts} fronts, {workers} worker processes, {consumers}'
        private = sorted(name.split('.')[1] for name in consumers if not name.startswith('crew.tasks.'))
        return private == ['master'] * fronts + ['worker'] * workers and all(
            count == (str(workers) if name.startswith('crew.tasks.') else '1') for name, count in consumers.items()
        )

    def holds_no_more_than(self, before: dict[str, tuple[int, int]]) -> bool:
        """Return whether no spared process has more open files or threads than it had. (An idle thread may end.)"""
        now = self.holdings()
        return all(new <= old for name in before for new, old in zip(now[name], before[name], strict=True))

    def holdings(self) -> dict[str, tuple[int, int]]:
        """Return how many open files and threads the spared processes have."""
        return {name: _holdings(pid) for name, pid in self.spared.items()}


def _judge(stage: Stage, sizes: Sizes) -> None:
    """Complain of each that has grown since the first minute; note all."""
    for name, samples in sizes.samples.items():
        first = statistics.median(size for at, size in samples if WARM <= at < WARM + WINDOW)
        last = statistics.median(size for at, size in samples if at >= samples[-1][0] - WINDOW)
        told = f'{name}: {first / 1e6:.1f} MB after the first minute, {last / 1e6:.1f} MB at the end'
        stage.note(told)
        stage.check(last <= first * (1 + GROWTH) + SLACK, told)


def _holdings(pid: int) -> tuple[int, int]:
    return len(list(Path(f'/proc/{pid}/fd').iterdir())), len(list(Path(f'/proc/{pid}/task').iterdir()))


def _signal(pid: int, number: signal.Signals) -> None:
    # It may be ending for another reason.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
