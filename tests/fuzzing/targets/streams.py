"""A long body each way between a caller and a run, in steps that bytes choose: what is read is what was written.

The ends are those that are in use: a sender whose chunks a task reads (:class:`crew.worker.bodies.Input`), and a task
that writes (:class:`crew.worker.bodies.Output`) into a receiver. What is on its way arrives in order, and whenever it
likes.
"""

from collections import deque

from crew.exceptions import ProtocolError
from crew.messages import Chunk, Reply
from crew.streams import CHUNK, WINDOW, Receiver, Sender
from crew.worker.bodies import Input, Output
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

#: All that is written is a piece of this, so that what is read can be told from what is not.
CONTENT = bytes(at * at % 251 for at in range(4093)) * 2048

SIZES = [
    0,
    1,
    10,
    1000,
    64 * 1024,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    300_000,
    WINDOW - 1,
    WINDOW,
    WINDOW + 1,
    3 * WINDOW // 2,
]

#: More is not written, so that one input does not take for ever.
MOST = 6 * WINDOW


class Blocked(Exception):
    """Raised where a task would wait."""


class Signal:
    """What a task waits for: in the one thread here it cannot."""

    def wait(self) -> None:
        """Stop the task where it is."""
        raise Blocked

    def set(self) -> None:
        """Do nothing: it is tried again."""


def check(data: bytes) -> None:
    """Play what the bytes choose, then let all come to its end."""
    choices = Choices(data)
    up, down = Up(), Down()
    for _ in range(200):
        if not choices:
            break
        body = up if choices.flag() else down
        step = choices.below(8)
        if step < 2:
            body.write(choices.pick(SIZES))
        elif step == 2:
            body.carry(1 + choices.below(3))
        elif step == 3:
            body.read(choices.pick(SIZES))
        elif step == 4:
            body.answer(choices.flag())
        elif step == 5:
            body.end()
        elif step == 6:
            body.intrude(choices)
        else:
            body.fail()
        body.check()
    for body in (up, down):
        body.complete()


