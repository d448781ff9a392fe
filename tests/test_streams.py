"""Long bodies in chunks: all bytes in order, never more than a window on its way, however it is cut and delayed."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crew.exceptions import ProtocolError
from crew.messages import Chunk
from crew.streams import CHUNK, WINDOW, Receiver, Sender


def chunk(offset: int = 0, body: bytes = b'', last: bool = False) -> Chunk:
    return Chunk(correlation_id='1', reply_to='crew.master.1', offset=offset, last=last, body=body)


def sender(credit: int = WINDOW) -> Sender:
    return Sender('1', 'crew.master.1', credit=credit)


# The sender


def test_what_was_written_goes_at_once_and_together() -> None:
    to = sender()
    to.write(b'ab')
    to.write(b'')
    to.write(b'c')
    assert to.take() == [chunk(0, b'abc')]
    assert to.take() == []
    to.write(b'd')
    assert to.take() == [chunk(3, b'd')]


def test_the_last_chunk_says_so() -> None:
    to = sender()
    to.write(b'abc')
    to.end()
    assert to.take() == [chunk(0, b'abc', last=True)]
    assert to.finished and to.take() == []


def test_an_end_that_comes_later_is_a_chunk_without_bytes() -> None:
    to = sender()
    to.write(b'abc')
    to.take()
    to.end()
    assert to.take() == [chunk(3, last=True)]
    assert to.take() == []


def test_a_long_piece_is_cut_to_chunks() -> None:
    to = sender()
    body = bytes(range(256)) * 1024
    to.write(body)
    to.end()
    chunks = to.take()
    assert [len(each.body) for each in chunks] == [CHUNK, CHUNK, len(body) - 2 * CHUNK]
    assert b''.join(each.body for each in chunks) == body
    assert [each.last for each in chunks] == [False, False, True]


def test_no_more_goes_than_there_is_credit_for() -> None:
    to = sender(credit=4)
    to.write(b'abcdef')
    assert to.wanted and not to.stalled
    assert to.take() == [chunk(0, b'abcd')]
    assert to.stalled and not to.wanted and to.pending == 2
    to.end()
    assert to.take() == []
    assert to.grant(10)
    assert to.take() == [chunk(4, b'ef', last=True)]
    assert to.pending == 0 and not to.stalled


@pytest.mark.parametrize(('offset', 'news'), [(3, False), (4, False), (5, True)])
def test_a_credit_that_is_late_takes_nothing_back(offset: int, news: bool) -> None:
    to = sender(credit=4)
    assert to.grant(offset) is news
    to.write(b'abcdef')
    assert len(to.take()[0].body) == max(4, offset)


def test_the_end_needs_no_credit_of_its_own() -> None:
    to = sender(credit=3)
    to.write(b'abc')
    to.take()
    to.end()
    assert to.take() == [chunk(3, last=True)]


def test_before_the_first_credit_not_even_the_end_goes() -> None:
    to = sender(credit=0)
    to.end()
    assert to.take() == [] and not to.finished
    to.grant(WINDOW)
    assert to.take() == [chunk(0, last=True)]


def test_a_very_long_piece_is_not_copied_for_each_of_its_chunks() -> None:
    to = sender(credit=10**9)
    to.write(bytes(300_000_000))
    # Copied each time it would be 350 GB.
    assert sum(len(each.body) for each in to.take()) == 300_000_000


# The receiver


def test_chunks_that_follow_each_other_are_taken() -> None:
    by = Receiver()
    assert by.receive(chunk(0, b'abc')) == b'abc'
    assert by.receive(chunk(3)) == b''
    assert not by.ended
    assert by.receive(chunk(3, b'd', last=True)) == b'd'
    assert by.ended and by.received == 4


@pytest.mark.parametrize('offset', [0, 2, 4, 2**62])
def test_a_chunk_that_does_not_follow_is_refused(offset: int) -> None:
    by = Receiver()
    by.receive(chunk(0, b'abc'))
    with pytest.raises(ProtocolError, match='where 3 was due'):
        by.receive(chunk(offset, b'd'))


def test_a_chunk_after_the_last_is_refused() -> None:
    by = Receiver()
    by.receive(chunk(0, b'abc', last=True))
    with pytest.raises(ProtocolError):
        by.receive(chunk(3, b'd'))


@pytest.mark.parametrize('credit', [0, 3])
def test_a_chunk_beyond_the_credit_is_refused(credit: int) -> None:
    by = Receiver(credit=credit)
    with pytest.raises(ProtocolError, match='beyond the credit'):
        by.receive(chunk(0, bytes(credit + 1)))
    assert by.receive(chunk(0, bytes(credit))) == bytes(credit)


def test_credit_is_granted_by_half_windows() -> None:
    by = Receiver(credit=100, window=100)
    assert by.consumed(49) is None
    assert by.consumed(50) == 150
    assert by.consumed(50) is None
    assert by.consumed(101) == 201


def test_the_first_credit_is_granted_when_the_first_byte_is_wanted() -> None:
    assert Receiver(credit=0, window=100).consumed(0) == 100


@given(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=20), st.booleans())
def test_a_receiver_takes_what_is_in_order_and_nothing_else(credit: int, offset: int, body: bytes, last: bool) -> None:
    by = Receiver(credit=credit)
    try:
        by.receive(chunk(offset, body, last))
    except ProtocolError:
        assert offset or len(body) > credit
        assert (by.received, by.ended) == (0, False)
    else:
        assert (by.received, by.ended) == (len(body), last)


# Both


class Joined(RuleBasedStateMachine):
    """A sender and a receiver with a wire each way; its messages come in order, and whenever they like."""

    window = 64

    def __init__(self) -> None:
        super().__init__()
        self.sender = sender(credit=0)
        self.receiver = Receiver(credit=0, window=self.window)
        self.chunks: deque[Chunk] = deque()
        self.credits: deque[int] = deque()
        self.written = bytearray()
        self.arrived = bytearray()
        self.read = 0
        self.ended = False

    @precondition(lambda self: not self.ended)
    @rule(data=st.binary(max_size=100))
    def write(self, data: bytes) -> None:
        self.sender.write(data)
        self.written += data

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self) -> None:
        self.sender.end()
        self.ended = True

    @rule()
    def send(self) -> None:
        self.chunks += self.sender.take()

    @precondition(lambda self: self.chunks)
    @rule()
    def receive(self) -> None:
        self.arrived += self.receiver.receive(self.chunks.popleft())

    @rule(size=st.integers(0, 100))
    def consume(self, size: int) -> None:
        self.read = min(self.read + size, len(self.arrived))
        credit = self.receiver.consumed(self.read)
        if credit is not None:
            self.credits.append(credit)

    @precondition(lambda self: self.credits)
    @rule()
    def grant(self) -> None:
        self.sender.grant(self.credits.popleft())

    @invariant()
    def what_arrived_is_what_was_written(self) -> None:
        assert self.written.startswith(self.arrived)

    @invariant()
    def no_more_than_a_window_is_on_its_way_or_unread(self) -> None:
        assert self.sender.sent - self.read <= self.window

    def teardown(self) -> None:
        if not self.ended:
            self.end()
        for _ in range(3 * len(self.written) // self.window + 6):
            self.consume(self.window)
            while self.credits:
                self.grant()
            self.send()
            while self.chunks:
                self.receive()
        assert self.arrived == self.written
        assert self.receiver.ended and self.sender.finished


Joined.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestJoined = Joined.TestCase
