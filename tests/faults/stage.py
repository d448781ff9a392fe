"""Where a scenario plays: a broker, fronts, workers, the load, and the account of it."""

import contextlib
import hashlib
import http.client
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

from crew.exceptions import NodeError
from crew.private_node import PrivateNode
from tests.faults.account import Account, Exchange, Row
from tests.faults.load import Load, Work
from tests.faults.scenarios import Scenario
from tests.stack import Front, Process, Stack, Worker, children_of
from tests.waiting import wait_until

__all__ = ['Stage', 'play']

#: How long everything must have gone well before a scenario counts as over, in seconds.
CALM = 1.0


class Stage:
    """What a scenario gets to play on.

    Args:
        scenario: which one.
        broker: a running node.
        seed: what chance is drawn from.
        directory: for logs; the caller's to remove.
    """

    def __init__(self, scenario: Scenario, broker: PrivateNode, seed: str, directory: Path) -> None:
        self.account = Account(scenario.name, scenario.expectation)
        self.broker = broker
        self.choose = random.Random(f'{seed} {scenario.name}')
        self.queue = f'faults-{self.choose.randrange(10**9)}'
        self.stack = Stack(broker.url, self.queue, directory)
        self.fronts: list[Front] = []
        self.workers: list[Worker] = []
        self._seed = seed
        self.directory = directory
        self._doomed = 0
        self._asking: list[Thread] = []
        #: What else is to be closed when the scenario is over.
        self.at_close = contextlib.ExitStack()

    # Starting

    def front(self, *arguments: str, files: Sequence[int] = ()) -> Front:
        """Start a front, wait until it is ready, and let clients know of it; ``files`` of ours are its own, too."""
        front = self.stack.front(*arguments, files=files).await_ready()
        self.fronts.append(front)
        return front

    def worker(
        self, *arguments: str, processes: int = 1, env: dict[str, str] | None = None, app: str = 'accounted:app'
    ) -> Worker:
        """Start a worker with the application that keeps accounts, and wait until it is ready."""
        worker = self.stack.worker(app, '--processes', str(processes), *arguments, env=env)
        self.workers.append(worker.await_ready(processes))
        return worker

    def processes(self) -> list[int]:
        """The ids of all worker processes that there are now."""
        return [child for worker in self.workers if worker.alive() for child in worker.children()]

    # Asking

    @contextlib.contextmanager
    def load(self, clients: int = 12, work: Work | None = None, settle: float = 1.0) -> Iterator[None]:
        """Keep clients asking while the block runs, and on until all is well again; then account for all of it."""
        load = Load(
            lambda: [front.port for front in self.fronts if front.alive()],
            clients,
            work or Work(),
            f'{self._seed} {self.account.scenario}',
            self.account.exchanges.append,
        )
        try:
            time.sleep(settle)
            yield
            self._await_calm()
        finally:
            patience = self.account.expectation.longest + 5
            for thread in self._asking:
                thread.join(patience)
            if not load.stop(patience) or any(thread.is_alive() for thread in self._asking):
                self.complain('clients still wait for answers')

    def doom(self, method: str, do: str, **query: object) -> Exchange:
        """Make one request that brings a fault with it; it is part of the account. Returns when it is answered."""
        exchange = self._doomed_exchange(method)
        self._ask(exchange, do, query)
        return exchange

    def doom_later(self, method: str, do: str, **query: object) -> Exchange:
        """As :meth:`doom`, in a thread of its own; returns at once. :meth:`load` waits for the answer."""
        exchange = self._doomed_exchange(method)
        thread = Thread(target=self._ask, args=(exchange, do, query), daemon=True)
        self._asking.append(thread)
        thread.start()
        return exchange

    def _doomed_exchange(self, method: str) -> Exchange:
        self._doomed += 1
        return Exchange(f'doomed-{self._doomed}', method, time.monotonic(), doomed=True)

    def _ask(self, exchange: Exchange, do: str, query: Mapping[str, object]) -> None:
        target = '/?' + urlencode({'id': exchange.id, 'do': do, **query})
        connection = http.client.HTTPConnection('127.0.0.1', self._a_front().port, timeout=120)
        try:
            connection.request(exchange.method, target)
            response = connection.getresponse()
            answer = response.read()
            exchange.status = response.status
            expected = f'{exchange.id} {hashlib.sha1(b"").hexdigest()} '.encode()
            if 'stream' in query:
                pieces = range(int(str(query['stream'])))
                expected = b''.join(f'{exchange.id} {number}\n'.encode().ljust(10_000, b'.') for number in pieces)
            if response.status == 200 and not answer.startswith(expected):
                exchange.wrong = f'a wrong answer of {len(answer)} bytes: {answer[:80]!r}'
        except (OSError, http.client.HTTPException):
            exchange.status = 0
        finally:
            connection.close()
        exchange.ended = time.monotonic()
        self.account.exchanges.append(exchange)

    def _a_front(self) -> Front:
        return next(front for front in self.fronts if front.alive())

    # Breaking

    @contextlib.contextmanager
    def fault(self, lasts: float = 0.0) -> Iterator[None]:
        """Break something in the block; the time to recover counts from its end. ``lasts``: stay at its end so long."""
        self.account.broke = self.account.broke or time.monotonic()
        yield
        time.sleep(lasts)
        self.account.mended = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let the load go on for so long."""
        time.sleep(seconds)

    def await_runs(self, count: int) -> None:
        """Wait until the application has been run so often."""
        wait_until(lambda: len(self.stack.runs) >= count, 30, f'{count} runs')

    # Telling

    def complain(self, text: str) -> None:
        """Say what is wrong: the row will not pass."""
        self.account.complaints.append(text)

    def check(self, condition: object, text: str) -> None:
        """Complain unless the condition holds."""
        if not condition:
            self.complain(text)

    def note(self, text: str) -> None:
        """Say what is worth to be told beside the row."""
        self.account.notes.append(text)

    # Ending

    def end(self) -> None:
        """End all that still runs as an operator does, and complain of what does not end or is left behind."""
        ending = [process for process in (*self.fronts, *self.workers) if process.alive()]
        families = {pid for process in ending for pid in (process.pid, *children_of(process.pid))}
        for process in ending:
            process.signal(signal.SIGTERM)
        for process in ending:
            try:
                code = process.wait(40)
                self.check(code == 0, f'{_name(process)} ended with {code} when told to end')
            except Exception as error:
                self.complain(f'{_name(process)} does not end: {error}')
        left = [pid for pid in families if Path(f'/proc/{pid}').exists()]
        self.check(not left, f'processes are left over: {left}')
        self._check_broker()

    def close(self) -> None:
        """End all that still runs, whatever it does."""
        for process in (*self.fronts, *self.workers):
            if process.alive():
                # A stopped process is told nothing by the end of its lifeline.
                for pid in (process.pid, *children_of(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
        self.stack.close()
        self.at_close.close()

    def _check_broker(self) -> None:
        # A quorum queue tells its numbers anew every five seconds.
        deadline = time.monotonic() + 8.0
        try:
            while (left := list(self._left_over())) and time.monotonic() < deadline:
                time.sleep(0.5)
        except NodeError as error:
            left = [f'the broker does not tell its queues: {error}']
        for text in left:
            self.complain(text)

    def _left_over(self) -> Iterator[str]:
        lines = self.broker.ctl('list_queues', 'name', 'messages', 'consumers', '--no-table-headers').splitlines()
        for line in lines:
            name, messages, consumers = line.split('\t')
            if name == f'crew.tasks.{self.queue}':
                if (messages, consumers) != ('0', '0'):
                    yield f'{name} has {messages} messages, {consumers} consumers'
            elif name.startswith('crew.') and not name.startswith('crew.tasks.'):
                yield f'the private queue {name} is left over'

    def _await_calm(self) -> None:
        """Wait until every answer of the last second was 200, but not for ever."""
        deadline = time.monotonic() + self.account.expectation.recovers + 2 * CALM

        def calm() -> bool:
            now = time.monotonic()
            last = [exchange for exchange in self.account.exchanges[-2000:] if exchange.ended > now - CALM]
            return len(last) > 5 and all(exchange.status == 200 for exchange in last)

        time.sleep(CALM)
        while not calm():
            if time.monotonic() > deadline:
                self.complain('it does not come back')
                return
            time.sleep(0.05)


def _name(process: Process) -> str:
    return f'{type(process).__name__.lower()} {process.pid}'


def play(scenario: Scenario, seed: str, shared_broker: Callable[[], PrivateNode], keep: Path | None = None) -> Row:
    """Play one scenario from start to end.

    Args:
        scenario: which one.
        seed: what chance is drawn from; the same seed repeats victims, moments and requests, not the machine's timing.
        shared_broker: gives a running node to those that do not break it.
        keep: where to keep the logs; by default only those of a scenario that did not pass are kept.
    """
    directory = Path(tempfile.mkdtemp(prefix='crew-faults-')) if keep is None else keep
    directory.mkdir(parents=True, exist_ok=True)
    own = PrivateNode(**scenario.node) if scenario.own_broker else None
    try:
        if own is not None:
            own.start()
        stage = Stage(scenario, own or shared_broker(), seed, directory)
        try:
            scenario.play(stage)
            stage.end()
        except (Exception, AssertionError) as error:
            stage.complain(f'{type(error).__name__}: {error}')
        finally:
            stage.close()
        row = stage.account.settle(stage.stack.runs)
    finally:
        if own is not None:
            own.stop()
    if keep is None and row.passed:
        shutil.rmtree(directory, ignore_errors=True)
    elif not row.passed:
        (directory / 'complaints').write_text('\n'.join(row.complaints) + '\n')
        stage.note(f'logs in {directory}')
        row = stage.account.settle(stage.stack.runs)
    return row
