"""Clients that are slow at sending, slow at reading, or idle, take no place from others and do not stay for ever."""

import contextlib
import json
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew_wsgi.budget import Budget
from crew_wsgi.patience import Patience
from tests.apps.streaming import PIECE
from tests.stack import Front, Stack
from tests.test_streaming import CHUNKED, chunk, get, head, let_pass, memory, processor_time, sized, start
from tests.waiting import wait_until
from tests.wire import Wire

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE


# Patience


RATE = 1000


@given(limit=st.floats(0.1, 100), silence=st.floats(0.01, 50))
def test_a_silent_client_is_given_up_after_the_limit(limit: float, silence: float) -> None:
    patience = Patience(limit, RATE)
    assert patience.deadline is None
    patience.wait(silence)
    patience.wait(silence + 0.005)
    assert patience.deadline == pytest.approx(silence + limit)


@given(
    limit=st.floats(0.1, 100),
    rate=st.floats(1.01, 100),
    gaps=st.lists(st.floats(0.001, 1), min_size=1, max_size=200),
)
def test_a_client_that_is_fast_enough_is_never_given_up(limit: float, rate: float, gaps: list[float]) -> None:
    patience, now = Patience(limit, RATE), 0.0
    patience.wait(now)
    for gap in gaps:
        step = gap * limit
        assert patience.deadline is not None and patience.deadline > now
        now += step * 0.99
        patience.moved(int(step * RATE * rate) + 1, now)
    assert patience.deadline == pytest.approx(now + limit, rel=0.05)


@given(limit=st.floats(0.1, 100), share=st.floats(0.01, 0.9), step=st.floats(0.01, 0.5))
def test_a_client_that_is_too_slow_is_given_up_however_steady(limit: float, share: float, step: float) -> None:
    patience, now = Patience(limit, RATE), 0.0
    patience.wait(now)
    while patience.deadline is not None and patience.deadline > now:
        now += step * limit
        patience.moved(int(step * limit * RATE * share), now)
        assert now < limit / (1 - share) + 2 * step * limit + 1
    assert now > 0.99 * limit


def test_what_came_fast_does_not_buy_a_long_silence_and_waiting_for_others_costs_nothing() -> None:
    patience = Patience(10, RATE)
    patience.wait(0)
    patience.moved(10**9, 1)
    assert patience.deadline == 11
    patience.stop(5)
    assert patience.deadline is None
    patience.wait(1000)
    assert patience.deadline == 1006
    patience.renew(1005)
    assert patience.deadline == 1015


# A bound on what is held


class Holder:
    def __init__(self, name: int, gone: list[int]) -> None:
        self.name, self.gone = name, gone

    def give_way(self) -> None:
        self.gone.append(self.name)


@given(
    size=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400), st.booleans()), max_size=100),
)
def test_no_more_is_held_than_the_budget_and_the_slowest_gives_way(
    size: int, steps: list[tuple[int, int, bool]]
) -> None:
    budget, gone = Budget(size), list[int]()
    holders = [Holder(number, gone) for number in range(10)]
    model: dict[int, int] = {}
    for number, held, stays in steps:
        if stays:
            budget.hold(holders[number], held)
            model[number] = held
            while sum(model.values()) > size:
                assert gone.pop(0) == next(iter(model))
                del model[next(iter(model))]
        else:
            budget.release(holders[number])
            model.pop(number, None)
        assert not gone and budget.held == sum(model.values()) <= size


# Slow senders


def trickle(wire: Wire, data: bytes, pause: float) -> None:
    for byte in data:
        wire.send(bytes([byte]))
        let_pass(pause)


def test_a_short_body_holds_no_worker_before_it_is_whole(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 20))
        trickle(wire, bytes(19), 0.05)
        assert stack.runs == []
        assert front.get('/').status == 200
        wire.send(b'x')
        assert json.loads(wire.answer().body)['length'] == 20
    assert len(stack.runs) == 2


def test_a_long_body_holds_no_worker_before_64_kib_have_come(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 100_000) + bytes(60_000))
        let_pass(0.5)
        assert stack.runs == []
        wire.send(bytes(10_000))
        wait_until(lambda: stack.runs, 10, 'the run')
        wire.send(bytes(30_000))
        assert json.loads(wire.answer().body)['length'] == 100_000


