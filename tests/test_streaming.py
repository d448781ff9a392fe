"""Long and slow bodies through the real stack: no memory, no queue and no worker is held longer than it must be."""

import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from crew.private_node import PrivateNode
from crew.streams import WINDOW
from tests.apps.streaming import PIECE, block
from tests.stack import Front, Stack, Worker
from tests.waiting import wait_until
from tests.wire import Wire

MEBIBYTE = 1024 * 1024

#: 100 MB, in blocks of 64 KiB.
BLOCKS = 1526
LENGTH = BLOCKS * PIECE

#: What the kernels on the way and the front may hold beside the window, in bytes.
BUFFERS = 12 * MEBIBYTE


def digest(blocks: int = BLOCKS) -> str:
    """The hash of so many blocks."""
    result = hashlib.sha256()
    for number in range(blocks):
        result.update(block(number))
    return result.hexdigest()


def get(target: str, *headers: str, version: str = '1.1') -> bytes:
    return head('GET', target, *headers, version=version)


def head(method: str, target: str, *headers: str, version: str = '1.1') -> bytes:
    lines = [f'{method} {target} HTTP/{version}', 'Host: crew.test', *headers, '', '']
    return '\r\n'.join(lines).encode()


def sized(target: str, length: int, *headers: str, method: str = 'POST') -> bytes:
    return head(method, target, f'Content-Length: {length}', *headers)


CHUNKED = 'Transfer-Encoding: chunked'


def chunk(data: bytes) -> bytes:
    return b'%x\r\n%s\r\n' % (len(data), data)


def start(stack: Stack, *worker_arguments: str, front_arguments: tuple[str, ...] = ()) -> tuple[Front, Worker]:
    """A front and a worker that are ready; ``--processes`` must come last."""
    front = stack.front(*front_arguments)
    worker = stack.worker('streaming:app', *worker_arguments)
    processes = int(worker_arguments[-1]) if '--processes' in worker_arguments else 1
    return front.await_ready(), worker.await_ready(processes)


