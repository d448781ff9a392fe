"""Fronts that are killed or replaced, and clients that hang up, under load."""

import contextlib
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.account import ENDS, Exchange
from tests.faults.scenarios import scenario
from tests.faults.stage import Stage
from tests.stack import Front
from tests.waiting import wait_until

HOST = 'Host: localhost\r\n'


# Killed


@scenario('front: kill -9 of one of two', unanswered=True, longest=3.0, recovers=1.0, short=True)
def kill_one(stage: Stage) -> None:
    """A front is killed while answers and uploads stream through it. Its workers stop that and serve the others.

    Only its own clients notice. What it had in the queue, and its private queue, are gone.
    """
    stage.front()
    stage.front()
    stage.worker('--threads', '4', '--graceful-timeout', '3', processes=2)
    with stage.load(), _streams(stage, 3, stage.fronts[0]):
        stage.check(_reply_queues(stage) == 2, 'there are not two reply queues')
        with stage.fault():
            stage.fronts[0].signal(signal.SIGKILL)
            stage.fronts[0].wait()
        wait_until(lambda: _open_streams(stage) == 0, 5, 'workers to close what streams to the killed front')
        wait_until(lambda: _reply_queues(stage) == 1, 5, 'the reply queue of the killed front to be gone')


@scenario('front: kill -9 of the only one, started again', unanswered=True, longest=3.0, recovers=2.0)
def kill_only(stage: Stage) -> None:
    """The only front is killed, three times, and another takes its place on the same port."""
    port = stage.front().port
    stage.worker('--threads', '2', processes=2)
    with stage.load():
        for _ in range(3):
            with stage.fault():
                stage.fronts[-1].signal(signal.SIGKILL)
                stage.fronts[-1].wait()
                stage.front('--port', str(port))
            stage.sleep(0.5)


# Replaced


@scenario('front: SIGTERM, another one on the same socket', recovers=0.0, longest=3.0, short=True)
def hand_over(stage: Stage) -> None:
    """Fronts are replaced, three times, on one listening socket that is opened for them (``--bind fd:``, or systemd's).

    No connection is refused, no request is lost.
    """
    with socket.create_server(('127.0.0.1', 0), backlog=2048) as listening:
        bind = '--bind', f'fd:{listening.fileno()}'
        files = [listening.fileno()]
        stage.front(*bind, files=files)
        stage.worker('--threads', '2', processes=2)
        with stage.load(settle=0.3), _connects(stage):
            for _ in range(3):
                with stage.fault():
                    stage.front(*bind, files=files)
                    stage.check(stage.fronts[-2].terminate() == 0, 'a front has abandoned something')


@scenario('front: SIGTERM of one of two', recovers=0.0, longest=3.0)
def end_one(stage: Stage) -> None:
    """A front ends while another listens elsewhere, three times. What was accepted is answered."""
    stage.front()
    stage.worker('--threads', '2', processes=2)
    with stage.load():
        for _ in range(3):
            with stage.fault():
                stage.front()
                stage.check(stage.fronts[-2].terminate() == 0, 'a front has abandoned something')


# Clients that hang up


@scenario('front: clients hang up at random', recovers=0.0, longest=3.0)
def hang_up(stage: Stage) -> None:
    """For ten seconds clients leave, with and without a reset, in heads, bodies, runs and answers. Nothing is left."""
    front = stage.front()
    stage.worker('--threads', '4', processes=2)
    with stage.load():
        before = _open_files(front.pid)
        with stage.fault():
            threads = [
                threading.Thread(target=_leave_often, args=(stage, front, time.monotonic() + 10, number))
                for number in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        wait_until(lambda: _open_files(front.pid) <= before + 2, 10, 'the front to close what was left')
    stage.check(_open_streams(stage) == 0, 'streams are open at the worker')


def _leave_often(stage: Stage, front: Front, until: float, number: int) -> None:
    choose = random.Random(f'{stage.queue} {number}')
    asked = 0
    while time.monotonic() < until:
        asked += 1
        when = choose.choice(('head', 'body', 'run', 'answer'))
        name = 'quitting' if when == 'run' else 'leaving'
        _leave(stage, front, f'{name}-{number}-{asked}', choose.random(), when)


def _leave(stage: Stage, front: Front, request: str, chance: float, when: str) -> None:
    exchange = Exchange(request, 'POST', time.monotonic(), left=True, doomed=True)
    with socket.create_connection(('127.0.0.1', front.port), timeout=10) as client:
        target = f'/?id={request}&for=0.2&stream={0 if when == "run" else 100}'
        head = f'POST {target} HTTP/1.1\r\n{HOST}Content-Length: 200000\r\n\r\n'.encode()
        if when == 'head':
            client.sendall(head[: int(len(head) * chance)])
        else:
            client.sendall(head + bytes(int(200_000 * (chance if when == 'body' else 1))))
        if when == 'answer':
            with contextlib.suppress(OSError):
                client.recv(1000)
        time.sleep(chance * 0.2)
        if chance < 0.5:
            # RST instead of FIN.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    exchange.ended = time.monotonic()
    stage.account.exchanges.append(exchange)


def _open_files(pid: int) -> int:
    return len(list(Path(f'/proc/{pid}/fd').iterdir()))


# Long answers and uploads, new connections


@contextlib.contextmanager
def _streams(stage: Stage, count: int, front: Front) -> Iterator[None]:
    """Let so many long answers come through a front, and as many uploads wait in it, while the block runs."""
    with contextlib.ExitStack() as at_end:
        for number in range(2 * count):
            exchange = Exchange(f'stream-{number}', 'POST', time.monotonic(), doomed=True, left=True)
            stage.account.exchanges.append(exchange)
            client = at_end.enter_context(socket.create_connection(('127.0.0.1', front.port), timeout=10))
            length = 0 if number % 2 else 10_000_000
            target = f'/?id={exchange.id}&stream=3000'
            client.sendall(f'POST {target} HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n\r\n'.encode())
            if length:
                client.sendall(bytes(100_000))
        wait_until(lambda: _open_streams(stage) == 2 * count, 10, 'streams')
        yield


def _open_streams(stage: Stage) -> int:
    """Return how many long answers and uploads are under way at workers."""
    lines = [line.split() for line in stage.stack.runs]
    begun = {line[0] for line in lines if line[0].startswith(('stream', 'leaving'))}
    return len(begun - {line[0] for line in lines if line[1] in ENDS})


@contextlib.contextmanager
def _connects(stage: Stage) -> Iterator[None]:
    """Make a new connection for each of many requests while the block runs, and complain of each that is refused."""
    stopping = threading.Event()
    exchanges: list[Exchange] = []

    def connect() -> None:
        while not stopping.is_set():
            exchanges.append(stage.doom('GET', 'answer'))

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    lost = sum(one.status != 200 for one in exchanges)
    stage.check(not lost, f'{lost} of {len(exchanges)} requests on new connections failed')


def _reply_queues(stage: Stage) -> int:
    names = stage.broker.ctl('list_queues', 'name', '--no-table-headers').split()
    return sum(name.startswith('crew.master.') for name in names)
