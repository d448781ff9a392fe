"""When a request is over: once its response has left, or its client is gone or stalls. The front waits for that."""

import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.stack import Front, Stack
from tests.waiting import wait_until
from tests.wire import Wire

HOST = b'Host: crew.test\r\n'

#: More than the buffers of two kernels and the window hold.
SIZE = 16 * 1024 * 1024


@contextmanager
def slow_reader(front: Front, headers: bytes = b'') -> Iterator[socket.socket]:
    """A client that has asked for a long response and not begun to read it, though it has begun to come."""
    with socket.socket() as client:
        client.settimeout(30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        client.connect(('127.0.0.1', front.port))
        request = b'GET /long?%d HTTP/1.1\r\nX-App: sized\r\n' % SIZE
        client.sendall(request + HOST + headers + b'\r\n')
        assert select.select([client], [], [], 30)[0]
        yield client


def read_all(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(1024 * 1024):
        pieces.append(piece)
    return b''.join(pieces)


def listens(front: Front) -> bool:
    try:
        socket.create_connection(('127.0.0.1', front.port), 10).close()
    except ConnectionError:
        return False
    return True


def tell_to_end(front: Front) -> None:
    """Send SIGTERM, and wait until nobody can connect any more."""
    front.signal(signal.SIGTERM)
    wait_until(lambda: not listens(front), 15, 'the port to be closed')


@pytest.mark.parametrize('headers', [b'', b'Connection: close\r\n'])
def test_a_response_that_is_being_sent_is_sent_to_its_end(stack: Stack, headers: bytes) -> None:
    front = stack.front().await_ready()
    stack.worker('pep3333:app').await_ready()
    with slow_reader(front, headers) as client:
        tell_to_end(front)
        response = HTTPResponse(client)
        response.begin()
        assert (response.status, response.read()) == (200, b'x' * SIZE)
    assert front.wait(20) == 0


@pytest.mark.parametrize(
    'request_line', [b'GET /sleep?for=1 HTTP/1.1\r\nConnection: close\r\n', b'GET /sleep?for=1 HTTP/1.0\r\n']
)
def test_a_client_that_wanted_the_connection_closed_is_not_waited_for(stack: Stack, request_line: bytes) -> None:
    front = stack.front().await_ready()
    stack.worker('faults:app').await_ready()
    with Wire(front.port) as wire:
        wire.send(request_line + HOST + b'\r\n')
        wait_until(lambda: stack.runs, 15, 'the run')
        front.signal(signal.SIGTERM)
        assert wire.answer().status == 200
        assert wire.ended()
        assert front.wait(15) == 0


@contextmanager
def hang_ups(means: signal.Handlers) -> Iterator[None]:
    """What SIGHUP means to a process that is started meanwhile; whoever runs these tests may ignore it."""
    before = signal.signal(signal.SIGHUP, means)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('orders', ['SIGHUP SIGHUP', 'SIGHUP SIGTERM', 'SIGTERM SIGHUP'])
def test_a_terminal_that_closes_cuts_no_request(stack: Stack, tmp_path: Path, orders: str) -> None:
    path = tmp_path / 'front.sock'
    with hang_ups(signal.SIG_DFL):
        front = stack.front('--bind', '127.0.0.1:0', '--bind', f'unix:{path}').await_ready()
    stack.worker('faults:app').await_ready()
    answer = front.later('GET', '/sleep?for=1')
    wait_until(lambda: stack.runs, 15, 'the run')
    for order in orders.split():
        front.signal(signal.Signals[order])
        front.await_log('told to end: answering what is in flight')
    assert answer.result(15).status == 200
    assert front.wait(15) == 0
    assert '"GET /sleep?for=1 HTTP/1.1" 200' in front.text and not path.exists()


def test_under_nohup_the_front_outlives_the_terminal(stack: Stack) -> None:
    with hang_ups(signal.SIG_IGN):
        front = stack.front('--queue-timeout', '0.5').await_ready()
    front.signal(signal.SIGHUP)
    assert front.get('/').status == 503
    assert front.terminate() == 0
    assert front.text.count('told to end') == 1


def test_who_was_refused_may_read_the_answer_though_it_is_still_sending(stack: Stack) -> None:
    front = stack.front('--max-body', '1000000').await_ready()
    with Wire(front.port) as wire:
        wire.send(b'POST / HTTP/1.1\r\n' + HOST + b'Content-Length: 20000000\r\n\r\n')
        front.await_log('"POST / HTTP/1.1" 413')
        tell_to_end(front)
        for _ in range(20):
            wire.send(bytes(1_000_000))
        assert wire.answer().status == 413
        assert wire.ended()
    assert front.wait(20) == 0


def test_who_was_refused_counts_as_in_flight_no_more(stack: Stack) -> None:
    front = stack.front('--max-inflight', '1', '--max-body', '1000000').await_ready()
    stack.worker('faults:app').await_ready()
    with Wire(front.port) as wire:
        wire.send(b'POST / HTTP/1.1\r\n' + HOST + b'Content-Length: 20000000\r\n\r\n')
        assert wire.answer().status == 413
        assert front.get('/').status == 200


def test_a_client_that_hangs_up_is_not_waited_for(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('pep3333:app').await_ready()
    with slow_reader(front):
        tell_to_end(front)
    assert front.wait(20) == 0


def test_a_client_that_never_reads_is_abandoned_in_the_end(stack: Stack) -> None:
    front = stack.front('--graceful-timeout', '1').await_ready()
    stack.worker('pep3333:app').await_ready()
    with slow_reader(front):
        assert front.terminate() == 1
    assert '1 requests are abandoned' in front.text


# Clients that do not read


def test_a_client_that_does_not_read_counts_as_in_flight_and_is_cut_off(stack: Stack) -> None:
    front = stack.front('--max-inflight', '1', '--body-timeout', '3').await_ready()
    stack.worker('pep3333:app').await_ready()
    with slow_reader(front) as client:
        assert front.get('/').status == 503
        front.await_log('closing the connection of 127.0.0.1: it reads too slowly, 3 s behind 1024 bytes a second')
        assert front.get('/').status == 200
        # It is reset, so that nothing is kept for it in the kernel either.
        with pytest.raises(ConnectionResetError):
            read_all(client)
    assert 'Traceback' not in front.text


def test_a_client_that_reads_slowly_gets_all_of_it(stack: Stack) -> None:
    front = stack.front('--body-timeout', '2').await_ready()
    stack.worker('pep3333:app').await_ready()
    with slow_reader(front) as client:
        begun, size = time.monotonic(), 0
        while piece := client.recv(256 * 1024, socket.MSG_WAITALL):
            size += len(piece)
            wait_until(lambda: time.monotonic() > begun + 6 * size / SIZE)  # noqa: B023 it is called at once
            if size > SIZE:
                break
    assert size > SIZE and 'closing the connection' not in front.text
