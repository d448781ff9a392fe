"""Priorities order the queue, however long it is."""

from collections.abc import Iterator
from itertools import groupby

import pytest

from crew.master.threaded_client import Client
from crew.private_node import PrivateNode
from crew.testing import Worker
from crew.topology import priority_level
from crew.worker.registry import Registered, Registry
from tests.waiting import wait_until

PRIORITIES = (0, 1, 2, 4, 9, 17, 33, 100, 255)
CALLS = 10_000


@pytest.fixture
def client(amqp_url: str, queue: str) -> Iterator[Client]:
    with Client(amqp_url, tasks=[queue]) as client:
        yield client


def test_the_highest_is_taken_first_from_ten_thousand_and_the_oldest_of_one_level(
    client: Client, broker: PrivateNode, queue: str
) -> None:
    taken: list[tuple[int, int]] = []
    registry = Registry()
    registry.add(Registered(queue, lambda call: taken.append(tuple(call)), place=__name__))
    results = []
    for number in range(CALLS):
        priority = PRIORITIES[number % len(PRIORITIES)]
        results.append(client.call(queue, [priority, number], priority=priority, persistent=False))
    ready = f'crew.tasks.{queue}\t{CALLS}'
    wait_until(lambda: ready in broker.ctl('list_queues', 'name', 'messages_ready'), 60, f'{CALLS} calls in the queue')
    with Worker(registry, url=broker.url):
        for result in results:
            result.wait(60)
    levels = [priority_level(priority) for priority, _ in taken]
    assert levels == sorted(levels, reverse=True)
    for _, of_one_level in groupby(taken, key=lambda call: priority_level(call[0])):
        numbers = [number for _, number in of_one_level]
        assert numbers == sorted(numbers)
    assert len(taken) == CALLS
