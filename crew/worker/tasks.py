"""From a call to a registered task and back: its argument decoded, the context set, its value encoded."""

import logging
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from crew.exceptions import PayloadError
from crew.messages import Failure, Reply
from crew.payloads import Payload, pack, unpack
from crew.serializers import CONTENT_TYPES, Serializer
from crew.worker import contexts
from crew.worker.registry import Registered, Registry
from crew.worker.runs import Outcome, Run, Task

__all__ = ['registered_task']

log = logging.getLogger(__name__)


def registered_task(registry: Registry, settings: SimpleNamespace, accept: Collection[Serializer]) -> Task:
    """Return what runs each call: the task of its queue.

    Args:
        registry: the tasks.
        settings: what ``context.settings`` shows.
        accept: the serializers that may be read, from :func:`crew.serializers.accepted`.
    """

    def task(run: Run) -> Outcome:
        registered = registry[run.task]
        run.describe(f'task {run.task} (call {run.call.correlation_id})')
        call = run.call
        try:
            if call.more:
                raise PayloadError('the argument comes in parts, which tasks do not take')
            argument = unpack(Payload(call.body, call.content_type, call.content_encoding), accept)
        except PayloadError as error:
            log.warning('%s was refused: %s', run.text, error)
            return Failure(correlation_id=call.correlation_id, kind='refused', type='PayloadError', message=str(error))
        contexts.enter(run, settings)
        value = registered.function(argument)
        if isinstance(value, BaseException):
            raise value
        payload = _packed(registered, value, call.content_type)
        return Reply(
            correlation_id=call.correlation_id,
            body=payload.body,
            content_type=payload.content_type,
            content_encoding=payload.content_encoding,
            headers=contexts.context.headers,
        )

    return task


def _packed(registered: Registered, value: Any, content_type: str) -> Payload:
    serializer = registered.serializer
    if serializer is None and content_type == CONTENT_TYPES['pickle']:
        # Accepted here, so its caller may well expect what only pickle carries.
        serializer = 'pickle'
    try:
        return pack(value, serializer, gzip=True if registered.force_gzip else None)
    except PayloadError as error:
        raise PayloadError(f'task {registered.id} returned what cannot be sent: {error}') from error.__cause__
