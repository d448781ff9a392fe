"""Names and arguments of exchanges, queues and bindings, as data.

Both sides declare from here, so start order never matters and the arguments never differ (a different redeclare is
``406 PRECONDITION_FAILED`` and closes the channel). Only what can never change stands in arguments: what an operator
may want to change (length, time to live) belongs in policies. All of it is accepted by RabbitMQ 3.8 to 4.3: shared
queues are durable, private ones exclusive, nothing in between (4.3 refuses the rest), no ``x-queue-mode``.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from crew.ids import unique_id

__all__ = [
    'CHANNEL_KEY',
    'DEAD_LETTERS',
    'PUBLICATIONS',
    'REPLY_KEY',
    'Binding',
    'Exchange',
    'Queue',
    'QueueType',
    'dead_letter_binding',
    'inbox',
    'named_queue',
    'priority_level',
    'reply_queue',
    'subscriber_queue',
    'subscription',
    'task_queue',
    'task_queue_name',
]

QueueType = Literal['classic', 'quorum']

MAX_NAME = 255

TASKS = 'crew.tasks.'

#: The header by which a dead letter finds its caller. RabbitMQ skips binding keys that begin with ``x-``.
REPLY_KEY = 'crew-reply'

#: The header by which a publication finds its subscribers.
CHANNEL_KEY = 'crew-channel'


class Exchange(NamedTuple):
    """An exchange to declare; always durable."""

    name: str
    type: Literal['headers', 'topic', 'direct', 'fanout']


class Queue(NamedTuple):
    """A queue to declare: shared and durable, or private to its connection (exclusive)."""

    name: str
    exclusive: bool = False
    arguments: Mapping[str, Any] = MappingProxyType({})

    @property
    def durable(self) -> bool:
        """Whether the queue survives a restart of the broker: exactly the shared ones do."""
        return not self.exclusive


class Binding(NamedTuple):
    """A binding of a queue to a headers exchange: all of ``keys`` must be equal."""

    queue: str
    exchange: str
    keys: Mapping[str, str]

    @property
    def arguments(self) -> dict[str, str]:
        """The arguments of ``queue.bind``."""
        return {'x-match': 'all', **self.keys}


DEAD_LETTERS = Exchange('crew.DLX', 'headers')
PUBLICATIONS = Exchange('crew.PUBSUB', 'headers')

#: A subscriber that is further behind than this loses the oldest publications, not the broker its memory.
MAX_BACKLOG = 100_000

PRIORITY_LEVELS = 8


def priority_level(priority: int) -> int:
    """Return the level 0–8 of a priority 0–255: monotone, and 0.2 MB a queue where 255 levels cost 7.7 MB."""
    return priority.bit_length()


def task_queue(task: str, queue_type: QueueType = 'classic') -> Queue:
    """Return the shared queue of a task or web application.

    Args:
        task: its id; the queue is ``crew.tasks.<id>``.
        queue_type: ``classic``, or ``quorum`` for a cluster. A quorum queue refuses ``x-max-priority``; its levels
            depend on the broker's version.

    Raises:
        ValueError: the id is empty, or too long for an AMQP name (255 bytes).
    """
    arguments: dict[str, Any] = {'x-queue-type': queue_type, 'x-dead-letter-exchange': DEAD_LETTERS.name}
    if queue_type == 'classic':
        arguments['x-max-priority'] = PRIORITY_LEVELS
    return Queue(task_queue_name(task), arguments=arguments)


@lru_cache(maxsize=256)
def task_queue_name(task: str) -> str:
    """Return the name of a task's shared queue.

    Raises:
        ValueError: the id is empty, or too long for an AMQP name (255 bytes).
    """
    name = f'{TASKS}{task}'
    if not task or len(name.encode()) > MAX_NAME:
        raise ValueError(f'a queue id must have 1 to {MAX_NAME - len(TASKS)} bytes of UTF-8: {task!r}')
    return name


def reply_queue() -> Queue:
    """Return a private queue for the answers to one client, under a name never used before.

    A fixed name would meet ``RESOURCE_LOCKED`` after a reconnect, while the broker still holds the old connection.
    """
    return _private_queue('crew.master')


def inbox() -> Queue:
    """Return a private queue for what callers say to one worker process, under a name never used before."""
    return _private_queue('crew.worker')


def subscriber_queue() -> Queue:
    """Return a private queue for what one client has subscribed to, under a name never used before."""
    return _private_queue('crew.subscribe', {'x-max-length': MAX_BACKLOG})


def subscription(queue: str, channel: str) -> Binding:
    """Return the binding by which a subscriber gets the publications of one channel, and no others."""
    return Binding(queue, PUBLICATIONS.name, {CHANNEL_KEY: channel})


def named_queue(name: str) -> Queue:
    """Return a shared queue under a name that somebody else has chosen, for who consumes it before it is there."""
    return Queue(name, arguments={'x-queue-type': 'classic'})


def dead_letter_binding(queue: str) -> Binding:
    """Return the binding by which a client gets its own dead letters, and no others."""
    return Binding(queue, DEAD_LETTERS.name, {REPLY_KEY: queue})


def _private_queue(prefix: str, arguments: Mapping[str, Any] | None = None) -> Queue:
    # The type is said aloud because a virtual host may have another default.
    return Queue(f'{prefix}.{unique_id()}', exclusive=True, arguments={'x-queue-type': 'classic', **(arguments or {})})
