"""What travels between a caller and a worker, as frozen values: valid by construction, without any bytes.

A *call* waits in a shared queue; whatever follows goes to a private queue, by correlation id. The names and the meaning
of each are specified in docs/protocol.md.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal, TypeAlias

from crew.envelope import MAX_SHORT_STRING, Envelope
from crew.values import value_class

__all__ = [
    'Accept',
    'Call',
    'Cancel',
    'Chunk',
    'Credit',
    'DeadLetter',
    'Failure',
    'FailureKind',
    'Go',
    'HeaderValue',
    'Message',
    'Publication',
    'Reply',
    'Reset',
    'Returned',
    'Stop',
]

FailureKind = Literal['raised', 'timeout', 'refused']

#: What an AMQP table and every client of it can carry.
HeaderValue: TypeAlias = str | int | bool

#: RabbitMQ closes the channel when a message is to wait for more than 2**32 - 1 milliseconds, some 49 days.
MAX_EXPIRATION = (2**32 - 1) // 1000

#: The end of the times that a message can carry, in seconds since the epoch; up to there a float has each millisecond.
END_OF_TIME = 2**40


def _check_id(name: str, value: str) -> None:
    if not value:
        raise ValueError(f'{name} must have 1 to {MAX_SHORT_STRING} bytes of UTF-8')
    _check_short(name, value)


def _check_short(name: str, value: str) -> None:
    # AMQP 0-9-1 §4.2.5.3: a short string has at most 255 bytes.
    if len(value if value.isascii() else value.encode()) > MAX_SHORT_STRING:
        raise ValueError(f'{name} must have at most {MAX_SHORT_STRING} bytes of UTF-8')


@value_class(frozen=True, slots=True, kw_only=True)
class Call:
    """A task to be run, from its caller.

    Args:
        correlation_id: names the call; unique among the caller's calls in flight.
        reply_to: the caller's reply queue, or empty when nobody waits for an answer.
        body: the argument, encoded.
        content_type: how it is encoded.
        content_encoding: how it is compressed, or empty.
        expiration: how long it may wait until a worker accepts it, in seconds.
        timeout: how long it may run, in seconds, or None for the worker's own limit.
        priority: 0–255; higher first.
        persistent: whether it survives a restart of the broker.
        sent: when it was sent, in seconds since the epoch by the caller's clock, or None if the message does not say.
        runs: how often it may have run already, of a call that nobody waits for.
        more: whether more of the body follows in chunks.
        headers: metadata beside the argument.
    """

    correlation_id: str
    reply_to: str = ''
    body: bytes = b''
    content_type: str = 'application/octet-stream'
    content_encoding: str = ''
    expiration: float | None = None
    timeout: float | None = None
    priority: int = 0
    persistent: bool = False
    sent: float | None = None
    runs: int = 0
    more: bool = False
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what would otherwise fail at the broker, where it takes the whole connection down.

        Raises:
            ValueError: a field is outside its range.
        """
        texts = self.correlation_id + self.reply_to + self.content_type + self.content_encoding
        if not (self.correlation_id and texts.isascii() and len(texts) <= MAX_SHORT_STRING):
            # Nearly always all of them together are as short as each must be.
            _check_id('correlation_id', self.correlation_id)
            _check_short('reply_to', self.reply_to)
            _check_short('content_type', self.content_type)
            _check_short('content_encoding', self.content_encoding)
        if not (isinstance(self.priority, int) and 0 <= self.priority <= 255):
            raise ValueError(f'priority must be a whole number from 0 to 255, not {self.priority!r}')
        if self.expiration is not None and not 0 <= self.expiration <= MAX_EXPIRATION:
            raise ValueError(f'expiration must be 0 to {MAX_EXPIRATION} seconds from now, not {self.expiration}')
        if self.timeout is not None and not 0 < self.timeout < 2**32:
            raise ValueError(f'timeout must be a positive number of seconds, not {self.timeout}')
        if self.sent is not None and not 0 <= self.sent < END_OF_TIME:
            raise ValueError(f'sent must be a time since the epoch, in seconds, not {self.sent}')


@value_class(frozen=True, slots=True, kw_only=True)
class Reply:
    """The value that a task returned; with ``more``, the beginning of one whose rest follows in chunks."""

    correlation_id: str
    body: bytes = b''
    content_type: str = 'application/octet-stream'
    content_encoding: str = ''
    more: bool = False
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)


