"""What a client keeps of calls that are over: nothing."""

import asyncio
import gc
import sys
from collections import Counter
from uuid import uuid4

import pytest

import crew
from crew.master.asyncio import Client
from crew.master.engine import Engine
from crew.transports import memory
from tests.faces import serving

CALLS = 20_000
WARM_UP = 3_000
AT_ONCE = 100


async def call_many(client: Client, calls: int) -> None:
    """Make so many calls, some of which end in other ways than with a value."""
    for start in range(0, calls, AT_ONCE):
        outcomes = [client.call('echo', number, set_cid=number) for number in range(start, start + AT_ONCE - 5)]
        cancelled = client.call('echo', 1)
        cancelled.cancel()
        called = asyncio.get_running_loop().create_future()
        client.call('echo', 1, lambda value, headers, called=called: called.set_result(value))
        outcomes += [client.call('fail'), client.call('nobody'), called]
        ended = Counter(type(outcome) for outcome in await asyncio.gather(*outcomes, return_exceptions=True))
        assert ended == {int: AT_ONCE - 4, crew.RemoteError: 1, crew.Unroutable: 1}


def fail(_: object) -> None:
    """Raise something."""
    raise LookupError


async def measure(url: str) -> int:
    """Return by how many blocks of memory what is kept has grown."""
    async with Client(url) as client:
        await call_many(client, WARM_UP)
        gc.collect()
        # Every object of the interpreter is at least one. tracemalloc counts bytes, and makes all this thrice as slow.
        before = sys.getallocatedblocks()
        await call_many(client, CALLS)
        gc.collect()
        grown = sys.getallocatedblocks() - before
        engine = client._running
        assert engine is not None
        check_empty(client, engine)
        return grown


def check_empty(client: Client, engine: Engine) -> None:
    """Look into every place that remembers calls."""
    calls = engine.caller._calls
    assert (len(calls), engine.caller._unsent, client._ids) == (0, {}, {})
    # It is tidied only when it has grown to this.
    assert len(calls._deadlines) <= 2 * AT_ONCE + 64


def test_thousands_of_calls_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    url = f'memory://{uuid4().hex}'
    # What is logged of each failure would be kept by pytest.
    caplog.set_level('CRITICAL')
    with serving(url, echo=lambda value: value, fail=fail):
        grown = asyncio.run(measure(url))
    memory.forget(url)
    # A single object for each call would be ten times as much.
    assert grown < CALLS // 10