class Body:
    """One direction.

    Attributes:
        written: how many bytes were written.
        seen: how many were read.
        ended: whether there are no more to write.
        chunks: what is on its way to who reads.
        credits: what is on its way back.
        failed: whether nothing more will come.
    """

    def __init__(self) -> None:
        self.written = self.seen = 0
        self.ended = self.failed = False
        self.chunks: deque[Chunk] = deque()
        self.credits: deque[int] = deque()
        self.old: list[int] = []
        self.receiver: Receiver
        self.sender: Sender

    @property
    def granted(self) -> tuple[int, ...]:
        """How far who sends may go, wherever that is written down."""
        return (self.sender._credit,)

    def piece(self, size: int) -> bytes:
        """Return the next bytes to write; none when there are enough."""
        size = min(size, MOST - self.written)
        return b'' if self.ended or self.failed else CONTENT[self.written : self.written + size]

    def took(self, data: bytes) -> None:
        """Fail unless these are the next bytes."""
        assert CONTENT.startswith(data, self.seen), f'other bytes at {self.seen}'
        self.seen += len(data)

    def carry(self, count: int) -> None:
        """Let so many chunks arrive."""
        self.send()
        while count and self.chunks and not self.failed:
            chunk = self.chunks.popleft()
            assert len(chunk.body) <= CHUNK
            self.feed(chunk)
            count -= 1

    def answer(self, again: bool) -> None:
        """Let a credit arrive, or one that has arrived before."""
        if again and self.old:
            before = self.granted
            assert not self.grant(self.old[len(self.old) // 2]) and self.granted == before, 'a late credit took it back'
        elif self.credits:
            self.old.append(self.credits.popleft())
            assert self.grant(self.old[-1]), 'a credit that says nothing new was sent'

    def intrude(self, choices: Choices) -> None:
        """Let a chunk arrive that is none of theirs: it is refused, unless it is what is due."""
        offset = max(0, self.receiver.received + choices.pick([0, 1, -1, 1000, -1000, WINDOW]))
        room = self.receiver.credit - self.receiver.received
        size = max(0, min(room + choices.pick([0, 1, 1000]), 2 * WINDOW))
        wrong = self.receiver.ended or offset != self.receiver.received or size > room
        if not wrong or self.failed:
            return
        before = self.receiver.received, self.receiver.ended, self.receiver.credit
        try:
            self.feed(Chunk(correlation_id='1', offset=offset, last=choices.flag(), body=bytes(size)))
        except ProtocolError:
            assert before == (self.receiver.received, self.receiver.ended, self.receiver.credit)
        else:
            raise AssertionError(f'a chunk was taken at {offset} where {before} is so')

    def check(self) -> None:
        """Fail if more is on its way, or lies unread, than a window."""
        assert self.sender.sent <= self.receiver.credit, 'it went beyond the credit'
        assert self.sender._credit or not (self.chunks or self.sender.finished), 'it went before anybody said where to'
        assert self.receiver.received - self.seen <= WINDOW and self.sender.sent - self.seen <= WINDOW
        on_its_way = sum(len(chunk.body) for chunk in self.chunks)
        assert self.sender.sent == self.receiver.received + on_its_way
        assert self.seen <= self.receiver.received <= self.written
        assert self.sender.stalled == (self.sender.pending > 0 and self.sender.sent >= self.sender._credit)

    def complete(self) -> None:
        """Let who reads go on to the end: all arrives, in a number of steps that is not too large."""
        self.end()
        for _ in range(100):
            if self.failed or self.receiver.ended:
                break
            self.carry(100)
            self.read(WINDOW)
            while self.credits:
                self.answer(False)
            self.send()
            self.check()
        self.read(MOST)
        assert self.seen == self.receiver.received
        assert self.failed or (self.seen == self.written and self.receiver.ended and self.sender.finished)
        assert self.failed or not self.chunks

    def write(self, size: int) -> None:
        """Write so many bytes."""
        raise NotImplementedError

    def end(self) -> None:
        """Write no more."""
        raise NotImplementedError

    def read(self, size: int) -> None:
        """Read up to so many bytes."""
        raise NotImplementedError

    def send(self) -> None:
        """Let go what may."""
        raise NotImplementedError

    def feed(self, chunk: Chunk) -> None:
        """Let a chunk arrive."""
        raise NotImplementedError

    def grant(self, offset: int) -> bool:
        """Let a credit arrive; return whether it is news."""
        raise NotImplementedError

    def fail(self) -> None:
        """Let nothing more come."""
        raise NotImplementedError


class Up(Body):
    """The body of a call: the caller sends what the task wants."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = Sender('1', 'crew.master.1', credit=0)
        self.input = Input(Signal(), self.want)
        self.receiver = self.input.receiver

    def want(self, offset: int, waiting: bool) -> None:
        """Grant credit, as the thread of the connection does."""
        assert offset >= self.seen
        credit = self.receiver.consumed(offset)
        if credit is not None:
            self.credits.append(credit)
        # Nobody waits for ever: what was granted before is more than what has come, or the last is here.
        if waiting and not self.receiver.ended:
            assert self.receiver.credit > self.receiver.received

    def write(self, size: int) -> None:
        data = self.piece(size)
        self.sender.write(data)
        self.written += len(data)

    def end(self) -> None:
        if not self.ended:
            self.sender.end()
            self.ended = True

    def send(self) -> None:
        self.chunks += self.sender.take()

    def feed(self, chunk: Chunk) -> None:
        self.input.feed(chunk)

    def grant(self, offset: int) -> bool:
        return self.sender.grant(offset)

    def read(self, size: int) -> None:
        buffer = bytearray(size)
        try:
            while size and (count := self.input.readinto(memoryview(buffer)[:size])):
                self.took(bytes(buffer[:count]))
                size -= count
        except Blocked:
            return
        except OSError:
            assert self.failed and self.seen == self.receiver.received, 'what had come was not read'

    def fail(self) -> None:
        self.failed = True
        self.input.fail(ConnectionError('the caller is gone'))


class Down(Body):
    """The answer: the task writes, the caller takes."""

    def __init__(self) -> None:
        super().__init__()
        self.output = Output('1', Signal(), lambda: None)
        self.output.begin(Reply(correlation_id='1', more=True))
        self.sender = self.output.sender
        self.receiver = Receiver()
        self.arrived: deque[bytes] = deque()
        self.blocked = False

    def write(self, size: int) -> None:
        if self.failed or (self.blocked and self.output._written > self.output._granted):
            return
        data = self.piece(size)
        self.blocked = False
        try:
            self.written += len(data)
            self.output.write(data)
        except Blocked:
            # It was taken; the task goes on when it may go.
            self.blocked = True

    def end(self) -> None:
        self.ended = True

    def send(self) -> None:
        self.chunks += self.output.collect(ended=self.ended)

    def feed(self, chunk: Chunk) -> None:
        data = self.receiver.receive(chunk)
        if data:
            self.arrived.append(data)

    @property
    def granted(self) -> tuple[int, ...]:
        return self.sender._credit, self.output._granted

    def grant(self, offset: int) -> bool:
        news = offset > self.sender._credit
        self.output.grant(offset)
        return news

    def read(self, size: int) -> None:
        while self.arrived and size > 0:
            data = self.arrived.popleft()
            size -= len(data)
            self.took(data)
            credit = self.receiver.consumed(self.seen)
            if credit is not None:
                self.credits.append(credit)

    def fail(self) -> None:
        self.failed = True
        self.output.fail(ConnectionError('the caller is gone'))
        try:
            self.output.write(b'x')
        except BrokenPipeError:
            return
        raise AssertionError('who writes is not told that nobody takes it')


def seeds() -> list[bytes]:
    """Return both directions in turn."""
    return [bytes([0, 0, 8, 0, 2, 1, 0, 3, 8, 0, 4, 1]), bytes([1, 3, 8, 1, 4, 1, 1, 0, 12, 1, 2, 2, 1, 5])]
