"""Envelopes of any kind into the codec: a message or a refusal comes out, and a message says the same ever after."""

import dataclasses
import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from pika.spec import BasicProperties

from crew import codec
from crew.envelope import Envelope
from crew.exceptions import ProtocolError
from crew.messages import Call, DeadLetter, Failure, Message, Reply
from crew.topology import priority_level
from crew.transports.asyncio import _envelope
from crew.transports.frames import encode_content
from tests.fuzzing.bounds import assert_line, quick, weight
from tests.fuzzing.choices import Choices

__all__ = ['check', 'encoded_properties', 'examine', 'over_the_wire', 'seeds']

TYPES = ['call', 'reply', 'chunk', 'credit', 'reset', 'error', 'accept', 'go', 'stop', 'cancel', 'returned']
TYPES += ['publication', '', 'CALL']

KEYS = ['crew-sent', 'crew-timeout', 'crew-runs', 'crew-more', 'crew-offset', 'crew-last', 'crew-channel']
KEYS += ['crew-reply', 'x-death', 'x-other', 'CC', 'name', 'crew-v']

FIELDS = ['kind', 'type', 'message', 'traceback', 'inbox', 'ask', 'redelivered', 'idempotent', 'ran', 'timeout']
FIELDS += ['reason', 'ids', 'offset', 'other']

#: The largest frame that we and RabbitMQ agree on; what heads a message must fit into one.
FRAME = 131_072 - 8


def check(data: bytes) -> None:
    """Make an envelope of the bytes and examine it."""
    examine(_made(Choices(data)))


def examine(envelope: Envelope) -> None:
    """Fail unless the envelope is refused, or carries a message that can be sent on and says the same then."""
    size = len(envelope.body) + weight(dict(envelope.headers))
    try:
        with quick():
            message = codec.decode(envelope)
    except ProtocolError as error:
        assert_line(error)
        return
    assert isinstance(message, Message)
    assert weight([getattr(message, each.name) for each in dataclasses.fields(message)]) < 100 * size + 10_000
    assert envelope.headers['crew-v'] == codec.VERSION
    _assert_kinds(message)
    if isinstance(message, DeadLetter):
        _examine_dead_letter(message)
        return
    if isinstance(message, Call | Reply):
        assert all(type(value) in (str, int, bool) for value in message.headers.values())
    again = codec.encode(message)
    back = codec.decode(over_the_wire(again))
    assert back == _travelled(message), 'it says something else when it is sent on'
    # What we write ourselves has one form.
    assert _same(codec.encode(back), again)


def _assert_kinds(message: Message) -> None:
    """Fail if a field is of another kind than it is declared to be."""
    if isinstance(message, Failure):
        assert message.kind in ('raised', 'timeout', 'refused')
    for field in dataclasses.fields(message):
        kind, value = getattr(field.type, '__name__', ''), getattr(message, field.name)
        assert kind not in ('str', 'bool', 'int') or type(value).__name__ == kind, field.name


def _travelled(message: Message) -> Message:
    """Return a message as it arrives: priorities travel as their levels."""
    return dataclasses.replace(message, priority=priority_level(message.priority)) if _is_call(message) else message


def _is_call(message: Message) -> bool:
    return isinstance(message, Call)


def _same(one: Envelope, other: Envelope) -> bool:
    return dataclasses.replace(one, priority=0) == dataclasses.replace(other, priority=0)


def _examine_dead_letter(letter: DeadLetter) -> None:
    """Fail unless it can be published again, as the call that it was."""
    first = codec.decode(dataclasses.replace(letter.envelope, headers=_without_death(letter.envelope)))
    assert isinstance(first, Call)
    again = codec.decode(over_the_wire(codec.republish(letter, expiration=2.5, sent=1_700_000_000.25)))
    assert again == dataclasses.replace(first, expiration=2.5, sent=1_700_000_000.25)