@value_class(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a long body, either way.

    Args:
        correlation_id: whose body it is.
        reply_to: the caller's reply queue, in a chunk that goes to a worker.
        offset: where in the body its first byte belongs.
        last: whether the body ends with it.
        body: its bytes.
    """

    correlation_id: str
    reply_to: str = ''
    offset: int
    last: bool = False
    body: bytes = b''

    def __post_init__(self) -> None:
        """Refuse an offset that cannot be.

        Raises:
            ValueError: it is negative, or larger than a table can carry.
        """
        if not 0 <= self.offset < 2**63:
            raise ValueError(f'offset must be 0 to 2**63 - 1, not {self.offset}')


@value_class(frozen=True, slots=True, kw_only=True)
class Credit:
    """The receiver of a long body takes bytes up to this offset.

    Args:
        correlation_id: whose body it is.
        reply_to: the caller's reply queue, in a credit that goes to a worker.
        offset: the offset of the first byte that must not come yet.
    """

    correlation_id: str
    reply_to: str = ''
    offset: int

    def __post_init__(self) -> None:
        """Refuse an offset that cannot be.

        Raises:
            ValueError: it is negative, or larger than a table can carry.
        """
        if not 0 <= self.offset < 2**63:
            raise ValueError(f'offset must be 0 to 2**63 - 1, not {self.offset}')


@value_class(frozen=True, slots=True, kw_only=True)
class Reset:
    """An answer that has begun will not come to its end.

    Args:
        correlation_id: whose answer it is.
        reason: why, for the log.
        timeout: whether it is because the task ran past its time.
    """

    correlation_id: str
    reason: str = ''
    timeout: bool = False


@value_class(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no value.

    Args:
        kind: ``raised`` – the task raised; ``timeout`` – it ran past its time; ``refused`` – the worker could not
            make sense of the call.
        type: the exception's class name.
        message: its text.
        traceback: the remote traceback, or empty.
    """

    correlation_id: str
    kind: FailureKind
    type: str = ''
    message: str = ''
    traceback: str = ''


@value_class(frozen=True, slots=True, kw_only=True)
class Accept:
    """A worker holds the call: it runs (``ask`` false), or may run if the caller says so (``ask`` true).

    Args:
        inbox: the worker's private queue.
        ask: whether the worker waits for :class:`Go` or :class:`Stop` before it starts.
        redelivered: whether the broker delivered the call before.
        idempotent: whether the task says of itself that it may run a second time when its worker dies.
        acked: whether the broker has been told that it is done, though it runs: no other worker will get it if this one
            dies, so its caller must look now and then whether the inbox is still there.
        ran: how long the call has run already, in seconds.
        timeout: the limit of its run that the worker keeps, in seconds.
    """

    correlation_id: str
    inbox: str
    ask: bool
    redelivered: bool = False
    idempotent: bool = False
    acked: bool = False
    ran: float = 0.0
    timeout: float

    def __post_init__(self) -> None:
        """Refuse a queue that cannot be written to, and a negative or endless time.

        Raises:
            ValueError: a field is outside its range.
        """
        _check_id('inbox', self.inbox)
        if not (0 <= self.ran < 2**32 and 0 < self.timeout < 2**32):
            raise ValueError('ran and timeout must be finite numbers of seconds')


@value_class(frozen=True, slots=True, kw_only=True)
class Go:
    """The caller's answer to a question: run it. ``reply_to`` says whose call it is."""

    correlation_id: str
    reply_to: str


@value_class(frozen=True, slots=True, kw_only=True)
class Stop:
    """The caller's answer to a question: drop it. ``reply_to`` says whose call it is."""

    correlation_id: str
    reply_to: str


@value_class(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The caller no longer waits for a call that runs."""

    correlation_id: str
    reply_to: str
    reason: str = ''


@value_class(frozen=True, slots=True, kw_only=True)
class Returned:
    """A worker puts these calls back into the queue and has not started any of them."""

    correlation_ids: tuple[str, ...]


@value_class(frozen=True, slots=True, kw_only=True)
class Publication:
    """A value for everybody who has subscribed to a channel.

    Args:
        channel: its name.
        body: the value, encoded.
        content_type: how it is encoded.
        content_encoding: how it is compressed, or empty.
    """

    channel: str
    body: bytes = b''
    content_type: str = 'application/octet-stream'
    content_encoding: str = ''

    def __post_init__(self) -> None:
        """Refuse a channel without a name, or with one too long to be bound.

        Raises:
            ValueError: the name has no or too many bytes.
        """
        _check_id('channel', self.channel)


@value_class(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A call that came back from its queue.

    Args:
        correlation_id: which call.
        reason: RabbitMQ's word: ``expired``, ``rejected``, ``maxlen`` or ``delivery_limit``.
        time: when it left the queue, in seconds since the epoch, or None.
        envelope: the call as it was published, to be published again if it may be.
        queue: the queue that it left.
    """

    correlation_id: str
    reason: str
    time: float | None
    envelope: Envelope
    queue: str


Message: TypeAlias = (
    Call | Reply | Chunk | Credit | Reset | Failure | Accept | Go | Stop | Cancel | Returned | Publication | DeadLetter
)
