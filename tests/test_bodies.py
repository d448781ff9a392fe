"""A run's long bodies: its task blocks in one thread, the connection's thread feeds it and never waits."""

import gc
import io
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

import pytest

from crew import deadlines
from crew.exceptions import ProtocolError
from crew.messages import Call, Chunk, Publication, Reply
from crew.streams import WINDOW
from crew.worker.bodies import Input, Output, Signal
from crew.worker.clock import Clock
from crew.worker.runs import Run, execute
from crew.worker.threads import ThreadSignal
from crew_wsgi.task import _Body

T = TypeVar('T')

GONE = ConnectionError('the caller is gone')


def chunk(offset: int = 0, body: bytes = b'', last: bool = False) -> Chunk:
    return Chunk(correlation_id='1', reply_to='crew.master.1', offset=offset, last=last, body=body)


def in_thread(work: Callable[[], T]) -> 'Future[T]':
    """Do it in another thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Wanting:
    """An input whose task reads in another thread, and what it wants."""

    def __init__(self) -> None:
        self.wants: SimpleQueue[tuple[int, bool]] = SimpleQueue()
        self.input = Input(ThreadSignal(), lambda offset, waiting: self.wants.put((offset, waiting)))

    def await_want(self) -> int:
        """Wait until it waits for more; grant it."""
        while True:
            offset, waiting = self.wants.get(timeout=10)
            if waiting:
                self.input.receiver.consumed(offset)
                return offset


# Input


def test_what_came_with_the_call_is_read_first_and_makes_it_ask_for_more() -> None:
    body = Wanting()
    body.input.prepend(b'abc')
    buffer = bytearray(2)
    assert body.input.readinto(buffer) == 2 and buffer == b'ab'
    # It does not wait, for there is more here.
    assert body.wants.get_nowait() == (-1, False)


def test_nothing_is_asked_for_before_it_is_read() -> None:
    body = Wanting()
    body.input.prepend(b'abc')
    assert body.wants.empty() and body.input.receiver.credit == 0
    with pytest.raises(ProtocolError, match='beyond the credit'):
        body.input.feed(chunk(0, b'x'))


def test_a_reader_waits_for_each_chunk_until_the_last() -> None:
    body = Wanting()
    body.input.prepend(b'-')
    reading = in_thread(lambda: io.BufferedReader(body.input).read())
    assert body.await_want() == 0
    body.input.feed(chunk(0, b'abc'))
    assert body.await_want() == 3
    body.input.feed(chunk(3, b'd'))
    assert body.await_want() == 4
    body.input.feed(chunk(4, last=True))
    assert reading.result(10) == b'-abcd'


def test_what_has_come_is_read_before_a_failure_shows() -> None:
    body = Wanting()
    reader = io.BufferedReader(body.input)
    body.input.receiver.consumed(0)
    body.input.feed(chunk(0, b'abc'))
    body.input.fail(GONE)
    assert reader.read(3) == b'abc'
    with pytest.raises(OSError, match='will not come: the caller is gone') as raised:
        reader.read(1)
    assert raised.value.__cause__ is GONE


def test_a_body_that_is_whole_does_not_fail() -> None:
    body = Wanting()
    body.input.receiver.consumed(0)
    body.input.feed(chunk(0, b'abc', last=True))
    body.input.fail(GONE)
    assert io.BufferedReader(body.input).read() == b'abc'


def test_a_failure_wakes_who_reads() -> None:
    body = Wanting()
    reading = in_thread(lambda: body.input.read(1))
    body.await_want()
    body.input.fail(GONE)
    assert isinstance(reading.exception(10), OSError)


def test_lines_and_pieces_of_any_size_are_read_from_any_cuts() -> None:
    body = Wanting()
    lines = [b'x' * size + b'\n' for size in (0, 1, 70_000, 5, 200_000, 3)]
    whole = b''.join(lines)
    reading = in_thread(lambda: list(io.BufferedReader(body.input, 65536)))
    body.await_want()
    at, cuts = 0, random.Random(1)
    while at < len(whole):
        size = cuts.randrange(1, 50_000)
        body.input.feed(chunk(at, whole[at : at + size], last=at + size >= len(whole)))
        at += len(whole[at : at + size])
    assert reading.result(10) == lines


def test_the_last_bytes_are_not_lost_to_a_reader_that_looks_just_then() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(1000):
            body = Wanting()
            reading = in_thread(lambda: io.BufferedReader(body.input).read())  # noqa: B023 it ends within this turn
            body.await_want()
            body.input.feed(chunk(0, b'abc'))
            body.input.feed(chunk(3, b'd', last=True))
            assert reading.result(10) == b'abcd'
    finally:
        sys.setswitchinterval(interval)


def test_the_last_bytes_are_not_lost_between_two_looks() -> None:
    """As above, at the very place: the end comes after the reader has seen that there is nothing."""
    body = Wanting()
    body.input.receiver.consumed(0)

    class Pieces(type(body.input._pieces)):  # type: ignore[misc]
        def __bool__(self) -> bool:
            if not len(self) and not body.input.receiver.ended:
                body.input.feed(chunk(0, b'abc', last=True))
                return False
            return bool(len(self))

    body.input._pieces = Pieces()
    assert io.BufferedReader(body.input).read() == b'abc'


def test_who_reads_to_the_end_says_so_all_the_time() -> None:
    body = Wanting()
    body.input.receiver.consumed(0)
    body.input.feed(chunk(0, bytes(WINDOW), last=True))
    credits = []
    for _ in range(8):
        body.input.read(WINDOW // 8)
        while not body.wants.empty():
            credits.append(body.input.receiver.consumed(body.wants.get()[0]))
    assert [credit for credit in credits if credit] != []


def test_who_reads_on_before_it_is_heard_says_so_once() -> None:
    body = Wanting()
    body.input.receiver.consumed(0)
    body.input.feed(chunk(0, bytes(WINDOW)))
    for _ in range(128):
        body.input.read(WINDOW // 128)
    assert body.wants.get_nowait()[0] > WINDOW // 2 and body.wants.empty()
    # Who needs what was asked for asks again.
    reading = in_thread(lambda: body.input.read(1))
    assert body.await_want() == WINDOW
    body.input.feed(chunk(WINDOW, b'x', last=True))
    assert reading.result(10) == b'x'


def test_all_is_read_piece_by_piece_as_it_comes() -> None:
    body = Wanting()
    body.input.prepend(b'-')
    reading = in_thread(body.input.readall)
    at = body.await_want()
    for _ in range(40):
        body.input.feed(chunk(at, bytes(100_000)))
        at += 100_000
        body.await_want()
    body.input.feed(chunk(at, last=True))
    assert reading.result(10) == b'-' + bytes(at)
    assert body.input.readall() == b''


def test_all_is_what_is_left() -> None:
    body = Wanting()
    body.input.receiver.consumed(0)
    body.input.feed(chunk(0, b'abcdefgh', last=True))
    reader = io.BufferedReader(body.input, 4)
    assert (reader.read(1), reader.read(), reader.read()) == (b'a', b'bcdefgh', b'')


def test_all_is_not_what_came_before_a_failure() -> None:
    body = Wanting()
    body.input.receiver.consumed(0)
    body.input.feed(chunk(0, b'abc'))
    body.input.fail(GONE)
    with pytest.raises(OSError, match='will not come: the caller is gone'):
        body.input.readall()


# Output


class Writing:
    """An output, and how often it has asked to be collected."""

    def __init__(self) -> None:
        self.wakes: SimpleQueue[None] = SimpleQueue()
        self.output = Output('1', ThreadSignal(), lambda: self.wakes.put(None))

    def await_wake(self) -> None:
        self.wakes.get(timeout=10)


def test_what_is_written_is_collected_and_the_end_with_it() -> None:
    writing = Writing()
    writing.output.write(b'ab')
    writing.output.write(b'c')
    [first] = writing.output.collect()
    assert (first.offset, first.body, first.last) == (0, b'abc', False)
    [last] = writing.output.collect(ended=True)
    assert (last.offset, last.body, last.last) == (3, b'', True)


def test_a_writer_waits_when_a_window_is_on_its_way() -> None:
    writing = Writing()
    writing.output.write(bytes(WINDOW))
    waiting = in_thread(lambda: writing.output.write(b'x'))
    for _ in range(2):
        writing.await_wake()
    assert sum(len(each.body) for each in writing.output.collect()) == WINDOW
    assert writing.output.sender.stalled and not waiting.done()
    writing.output.grant(WINDOW + 1)
    assert waiting.result(10) is None
    [last] = writing.output.collect(ended=True)
    assert (last.body, last.last) == (b'x', True)


def test_a_credit_that_says_nothing_new_is_no_news() -> None:
    output = Writing().output
    assert not output.grant(0)
    assert output.grant(WINDOW + 1)
    assert not output.grant(WINDOW + 1)


def test_a_piece_longer_than_a_window_waits_until_all_of_it_may_go() -> None:
    writing = Writing()
    waiting = in_thread(lambda: writing.output.write(bytes(3 * WINDOW)))
    writing.await_wake()
    sent = 0
    for offset in (2 * WINDOW, 3 * WINDOW):
        sent += sum(len(each.body) for each in writing.output.collect())
        assert sent == offset - WINDOW and not waiting.done()
        writing.output.grant(offset)
    assert waiting.result(10) is None


def test_a_failure_wakes_who_writes() -> None:
    writing = Writing()
    waiting = in_thread(lambda: writing.output.write(bytes(WINDOW + 1)))
    writing.await_wake()
    writing.output.fail(GONE)
    error = waiting.exception(10)
    assert isinstance(error, BrokenPipeError) and error.__cause__ is GONE


def test_who_goes_on_writing_after_a_failure_fills_nothing() -> None:
    writing = Writing()
    writing.output.fail(GONE)
    for _ in range(3):
        with pytest.raises(BrokenPipeError, match='nobody takes the answer any more: the caller is gone'):
            writing.output.write(bytes(1000))
    assert writing.output.collect() == []


def test_many_writes_and_credits_at_once_lose_nothing() -> None:
    writing = Writing()
    pieces = [bytes([number % 256]) * (number * 37 % 5000) for number in range(3000)]
    done = in_thread(lambda: [writing.output.write(piece) for piece in pieces])
    arrived = bytearray()
    while True:
        ended = done.done()
        for each in writing.output.collect(ended=ended):
            assert each.offset == len(arrived)
            arrived += each.body
        writing.output.grant(len(arrived) + WINDOW)
        if ended:
            break
        time.sleep(0)
    assert arrived == b''.join(pieces)


# A run


class Owner:
    """What a run asks of its worker: here, nothing."""

    def publish(self, publication: Publication) -> None: ...

    def make_signal(self) -> Signal:
        return ThreadSignal()

    def answered(self, run: Run) -> None: ...

    def wanted(self, run: Run, offset: int, waiting: bool) -> None: ...


def make_run(more: bool = False, reply_to: str = 'crew.master.1') -> Run:
    call = Call(correlation_id='1', reply_to=reply_to, more=more)
    return Run(call, 60.0, Clock(1), 'wsgi', Owner())


def test_an_answer_that_begins_when_nobody_waits_any_more_fails_at_once() -> None:
    run = make_run()
    run.fail_bodies(GONE)
    output = run.begin(Reply(correlation_id='1', more=True))
    with pytest.raises(BrokenPipeError):
        output.write(b'x')


def test_an_answer_that_nobody_waits_for_is_dropped_and_keeps_no_thread() -> None:
    output = make_run(reply_to='').begin(Reply(correlation_id='1', more=True))
    in_thread(lambda: output.write(bytes(3 * WINDOW))).result(10)
    assert output.collect(ended=True)[-1].offset == 0


def test_both_ends_are_told_of_a_failure() -> None:
    run = make_run(more=True)
    output = run.begin(Reply(correlation_id='1', more=True))
    run.fail_bodies(GONE)
    assert run.input is not None
    with pytest.raises(OSError):
        run.input.read(1)
    with pytest.raises(BrokenPipeError):
        output.write(b'x')


def test_a_call_that_came_whole_has_no_input() -> None:
    assert make_run().input is None


def test_a_task_that_ends_by_a_body_that_failed_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level('INFO')

    def task(run: Run) -> None:
        run.fail_bodies(GONE)
        assert run.input is not None
        run.input.read(1)

    assert execute(task, make_run(more=True)) is not None
    assert 'has ended early: the rest of the body will not come: the caller is gone' in caplog.text
    assert 'ERROR' not in caplog.text


@pytest.mark.parametrize('broken', [False, True])
def test_any_other_error_is_in_the_log_with_its_traceback(caplog: pytest.LogCaptureFixture, broken: bool) -> None:
    def task(run: Run) -> None:
        if broken:
            run.fail_bodies(GONE)
        raise OSError('disk full')

    execute(task, make_run(more=True))
    assert 'Traceback' in caplog.text and 'disk full' in caplog.text


def test_a_run_without_its_bodies_is_no_circle() -> None:
    run = make_run(more=True)
    assert run.input is not None
    body = weakref.ref(run.input)
    gc.disable()
    try:
        # As the consumer does it at the end of a run.
        run.input = None
        assert body() is None
    finally:
        gc.enable()


# Signals

GREENLETS = """
import threading, time, gevent
from crew.worker.greenlets import GreenletRunner
from crew.transports.threads import start_native