def test_client_and_application_can_talk_to_each_other(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--body-timeout', '1', '--min-rate', '1000000'))
    with Wire(front.port) as wire:
        wire.send(head('POST', '/echo?at_once=5', CHUNKED) + chunk(b'hello'))
        assert wire.head().status == 200
        heard = wire.chunks()
        assert next(heard) == b'hello'
        for said in (b'there', b'again', b'still', b'never'):
            # Slower than a transfer may be, but each word is an answer to the other's.
            let_pass(0.7)
            wire.send(chunk(said))
            assert next(heard) == said
        wire.send(chunk(b''))
        assert list(heard) == []


@pytest.mark.parametrize(
    'request_head', [sized('/sink', 50_000), sized('/sink', 500_000) + bytes(70_000), head('POST', '/sink', CHUNKED)]
)
def test_who_sends_a_byte_now_and_then_is_given_up(stack: Stack, request_head: bytes) -> None:
    front, _ = start(stack, front_arguments=('--body-timeout', '1', '--min-rate', '1000'))
    piece = chunk(bytes(10)) if b'chunked' in request_head else bytes(10)
    with Wire(front.port) as wire:
        begun = time.monotonic()
        wire.send(request_head)
        while wire.is_quiet(0.1) and time.monotonic() < begun + 20:
            wire.send(piece)
        assert wire.answer().status == 408
        assert 0.9 < time.monotonic() - begun < 8
        assert wire.ended()
    assert front.get('/').status == 200


def test_who_sends_steadily_is_let_however_long_it_takes(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--body-timeout', '1', '--min-rate', '1000'))
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 40_000))
        for _ in range(40):
            wire.send(bytes(1000))
            let_pass(0.1)
        assert json.loads(wire.answer().body)['length'] == 40_000


@contextmanager
def wires(front: Front, count: int, data: bytes) -> Iterator[list[Wire]]:
    with ExitStack() as stack:
        result = [stack.enter_context(Wire(front.port)) for _ in range(count)]
        for wire in result:
            wire.send(data)
        yield result


