"""Priorities order the queue, however long it is."""

import asyncio
from itertools import groupby

from crew import codec, topology
from crew.master.threaded_client import Client
from crew.messages import Call
from crew.payloads import pack
from crew.private_node import PrivateNode
from crew.topology import priority_level
from crew.transports.addresses import dial
from tests.faces import serving
from tests.waiting import wait_until

PRIORITIES = (0, 1, 2, 4, 9, 17, 33, 100, 255)
FILLING = 9_910
CALLS = 90


async def fill(url: str, queue: str) -> None:
    """Put calls that nobody waits for into a queue."""
    connection = await dial(url)
    channel = await connection.open_channel(confirm=True)
    await channel.declare(topology.DEAD_LETTERS)
    await channel.declare(topology.task_queue(queue))
    for number in range(FILLING):
        priority = PRIORITIES[number % len(PRIORITIES)]
        call = Call(
            correlation_id=str(number),
            body=pack([priority, number]).body,
            content_type='application/json',
            priority=priority,
        )
        channel.publish(codec.encode(call), topology.task_queue_name(queue))
    await channel.confirmed()
    await connection.close()


def test_the_highest_is_taken_first_from_ten_thousand_and_the_oldest_of_one_level(
    broker: PrivateNode, queue: str
) -> None:
    taken: list[tuple[int, int]] = []
    asyncio.run(fill(broker.url, queue))
    with Client(broker.url) as client:
        results = []
        for number in range(FILLING, FILLING + CALLS):
            priority = PRIORITIES[number % len(PRIORITIES)]
            results.append(client.call(queue, [priority, number], priority=priority))
        ready = f'crew.tasks.{queue}\t{FILLING + CALLS}'
        wait_until(lambda: ready in broker.ctl('list_queues', 'name', 'messages_ready'), 60, 'all in the queue')
        with serving(broker.url, prefetch=1, **{queue: lambda call: taken.append(tuple(call))}):
            for result in results:
                result.wait(60)
    levels = [priority_level(priority) for priority, _ in taken]
    assert levels == sorted(levels, reverse=True)
    for _, of_one_level in groupby(taken, key=lambda call: priority_level(call[0])):
        numbers = [number for _, number in of_one_level]
        assert numbers == sorted(numbers)
    assert len(taken) == FILLING + CALLS
