"""A bad way to the broker: a TCP proxy whose behaviour is changed while it carries a connection."""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

__all__ = ['Proxy', 'Way']

READ = 65_536


@dataclass(frozen=True, slots=True)
class Way:
    """How bytes travel in one direction.

    Args:
        delay: for how long each piece is under way, in seconds.
        jitter: how much longer at most; nothing overtakes what was sent before it.
        rate: how many bytes a second pass, or None for as many as there are.
        piece: the longest piece that is passed on at once, in bytes.
        dead: whether nothing passes. The sockets stay open, so nobody is told.
    """

    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    piece: int = READ
    dead: bool = False


class Proxy:
    """Listens on a port of its own and carries each connection to an AMQP address, in a thread of its own.

    Args:
        url: where to; :attr:`url` is the same with this proxy's port.
        choose: what jitter is drawn from.
    """

    def __init__(self, url: str, choose: random.Random) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname or '', parts.port or 5672
        self._choose = choose
        self._to, self._back = Way(), Way()
        self._accept_after = 0.0
        self._pairs: set[_Pair] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._port = 0
        self._do(self._listen())
        self.url = parts._replace(netloc=parts.netloc.replace(f':{parts.port}', f':{self._port}')).geturl()

    def set(self, *, to: Way | None = None, back: Way | None = None, accept_after: float = 0.0) -> None:
        """Carry bytes to the broker and back like this from now on, and open new connections so late, in seconds."""

        async def change() -> None:
            self._to, self._back, self._accept_after = to or Way(), back or Way(), accept_after
            for pair in self._pairs:
                pair.changed.set()
                pair.changed = asyncio.Event()

        self._do(change())

    def way(self, *, back: bool) -> Way:
        """How bytes travel now."""
        return self._back if back else self._to

    def reset(self, *, in_frame: bool = False) -> int:
        """Reset all connections, ``in_frame`` after half of the next piece in each direction; return how many."""

        async def reset() -> int:
            pairs = list(self._pairs)
            for pair in pairs:
                if in_frame:
                    pair.halve = True
                else:
                    pair.reset()
            return len(pairs)

        return int(self._do(reset()))

    def refuse(self) -> None:
        """Listen no more, until :meth:`admit`, and reset all connections: who comes back at once is refused."""
        self._do(self._unlisten())
        self.reset()

    def admit(self) -> None:
        """Listen again, on the same port."""
        self._do(self._listen())

    def close(self) -> None:
        """End everything."""
        self.refuse()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: 'Coroutine[Any, Any, Any]') -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, '127.0.0.1', self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(self, self._choose)
        pair.writers.append(writer)
        self._pairs.add(pair)
        carrying: list[asyncio.Task[None]] = []
        try:
            await asyncio.sleep(self._accept_after)
            broker_reader, broker_writer = await asyncio.open_connection(*self._target)
            pair.writers.append(broker_writer)
            carrying.append(asyncio.create_task(pair.carry(reader, broker_writer, back=False)))
            carrying.append(asyncio.create_task(pair.carry(broker_reader, writer, back=True)))
            await asyncio.gather(*carrying)
        except OSError:
            pair.reset()
        finally:
            for task in carrying:
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)
            self._pairs.discard(pair)
            for each in pair.writers:
                each.close()


class _Pair:
    """One connection, both ends."""

    def __init__(self, proxy: Proxy, choose: random.Random) -> None:
        self._proxy = proxy
        self._choose = choose
        self.writers: list[asyncio.StreamWriter] = []
        self.changed = asyncio.Event()
        self.halve = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        """Carry one direction to its end."""
        loop = asyncio.get_running_loop()
        # Delay must not limit how much is under way, so reading and writing each have a task.
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(4096)
        arriving = asyncio.ensure_future(self._arrive(travelling, writer, back=back))
        try:
            while data := await reader.read(READ):
                way = self._proxy.way(back=back)
                await travelling.put((loop.time() + way.delay + self._choose.uniform(0, way.jitter), data))
            await travelling.put((0.0, b''))
            await arriving
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _arrive(
        self, travelling: 'asyncio.Queue[tuple[float, bytes]]', writer: asyncio.StreamWriter, *, back: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await travelling.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            while self._proxy.way(back=back).dead:
                await self.changed.wait()
            if not data:
                writer.close()
                return
            if self.halve:
                writer.write(data[: len(data) // 2])
                await asyncio.sleep(0)
                self.reset()
                return
            await self._write(writer, data, back=back)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, *, back: bool) -> None:
        while data:
            way = self._proxy.way(back=back)
            piece, data = data[: way.piece], data[way.piece :]
            writer.write(piece)
            await writer.drain()
            # Without the pause the kernel would make one segment of many.
            await asyncio.sleep(len(piece) / way.rate if way.rate else 0)

    def reset(self) -> None:
        """End both connections with a reset."""
        for writer in self.writers:
            endpoint: socket.socket | None = writer.get_extra_info('socket')
            if endpoint is not None and endpoint.fileno() >= 0:
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            writer.transport.abort()
