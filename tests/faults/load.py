"""Constant load: clients that ask one thing after the other and write down what they hear.

They parse with h11, which accepts nothing but what RFC 9112 says, so an answer too many or half an answer is noticed.
"""

import asyncio
import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import h11

from tests.faults.account import Exchange

__all__ = ['Connection', 'Load', 'Work', 'ask']

READ = 65_536


@dataclass(frozen=True, slots=True)
class Work:
    """What clients ask for.

    Args:
        methods: chosen from at random.
        shortest: of a run, in seconds.
        longest: of a run, in seconds.
        body: the longest body of what is not a GET, in bytes.
        pause: between two requests of a client, in seconds.
    """

    methods: Sequence[str] = ('GET', 'GET', 'POST', 'POST', 'PUT')
    shortest: float = 0.0
    longest: float = 0.04
    body: int = 2_000
    pause: float = 0.005


class Load:
    """So many clients in a thread of their own, each on a connection that it keeps, until :meth:`stop`.

    Args:
        ports: of the fronts, asked for before each new connection: a front that is started again has another one.
        clients: how many.
        work: what they ask for.
        seed: repeats the same requests.
        note: called with each exchange when it is over, in the load's thread.
    """

    def __init__(
        self, ports: Callable[[], Sequence[int]], clients: int, work: Work, seed: str, note: Callable[[Exchange], None]
    ) -> None:
        self._ports = ports
        self._work = work
        self._seed = seed
        self._note = note
        self._stopping = threading.Event()
        self._clients = clients
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Let every client hear the answer that it waits for; return whether all have ended in time."""
        self._stopping.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    async def _main(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    async def _client(self, number: int) -> None:
        choose = random.Random(f'{self._seed} {number}')
        asked = 0
        while not self._stopping.is_set():
            try:
                connection = await Connection.open(choose.choice(list(self._ports()) or [1]))
            except OSError:
                # No front is there: nothing was asked.
                await asyncio.sleep(0.02)
                continue
            while connection.usable and not self._stopping.is_set():
                asked += 1
                await self._ask(connection, choose, f'{number}-{asked}')
                await asyncio.sleep(self._work.pause)
            connection.close()

    async def _ask(self, connection: 'Connection', choose: random.Random, request: str) -> None:
        work = self._work
        method = choose.choice(work.methods)
        takes = choose.uniform(work.shortest, work.longest)
        body = b'' if method == 'GET' else choose.randbytes(choose.randrange(work.body + 1))
        exchange = Exchange(request, method, time.monotonic())
        await ask(connection, exchange, takes, body)
        self._note(exchange)


async def ask(connection: 'Connection', exchange: Exchange, takes: float, body: bytes = b'') -> None:
    """Ask the application that keeps accounts for a run of ``takes`` seconds; note the answer, and what is wrong."""
    status, answer = await connection.exchange(exchange.method, f'/?id={exchange.id}&for={takes:.4f}', body)
    exchange.ended = time.monotonic()
    exchange.status = status
    if status == 200 and answer.split()[:2] != [exchange.id.encode(), hashlib.sha1(body).hexdigest().encode()]:
        exchange.wrong = f'a wrong answer: {answer[:80]!r}'
    if status == 503 and not connection.retry_after:
        exchange.wrong = '503 without Retry-After'
    if status < 0:
        exchange.status, exchange.wrong = 0, answer.decode()


class Connection:
    """A kept connection of one client.

    Attributes:
        usable: whether it can be asked again.
        retry_after: when the last answer said that it may be worth to come again, or empty.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self.usable = True
        self.retry_after = ''

    @classmethod
    async def open(cls, port: int) -> 'Connection':
        """Connect to a front."""
        return cls(*await asyncio.open_connection('127.0.0.1', port))

    @property
    def alive(self) -> bool:
        """Whether the front has not hung up."""
        return not self._reader.at_eof()

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def exchange(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """Ask; return the status and the body, 0 if the connection ended first, -1 and why if it was no answer."""
        request = h11.Request(method=method, target=target, headers=_headers(method, body))
        with contextlib.suppress(OSError):
            self._writer.write(self._send(request) + self._send(h11.Data(body)) + self._send(h11.EndOfMessage()))
        try:
            status, answer = await self._read()
        except OSError:
            status, answer = 0, b''
        except h11.RemoteProtocolError as error:
            # An end before anything of an answer is the same to h11 as an end in its middle.
            early = self._http.their_state is h11.SEND_RESPONSE or not self._heard
            status, answer = (0, b'') if early else (-1, f'half an answer: {error}'.encode())
        self.usable = status > 0 and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if self.usable:
            if self._http.trailing_data[0]:
                return -1, b'more than one answer'
            self._http.start_next_cycle()
        return status, answer

    def _send(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b''

    async def _read(self) -> tuple[int, bytes]:
        status, answer, self._heard = 0, b'', False
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(READ)
                self._heard = self._heard or bool(data)
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
                self.retry_after = dict(event.headers).get(b'retry-after', b'').decode()
            elif isinstance(event, h11.Data):
                answer += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, answer


def _headers(method: str, body: bytes) -> list[tuple[str, str]]:
    length = [] if method == 'GET' else [('Content-Length', str(len(body)))]
    return [('Host', 'localhost'), *length]
