"""Messages to envelopes and back (docs/protocol.md). Sans-IO: whatever comes in, a message or ProtocolError comes out.

A call keeps in AMQP properties what operations need to see or the broker acts on; the small control messages carry
their fields as a JSON object in the body.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from crew.envelope import MAX_SHORT_STRING, Envelope
from crew.exceptions import ProtocolError
from crew.messages import (
    Accept,
    Call,
    Cancel,
    Chunk,
    Credit,
    DeadLetter,
    Failure,
    Go,
    HeaderValue,
    Message,
    Publication,
    Reply,
    Reset,
    Returned,
    Stop,
)
from crew.topology import CHANNEL_KEY, REPLY_KEY, priority_level

__all__ = ['VERSION', 'checked_headers', 'decode', 'encode', 'encode_call', 'republish', 'user_headers']

#: The version of the protocol that this module speaks.
VERSION = 1

VERSION_KEY = 'crew-v'
SENT_KEY = 'crew-sent'
TIMEOUT_KEY = 'crew-timeout'
RUNS_KEY = 'crew-runs'
MORE_KEY = 'crew-more'
OFFSET_KEY = 'crew-offset'
LAST_KEY = 'crew-last'
RESERVED = 'crew-'

_OWN = frozenset({VERSION_KEY, SENT_KEY, TIMEOUT_KEY, RUNS_KEY, MORE_KEY, OFFSET_KEY, LAST_KEY, REPLY_KEY})

# RabbitMQ routes by these, and closes the channel when they are not lists.
ROUTING_HEADERS = frozenset({'CC', 'BCC'})

JSON = 'application/json'

# One header frame must hold the whole table, and pika does not check: a larger one costs the connection.
MAX_HEADER_BYTES = 64 * 1024

#: A control message is small; what is larger than this is not one.
MAX_CONTROL_BODY = 1024 * 1024

# An exception may quote a document in its text. JSON makes up to 12 bytes of a character: all three still fit.
MAX_TYPE = 255
MAX_MESSAGE = 16 * 1024
MAX_TRACEBACK = 64 * 1024


def encode(message: Message) -> Envelope:
    """Return the envelope of a message.

    Raises:
        ValueError: the message carries more metadata than one AMQP frame may hold, or is a dead letter, which only
            the broker makes.
    """
    return _ENCODERS[type(message)](message)


def decode(envelope: Envelope) -> Message:
    """Return the message in an envelope.

    Raises:
        ProtocolError: it is not a message of this version of the protocol.
    """
    decoder = _DECODERS.get(envelope.type)
    if decoder is None:
        raise ProtocolError(f'unknown message type {envelope.type[:40]!r}')
    try:
        version = envelope.headers.get(VERSION_KEY)
        if version != VERSION:
            raise ValueError(f'version {str(version)[:20]!r} of the protocol is not spoken here, only {VERSION}')
        return decoder(envelope)
    except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError) as error:
        raise ProtocolError(f'malformed {envelope.type} message: {error}') from error


# Calls


def encode_call(call: Call, reply_to: str | None = None) -> Envelope:
    """Return the envelope of a call; the queue's dead letters find the caller by a header of its own.

    Args:
        call: the call.
        reply_to: the caller's reply queue, if it is another than the call says.

    Raises:
        ValueError: its headers are reserved, or too many for one AMQP frame; or there is more of its body, and nobody
            who would be asked for it.
    """
    headers: dict[str, Any] = checked_headers(call.headers)
    headers[VERSION_KEY] = VERSION
    if reply_to is None:
        reply_to = call.reply_to
    if call.more:
        _check_more(reply_to)
    if reply_to:
        headers[REPLY_KEY] = reply_to
    if call.sent is not None:
        headers[SENT_KEY] = round(call.sent * 1000)
    if call.timeout is not None:
        headers[TIMEOUT_KEY] = _milliseconds(call.timeout)
    if call.runs:
        headers[RUNS_KEY] = call.runs
    if call.more:
        headers[MORE_KEY] = True
    return Envelope(
        type='call',
        body=call.body,
        correlation_id=call.correlation_id,
        reply_to=reply_to,
        content_type=call.content_type,
        content_encoding=call.content_encoding,
        headers=headers,
        # An integer: "86400000.0" closes the channel.
        expiration=None if call.expiration is None else _milliseconds(call.expiration),
        priority=priority_level(call.priority),
        persistent=call.persistent,
        timestamp=None if call.sent is None else int(call.sent),
    )


def republish(dead_letter: DeadLetter, *, expiration: float, sent: float) -> Envelope:
    """Return the envelope that gives a dead-lettered call another wait of ``expiration`` seconds from ``sent``."""
    # Made anew from what a call can say: pika decodes headers that it cannot encode again.
    original = _call(dead_letter.envelope)
    again = encode_call(dataclasses.replace(original, expiration=expiration, sent=sent))
    return dataclasses.replace(again, priority=original.priority)


def _decode_call(envelope: Envelope) -> Call | DeadLetter:
    if 'x-death' in envelope.headers:
        return _decode_dead_letter(envelope)
    return _call(envelope)


def _call(envelope: Envelope) -> Call:
    headers = envelope.headers
    sent = headers.get(SENT_KEY)
    timeout = headers.get(TIMEOUT_KEY)
    # Nearly no call has these.
    runs = _runs(headers[RUNS_KEY]) if RUNS_KEY in headers else 0
    more = MORE_KEY in headers and _flag(headers[MORE_KEY])
    if more:
        _check_more(envelope.reply_to)
    return Call(
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        body=envelope.body,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        expiration=None if envelope.expiration is None else envelope.expiration / 1000,
        timeout=None if timeout is None else _number(timeout) / 1000,
        priority=envelope.priority,
        persistent=envelope.persistent,
        sent=None if sent is None else _number(sent) / 1000,
        runs=runs,
        more=more,
        # Whoever holds a call may have to publish it again.
        headers=checked_headers(user_headers(headers)),
    )


def _runs(value: Any) -> int:
    if not 0 <= _number(value) < 2**31:
        raise ValueError(f'not a number of runs: {value}')
    return int(value)


def _check_more(reply_to: str) -> None:
    if not reply_to:
        # Its run would wait for the rest for ever: with its caller's end its clock stands still.
        raise ValueError('a call whose body goes on in chunks must have a reply_to')


def _decode_dead_letter(envelope: Envelope) -> DeadLetter:
    deaths = envelope.headers['x-death']
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        raise ValueError('x-death is not a list of tables')
    queue = _text(deaths[0].get('queue', ''))
    if len(queue.encode()) > MAX_SHORT_STRING:
        raise ValueError(f'the name of its queue has more than {MAX_SHORT_STRING} bytes')
    _call(envelope)
    time = deaths[0].get('time')
    return DeadLetter(
        correlation_id=envelope.correlation_id,
        reason=_text(deaths[0].get('reason', '')),
        time=time.timestamp() if isinstance(time, datetime) else None,
        envelope=envelope,
        queue=queue,
    )


# Answers


def _encode_reply(reply: Reply) -> Envelope:
    headers = checked_headers(reply.headers)
    headers[VERSION_KEY] = VERSION
    if reply.more:
        headers[MORE_KEY] = True
    return Envelope(
        type='reply',
        body=reply.body,
        correlation_id=reply.correlation_id,
        content_type=reply.content_type,
        content_encoding=reply.content_encoding,
        headers=headers,
    )


def _decode_reply(envelope: Envelope) -> Reply:
    return Reply(
        correlation_id=envelope.correlation_id,
        body=envelope.body,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        more=_flag(envelope.headers.get(MORE_KEY, False)),
        headers=user_headers(envelope.headers),
    )


# Long bodies


def _encode_chunk(chunk: Chunk) -> Envelope:
    headers: dict[str, Any] = {VERSION_KEY: VERSION, OFFSET_KEY: chunk.offset}
    if chunk.last:
        headers[LAST_KEY] = True
    return Envelope(
        type='chunk',
        body=chunk.body,
        correlation_id=chunk.correlation_id,
        reply_to=chunk.reply_to,
        headers=headers,
    )


def _decode_chunk(envelope: Envelope) -> Chunk:
    return Chunk(
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        offset=_whole(envelope.headers[OFFSET_KEY]),
        last=_flag(envelope.headers.get(LAST_KEY, False)),
        body=envelope.body,
    )


def _encode_credit(credit: Credit) -> Envelope:
    return _control('credit', credit.correlation_id, {'offset': credit.offset}, reply_to=credit.reply_to)


def _decode_credit(envelope: Envelope) -> Credit:
    offset = _whole(_fields(envelope)['offset'])
    return Credit(correlation_id=envelope.correlation_id, reply_to=envelope.reply_to, offset=offset)


def _encode_reset(reset: Reset) -> Envelope:
    return _control('reset', reset.correlation_id, {'reason': reset.reason, 'timeout': reset.timeout})


def _decode_reset(envelope: Envelope) -> Reset:
    fields = _fields(envelope)
    return Reset(
        correlation_id=envelope.correlation_id,
        reason=_text(fields.get('reason', '')),
        timeout=_flag(fields.get('timeout', False)),
    )


def _encode_failure(failure: Failure) -> Envelope:
    fields = {
        'kind': failure.kind,
        'type': failure.type[:MAX_TYPE],
        'message': failure.message[:MAX_MESSAGE],
        'traceback': failure.traceback[-MAX_TRACEBACK:],  # its end says what was raised where
    }
    return _control('error', failure.correlation_id, fields)


def _decode_failure(envelope: Envelope) -> Failure:
    fields = _fields(envelope)
    kind = fields['kind']
    if kind not in ('raised', 'timeout', 'refused'):
        raise ValueError(f'unknown kind of failure {str(kind)[:40]!r}')
    return Failure(
        correlation_id=envelope.correlation_id,
        kind=kind,
        type=_text(fields.get('type', '')),
        message=_text(fields.get('message', '')),
        traceback=_text(fields.get('traceback', '')),
    )


# Control messages


def _encode_accept(accept: Accept) -> Envelope:
    fields: dict[str, Any] = {
        'inbox': accept.inbox,
        'ask': accept.ask,
        'redelivered': accept.redelivered,
        'idempotent': accept.idempotent,
        'ran': accept.ran,
        'timeout': accept.timeout,
    }
    if accept.acked:
        fields['acked'] = True
    return _control('accept', accept.correlation_id, fields)


def _decode_accept(envelope: Envelope) -> Accept:
    fields = _fields(envelope)
    return Accept(
        correlation_id=envelope.correlation_id,
        inbox=_text(fields['inbox']),
        ask=_flag(fields['ask']),
        redelivered=_flag(fields['redelivered']),
        idempotent=_flag(fields.get('idempotent', False)),
        acked=_flag(fields.get('acked', False)),
        ran=_number(fields['ran']),
        timeout=_number(fields['timeout']),
    )


def _encode_go(go: Go) -> Envelope:
    return _control('go', go.correlation_id, {}, reply_to=go.reply_to)


def _decode_go(envelope: Envelope) -> Go:
    return Go(correlation_id=envelope.correlation_id, reply_to=envelope.reply_to)


def _encode_stop(stop: Stop) -> Envelope:
    return _control('stop', stop.correlation_id, {}, reply_to=stop.reply_to)


def _decode_stop(envelope: Envelope) -> Stop:
    return Stop(correlation_id=envelope.correlation_id, reply_to=envelope.reply_to)


def _encode_cancel(cancel: Cancel) -> Envelope:
    return _control('cancel', cancel.correlation_id, {'reason': cancel.reason}, reply_to=cancel.reply_to)


def _decode_cancel(envelope: Envelope) -> Cancel:
    reason = _text(_fields(envelope).get('reason', ''))
    return Cancel(correlation_id=envelope.correlation_id, reply_to=envelope.reply_to, reason=reason)


def _encode_returned(returned: Returned) -> Envelope:
    return _control('returned', '', {'ids': list(returned.correlation_ids)})


def _decode_returned(envelope: Envelope) -> Returned:
    ids = _fields(envelope)['ids']
    if not isinstance(ids, list):
        raise ValueError('ids is not a list')
    return Returned(correlation_ids=tuple(_text(each) for each in ids))


# Publications


def _encode_publication(publication: Publication) -> Envelope:
    return Envelope(
        type='publication',
        body=publication.body,
        content_type=publication.content_type,
        content_encoding=publication.content_encoding,
        headers={VERSION_KEY: VERSION, CHANNEL_KEY: publication.channel},
    )


def _decode_publication(envelope: Envelope) -> Publication:
    return Publication(
        channel=_text(envelope.headers.get(CHANNEL_KEY)),
        body=envelope.body,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
    )


def _refuse_dead_letter(_: DeadLetter) -> Envelope:
    raise ValueError('only the broker makes dead letters')


_ENCODERS: dict[type, Callable[[Any], Envelope]] = {
    Call: encode_call,
    Reply: _encode_reply,
    Chunk: _encode_chunk,
    Credit: _encode_credit,
    Reset: _encode_reset,
    Failure: _encode_failure,
    Accept: _encode_accept,
    Go: _encode_go,
    Stop: _encode_stop,
    Cancel: _encode_cancel,
    Returned: _encode_returned,
    Publication: _encode_publication,
    DeadLetter: _refuse_dead_letter,
}

_DECODERS: dict[str, Callable[[Envelope], Message]] = {
    'call': _decode_call,
    'reply': _decode_reply,
    'chunk': _decode_chunk,
    'credit': _decode_credit,
    'reset': _decode_reset,
    'error': _decode_failure,
    'accept': _decode_accept,
    'go': _decode_go,
    'stop': _decode_stop,
    'cancel': _decode_cancel,
    'returned': _decode_returned,
    'publication': _decode_publication,
}


# Parts


def _control(type: str, correlation_id: str, fields: Mapping[str, Any], *, reply_to: str = '') -> Envelope:
    body = json.dumps(fields).encode() if fields else b''
    return Envelope(
        type=type,
        body=body,
        correlation_id=correlation_id,
        reply_to=reply_to,
        content_type=JSON,
        headers={VERSION_KEY: VERSION},
    )


def _fields(envelope: Envelope) -> dict[str, Any]:
    if len(envelope.body) > MAX_CONTROL_BODY:
        raise ValueError(f'{len(envelope.body)} bytes are too many for a control message')
    fields = json.loads(envelope.body)
    if not isinstance(fields, dict):
        raise ValueError('the body is not a JSON object')
    return fields


def checked_headers(headers: Mapping[str, HeaderValue]) -> dict[str, Any]:
    """Return a copy of an application's headers.

    Raises:
        ValueError: a name is reserved or a value of another type, or they are too many for one AMQP frame.
    """
    if not headers:
        return {}
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_SHORT_STRING:
            raise ValueError(f'a header name has 1 to {MAX_SHORT_STRING} bytes of UTF-8: {str(name)[:40]!r}')
        if name.startswith((RESERVED, 'x-')) or name in ROUTING_HEADERS:
            raise ValueError(f'CC, BCC and header names that begin with "crew-" or "x-" are reserved: {name!r}')
        size += len(name.encode()) + _checked_size(name, value) + 8
    if size > MAX_HEADER_BYTES:
        raise ValueError(f'{size} bytes of headers do not fit into one AMQP frame; the limit is {MAX_HEADER_BYTES}')
    return dict(headers)


def _checked_size(name: str, value: HeaderValue) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f'a header is a string, an integer of 64 bits or a boolean: {name!r}')
    return 8


def user_headers(headers: Mapping[str, Any]) -> dict[str, HeaderValue]:
    """Return what an application wrote among a message's headers."""
    if _OWN.issuperset(headers):
        # Of nearly all messages.
        return {}
    return {
        # pika has an integer type of its own.
        name: int(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in headers.items()
        if name not in _OWN and _is_users(name, value)
    }


def _is_users(name: Any, value: Any) -> bool:
    # pika gives bytes for a name that is not UTF-8, and a float as an integer of any size.
    if not isinstance(name, str) or not name or name.startswith((RESERVED, 'x-')) or name in ROUTING_HEADERS:
        return False
    return isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _milliseconds(seconds: float) -> int:
    whole = round(seconds * 1000)
    # What came as milliseconds goes on as the same: as a product of floats it would grow by one at each hand.
    return whole if whole / 1000 == seconds else max(1, math.ceil(seconds * 1000))


def _number(value: Any) -> float:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f'not a number: {str(value)[:40]!r}')
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f'not a whole number: {str(value)[:40]!r}')
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'not a string: {str(value)[:40]!r}')
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f'neither true nor false: {str(value)[:40]!r}')
    return value
