"""AMQP properties and body as one frozen value: what crew knows of a message on the wire, in no library's classes."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from crew.values import value_class

__all__ = ['Envelope']

MAX_SHORT_STRING = 255


@value_class(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message as the broker carries it (AMQP 0-9-1, class *basic*).

    Args:
        body: the payload.
        type: which message of docs/protocol.md this is.
        correlation_id: the id of the call that it belongs to.
        reply_to: the queue on which the sender listens.
        content_type: a media type, for the payload.
        content_encoding: how the payload is compressed, or empty.
        headers: the header table. Values received may be of any type that AMQP knows.
        expiration: how long the message may wait in its queue, in milliseconds.
        priority: the level in a queue with priorities, 0–255.
        persistent: whether the message survives a restart of the broker.
        timestamp: when it was sent, in whole seconds since the epoch.
    """

    body: bytes = b''
    type: str = ''
    correlation_id: str = ''
    reply_to: str = ''
    content_type: str = ''
    content_encoding: str = ''
    headers: Mapping[str, Any] = field(default_factory=dict)
    expiration: int | None = None
    priority: int = 0
    persistent: bool = False
    timestamp: int | None = None
