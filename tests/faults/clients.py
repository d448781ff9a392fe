"""Clients in large number that are idle, or slow to send or to read, beside ordinary load."""

import asyncio
import contextlib
import resource
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from tests.faults.account import Exchange
from tests.faults.load import Connection, Work
from tests.faults.scenarios import scenario
from tests.faults.sizes import resident
from tests.faults.stage import Stage
from tests.waiting import wait_until

IDLE = 5000

#: Of those that are slow.
MANY = 300

#: How often a slow sender sends a byte, in seconds.
SENDS_EVERY = 0.2

#: For how long latency is looked at, without and with them, in seconds.
LOOKED_AT = 4.0

WORK = Work(shortest=0.01, longest=0.02, pause=0.02)


@scenario('clients: 5,000 idle connections', longest=3.0, recovers=0.0)
def idle(stage: Stage) -> None:
    """Each has had an answer and keeps its connection. Others are served as without them."""
    number = _room_for(stage, IDLE)
    front = stage.front()
    stage.worker('--threads', '4')
    before = resident(front.pid)

    async def rest(connection: _Slow) -> None:
        await connection.ask()

    with stage.load(work=WORK):
        usual = _look(stage)
        with stage.fault(), _crowd(stage, number, rest, at_once=50) as crowd:
            wait_until(lambda: crowd.settled == number, 60, f'{number} idle connections')
            grown = resident(front.pid) - before
            _compare(stage, usual, _look(stage))
            stage.check(crowd.open == number, f'{number - crowd.open} idle connections were closed')
        stage.note(f'{number} connections, {grown / number / 1000:.0f} kB each')
    wait_until(lambda: len(list(Path(f'/proc/{front.pid}/fd').iterdir())) < 100, 10, 'the front to close them')


@scenario('clients: 300 that send their heads byte by byte', longest=3.0, recovers=0.0)
def slow_heads(stage: Stage) -> None:
    """Slowloris. No worker hears of them."""

    async def trickle(connection: _Slow) -> None:
        await connection.trickle(b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'x' * 10_000)

    _slow(stage, trickle)


@scenario('clients: 300 that send their bodies byte by byte', longest=3.0, recovers=0.0)
def slow_bodies(stage: Stage) -> None:
    """The same after whole heads. No worker waits for them."""

    async def trickle(connection: _Slow) -> None:
        await connection.send(connection.head('POST', 'Content-Length: 10000'))
        await connection.trickle(b'x' * 10_000)

    _slow(stage, trickle)


@scenario('clients: 300 that do not read answers of 200 kB', longest=3.0, recovers=0.0)
def never_read(stage: Stage) -> None:
    """Once the application is done with an answer, what its client does not read costs no worker anything."""

    async def look_away(connection: _Slow) -> None:
        await connection.send(connection.head('GET', target='&stream=20&pace=0'))
        await asyncio.sleep(0.01)

    _slow(stage, look_away)


@scenario('clients: 3 that do not read answers of 20 MB', longest=5.0, recovers=0.0)
def never_read_long(stage: Stage) -> None:
    """Of a long answer 1 MiB is under way; its thread waits until the client is cut off (``--body-timeout 3``).

    The fourth thread serves all others meanwhile.
    """

    async def look_away(connection: _Slow) -> None:
        await connection.send(connection.head('GET', target='&stream=2000&pace=0'))

    stage.front('--body-timeout', '3')
    stage.worker('--threads', '4')
    with stage.load(work=WORK, clients=4):
        with stage.fault(), _crowd(stage, 3, look_away):
            wait_until(lambda: _ended(stage) == 3, 20, 'the end of three answers that nobody reads')
        usual = _look(stage)
    stage.note(f'median {statistics.median(usual) * 1000:.0f} ms afterwards')


def _ended(stage: Stage) -> int:
    return sum(line.split()[1] == 'CLOSED' for line in stage.stack.runs)


def _slow(stage: Stage, behave: 'Callable[[_Slow], Awaitable[None]]') -> None:
    stage.front()
    stage.worker('--threads', '4')
    with stage.load(work=WORK):
        usual = _look(stage)
        with stage.fault(), _crowd(stage, MANY, behave) as crowd:
            wait_until(lambda: crowd.begun == MANY, 20, f'{MANY} slow clients')
            stage.sleep(1)
            _compare(stage, usual, _look(stage))


