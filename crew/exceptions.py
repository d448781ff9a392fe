"""Every error of crew: no logic, the facts as attributes.

Two branches: :class:`TaskError` is what became of one call, :class:`ConnectionError` is the way to the broker.
:class:`ProtocolError` and :class:`BrokerRefused` say that somebody is set up or written wrongly; waiting does not help.
"""

import builtins
import sys

__all__ = [
    'Blocked',
    'BrokerRefused',
    'ConnectionError',
    'CrewError',
    'DuplicateTask',
    'DuplicateTaskId',
    'ExpirationError',
    'NodeError',
    'PayloadError',
    'ProtocolError',
    'RemoteError',
    'TaskError',
    'TimeoutError',
    'Unroutable',
    'WorkerLost',
]


class CrewError(Exception):
    """The root of all errors that crew raises on its own account."""


class TaskError(CrewError):
    """Raised when a call did not bring a value."""


class TimeoutError(TaskError, builtins.TimeoutError):
    """Raised when the task started and ran past its time."""


class ExpirationError(TaskError):
    """Raised when no worker took the call in time.

    Attributes:
        reason: why the message left its queue, as RabbitMQ names it (``expired``, ``maxlen`` …); ``expired`` too when
            the caller's own timer was first; ``unconnected`` when the broker could not be reached in all that time;
            ``unroutable`` when there is no such queue (:class:`Unroutable`); ``unconfirmed`` when the broker did not
            say that a queue has it.
        time: when it left the queue, in seconds since the epoch, or None when the caller's own timer was first.
        expiration: how long the call was to wait, in seconds.
    """

    def __init__(
        self,
        message: str = 'no worker took the call in time: all are gone or busy',
        *,
        reason: str = 'expired',
        time: float | None = None,
        expiration: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.time = time
        self.expiration = expiration


class DuplicateTaskId(TaskError):
    """Raised when a call in flight has the same id already."""


class WorkerLost(TaskError):
    """Raised when the worker died while it ran the call, and the call may not run again."""


class PayloadError(TaskError, ValueError):
    """Raised when a value cannot be sent, or what came cannot be read: its type, encoding or size is not accepted."""


class Unroutable(ExpirationError):
    """Raised when there is no such queue at the broker, so that no worker can take the call: known at once."""

    def __init__(self, message: str, *, expiration: float | None = None) -> None:
        super().__init__(message, reason='unroutable', expiration=expiration)


class RemoteError(TaskError):
    """Raised when the task itself raised.

    Attributes:
        type: the name of the exception's class, where it was raised.
        message: its text.
        traceback: the remote traceback, or an empty string.
        refused: whether the worker could not make sense of the call, so that nothing was run.
    """

    def __init__(self, type: str, message: str, traceback: str = '', *, refused: bool = False) -> None:
        super().__init__(f'{type}: {message}')
        self.type = type
        self.message = message
        self.traceback = traceback
        self.refused = refused
        if traceback and sys.version_info >= (3, 11):
            # Shown below the local traceback when nobody catches it.
            self.add_note(f'The task raised it here:\n{traceback.rstrip()}')

    def __reduce__(self) -> tuple[object, ...]:
        """Let it be pickled and copied: by a process pool, say."""
        return type(self), (self.type, self.message), self.__dict__


class ConnectionError(CrewError, builtins.ConnectionError):
    """Raised when the broker cannot be reached, or was lost while the call was in flight.

    Attributes:
        published: whether the call had left already, so that it may have run.
    """

    def __init__(self, message: str, *, published: bool = False) -> None:
        super().__init__(message)
        self.published = published


class Blocked(ConnectionError):
    """Raised when the broker takes no messages now (a memory or disk alarm)."""


class BrokerRefused(CrewError):
    """Raised when trying again would not help: credentials, virtual host, arguments of a queue."""


class DuplicateTask(CrewError, ValueError):
    """Raised when two tasks of one worker have the same id."""


class ProtocolError(CrewError):
    """Raised when a message is not what docs/protocol.md says."""


class NodeError(CrewError):
    """Raised when a private node cannot be started or used.

    Attributes:
        log: what the node itself wrote, or an empty string.
    """

    def __init__(self, message: str, *, log: str = '') -> None:
        super().__init__(message)
        self.log = log
