"""aio-pika's RPC pattern behind aiohttp: ``aio_pika_rpc.py front|worker|calls …``."""

import asyncio
import sys
import time

import aio_pika
from aio_pika.patterns import RPC
from aiohttp import web


async def hello() -> str:
    """Say hello."""
    return 'hello\n'


async def connect(url: str) -> RPC:
    """Return an RPC on a channel of its own."""
    connection = await aio_pika.connect_robust(url)
    return await RPC.create(await connection.channel())


async def worker(url: str) -> None:
    """Run calls for ever."""
    rpc = await connect(url)
    await rpc.register('hello', hello, auto_delete=True)
    await asyncio.Event().wait()


async def front(url: str, port: int) -> None:
    """Serve for ever."""
    rpc = await connect(url)

    async def get(request: web.Request) -> web.Response:
        return web.Response(text=await rpc.proxy.hello())

    app = web.Application()
    app.router.add_get('/', get)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', port).start()
    await asyncio.Event().wait()


async def calls(url: str, at_once: int, seconds: float) -> None:
    """Call for so long; print how many calls were answered."""
    rpc = await connect(url)
    end = time.monotonic() + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < end:
            assert await rpc.proxy.hello() == 'hello\n'
            done += 1

    await asyncio.gather(*(caller() for _ in range(at_once)))
    print(done)


if __name__ == '__main__':
    if sys.argv[1] == 'front':
        asyncio.run(front(sys.argv[2], int(sys.argv[3])))
    elif sys.argv[1] == 'worker':
        asyncio.run(worker(sys.argv[2]))
    else:
        asyncio.run(calls(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
