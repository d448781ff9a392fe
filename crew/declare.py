"""``crew-declare``: declares at the broker what fronts, workers and clients share, so that they need not.

Whoever may declare a queue may delete it. Where that matters only the operator may (docs/security.md), and all others
find the queues there.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from crew import topology
from crew.exceptions import ConnectionError, CrewError
from crew.options import Parser, add_queue_type, add_urls, add_version, queue_id
from crew.topology import Exchange, Queue
from crew.transports.addresses import DEFAULT_URL, dial, safe_url
from crew.transports.base import Connection

__all__ = ['declare', 'main', 'parser']


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = Parser(
        prog='crew-declare',
        description='Declare the exchanges and queues that fronts, workers and clients share, so that these need no '
        'permission for it. What is there already stays as it is.',
    )
    add_urls(result, DEFAULT_URL)
    result.add_argument(
        '--queue',
        dest='queues',
        action='append',
        type=queue_id,
        metavar='ID',
        help='id of a web application or of a task; as often as needed (default: wsgi)',
    )
    add_queue_type(result)
    add_version(result)
    return result


async def declare(urls: Sequence[str], shared: Sequence[Queue | Exchange]) -> None:
    """Declare something at the first of some brokers that can be reached.

    Args:
        urls: the brokers of a cluster.
        shared: what to declare.

    Raises:
        BrokerRefused: we may not, or one exists with other arguments.
        ConnectionError: none can be reached.
    """
    connection = await _dial_one(urls)
    try:
        await connection.ensure(*shared)
    finally:
        await connection.close()


async def _dial_one(urls: Sequence[str]) -> Connection:
    reason = ConnectionError('there is no broker to declare at')
    for url in urls:
        try:
            return await dial(url, name='crew-declare')
        except ConnectionError as error:
            reason = error
    raise reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    urls = options.amqp_urls or [DEFAULT_URL]
    queues = [topology.task_queue(queue, options.queue_type) for queue in options.queues or ['wsgi']]
    shared: list[Queue | Exchange] = [topology.DEAD_LETTERS, topology.PUBLICATIONS, *queues]
    try:
        asyncio.run(declare(urls, shared))
    except CrewError as error:
        print(f'crew-declare: {error}', file=sys.stderr)
        return 2
    print(f'{", ".join(map(safe_url, urls))} has {", ".join(each.name for each in shared)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