def _without_death(envelope: Envelope) -> dict[str, Any]:
    return {name: value for name, value in envelope.headers.items() if name != 'x-death'}


def encoded_properties(envelope: Envelope) -> bytes:
    """Return the flags and properties of an envelope as they are sent, in the first frame of its content."""
    header, properties, *_ = encode_content(1, envelope, FRAME)
    return bytes(header[-2:]) + bytes(properties)


def over_the_wire(envelope: Envelope) -> Envelope:
    """Return an envelope as it arrives, through our bytes and pika's reading."""
    encoded = encoded_properties(envelope)
    assert len(encoded) < FRAME, 'it would cost the connection'
    properties = BasicProperties()
    properties.decode(encoded)
    return _envelope(properties, envelope.body)


# From bytes


def _made(choices: Choices) -> Envelope:
    kind = choices.pick(TYPES)
    headers: dict[str, Any] = {} if choices.rarely() else {'crew-v': 1}
    for _ in range(choices.below(5)):
        key = choices.pick(KEYS)
        headers[_name(choices) if key == 'name' else key] = _deaths(choices) if key == 'x-death' else _value(choices)
    return Envelope(
        type=kind,
        headers=headers,
        correlation_id='1' if choices.flag() else _name(choices),
        reply_to='q' if choices.flag() else _name(choices),
        content_type='' if choices.flag() else _name(choices),
        content_encoding='' if choices.flag() else _name(choices),
        expiration=None if choices.flag() else choices.integer(),
        priority=choices.byte(),
        persistent=choices.flag(),
        timestamp=None if choices.flag() else abs(choices.integer()),
        body=_body(choices),
    )


def _name(choices: Choices) -> str:
    # AMQP 0-9-1 §4.2.5.3: no short string is longer.
    return choices.text().encode()[:255].decode('utf-8', 'ignore')


def _value(choices: Choices, depth: int = 0) -> Any:
    """Choose what an AMQP table can carry and pika makes of it."""
    kind = choices.below(10)
    if kind < 3:
        # pika makes a number of 64 bits of each, also of a float, which then may be of any size.
        return choices.integer()
    if kind < 5:
        return choices.text()
    if kind == 5:
        return choices.flag()
    if kind == 6:
        return choices.short()
    if kind == 7:
        return Decimal(choices.byte()) * Decimal(10) ** -choices.byte()
    if kind == 8:
        return datetime.fromtimestamp(abs(choices.integer()) % 2**33, timezone.utc)
    if depth > 3:
        return None
    if choices.flag():
        return [_value(choices, depth + 1) for _ in range(choices.below(4))]
    return {_name(choices): _value(choices, depth + 1) for _ in range(choices.below(4))}


def _deaths(choices: Choices) -> Any:
    if choices.rarely():
        return _value(choices)
    return [
        {
            choices.pick(['queue', 'reason', 'time', 'count']): _value(choices) if choices.rarely() else choices.text()
            for _ in range(choices.below(4))
        }
        for _ in range(1 + choices.below(2))
    ]


def _body(choices: Choices) -> bytes:
    if choices.flag():
        return choices.rest()
    fields = {choices.pick(FIELDS): _json(choices) for _ in range(choices.below(8))}
    return json.dumps(fields).encode()


def _json(choices: Choices) -> Any:
    kind = choices.below(8)
    if kind < 2:
        return choices.flag()
    if kind < 4:
        return choices.integer()
    if kind == 4:
        return choices.integer() / (choices.byte() or 1)
    if kind == 5:
        return choices.pick(['raised', 'timeout', 'refused', 'q'])
    if kind == 6:
        # As JSON's escapes there are lone surrogates, too.
        return choices.short().decode('utf-8', 'surrogateescape')
    return [_json(choices) for _ in range(choices.below(4))]


def seeds() -> list[bytes]:
    """Return bytes from which a search may begin."""
    return [bytes([at, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1]) for at in range(len(TYPES))]