runner = GreenletRunner(lambda run: None)
made = []
start_native(lambda: made.append(runner.make_signal()), 'native')
while not made:
    gevent.sleep(0.01)
signal, woken, ticks = made[0], [], []

def wait():
    for _ in range(3):
        signal.wait()
        woken.append(len(ticks))

def tick():
    while len(woken) < 3:
        ticks.append(None)
        gevent.sleep(0.01)

def set_from_outside():
    for _ in range(3):
        time.sleep(0.2)
        signal.set()

gevent.spawn(tick)
waiting = gevent.spawn(wait)
start_native(set_from_outside, 'native')
waiting.join(10)
assert len(woken) == 3 and woken[0] > 3 and woken == sorted(set(woken)), woken
print('woken')
"""


def test_a_greenlet_waits_without_its_hub_and_is_woken_from_a_native_thread() -> None:
    code = f'import gevent; gevent.get_hub()\nfrom gevent import monkey; monkey.patch_all()\n{GREENLETS}'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout == 'woken\n', done.stderr


def test_a_signal_that_was_set_before_is_not_lost() -> None:
    signal = ThreadSignal()
    signal.set()
    signal.set()
    signal.wait()
    waiting = in_thread(signal.wait)
    assert not waiting.done()
    signal.set()
    waiting.result(10)


def test_a_body_that_breaks_off_leaves_the_application_its_time() -> None:
    run = Run(Call(correlation_id='1'), 60.0, Clock(1), 'wsgi', Owner())
    source = Input(ThreadSignal(), lambda offset, waiting: None)
    source.receiver.credit = 1
    source.feed(chunk(0, b'a'))
    source.fail(GONE)

    def read() -> float | None:
        # What the application calls is bounded by this, and the body has taken longer than it began with.
        deadlines.enter(0.0)
        with pytest.raises(OSError, match='will not come'):
            io.BufferedReader(_Body(run, source), 1024).read()
        return deadlines.time_left()

    left = copy_context().run(read)
    assert left is not None and left > 30
