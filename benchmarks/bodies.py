"""Bodies from 1 kB to 16 MB, up and down."""

import http.client
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bridges import running
from benchmarks.contenders import Contender
from benchmarks.processes import free_port
from crew.private_node import PrivateNode
from crew.streams import CHUNK

__all__ = ['AT_ONCE', 'compare_bodies', 'raw_stream']

#: Clients at once.
AT_ONCE = 4


def compare_bodies(
    contenders: Sequence[Contender], node: PrivateNode, rounds: int, seconds: float, sizes: Sequence[int], log: Path
) -> dict[tuple[str, int, str], float]:
    """Return bytes a second by contender, size of a body, and direction (``up``: the body is echoed; ``down``)."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for number in range(rounds):
        for contender in contenders:
            port = free_port()
            with running(contender.services(node.url, port), port, log):
                for size in sizes:
                    for way in ('up', 'down'):
                        rate = _transfer(port, size, way, seconds)
                        found.setdefault((contender.name, size, way), []).append(rate)
                        print(f'  round {number + 1}: {contender.name}: {size} bytes {way}: {rate / 1e6:.1f} MB/s')
    return {key: statistics.median(rates) for key, rates in found.items()}


def _transfer(port: int, size: int, way: str, seconds: float) -> float:
    moved = [0] * AT_ONCE
    began = time.monotonic()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
        body = bytes(size)
        while time.monotonic() < began + seconds:
            if way == 'up':
                connection.request('POST', '/', body)
            else:
                connection.request('GET', f'/?size={size}')
            response = connection.getresponse()
            assert response.status == 200, response.status
            assert len(response.read()) == size
            moved[number] += size
        connection.close()

    clients = [threading.Thread(target=client, args=(number,)) for number in range(AT_ONCE)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return sum(moved) / (time.monotonic() - began)


def raw_stream(node: PrivateNode, seconds: float) -> float:
    """Return bytes a second of a bare pika producer → broker → consumer stream of chunks as large as ours."""
    import pika

    chunk = bytes(CHUNK)
    received = 0
    began = time.monotonic()

    def produce() -> None:
        connection = pika.BlockingConnection(pika.URLParameters(node.url))
        channel = connection.channel()
        while time.monotonic() < began + seconds:
            # No more than a window ahead, as ours.
            if sent[0] - received < 8 * CHUNK:
                channel.basic_publish('', 'raw', chunk)
                sent[0] += CHUNK
            else:
                connection.process_data_events(0.0005)
        connection.close()

    sent = [0]
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    channel = connection.channel()
    channel.queue_declare('raw', exclusive=False, auto_delete=True)
    producer = threading.Thread(target=produce)
    producer.start()
    for _, _, body in channel.consume('raw', auto_ack=True, inactivity_timeout=1):
        if body is None:
            break
        received += len(body)
        if time.monotonic() > began + seconds:
            break
    taken = time.monotonic() - began
    producer.join()
    connection.close()
    return received / taken
