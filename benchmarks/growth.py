"""How crew grows: with workers, a backlog, connections, and long heads; and what it costs to start and to idle."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bridges import Figures, compare, running
from benchmarks.contenders import Contender, crew_of
from benchmarks.processes import family_of, free_port, measuring
from benchmarks.wrk import load
from crew import codec
from crew.messages import Call
from crew.private_node import PrivateNode
from crew.topology import task_queue_name
from crew.transports.addresses import dial
from crew_wsgi.messages import CONTENT_TYPE, Request, encode_request

__all__ = ['backlog', 'heads', 'idle', 'start_up', 'workers']

TAKES = 0.02


def workers(node: PrivateNode, counts: Sequence[int], seconds: int, log: Path) -> dict[int, Figures]:
    """Return what so many worker processes of an application that takes 20 ms answer."""
    found = {}
    for count in counts:
        contender = Contender(f'{count} workers', crew_of('--processes', str(count), takes=TAKES))
        found[count] = compare([contender], node, 1, seconds, log, connections=4 * count)[contender.name]
    return found


def backlog(node: PrivateNode, queued: int, seconds: int, log: Path) -> tuple[float, float, float]:
    """Return requests a second without and with so many others of lower priority that wait in the queue.

    While a worker has nothing else to do, it runs those that wait. How many of these is the third figure.
    """
    port = free_port()
    services = crew_of(front=('--route', '/=wsgi;priority=9'))(node.url, port)
    url = f'http://127.0.0.1:{port}/'
    with running(services, port, log):
        without = [load(url, seconds).rate]
        asyncio.run(_fill(node.url, queued))
        before = _waiting(node.url)
        result = load(url, seconds)
        drained = before - _waiting(node.url)
        node.ctl('purge_queue', 'crew.tasks.wsgi')
        without.append(load(url, seconds).rate)
    return sum(without) / 2, result.rate, drained / result.seconds


def _waiting(url: str) -> int:
    """Return how many messages wait."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    declared = connection.channel().queue_declare(task_queue_name('wsgi'), passive=True)
    connection.close()
    return int(declared.method.message_count)


async def _fill(url: str, count: int) -> None:
    """Put requests that nobody waits for into the queue."""
    request = encode_request(Request(method='GET', target='/', headers=(('Host', 'localhost'),), request_id='queued'))
    connection = await dial(url)
    channel = await connection.open_channel(confirm=True)
    for number in range(count):
        call = Call(correlation_id=str(number), body=request, content_type=CONTENT_TYPE, priority=0)
        channel.publish(codec.encode(call), task_queue_name('wsgi'))
        if number % 1000 == 0:
            await channel.confirmed()
    await channel.confirmed()
    await connection.close()


def heads(contenders: Sequence[Contender], node: PrivateNode, seconds: int, log: Path) -> dict[tuple[str, str], float]:
    """Return requests a second with 50 fields in the head, and with a head of 8 kB."""
    scripts = {
        '50 headers': ''.join(f'wrk.headers["X-Field-{number}"] = "value {number}"\n' for number in range(50)),
        'a head of 8 kB': f'wrk.headers["X-Long"] = "{"x" * 8000}"\n',
    }
    found = {}
    for contender in contenders:
        port = free_port()
        with running(contender.services(node.url, port), port, log):
            for name, script in scripts.items():
                found[contender.name, name] = load(f'http://127.0.0.1:{port}/', seconds, script=script).rate
    return found


def start_up(node: PrivateNode, log: Path, tries: int = 5) -> tuple[float, float]:
    """Return the seconds until ``--help`` is told, and until a worker whose application needs none takes requests."""
    python = [sys.executable, '-m', 'crew_wsgi.worker']
    told, ready = [], []
    for _ in range(tries):
        began = time.monotonic()
        subprocess.run([*python, '--help'], check=True, capture_output=True)
        told.append(time.monotonic() - began)
        ready.append(_ready(node, log))
    return min(told), min(ready)


def _ready(node: PrivateNode, log: Path) -> float:
    service = crew_of()(node.url, 1)[1]
    output = log.with_suffix('.ready')
    output.unlink(missing_ok=True)
    began = time.monotonic()
    service.start(output)
    try:
        while 'taking requests from' not in output.read_text():
            time.sleep(0.005)
        return time.monotonic() - began
    finally:
        service.stop()


def idle(node: PrivateNode, seconds: float, log: Path) -> float:
    """Return the share of one core that a front and a worker take together while nobody asks."""
    port = free_port()
    with running(crew_of()(node.url, port), port, log) as roles:
        time.sleep(3)
        pids = [pid for found in roles.values() for pid in found]
        assert all(family_of(pid) for pid in pids)
        with measuring({'all': pids}) as usage:
            time.sleep(seconds)
    return usage['all'].cpu / seconds