def peak_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    match = re.search(r'VmHWM:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())
    assert match is not None
    return 1024 * int(match[1])


def memory(pid: int) -> int:
    """The memory that a process has now, in bytes."""
    match = re.search(r'VmRSS:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())
    assert match is not None
    return 1024 * int(match[1])


def processor_time(pid: int) -> float:
    """How long a process has computed, in seconds."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def assert_small(front: Front, worker: Worker) -> None:
    for pid in (front.pid, *worker.children()):
        assert peak_memory(pid) < 120 * MEBIBYTE


def queued_bytes(broker: PrivateNode) -> int:
    """How many bytes of messages the private queues hold."""
    lines = broker.ctl('list_queues', 'name', 'message_bytes').splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith(('crew.master.', 'crew.worker.')))


@contextmanager
def watched(broker: PrivateNode) -> Iterator[None]:
    """Look at the queues again and again meanwhile: they never hold more than a window each way."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            most.append(queued_bytes(broker))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert max(most) < 2.5 * WINDOW


@contextmanager
def sending(send: Callable[[], None]) -> Iterator[None]:
    """Send in another thread meanwhile; an error there is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            send()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert errors == [] and not thread.is_alive()


def await_note(stack: Stack, pattern: str, timeout: float = 10) -> None:
    wait_until(lambda: any(re.match(pattern, run) for run in stack.runs), timeout, f'{pattern!r} in {stack.runs}')


def seconds_passed(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def let_pass(seconds: float) -> None:
    wait_until(seconds_passed(seconds), seconds + 5)


# Long


@pytest.mark.parametrize('chunked', [False, True], ids=['length', 'chunked'])
def test_100_mb_up(stack: Stack, broker: PrivateNode, chunked: bool) -> None:
    front, worker = start(stack)
    with Wire(front.port, timeout=60) as wire, watched(broker):
        wire.send(head('POST', '/sink', CHUNKED) if chunked else sized('/sink', LENGTH))
        for number in range(BLOCKS):
            wire.send(chunk(block(number)) if chunked else block(number))
        if chunked:
            wire.send(chunk(b''))
        answer = json.loads(wire.answer().body)
    assert (answer['length'], answer['sha256']) == (LENGTH, digest())
    assert_small(front, worker)


@pytest.mark.parametrize('target', [f'/source?blocks={BLOCKS}', f'/source?blocks={BLOCKS}&length={LENGTH}'])
def test_100_mb_down(stack: Stack, broker: PrivateNode, target: str) -> None:
    front, worker = start(stack)
    with Wire(front.port, timeout=60) as wire, watched(broker):
        wire.send(get(target))
        answer = wire.answer()
    assert (len(answer.body), hashlib.sha256(answer.body).hexdigest()) == (LENGTH, digest())
    assert answer['Content-Length'] == (str(LENGTH) if 'length' in target else None)
    assert_small(front, worker)


@pytest.mark.parametrize('slots', [('--threads', '1'), ('--gevent', '10')])
def test_100_mb_both_ways_at_once(stack: Stack, slots: tuple[str, ...]) -> None:
    front, worker = start(stack, *slots)
    with Wire(front.port, timeout=60) as wire:

        def send() -> None:
            wire.send(sized('/echo', LENGTH))
            for number in range(BLOCKS):
                wire.send(block(number))

        with sending(send):
            answer = wire.answer()
    assert (len(answer.body), hashlib.sha256(answer.body).hexdigest()) == (LENGTH, digest())
    assert_small(front, worker)


def test_100_mb_in_one_piece(stack: Stack) -> None:
    front, _ = start(stack)
    answer = front.get(f'/whole?blocks={BLOCKS}')
    assert (answer.headers['Content-Length'], hashlib.sha256(answer.body).hexdigest()) == (str(LENGTH), digest())
    assert peak_memory(front.pid) < 120 * MEBIBYTE


# Piece by piece


@pytest.mark.parametrize('slots', [('--threads', '1'), ('--gevent', '10'), ('--processes', '2')])
def test_each_event_arrives_before_the_next_is_made(stack: Stack, tmp_path: Path, slots: tuple[str, ...]) -> None:
    front, _ = start(stack, *slots)
    with Wire(front.port) as wire:
        wire.send(get(f'/events?n=5&gates={tmp_path}'))
        (tmp_path / '0').touch()
        assert wire.head()['Transfer-Encoding'] == 'chunked'
        chunks = wire.chunks()
        for number in range(5):
            assert next(chunks) == f'data: {number}\n\n'.encode()
            (tmp_path / str(number + 1)).touch()
        assert list(chunks) == []


def test_http_1_0_gets_it_until_the_end_of_the_connection(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(get('/source?blocks=40', 'Connection: keep-alive', version='1.0'))
        answer = wire.answer()
    assert (answer['Transfer-Encoding'], answer['Content-Length']) == (None, None)
    assert hashlib.sha256(answer.body).hexdigest() == digest(40)


def test_the_connection_serves_on_after_long_bodies(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        for _ in range(3):
            wire.send(get('/source?blocks=40'))
            assert hashlib.sha256(wire.answer().body).hexdigest() == digest(40)
            wire.send(sized('/sink', 40 * PIECE) + b''.join(map(block, range(40))))
            assert json.loads(wire.answer().body)['sha256'] == digest(40)
            wire.send(head('POST', '/sink', CHUNKED) + chunk(bytes(200_000)) + chunk(b''))
            assert json.loads(wire.answer().body)['length'] == 200_000


def test_pipelined_requests_are_answered_in_turn(stack: Stack) -> None:
    front, _ = start(stack, '--threads', '4')
    with Wire(front.port) as wire:
        long = sized('/sink', 20 * PIECE) + b''.join(map(block, range(20)))
        with sending(lambda: wire.send(get('/source?blocks=40') + get('/') + long + get('/'))):
            assert hashlib.sha256(wire.answer().body).hexdigest() == digest(40)
            assert wire.answer().body.isdigit()
            assert json.loads(wire.answer().body)['sha256'] == digest(20)
            assert wire.answer().body.isdigit()


def test_the_end_of_a_slow_body_may_come_before_a_worker_does(stack: Stack) -> None:
    front = stack.front().await_ready()
    with Wire(front.port) as wire:
        wire.send(head('POST', '/sink', CHUNKED) + chunk(b'begun'))
        let_pass(0.5)
        wire.send(chunk(b''))
        let_pass(0.2)
        stack.worker('streaming:app').await_ready()
        assert json.loads(wire.answer().body)['length'] == 5


# Bodies that nobody reads, and those that are slow


def test_a_body_that_is_not_read_costs_no_upload(stack: Stack) -> None:
    front, _ = start(stack)
    sent = 0
    with socket.create_connection(('127.0.0.1', front.port), 10) as client:
        client.sendall(sized('/?first=2', 50_000_000))
        client.settimeout(1)
        with pytest.raises(socket.timeout):
            while sent < 50_000_000:
                sent += client.send(bytes(PIECE))
        assert sent < BUFFERS
        client.settimeout(10)
        answer = client.recv(65536)
    assert answer.startswith(b'HTTP/1.1 200 OK\r\n') and b'\r\nConnection: close\r\n' in answer


def test_who_expects_100_does_not_get_it_from_an_application_that_does_not_read(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/', 50_000_000, 'Expect: 100-continue'))
        assert wire.answer().status == 200
        assert wire.ended()


def test_who_expects_100_but_does_not_wait_for_it_can_read_the_answer(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/?first=1', 20_000_000, 'Expect: 100-continue'))
        await_note(stack, 'POST /')
        with sending(lambda: wire.send(bytes(20_000_000))):
            assert wire.answer().status == 200
        assert wire.ended()


def test_who_expects_100_gets_it_when_the_application_reads_and_only_then(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/sink?first=1', 5, 'Expect: 100-Continue'))
        await_note(stack, 'POST /sink')
        assert wire.is_quiet(0.5)
        assert wire.answer().status == 100
        wire.send(b'hello')
        assert json.loads(wire.answer().body)['length'] == 5
        wire.send(get('/'))
        assert wire.answer().status == 200


def test_who_expects_100_for_no_body_at_all_is_answered(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 0, 'Expect: 100-continue'))
        assert [json.loads(answer.body)['length'] for answer in iter_final(wire, 1)] == [0]


def iter_final(wire: Wire, count: int) -> Iterator[object]:
    """Read so many final answers, whether or not 100 comes before."""
    while count:
        answer = wire.answer()
        if answer.status >= 200:
            count -= 1
            yield answer


def test_a_slow_small_body_holds_no_worker_before_it_is_time(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        begun = time.monotonic()
        wire.send(sized('/sink', 20))
        for _ in range(20):
            wire.send(b'x')
            if time.monotonic() < begun + 0.08:
                assert stack.runs == []
            let_pass(0.05)
        assert json.loads(wire.answer().body)['length'] == 20
    assert len(stack.runs) == 1


def test_a_body_that_stalls_is_answered_408_and_its_reader_hears_of_it(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--body-timeout', '1'))
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 200_000) + bytes(100_000))
        assert wire.answer().status == 408
        assert wire.ended()
    await_note(stack, 'OSError')
    assert front.get('/').status == 200


def test_a_body_that_stalls_after_the_answer_began_costs_the_connection(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--body-timeout', '1'))
    with Wire(front.port) as wire:
        wire.send(sized('/echo', 500_000) + bytes(200_000))
        assert wire.head().status == 200
        with pytest.raises(ConnectionError):
            list(wire.chunks())
    await_note(stack, 'OSError')
    assert front.get('/').status == 200


def test_a_reader_that_hangs_after_its_client_is_gone_runs_out_of_time(stack: Stack) -> None:
    front, worker = start(stack, front_arguments=('--timeout', '2', '--body-timeout', '1'))
    with Wire(front.port) as wire:
        wire.send(sized('/stubborn', 200_000) + bytes(100_000))
        assert wire.answer().status == 408
    await_note(stack, 'OSError')
    assert front.request('GET', '/').status == 200
    worker.await_log('ran past its limit of 2 s')


def test_a_client_that_sends_slowly_is_not_the_applications_time(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--timeout', '2'))
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 120_000))
        for _ in range(3):
            wire.send(bytes(40_000))
            let_pass(3)
        assert json.loads(wire.answer().body)['length'] == 120_000


def test_a_client_that_reads_slowly_is_not_the_applications_time(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--timeout', '2'))
    with Wire(front.port, buffer=32 * 1024) as wire:
        wire.send(get('/source?blocks=400'))
        assert wire.head().status == 200
        let_pass(6)
        assert hashlib.sha256(b''.join(wire.chunks())).hexdigest() == digest(400)


def test_an_application_that_reads_slowly_but_steadily_has_time(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--timeout', '1'))
    with Wire(front.port) as wire:
        wire.send(sized(f'/sink?at_once={8 * PIECE}&pause=0.4', 60 * PIECE))
        with sending(lambda: wire.send(bytes(60 * PIECE))):
            assert json.loads(wire.answer().body)['length'] == 60 * PIECE


# Applications that hang or fail


def test_an_application_that_hangs_in_the_middle_of_its_answer(stack: Stack) -> None:
    front, worker = start(stack, front_arguments=('--timeout', '2'))
    before = front.get('/').body
    with Wire(front.port) as wire:
        wire.send(get('/hang?blocks=3'))
        assert wire.head().status == 200
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            list(wire.chunks())
        assert 1.5 < time.monotonic() - begun < 6
    await_note(stack, 'SystemExit')
    assert front.get('/').body == before
    assert 'cut: ' in front.text and 'ran past its limit of 2 s' in worker.text


def test_an_application_that_hangs_before_its_head_is_504(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--timeout', '1'))
    assert front.get('/hang?blocks=0').status == 504
    await_note(stack, 'SystemExit')


def test_an_application_that_takes_longer_than_its_limit_but_goes_on_is_let(stack: Stack) -> None:
    front, _ = start(stack, front_arguments=('--timeout', '2'))
    assert front.get('/steps?seconds=5').body == b'step' * 10


@pytest.mark.parametrize(
    'target', ['/fail?blocks=3', f'/fail?blocks=3&length={4 * PIECE}', f'/source?blocks=3&length={4 * PIECE}']
)
def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole(stack: Stack, target: str) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(get(target))
        assert wire.head().status == 200
        rest = b''
        with suppress(ConnectionResetError):
            rest = wire.read()
    assert not rest.endswith(b'0\r\n\r\n')
    assert len(rest) < 4 * PIECE
    assert front.get('/').status == 200


def test_an_answer_that_breaks_off_does_not_look_whole_to_http_1_0(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(get('/fail?blocks=3', version='1.0'))
        assert wire.head().status == 200
        with pytest.raises(ConnectionResetError):
            wire.read()


def test_a_body_longer_than_it_said_is_cut_to_its_length(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(get(f'/source?blocks=5&length={2 * PIECE + 7}') + get('/'))
        assert wire.answer().body == block(0) + block(1) + block(2)[:7]
        assert wire.answer().status == 200


# Clients that hang up


@pytest.mark.parametrize('slots', [('--threads', '1'), ('--gevent', '10')])
def test_a_client_that_hangs_up_has_the_iterable_closed(stack: Stack, slots: tuple[str, ...]) -> None:
    front, _ = start(stack, *slots)
    with Wire(front.port) as wire:
        wire.send(get('/ticks?every=0.2'))
        assert next(iter_chunks(wire))
    await_note(stack, 'closed True', 5)
    assert front.get('/').status == 200


def iter_chunks(wire: Wire) -> Iterator[bytes]:
    assert wire.head().status == 200
    return wire.chunks()


def test_a_client_that_hangs_up_wakes_who_reads_from_it(stack: Stack) -> None:
    front, worker = start(stack)
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 10_000_000) + bytes(3_000_000))
        await_note(stack, 'POST /sink')
        let_pass(0.5)
    await_note(stack, 'OSError', 5)
    assert front.get('/').status == 200
    assert 'Traceback' not in worker.text and 'has ended early' in worker.text


@pytest.mark.parametrize('target', ['/ticks?every=0&size=65536', '/writes'])
def test_a_client_that_hangs_up_wakes_who_writes_to_it(stack: Stack, target: str) -> None:
    front, worker = start(stack)
    with Wire(front.port, buffer=32 * 1024) as wire:
        wire.send(get(target))
        assert next(iter_chunks(wire))
        let_pass(1.5)
    await_note(stack, '(OSError|closed True)', 5)
    assert front.get('/').status == 200
    assert 'Traceback' not in worker.text


@pytest.mark.parametrize('target', ['/ticks', '/ticks?every=0&size=65536'])
def test_a_client_that_hangs_up_before_its_upload_was_read_is_noticed(stack: Stack, target: str) -> None:
    front, _ = start(stack, front_arguments=('--max-inflight', '1'))
    with Wire(front.port, buffer=32 * 1024) as wire:
        wire.send(sized(target, 10_000_000) + bytes(80_000))
        assert next(iter_chunks(wire))
        let_pass(1)
    await_note(stack, 'closed True', 8)
    assert front.get('/').status == 200


def test_the_application_may_ask_whether_its_client_is_gone(stack: Stack) -> None:
    front, _ = start(stack)
    with Wire(front.port) as wire:
        wire.send(get('/late'))
        await_note(stack, 'GET /late')
        let_pass(0.5)
    await_note(stack, 'disconnected True', 5)


def test_a_request_whose_client_has_left_the_queue_is_not_run(stack: Stack) -> None:
    front = stack.front().await_ready()
    with Wire(front.port) as idle, Wire(front.port) as uploading:
        idle.send(get('/ticks'))
        # All that is sent fits into the kernels, so the end can be seen behind it.
        uploading.send(sized('/sink', 10_000_000) + bytes(160_000))
        let_pass(2)
    for target in ('/ticks', '/sink'):
        front.await_log(f'{target} HTTP/1.1" 499')
    stack.worker('streaming:app').await_ready()
    assert front.get('/').status == 200
    assert len(stack.runs) == 1


# Processes and brokers that die


def kill_runner(stack: Stack) -> None:
    os.kill(int(stack.runs[-1].split()[-1]), signal.SIGKILL)


@pytest.mark.parametrize('buffer', [None, 32 * 1024], ids=['waiting for the application', 'waiting for the client'])
def test_a_worker_that_dies_in_the_middle_of_its_answer(stack: Stack, buffer: int | None) -> None:
    front, _ = start(stack, '--processes', '2')
    with Wire(front.port, buffer=buffer) as wire:
        wire.send(get('/ticks?every=0.1') if buffer is None else get('/source?blocks=500'))
        assert next(iter_chunks(wire))
        let_pass(1)
        kill_runner(stack)
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            for _ in wire.chunks():
                pass
        assert time.monotonic() - begun < 6
    assert len(stack.runs) == 1
    assert front.get('/').status == 200


def test_a_worker_that_dies_in_the_middle_of_an_upload(stack: Stack) -> None:
    front, _ = start(stack, '--processes', '2')
    with Wire(front.port) as wire:
        wire.send(sized('/sink', 10_000_000, method='PUT') + bytes(3_000_000))
        await_note(stack, 'PUT /sink')
        let_pass(0.5)
        kill_runner(stack)
        assert wire.answer().status == 502
    assert len(stack.runs) == 1


def test_a_worker_that_dies_before_it_has_read_or_answered_anything(stack: Stack) -> None:
    front, _ = start(stack, '--processes', '2')
    with Wire(front.port) as wire:
        wire.send(sized('/sink?first=2', 300_000, method='PUT') + bytes(300_000))
        await_note(stack, 'PUT /sink')
        kill_runner(stack)
        answer = wire.answer()
    assert (answer.status, json.loads(answer.body)['length']) == (200, 300_000)
    assert len(stack.runs) == 2


@pytest.mark.parametrize(
    'request_bytes',
    [
        get('/source?blocks=5000'),
        get('/ticks'),
        sized('/sink', 10_000_000) + bytes(1_000_000),
        sized('/echo', 10_000_000) + bytes(3_000_000),
    ],
    ids=['blocked in write', 'making events', 'blocked in read', 'both ways'],
)
def test_a_front_that_dies_leaves_nothing_running(stack: Stack, broker: PrivateNode, request_bytes: bytes) -> None:
    front, worker = start(stack)
    with Wire(front.port, buffer=32 * 1024) as wire:
        with sending(lambda: wire.send(request_bytes)):
            await_note(stack, '(GET|POST) ')
        let_pass(1)
        front.signal(signal.SIGKILL)
        front.wait()
    other = stack.front().await_ready()
    begun = time.monotonic()
    assert other.get('/').status == 200
    assert time.monotonic() - begun < 8
    assert queued_bytes(broker) == 0
    assert 'Traceback' not in worker.text


def test_a_broker_that_restarts_costs_what_is_under_way_and_no_more(
    own_stack: Stack, fresh_broker: PrivateNode
) -> None:
    front, _ = start(own_stack, '--threads', '4')
    with Wire(front.port) as down, Wire(front.port, buffer=32 * 1024) as slow, Wire(front.port) as up:
        down.send(get('/ticks'))
        chunks = iter_chunks(down)
        assert next(chunks)
        slow.send(get('/source?blocks=5000'))
        assert slow.head().status == 200
        up.send(sized('/sink', 10_000_000) + bytes(1_000_000))
        await_note(own_stack, 'POST /sink')
        let_pass(0.5)
        fresh_broker.kill()
        assert up.answer().status == 502
        with pytest.raises(ConnectionError):
            list(chunks)
    await_note(own_stack, 'OSError')
    await_note(own_stack, 'closed')
    fresh_broker.start()
    wait_until(lambda: front.get('/').status == 200, 30, f'a 200:\n{front.text}')
    # All four threads are free again: as many run at once.
    answers = [front.later('GET', '/?first=1') for _ in range(4)]
    begun = time.monotonic()
    assert [answer.result(20).status for answer in answers] == [200] * 4
    assert time.monotonic() - begun < 3


def test_a_slow_client_of_an_endless_answer_costs_neither_memory_nor_time(stack: Stack, broker: PrivateNode) -> None:
    front, worker = start(stack)
    [runner] = worker.children()
    with Wire(front.port, buffer=16 * 1024) as wire:
        wire.send(get('/ticks?every=0&size=65536'))
        assert wire.head().status == 200
        let_pass(2)
        memories = memory(front.pid), memory(runner)
        times = processor_time(front.pid), processor_time(runner)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            assert len(wire.read(1000)) == 1000
            let_pass(0.1)
        assert memory(front.pid) - memories[0] < 8 * MEBIBYTE
        assert memory(runner) - memories[1] < 8 * MEBIBYTE
        assert processor_time(front.pid) - times[0] < 2
        assert processor_time(runner) - times[1] < 2
        assert queued_bytes(broker) < 1.5 * WINDOW


# Told to end


@pytest.mark.parametrize('which', ['front', 'worker'])
def test_an_answer_under_way_is_finished_when_told_to_end(stack: Stack, which: str) -> None:
    front, worker = start(stack)
    with Wire(front.port) as wire:
        wire.send(get('/steps?seconds=4'))
        chunks = iter_chunks(wire)
        received = [next(chunks)]
        process = front if which == 'front' else worker
        process.signal(signal.SIGTERM)
        received += chunks
    assert b''.join(received) == b'step' * 8
    assert process.wait() == 0


@pytest.mark.parametrize('which', ['front', 'worker'])
def test_an_endless_answer_is_cut_when_the_time_to_end_is_over(stack: Stack, which: str) -> None:
    limit = ('--graceful-timeout', '1')
    front, worker = start(stack, *limit, front_arguments=limit)
    with Wire(front.port) as wire:
        wire.send(get('/ticks'))
        chunks = iter_chunks(wire)
        assert next(chunks)
        process = front if which == 'front' else worker
        process.signal(signal.SIGTERM)
        process.wait()
        if which == 'worker':
            stack.worker('streaming:app').await_ready()
        with pytest.raises(ConnectionError):
            list(chunks)
