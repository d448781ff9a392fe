"""More requests than can be served: who is let in is served, others hear so at once, and it ends when they do."""

import asyncio
import time
from dataclasses import dataclass, field

from crew.private_node import PrivateNode
from tests.stack import Front, Stack, Worker
from tests.test_streaming import get, let_pass, memory, start
from tests.waiting import wait_until
from tests.wire import Wire

MEBIBYTE = 1024 * 1024


@dataclass
class Load:
    """What came of many requests, each on a connection of its own: status, ``Retry-After`` and time of each."""

    front: Front
    answers: list[tuple[int, str, float]] = field(default_factory=list)

    def run(self, rate: float, seconds: float, target: str = '/') -> None:
        """Make so many requests a second, and hang up on those that are not answered a moment after the last."""
        asyncio.run(self._run(rate, seconds, target))

    def times(self, status: int) -> list[float]:
        """How long those took, in order, that came to this status."""
        return sorted(took for each, _, took in self.answers if each == status)

    async def _run(self, rate: float, seconds: float, target: str) -> None:
        begun = time.monotonic()
        tasks = []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(target)))
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, target: str) -> None:
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection('127.0.0.1', self.front.port)
        try:
            writer.write(get(target))
            head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1')
            fields = dict(line.split(': ', 1) for line in head.split('\r\n')[1:] if line)
            self.answers.append((int(head.split()[1]), fields.get('Retry-After', ''), time.monotonic() - begun))
        finally:
            writer.close()


def test_tenfold_overload_is_refused_at_once_and_what_is_let_in_is_served_in_time(
    stack: Stack, broker: PrivateNode
) -> None:
    front, worker = start(stack, front_arguments=('--queue-timeout', '2'))
    [runner] = worker.children()
    assert front.get('/').status == 200
    before = memory(front.pid), memory(runner)
    load = Load(front)
    load.run(200, 8, '/?first=0.05')
    begun = time.monotonic()
    assert front.get('/').status == 200
    # The line was short, though more than a thousand had asked to join.
    assert time.monotonic() - begun < 2
    served, refused = load.times(200), load.times(503)
    assert len(served) > 100 and len(refused) > 1000
    assert served[-1] < 3.5
    assert refused[len(refused) // 2] < 0.1 and refused[len(refused) * 95 // 100] < 0.5
    assert all(0 < int(after) <= 5 for status, after, _ in load.answers if status == 503)
    assert memory(front.pid) - before[0] < 30 * MEBIBYTE and memory(runner) - before[1] < 10 * MEBIBYTE
    front.await_log('Too many requests are waiting: another would wait for about')


def test_a_spike_waits_and_is_served(stack: Stack) -> None:
    front, _ = start(stack, '--threads', '4')
    answers = [front.later('GET', '/?first=0.05') for _ in range(150)]
    assert [answer.result(30).status for answer in answers] == [200] * 150


def test_who_comes_before_the_workers_waits_for_them(stack: Stack) -> None:
    front = stack.front('--queue-timeout', '20').await_ready()
    answers = [front.later('GET', '/') for _ in range(100)]
    let_pass(2)
    stack.worker('streaming:app').await_ready()
    assert [answer.result(30).status for answer in answers] == [200] * 100
    answers = [front.later('GET', '/') for _ in range(100)]
    assert [answer.result(30).status for answer in answers] == [200] * 100


def blocked(stack: Stack, *front_arguments: str) -> tuple[Front, Worker]:
    """A front and a worker that is busy for two seconds."""
    front, worker = start(stack, front_arguments=front_arguments)
    front.later('GET', '/?first=2')
    wait_until(lambda: stack.runs, 10, 'the run')
    return front, worker


def test_who_has_hung_up_costs_the_worker_next_to_nothing(stack: Stack) -> None:
    front, _ = blocked(stack)
    for _ in range(300):
        with Wire(front.port) as wire:
            wire.send(get('/?first=0.1'))
    wait_until(lambda: front.text.count(' 499 ') == 300, 10, '300 to be missed')
    let_pass(1.2)
    begun = time.monotonic()
    assert front.get('/').status == 200
    assert time.monotonic() - begun < 8
    assert len(stack.runs) == 2


def test_who_has_hung_up_is_in_the_queue_still_and_counted(stack: Stack) -> None:
    front, _ = blocked(stack, '--max-inflight', '10')
    for _ in range(30):
        with Wire(front.port) as wire:
            wire.send(get('/'))
    wait_until(lambda: front.text.count(' 499 ') >= 9, 10, 'nine to be missed')
    answer = front.get('/')
    assert answer.status == 503 and b'Too many requests are in flight' in answer.body
    wait_until(lambda: front.get('/').status == 200, 10, 'the worker')
    for _ in range(30):
        assert front.get('/').status == 200