def _look(stage: Stage) -> Sequence[float]:
    """Return how long the ordinary clients have waited in the next seconds."""
    since = time.monotonic()
    stage.sleep(LOOKED_AT)
    return [one.took for one in stage.account.exchanges if one.began > since and not one.doomed]


def _compare(stage: Stage, usual: Sequence[float], now: Sequence[float]) -> None:
    if min(len(usual), len(now)) < 20:
        stage.complain(f'{len(usual)} were answered without them, {len(now)} with them')
        return
    told = []
    for name, least, share in (('median', 0.02, 50), ('99 %', 0.2, 99)):
        before, after = (statistics.quantiles(each, n=100)[share - 1] for each in (usual, now))
        told.append(f'{name} {before * 1000:.0f} ms without them, {after * 1000:.0f} ms with them')
        stage.check(after < 1.5 * before + least, told[-1])
    stage.note('; '.join(told))


def _room_for(stage: Stage, number: int) -> int:
    """Let this process and those that it starts have so many files; return how many sockets there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        stage.note(f'only {hard - 500} connections: the limit of open files is {hard}')
        wanted = hard
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        stage.at_close.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    return min(number, wanted - 500)


class _Slow:
    """One of the crowd."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.method = 'GET'
        self._port = port
        self._connection: Connection | None = None
        self._writer: asyncio.StreamWriter
        self._reader: asyncio.StreamReader

    async def ask(self) -> None:
        """Ask as anybody does, and keep the connection."""
        self._connection = await Connection.open(self._port)
        status, _ = await self._connection.exchange('GET', f'/?id={self.name}', b'')
        assert status == 200, status

    async def send(self, data: bytes) -> None:
        """Connect, and send something; nothing is read."""
        ours = socket.socket()
        # The kernel would read for us.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_connect(ours, ('127.0.0.1', self._port))
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=1)
        self._writer.write(data)

    async def trickle(self, data: bytes) -> None:
        """Send a byte now and then."""
        if not hasattr(self, '_writer'):
            await self.send(b'')
        for number in range(len(data)):
            self._writer.write(data[number : number + 1])
            await asyncio.sleep(SENDS_EVERY)

    def head(self, method: str, *fields: str, target: str = '') -> bytes:
        """Return a head."""
        self.method = method
        return '\r\n'.join([f'{method} /?id={self.name}{target} HTTP/1.1', 'Host: localhost', *fields, '', '']).encode()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
        elif hasattr(self, '_writer'):
            self._writer.close()

    @property
    def open(self) -> bool:
        """Whether the other end has not hung up."""
        return self._connection is not None and self._connection.alive


class _Crowd:
    """So many clients that behave alike, in a thread of their own.

    Attributes:
        begun: how many have begun.
        settled: how many have done what they had to do.
    """

    def __init__(self, stage: Stage, number: int, at_once: int, behave: Callable[[_Slow], Awaitable[None]]) -> None:
        port = stage.fronts[0].port
        self.members = [_Slow(f'slow-{n}', port) for n in range(number)]
        self.begun = self.settled = 0
        self._stage = stage
        self._at_once = at_once
        self._behave = behave
        self._loop: asyncio.AbstractEventLoop
        self._leave: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """How many connections the front has not closed."""
        return sum(member.open for member in self.members)

    def leave(self) -> None:
        """All hang up."""
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(30)

    async def _main(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        at_once = asyncio.Semaphore(self._at_once)
        tasks = [asyncio.create_task(self._one(member, at_once)) for member in self.members]
        await self._leave.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self.members:
            member.close()
            now = time.monotonic()
            # They are part of the account, for what they ask may be run; how long they wait is their own affair.
            self._stage.account.exchanges.append(Exchange(member.name, member.method, now, now, doomed=True, left=True))
        await asyncio.sleep(0.1)

    async def _one(self, member: _Slow, at_once: asyncio.Semaphore) -> None:
        async with at_once:
            self.begun += 1
            await self._behave(member)
            self.settled += 1


@contextlib.contextmanager
def _crowd(
    stage: Stage, number: int, behave: Callable[[_Slow], Awaitable[None]], at_once: int = IDLE
) -> Iterator[_Crowd]:
    crowd = _Crowd(stage, number, at_once, behave)
    try:
        yield crowd
    finally:
        crowd.leave()
