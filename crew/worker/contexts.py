"""What a task finds around it: ``from crew.worker import context``.

Each run has its own, whatever runs beside it in other threads or greenlets; the settings are the worker process's.
"""

import contextvars
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from crew import deadlines

if TYPE_CHECKING:
    from argparse import Namespace

    from crew.messages import HeaderValue
    from crew.serializers import Serializer
    from crew.worker.runs import Run

__all__ = ['Context', 'PubSub', 'context', 'enter', 'make_settings']

_RESERVED = ('uuid', 'node_uuid', 'options')


class PubSub:
    """Publishes from a task: ``context.pubsub``."""

    def __init__(self, run: 'Run') -> None:
        self._run = run

    def publish(
        self,
        channel: str,
        message: Any,
        serializer: 'Serializer | None' = None,
        *,
        gzip: bool | None = None,
        gzip_level: int = 6,
    ) -> None:
        """Give a value to everybody who has subscribed to a channel. What is published is sent before the task's reply.

        Args:
            channel: the channel's name.
            message: the value.
            serializer: ``json``, ``text``, ``bytes`` or ``pickle``; None is ``bytes`` for bytes, ``json`` for all else.
            gzip: whether to compress; None compresses what is longer than 32 KiB.
            gzip_level: 0–9.

        Raises:
            ConnectionError: there is no connection to the broker now.
            PayloadError: the serializer cannot carry the value.
            ValueError: the channel has no name, or one that is too long.
        """
        # Only who publishes needs them; a supervisor has imported the tasks, and so this module, too.
        from crew.messages import Publication
        from crew.payloads import pack

        payload = pack(message, serializer, gzip=gzip, gzip_level=gzip_level)
        self._run.owner.publish(
            Publication(
                channel=channel,
                body=payload.body,
                content_type=payload.content_type,
                content_encoding=payload.content_encoding,
            )
        )


@dataclass(slots=True)
class _Surroundings:
    """What surrounds one run."""

    run: 'Run'
    settings: SimpleNamespace
    headers: 'dict[str, HeaderValue]' = field(default_factory=dict)


_current: contextvars.ContextVar[_Surroundings] = contextvars.ContextVar('crew_surroundings')

_process_settings: SimpleNamespace | None = None


class Context:
    """What a task finds around it. There is one object, :data:`context`, and it shows each run its own.

    Outside of a task, and in threads that a task has started, there is only ``settings``: all else is RuntimeError.
    """

    @property
    def settings(self) -> SimpleNamespace:
        """What lives as long as the worker process: the arguments of ``run()``, and what tasks add.

        Also ``uuid`` (this process), ``node_uuid`` (this host) and ``options`` (the parsed command line). With several
        threads, they share it.
        """
        surroundings = _current.get(None)
        if surroundings is not None:
            return surroundings.settings
        if _process_settings is None:
            raise RuntimeError('context.settings is made when the worker starts: there is none in this process')
        return _process_settings

    @property
    def headers(self) -> 'dict[str, HeaderValue]':
        """What goes to the caller beside this run's value: strings, 64-bit integers, booleans. Empty for each run."""
        return _surroundings().headers

    @headers.setter
    def headers(self, headers: 'Mapping[str, HeaderValue]') -> None:
        _surroundings().headers = dict(headers)

    @property
    def request_headers(self) -> 'Mapping[str, HeaderValue]':
        """What the caller has put beside the argument: its ``call(headers=…)``."""
        return MappingProxyType(dict(_surroundings().run.call.headers))

    @property
    def pubsub(self) -> PubSub:
        """Publishes to subscribers."""
        return PubSub(_surroundings().run)

    @property
    def deadline(self) -> float:
        """How many seconds this run may still take; 0.0 when its time is over. Calls made from it get no more."""
        return max(0.0, _surroundings().run.time_left())

    @property
    def cancelled(self) -> bool:
        """Whether the caller no longer waits. The run is being stopped then, as when its time is over."""
        return _surroundings().run.cancelled

    @property
    def correlation_id(self) -> str:
        """The id of the call, as its caller and the logs name it."""
        return _surroundings().run.call.correlation_id


context = Context()


def enter(run: 'Run', settings: SimpleNamespace) -> None:
    """Make ``context`` show a run, in this thread or greenlet, until the next one is entered."""
    _current.set(_Surroundings(run, settings))
    deadlines.enter(run.time_left())


def make_settings(options: 'Namespace', values: Mapping[str, Any]) -> SimpleNamespace:
    """Make the settings of this worker process.

    Args:
        options: the parsed command line.
        values: the arguments of ``run()``.

    Raises:
        ValueError: one of them has a name that is taken.
    """
    global _process_settings
    import uuid

    check_settings(values)
    _process_settings = SimpleNamespace(**values, uuid=str(uuid.uuid4()), node_uuid=_node_uuid(), options=options)
    return _process_settings


def check_settings(values: Mapping[str, Any]) -> None:
    """Look whether these can be settings.

    Raises:
        ValueError: one of them has a name that is taken.
    """
    taken = [name for name in _RESERVED if name in values]
    if taken:
        raise ValueError(f'context.settings.{taken[0]} is set by the worker itself: give yours another name')


def _node_uuid() -> str:
    import uuid

    try:
        # Not to be shown as it is (machine-id(5)), but the same after every restart.
        host = Path('/etc/machine-id').read_text(encoding='ascii').strip()
    except (OSError, ValueError):
        host = f'{uuid.getnode():x}'
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f'crew {host}'))


def _surroundings() -> _Surroundings:
    surroundings = _current.get(None)
    if surroundings is None:
        raise RuntimeError('only context.settings is there outside of a task and in threads that a task has started')
    return surroundings