def test_bodies_that_are_still_coming_keep_nobody_out(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--max-inflight', '2'))
    with wires(front, 50, sized('/sink', 60_000) + bytes(20)):
        begun = time.monotonic()
        for _ in range(20):
            assert front.request('POST', '/sink', bytes(1000)).status == 200
        assert time.monotonic() - begun < 5
    assert len(stack.runs) == 20


def test_a_flood_of_unfinished_requests_displaces_its_oldest_and_nobody_else(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--max-inflight', '1'))
    before = memory(front.pid)
    body = sized('/sink', 60_000) + bytes(59_000)
    unfinished_head = get('/', 'X-Long: ' + 'x' * 59_000).removesuffix(b'\r\n\r\n')
    with wires(front, 60, body) as bodies:
        let_pass(0.5)
        with wires(front, 60, unfinished_head) as heads:
            assert front.request('POST', '/sink', bytes(60_000)).status == 200
            # There is room for 64 times 64 KiB.
            wait_until(lambda: sum(not wire.is_quiet(0) for wire in bodies) > 40, 10, 'the oldest to be given up')
            assert all(wire.is_quiet(0) for wire in heads)
            displaced = next(wire for wire in bodies if not wire.is_quiet(0))
            assert displaced.answer().status == 408 and displaced.ended()
        assert memory(front.pid) - before < 30 * MEBIBYTE
    assert 'there is no room for it now' in front.text and 'Traceback' not in front.text


# Slow readers


def read_slowly(wire: Wire, rate: float, seconds: float) -> int:
    """Read at so many bytes a second for so many seconds; return how many came."""
    begun, size = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        if size < passed * rate:
            piece = wire.read(4 * KIBIBYTE)
            size += len(piece)
            if len(piece) < 4 * KIBIBYTE:
                break
        else:
            time.sleep(0.01)
    return size


def test_who_reads_too_slowly_is_given_up_and_its_worker_is_free(stack: Stack) -> None:
    limits = ('--body-timeout', '1', '--min-rate', '200000')
    front, _ = start(stack, front_arguments=limits)
    with Wire(front.port, buffer=32 * KIBIBYTE) as wire:
        wire.send(get('/source?blocks=400'))
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            read_slowly(wire, 20_000, 20)
        assert time.monotonic() - begun < 15
    front.await_log('it reads too slowly, 1 s behind 200000 bytes a second')
    assert front.get('/').status == 200


def test_who_reads_steadily_is_let_though_the_kernels_hold_much_for_it(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--body-timeout', '1', '--min-rate', '1024'))
    # For seconds nothing more fits into these buffers, though the client takes something all the time.
    with Wire(front.port) as wire:
        wire.send(get('/source?blocks=400'))
        assert read_slowly(wire, 200_000, 5) > 500_000
        assert 'reads too slowly' not in front.text
        assert len(wire.read(10 * MEBIBYTE)) == 10 * MEBIBYTE


def test_readers_of_answers_that_their_worker_has_done_with_keep_nobody_out(stack: Stack, tmp_path: Path) -> None:
    # By a unix socket, for its kernel buffers are not as long as a window.
    listening = str(tmp_path / 'front.sock')
    front = stack.front('--max-inflight', '1', '--bind', f'unix:{listening}', '--bind', '127.0.0.1:0').await_ready()
    stack.worker('streaming:app').await_ready()
    before = memory(front.pid)
    with ExitStack() as closing:
        readers = [closing.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
        for reader in readers:
            reader.connect(listening)
            reader.sendall(get('/source?blocks=16', 'Connection: close'))
            wait_until(lambda: front.get('/').status == 200, 10, 'the worker')
        # Together they are more than 64 times 256 KiB: who has had the longest time gives way.
        front.await_log('there is no room for that now')
        assert memory(front.pid) - before < 40 * MEBIBYTE
        assert len(read_all(readers[0])) < 16 * PIECE < len(read_all(readers[-1]))


def read_all(reader: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := reader.recv(MEBIBYTE):
            pieces.append(piece)
    return b''.join(pieces)


# Connections


def open_files_limited(pid: int, more: int) -> Callable[[], None]:
    """Let a process open only so many more files; return what lifts that."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = len(list(Path(f'/proc/{pid}/fd').iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened + more, before[1]))

    def lift() -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    return lift


def test_thousands_of_idle_connections_cost_little_and_keep_nobody_out(stack: Stack) -> None:
    count = min(5000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    front, _ = start(stack)
    for _ in range(100):
        front.get('/')
    before = memory(front.pid)
    with ExitStack() as connections:
        for _ in range(count):
            connections.enter_context(socket.create_connection(('127.0.0.1', front.port), 10))
        begun = time.monotonic()
        for _ in range(100):
            assert front.get('/').status == 200
        assert time.monotonic() - begun < 5
        assert (memory(front.pid) - before) / count < 16 * KIBIBYTE


def test_a_connection_without_a_request_is_closed_after_a_while_and_nothing_is_sent(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--idle-timeout', '1'))
    with Wire(front.port) as fresh, Wire(front.port) as used, Wire(front.port) as busy:
        busy.send(get('/?first=2'))
        used.send(get('/nothing') + b'\r\n')
        used.answer()
        begun = time.monotonic()
        assert fresh.ended() and used.ended()
        assert 0.5 < time.monotonic() - begun < 2
        assert busy.answer().status == 200


def test_an_idle_connection_makes_room_for_a_new_one(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--max-connections', '5'))
    with wires(front, 5, b'') as idle:
        let_pass(0.8)
        idle[0].send(get('/'))
        assert idle[0].answer().status == 200
        assert front.get('/').status == 200
        assert idle[1].ended()
        assert all(wire.is_quiet(0) for wire in idle[2:])


def test_where_all_connections_are_busy_a_new_one_is_told_so(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--max-connections', '3'))
    with wires(front, 3, sized('/sink', 10) + b'half'):
        let_pass(0.2)
        answer = front.get('/')
        assert (answer.status, answer.headers['Retry-After']) == (503, '1')
        assert answer.headers['Proxy-Status'].startswith('crew; error=connection_limit_reached')
    wait_until(lambda: front.get('/').status == 200, 10, 'room')


def test_where_no_file_can_be_opened_idle_connections_make_room(stack: Stack) -> None:
    front, _ = start(stack)
    open_files_limited(front.pid, 10)
    with wires(front, 10, b''):
        for _ in range(5):
            assert front.get('/').status == 200


def test_where_no_file_can_be_opened_clients_wait_and_the_front_does_not_spin(stack: Stack) -> None:
    front, _ = start(stack)
    lift = open_files_limited(front.pid, 5)
    with wires(front, 20, sized('/sink', 10) + b'half') as busy:
        front.await_log('cannot accept connections now: Too many open files')
        computed, waiting = processor_time(front.pid), front.later('GET', '/')
        let_pass(2)
        assert processor_time(front.pid) - computed < 0.5
        assert not waiting.done()
        busy[0].send(b'-whole')
        assert json.loads(busy[0].answer().body)['length'] == 10
        lift()
        assert waiting.result(10).status == 200
    assert front.text.count('cannot accept') == 1 and 'Traceback' not in front.text


ROOM = """
import logging, resource, sys
logging.basicConfig(format='%(message)s')
soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from crew_wsgi.sockets import room_for
print(room_for(connections), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ('soft', 'hard', 'room', 'raised'), [(256, 1000, 500, 564), (256, 300, 236, 300), (900, 1000, 500, 900)]
)
def test_the_limit_of_open_files_is_raised_as_far_as_needed(soft: int, hard: int, room: int, raised: int) -> None:
    command = [sys.executable, '-c', ROOM, str(soft), str(hard), '500']
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(room), str(raised), str(hard)]
    warned = re.search(r'there is room for (\d+) connections, not 500', result.stderr)
    assert (warned is None) if room == 500 else (warned is not None and warned[1] == str(room))
