"""RPC over RabbitMQ: call a blocking job from an async server, a script or a test, and wait for its answer.

This package knows nothing of HTTP; ``crew_wsgi`` is built on it. ``docs/architecture.md`` draws the rooms.
"""

from crew.exceptions import (
    Blocked,
    BrokerRefused,
    ConnectionError,
    CrewError,
    DuplicateTask,
    DuplicateTaskId,
    ExpirationError,
    PayloadError,
    ProtocolError,
    RemoteError,
    TaskError,
    TimeoutError,
    Unroutable,
    WorkerLost,
)

__all__ = [
    'Blocked',
    'BrokerRefused',
    'ConnectionError',
    'CrewError',
    'DuplicateTask',
    'DuplicateTaskId',
    'ExpirationError',
    'PayloadError',
    'ProtocolError',
    'RemoteError',
    'TaskError',
    'TimeoutError',
    'Unroutable',
    'WorkerLost',
]
