"""crew's own RPC: ``crew_calls.py worker|calls URL …``."""

import asyncio
import sys
import time
from typing import Any

from crew.master.asyncio import Client
from crew.worker import Task, run


@Task('hello')
def hello(req: Any) -> str:
    """Say hello."""
    return 'hello\n'


async def calls(url: str, at_once: int, seconds: float) -> None:
    """Call for so long; print how many calls were answered."""
    async with Client(url) as client:
        end = time.monotonic() + seconds
        done = 0

        async def caller() -> None:
            nonlocal done
            while time.monotonic() < end:
                assert await client.call('hello', persistent=False) == 'hello\n'
                done += 1

        await asyncio.gather(*(caller() for _ in range(at_once)))
        print(done)


if __name__ == '__main__':
    if sys.argv[1] == 'calls':
        asyncio.run(calls(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    else:
        # The rest of the command line is run's.
        del sys.argv[1]
        run()
