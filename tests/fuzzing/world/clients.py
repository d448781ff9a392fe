"""A client process: the caller that is in use, and conversations that take what comes as a front does."""

from dataclasses import dataclass, field, replace

from crew import codec
from crew.exceptions import CrewError
from crew.master.caller import Caller, Counters
from crew.messages import Call, Chunk, Credit, Reply
from crew.streams import WINDOW, Receiver, Sender
from crew.topology import task_queue
from crew.transports.addresses import dial
from crew.transports.session import Session
from tests.fuzzing.world.loops import Clock, Loop
from tests.fuzzing.world.workers import CONTENT, Play

__all__ = ['Client', 'Conversation']


@dataclass(slots=True, eq=False)
class Conversation:
    """A call and what comes of it.

    Attributes:
        id: of the call.
        idempotent: whether it may run twice, as its caller knows or its task says.
        outcome: what it came to; None while it is in flight.
        cancelled: whether its caller has given it up.
        slow: whether anybody was held up meanwhile, so that no time can be relied on.
        cut: whether its caller has lost the connection meanwhile.
        meddled: whether an operator has.
        starts: how often a task has begun.
        sent: how much of its body was written, in bytes.
        taken: how much of its answer was consumed.
        answers: how much of an answer each run has written in the end, if it came to one.
    """

    id: str
    task: str
    idempotent: bool
    play: Play
    began: float
    expiration: float
    timeout: float | None
    alone: bool = False
    outcome: Reply | Chunk | CrewError | None = None
    settled: float = 0.0
    cancelled: bool = False
    slow: bool = False
    cut: bool = False
    meddled: bool = False
    starts: int = 0
    sender: Sender | None = None
    sent: int = 0
    whole: bool = False
    receiver: Receiver | None = None
    arrived: int = 0
    taken: int = 0
    answers: list[int | None] = field(default_factory=list)
    failures: int = 0
    paused: bool = False

    @property
    def open(self) -> bool:
        """Whether an outcome is to come."""
        return self.outcome is None and not self.cancelled and not self.alone


class Client:
    """One process.

    Args:
        clock: the time.
        url: of the broker.
        tasks: whose queues it declares.
        skew: how far its wall clock is off.
    """

    def __init__(self, clock: Clock, url: str, tasks: list[str], skew: float) -> None:
        self.loop = Loop(clock, skew)
        self.paused = False
        self.dead = False
        self.counters = Counters()
        self.conversations: list[Conversation] = []
        self._clock = clock
        with self.loop.running():
            self.caller = Caller(self.loop, [task_queue(task) for task in tasks], self.counters)
            self.session = Session([url], lambda url: dial(url, name='client'), self.caller.prepare, self._lost)
            self.session.start()

    def _lost(self, reason: Exception) -> None:
        self.caller.lost(reason)

    # Calling

    def call(self, conversation: Conversation, *, known: bool, more: bool, persistent: bool) -> None:
        """Call, now or as soon as there is a connection.

        Raises:
            CrewError: it was not taken.
        """
        call = Call(
            correlation_id=conversation.id,
            expiration=conversation.expiration,
            timeout=conversation.timeout,
            persistent=persistent,
            more=more,
        )
        queue = task_queue(conversation.task).name
        with self.loop.running():
            call = replace(call, sent=self._clock.time())
            if conversation.alone:
                # What a client does that waits for no answer; none of the faces has it.
                link = self.caller._usable()
                if link is None:
                    raise CrewError('there is no connection')
                link.channel.publish(codec.encode_call(call), queue)
            elif self.caller.reply_to or more or known:
                self.caller.send(call, queue, lambda part: self._received(conversation, part), idempotent=known)
            else:
                self.caller.submit(call, queue, lambda part: self._received(conversation, part))
        if more:
            conversation.sender = Sender(conversation.id, credit=0)
        self.conversations.append(conversation)

    def cancel(self, conversation: Conversation) -> None:
        """Give a call up."""
        if conversation.open:
            conversation.cancelled = True
            with self.loop.running():
                self.caller.cancel(conversation.id)

    # What comes

    def _received(self, conversation: Conversation, part: Reply | Chunk | Credit | CrewError) -> None:
        assert conversation.outcome is None, f'a second outcome: {conversation.outcome!r}, {part!r}'
        assert not conversation.cancelled, f'an outcome of what was given up: {part!r}'
        if isinstance(part, Credit):
            if conversation.sender is not None and conversation.sender.grant(part.offset):
                self._send(conversation)
        elif isinstance(part, CrewError):
            self._settle(conversation, part)
        elif isinstance(part, Reply):
            if part.more:
                assert conversation.receiver is None, 'a second answer began'
                conversation.receiver = Receiver()
            else:
                self._settle(conversation, part)
        else:
            assert conversation.receiver is not None, 'a chunk came before its answer'
            data = conversation.receiver.receive(part)
            assert CONTENT.startswith(data, conversation.arrived), 'other bytes came than were sent'
            conversation.arrived += len(data)
            if part.last:
                self._settle(conversation, part)
        self._mind_clock(conversation)

    def _settle(self, conversation: Conversation, outcome: Reply | Chunk | CrewError) -> None:
        conversation.outcome = outcome
        conversation.settled = self._clock.now

    # Bodies

    def write(self, conversation: Conversation, size: int) -> None:
        """Write more of a call's body."""
        if conversation.sender is None or conversation.whole or not conversation.open:
            return
        size = min(size, len(CONTENT) - conversation.sent)
        # As a front, that reads no more from its client than it may send.
        if conversation.sender.pending > WINDOW:
            return
        conversation.sender.write(CONTENT[conversation.sent : conversation.sent + size])
        conversation.sent += size
        self._send(conversation)

    def finish(self, conversation: Conversation) -> None:
        """End a call's body."""
        if conversation.sender is not None and conversation.open:
            conversation.whole = True
            conversation.sender.end()
            self._send(conversation)

    def take(self, conversation: Conversation, size: int) -> None:
        """Consume some of the answer."""
        if conversation.receiver is None or conversation.taken == conversation.arrived:
            return
        conversation.taken = min(conversation.taken + size, conversation.arrived)
        credit = conversation.receiver.consumed(conversation.taken)
        if credit is not None and conversation.open:
            with self.loop.running():
                self.caller.tell(Credit(correlation_id=conversation.id, offset=credit))
        self._mind_clock(conversation)

    def _send(self, conversation: Conversation) -> None:
        assert conversation.sender is not None
        with self.loop.running():
            for chunk in conversation.sender.take():
                self.caller.tell(chunk)
        self._mind_clock(conversation)

    def _mind_clock(self, conversation: Conversation) -> None:
        if not conversation.open:
            return
        sender = conversation.sender
        starving = sender is not None and not conversation.whole and not sender.pending and sender.wanted
        paused = starving or conversation.taken < conversation.arrived
        if paused != conversation.paused:
            conversation.paused = paused
            with self.loop.running():
                (self.caller.pause if paused else self.caller.resume)(conversation.id)

    # Ending

    async def close(self) -> None:
        """Close as a client does."""
        self.caller.close()
        await self.session.close()
