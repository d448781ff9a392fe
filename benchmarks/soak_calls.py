"""Make a million calls, and print what this process takes of the machine's memory on the way.

>>> python benchmarks/soak_calls.py --calls 1000000

Without ``--url`` it starts a private RabbitMQ node. The worker is a process of its own; its memory is printed too.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from crew.master.asyncio import Client
from crew.private_node import PrivateNode
from crew.transports.addresses import DEFAULT_URL

AT_ONCE = 100

WORKER = """
from crew.worker import Task, context, run

@Task('soak')
def soak(req):
    return req

run()
"""


def rss(pid: int) -> float:
    """Return the memory of a process, in MiB."""
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def soak(url: str, calls: int, worker: int) -> None:
    """Make the calls, so many at once; print a line each tenth of the way."""
    async with Client(url, tasks=['soak']) as client:
        await client.call('soak')
        print('    calls   seconds   calls/s   client MiB   worker MiB', flush=True)
        began = time.monotonic()
        every = max(AT_ONCE, calls // 10)
        left = iter(range(calls))
        made = 0

        async def call_on() -> None:
            nonlocal made
            for number in left:
                if await client.call('soak', number) != number:
                    raise AssertionError(f'call {number} brought something else')
                made += 1
                if made % every == 0:
                    took = time.monotonic() - began
                    print(
                        f'{made:9d} {took:9.1f} {made / took:9.0f} {rss(os.getpid()):12.1f} {rss(worker):12.1f}',
                        flush=True,
                    )

        await asyncio.gather(*(call_on() for _ in range(AT_ONCE)))


def child_of(pid: int) -> int:
    """Return the worker process of a supervisor, as soon as there is one."""
    while not (children := Path(f'/proc/{pid}/task/{pid}/children').read_text().split()):
        time.sleep(0.05)
    return int(children[0])


def run(url: str, calls: int) -> None:
    """Start a worker, and make the calls."""
    worker = subprocess.Popen(
        [sys.executable, '-c', WORKER, '--amqp-url', url, '--logging', 'warning', '--threads', '8']
    )
    try:
        asyncio.run(soak(url, calls, child_of(worker.pid)))
    finally:
        worker.terminate()
        worker.wait()


def main() -> None:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--calls', type=int, default=1_000_000, help='how many (default: %(default)d)')
    parser.add_argument('--url', help=f'the broker, {DEFAULT_URL} say (default: a private node)')
    options = parser.parse_args()
    if options.url:
        run(options.url, options.calls)
        return
    with PrivateNode() as node:
        run(node.url, options.calls)


if __name__ == '__main__':
    main()
