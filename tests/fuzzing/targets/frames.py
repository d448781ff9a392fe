"""Bytes of the frame that heads a message, through pika into an envelope and on: whatever the broker may pass on."""

import struct
from typing import Any

from pika.frame import Body, Header, Method
from pika.spec import Basic, BasicProperties

from crew import codec
from crew.envelope import Envelope
from crew.messages import Accept, Call, Cancel, Chunk, Credit, Failure, Go, Publication, Reply, Reset, Returned, Stop
from crew.transports.asyncio import _Dialled, _envelope
from crew.transports.frames import decode_delivery
from tests.fuzzing.bounds import quick, weight
from tests.fuzzing.targets.codec import encoded_properties, examine, over_the_wire

__all__ = ['check', 'seeds']

# AMQP 0-9-1 §2.3.5, §2.3.5.2: kind, channel, size; class, weight, size of the body.
FRAME_HEAD = struct.Struct('>BHL')
CONTENT_HEAD = struct.Struct('>HHQ')
HEADER, BASIC, FRAME_END = 2, 60, b'\xce'

METHOD = Method(1, Basic.Deliver('ctag', 1, False, '', 'queue')).marshal()


def check(data: bytes) -> None:
    """Take the first byte as the length of the body, that many from the end as the body, the rest as properties."""
    size = data[0] if data else 0
    head = data[1 : max(1, len(data) - size)]
    envelope = _envelope(_read(head), data[1 + len(head) :])
    assert all(
        len(text.encode()) <= 255
        for text in (envelope.type, envelope.correlation_id, envelope.reply_to, envelope.content_type)
    )
    assert weight(dict(envelope.headers)) < 200 * len(data) + 10_000
    read = _read_at_once(head, envelope.body)
    # It may leave it to pika, but must not read anything else.
    assert read is None or read == envelope
    examine(envelope)


def _read_at_once(head: bytes, body: bytes) -> Envelope | None:
    """Return what is read of a delivery that has come as a whole."""
    content = CONTENT_HEAD.pack(BASIC, 0, len(body)) + head
    frames = METHOD + FRAME_HEAD.pack(HEADER, 1, len(content)) + content + FRAME_END
    if body:
        frames += Body(1, body).marshal()
    with quick():
        delivered = decode_delivery(frames + b'more', 0, len(frames) + 4)
    assert delivered is None or delivered.end == len(frames)
    return None if delivered is None else delivered.envelope


def _read(head: bytes) -> BasicProperties:
    """Return what our connection makes of the properties."""
    content = CONTENT_HEAD.pack(BASIC, 0, 0) + head
    reader: Any = object.__new__(_Dialled)
    reader._frame_buffer = FRAME_HEAD.pack(HEADER, 1, len(content)) + content + FRAME_END
    with quick():
        consumed, frame = reader._read_frame()
    assert consumed == len(reader._frame_buffer)
    assert isinstance(frame, Header)
    return frame.properties


def seeds() -> list[bytes]:
    """Return one of each message."""
    call = Call(
        correlation_id='1',
        reply_to='q',
        body=b'{}',
        content_type='application/json',
        content_encoding='gzip',
        expiration=30,
        timeout=60,
        sent=1_700_000_000.25,
        more=True,
        runs=1,
        persistent=True,
        headers={'a': 'b', 'c': -1, 'd': True},
    )
    messages = [
        call,
        Reply(correlation_id='1', body=b'x', content_type='text/plain', more=True, headers={'a': 1}),
        Chunk(correlation_id='1', reply_to='q', offset=7, last=True, body=b'x'),
        Credit(correlation_id='1', reply_to='q', offset=7),
        Reset(correlation_id='1', reason='x', timeout=True),
        Failure(correlation_id='1', kind='raised', type='E', message='m', traceback='t'),
        Accept(correlation_id='1', inbox='q', ask=True, redelivered=True, ran=0.5, timeout=60),
        Go(correlation_id='1', reply_to='q'),
        Stop(correlation_id='1', reply_to='q'),
        Cancel(correlation_id='1', reply_to='q', reason='r'),
        Returned(correlation_ids=('1', '2')),
        Publication(channel='news', body=b'x'),
    ]
    found = []
    for message in messages:
        envelope = codec.encode(message)
        assert over_the_wire(envelope)
        found.append(bytes([len(envelope.body)]) + encoded_properties(envelope) + envelope.body)
    return found
