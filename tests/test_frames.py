"""Frames made and read in one go are pika's, byte for byte and value for value, however they are cut and broken."""

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any, cast

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import exceptions, frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection as PikaConnection
from pika.channel import Channel as PikaChannel

from crew import codec
from crew.envelope import Envelope
from crew.messages import Accept, Call, Chunk, Credit, Message, Reply, Returned
from crew.transports import asyncio as transport
from crew.transports.base import Delivery
from crew.transports.frames import decode_delivery, encode_ack, encode_content, encode_publish, frame_size, is_awaited
from crew.transports.services import AsyncioServices
from crew.transports.unread import Unread

BODY_MAX = 100
FRAME_MAX = 131072
#: How much is read at once. Less than some messages have, so that not all can be waited for.
ROOM = 256
TAG = 'ctag1.known'

MESSAGES: list[Message] = [
    Call(correlation_id='1', reply_to='crew.master.1', body=b'x' * 10, expiration=30, timeout=60, sent=1.5),
    Call(correlation_id='2', priority=5, persistent=True, runs=1, headers={'a': 'ä', 'b': False}),
    Reply(correlation_id='2', more=True),
    Call(correlation_id='2', headers={'a': 2**31, 'b': -(2**63), 'c': -1}),
    Reply(correlation_id='ü', body=b'{}', content_type='application/json', content_encoding='gzip'),
    Accept(correlation_id='3', inbox='crew.worker.1', ask=True, timeout=5),
    Chunk(correlation_id='4', reply_to='crew.master.1', offset=2**40, last=True, body=bytes(range(256)) * 3),
    Credit(correlation_id='5', offset=7),
    Returned(correlation_ids=('a', 'b')),
]


# Frames as pika makes them


def pika_properties(envelope: Envelope) -> spec.BasicProperties:
    """Return the properties that an envelope stands for."""
    return spec.BasicProperties(
        content_type=envelope.content_type or None,
        content_encoding=envelope.content_encoding or None,
        headers=dict(envelope.headers),
        delivery_mode=2 if envelope.persistent else 1,
        priority=envelope.priority or None,
        correlation_id=envelope.correlation_id or None,
        reply_to=envelope.reply_to or None,
        expiration=None if envelope.expiration is None else str(envelope.expiration),
        timestamp=envelope.timestamp,
        type=envelope.type or None,
    )


def content(
    method: Any, properties: spec.BasicProperties, body: bytes, channel: int = 1, step: int = 40
) -> list[bytes]:
    """Return the frames of a message."""
    bodies = [frame.Body(channel, body[at : at + step]).marshal() for at in range(0, len(body), step)]
    header = frame.Header(channel, len(body), properties).marshal()
    return [frame.Method(channel, method).marshal(), header, *bodies]


def delivery(
    envelope: Envelope, tag: int = 1, consumer_tag: str = TAG, channel: int = 1, redelivered: bool = False
) -> list[bytes]:
    """Return the frames of a delivery."""
    method = spec.Basic.Deliver(consumer_tag, tag, redelivered, 'exchange', 'routing.key')
    return content(method, pika_properties(envelope), envelope.body, channel)


# Writing

SHORT = st.text(st.characters(exclude_categories=['Cs']), max_size=60)
FIELDS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    SHORT,
    st.binary(max_size=10),
    st.none(),
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(lambda time: time.replace(tzinfo=timezone.utc)),
    st.decimals(-1000, 1000, places=2),
)
VALUES = st.recursive(FIELDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3))
PLAIN = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), SHORT)

ENVELOPES = st.builds(
    Envelope,
    body=st.binary(max_size=250),
    type=SHORT,
    correlation_id=SHORT,
    reply_to=SHORT,
    content_type=SHORT,
    content_encoding=SHORT,
    headers=st.dictionaries(SHORT, PLAIN, max_size=4) | st.dictionaries(SHORT, VALUES, max_size=3),
    expiration=st.none() | st.integers(0, 2**32 - 1),
    priority=st.integers(0, 255),
    persistent=st.booleans(),
    timestamp=st.none() | st.integers(0, 2**64 - 1),
)


@given(envelope=ENVELOPES, exchange=SHORT, routing_key=SHORT, mandatory=st.booleans(), channel=st.integers(1, 65535))
def test_a_publication_is_what_pika_would_send(
    envelope: Envelope, exchange: str, routing_key: str, mandatory: bool, channel: int
) -> None:
    method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    theirs = content(method, pika_properties(envelope), envelope.body, channel, BODY_MAX)
    pieces = encode_content(channel, envelope, BODY_MAX)
    assert encode_publish(channel, exchange, routing_key, mandatory) + b''.join(pieces) == b''.join(theirs)
    assert 1 + len(pieces) // 3 == len(theirs)


@pytest.mark.parametrize(
    ('envelope', 'error'),
    [
        (Envelope(correlation_id='x' * 256), exceptions.ShortStringTooLong),
        (Envelope(type='ä' * 128), exceptions.ShortStringTooLong),
        (Envelope(headers={'x' * 256: 1}), exceptions.ShortStringTooLong),
        (Envelope(headers={'x': object()}), exceptions.UnsupportedAMQPFieldException),
        (Envelope(headers={'x': 2**63}), struct.error),
        (Envelope(headers={'x': '\ud800'}), UnicodeEncodeError),
        (Envelope(priority=256), struct.error),
        (Envelope(timestamp=-1), struct.error),
    ],
)
def test_what_pika_refuses_to_send_is_refused(envelope: Envelope, error: type[Exception]) -> None:
    with pytest.raises(error):
        frame.Header(1, 0, pika_properties(envelope)).marshal()
    with pytest.raises(error):
        encode_content(1, envelope, BODY_MAX)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(exceptions.ShortStringTooLong):
        encode_publish(1, '', 'x' * 256, False)


@given(channel=st.integers(1, 65535), tag=st.integers(1, 2**64 - 1), multiple=st.booleans())
def test_an_ack_is_what_pika_would_send(channel: int, tag: int, multiple: bool) -> None:
    assert encode_ack(channel, tag, multiple) == frame.Method(channel, spec.Basic.Ack(tag, multiple)).marshal()


# Reading


@pytest.mark.parametrize('message', MESSAGES, ids=lambda message: type(message).__name__)
def test_what_crew_sends_is_read_in_one_go(message: Message) -> None:
    envelope = codec.encode(message)
    data = b''.join(delivery(envelope, 5, redelivered=True))
    read = decode_delivery(b'xyz' + data + b'more', 3, len(data) + 7)
    assert read is not None
    assert (read.channel, read.consumer_tag, read.tag, read.redelivered) == (1, TAG, 5, True)
    assert read.envelope == envelope
    assert (read.end, read.frames) == (3 + len(data), len(delivery(envelope)))


@pytest.mark.parametrize('message', MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_not_whole_is_not_taken(message: Message) -> None:
    data = b''.join(delivery(codec.encode(message)))
    assert all(decode_delivery(data[:length], 0, length) is None for length in range(len(data)))
    # What lies behind is left from before, be it the very same.
    assert all(decode_delivery(data, 0, length) is None for length in range(len(data)))


def test_the_size_of_a_frame_is_known_when_it_is_whole() -> None:
    heartbeat = frame.Heartbeat().marshal()
    assert [frame_size(heartbeat, 0, length, 4096) for length in range(9)] == [0] * 8 + [8]
    assert frame_size(b'AMQP\0\0\x09\x01', 0, 8, 4096) == 8
    assert frame_size(b'AMQP\0\0\x09\x01', 0, 7, 4096) == 0


@pytest.mark.parametrize('head', [b'HTTP/1.1', b'\x01\x00\x01\xff\xff\xff\xff'])
def test_a_frame_that_cannot_be_is_not_waited_for(head: bytes) -> None:
    with pytest.raises(exceptions.InvalidFrameError):
        frame_size(head, 0, len(head), FRAME_MAX)


# Waiting for the rest of a delivery

LONG = delivery(replace(codec.encode(MESSAGES[6]), body=b'x' * 90))


def awaited(frames: list[bytes], stop: int | None = None, room: int = 1024) -> bool:
    data = b''.join(frames)
    return is_awaited(data.ljust(room, b'\xff'), 0, len(data) if stop is None else stop)


def test_a_delivery_is_waited_for_until_it_is_whole() -> None:
    size, method = len(b''.join(LONG)), len(LONG[0])
    # Before the first frame is whole nobody could take it for anything else.
    assert all(awaited(LONG, stop) for stop in range(method, size))
    assert not awaited(LONG) and not awaited([*LONG, b'more'])


@pytest.mark.parametrize('bodies', [[], [b'x']])
def test_a_short_delivery_is_not_waited_for_when_it_is_whole(bodies: list[bytes]) -> None:
    frames = delivery(Envelope(body=b''.join(bodies)))
    assert awaited(frames[:1]) and awaited(frames[:2]) == bool(bodies) and not awaited(frames)


def test_what_is_longer_than_the_room_is_not_waited_for() -> None:
    size = len(b''.join(LONG))
    assert awaited(LONG[:-1], room=size) and not awaited(LONG[:-1], room=size - 1)
    # Frames of a byte, so that there are many: room is never made for the sake of waiting.
    tiny = content(spec.Basic.Deliver(TAG, 1, False, '', ''), spec.BasicProperties(), b'x' * 90, step=1)
    data = b''.join(tiny)
    assert not any(is_awaited(data[:stop], 0, stop) for stop in range(len(data)))


@pytest.mark.parametrize(
    'other',
    [
        frame.Heartbeat().marshal(),
        frame.Method(1, spec.Basic.Ack(1)).marshal(),
        delivery(Envelope(), channel=2)[0],
        frame.Body(2, b'x' * 40).marshal(),
        frame.Body(1, b'').marshal(),
        frame.Body(1, b'x' * 91).marshal(),
    ],
)
def test_nothing_is_kept_from_its_reader_by_waiting(other: bytes) -> None:
    assert not awaited([*LONG[:2], other]) and not awaited([*LONG[:3], other])
    assert not awaited([LONG[0], other.ljust(30)])
    assert not awaited([other, *LONG])


def test_a_method_frame_that_no_delivery_has_is_not_waited_for() -> None:
    assert not awaited([struct.pack('>BHLL', 1, 1, 5000, 60 << 16 | 60) + bytes(4996) + b'\xce'], room=9000)


# What is not understood


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 100)), max_size=30), st.integers(1, 20))
def test_nothing_is_lost_before_it_is_understood(reads: list[tuple[bytes, int]], size: int) -> None:
    unread, left = Unread(size), b''
    for data, understood in reads:
        room = unread.room()
        assert room
        room[: len(data)] = data[: len(room)]
        unread.take(len(data[: len(room)]))
        left += data[: len(room)]
        assert unread.copy(unread.begin, unread.end) == left
        left = left[understood:]
        unread.understand(min(unread.begin + understood, unread.end))
    assert unread.copy(unread.begin, unread.end) == left


def test_room_is_made_only_for_what_needs_it() -> None:
    unread = Unread(100)
    for _ in range(50):
        unread.take(len(unread.room()))
        unread.understand(unread.end - 99)
    assert len(unread.data) == 100
    unread.room()
    unread.take(1)
    assert len(unread.room()) == 100 and len(unread.data) == 200


# Beside pika: the same bytes, read by its own loop and by ours


class Unacked:
    """A channel as far as its consumer needs it."""

    def arrived(self, tag: int, no_ack: bool) -> None:
        """Do nothing: it is told what has arrived by its consumer."""


class Recorder:
    """A stream that notes what it is given."""

    def __init__(self, events: list[Any]) -> None:
        self._events = events

    def write(self, data: bytes) -> None:
        """Note it."""
        self._events.append(('wrote', data))

    def abort(self) -> None:
        """Note it."""
        self._events.append('aborted')


class Ours(transport._Dialled):
    """A connection that is open, without any socket; notes what it was told and what it sends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            pika.ConnectionParameters(frame_max=FRAME_MAX),
            custom_ioloop=AsyncioServices(loop),
            internal_connection_workflow=False,
        )
        self.events: list[Any] = []
        self._transport = Recorder(self.events)
        self.server_capabilities = {'publisher_confirms': True, 'basic.nack': True}
        self._opened = True
        self._set_connection_state(self.CONNECTION_OPEN)
        self.add_on_connection_blocked_callback(lambda *_: self.events.append('blocked'))
        for number in (1, 2):
            self._add_channel(number)
        self.events.clear()

    def _add_channel(self, number: int) -> None:
        events = self.events
        theirs = PikaChannel(self, number, lambda _: None)
        self._channels[number] = theirs
        self._add_channel_callbacks(number)
        theirs._set_state(PikaChannel.OPEN)
        theirs.add_on_return_callback(lambda *args: events.append((number, 'returned', args[1:])))
        theirs.add_on_close_callback(lambda _, error: events.append((number, 'closed', repr(error))))
        theirs.add_on_cancel_callback(lambda frame: events.append((number, 'cancelled', frame)))
        theirs.confirm_delivery(lambda frame: events.append((number, 'confirm', frame)))

        def on_delivery(delivery: Delivery) -> None:
            events.append((number, delivery.envelope, delivery.tag, delivery.redelivered))
            if delivery.envelope.reply_to == 'cancel':
                theirs._cancelled.add(TAG)

        theirs._consumers[TAG] = transport._Consumer(
            cast(transport.AsyncioChannel, Unacked()), on_delivery, no_ack=True
        )

    def read(self, pieces: list[bytes]) -> list[Any]:
        """Read; return all that was to be seen of it."""
        unread = Unread(ROOM)
        try:
            for piece in pieces:
                while piece:
                    room = unread.room()
                    now = piece[: len(room)]
                    room[: len(now)] = now
                    unread.take(len(now))
                    piece = piece[len(now) :]
                    self._on_data_available(unread)
            came = self.bytes_received
            # Of what is waited for pika would have read the whole frames.
            left = unread.copy(unread.begin, unread.end)
            PikaConnection._on_data_available(self, left)
        except Exception as error:
            return [*self.events, repr(error)]
        return [*self.events, (came, self.frames_received, self._frame_buffer)]


class Theirs(Ours):
    """The same with pika's own loop."""

    def read(self, pieces: list[bytes]) -> list[Any]:
        """Read; return all that was to be seen of it."""
        try:
            for piece in pieces:
                PikaConnection._on_data_available(self, piece)
        except Exception as error:
            return [*self.events, repr(error)]
        came = self.bytes_received + len(self._frame_buffer)
        return [*self.events, (came, self.frames_received, self._frame_buffer)]


@pytest.fixture(scope='module')
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


ANYTHING = st.builds(
    spec.BasicProperties,
    **{
        name: st.none() | SHORT
        for name in ('content_type', 'content_encoding', 'correlation_id', 'reply_to', 'message_id', 'type')
    },
    **{name: st.none() | SHORT for name in ('user_id', 'app_id', 'cluster_id')},
    headers=st.none() | st.dictionaries(SHORT, VALUES, max_size=3) | st.dictionaries(SHORT, PLAIN, max_size=3),
    delivery_mode=st.none() | st.integers(0, 255),
    priority=st.none() | st.integers(0, 255),
    expiration=st.none() | st.sampled_from(['', '5', '+5', ' 7', '1_0', 'x', '٣', '0' * 200]),
    timestamp=st.none() | st.integers(0, 2**64 - 1),
)
METHODS = st.one_of(
    st.builds(
        spec.Basic.Deliver,
        consumer_tag=st.sampled_from([TAG, TAG, TAG, 'ctag1.unknown']),
        delivery_tag=st.integers(0, 2**64 - 1),
        redelivered=st.booleans(),
        exchange=SHORT,
        routing_key=SHORT,
    ),
    st.just(spec.Basic.Return(312, 'NO_ROUTE', '', 'key')),
)
ENVELOPED = st.one_of(ENVELOPES, st.just(Envelope(reply_to='cancel', body=b'x')))
WHOLE = st.one_of(
    st.builds(content, METHODS, ANYTHING, st.binary(max_size=120), st.sampled_from([1, 1, 2, 3])),
    st.builds(delivery, ENVELOPED, st.integers(1, 9), st.just(TAG), st.sampled_from([1, 2]), st.booleans()),
)
OTHERS = st.sampled_from(
    [
        frame.Heartbeat(),
        frame.Method(1, spec.Basic.Ack(1, True)),
        frame.Method(1, spec.Basic.Nack(2)),
        frame.Method(2, spec.Basic.Cancel(TAG)),
        frame.Method(1, spec.Basic.CancelOk(TAG)),
        frame.Method(2, spec.Channel.Close(404, 'NOT_FOUND', 0, 0)),
        frame.Method(0, spec.Connection.Blocked('disk')),
        frame.Body(1, b'alone'),
        frame.Body(1, b''),
        frame.Header(1, 5, spec.BasicProperties()),
        frame.Header(1, 0, spec.BasicProperties(type='x')),
    ]
).map(lambda each: [each.marshal()])
STREAMS: st.SearchStrategy[list[bytes]] = st.lists(st.one_of(WHOLE, WHOLE, OTHERS), max_size=5).map(
    lambda lists: [each for frames in lists for each in frames]
)


@st.composite
def broken(draw: st.DrawFn) -> list[bytes]:
    """Frames that no broker would send so: out of order, mixed, missing, or with bytes that are wrong."""
    frames = list(draw(STREAMS.filter(bool)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(frames) - 1))
        what = draw(st.sampled_from(['drop', 'twice', 'swap', 'byte', 'byte', 'byte', 'cut', 'move']))
        if what == 'drop' and len(frames) > 1:
            del frames[at]
        elif what == 'twice':
            frames.insert(at, frames[at])
        elif what == 'swap':
            other = draw(st.integers(0, len(frames) - 1))
            frames[at], frames[other] = frames[other], frames[at]
        elif what == 'move':
            frames.insert(draw(st.integers(0, len(frames) - 1)), frames.pop(at))
        elif what == 'cut':
            frames[at] = frames[at][: draw(st.integers(1, len(frames[at])))]
        else:
            damaged = bytearray(frames[at])
            # The last byte ends the frame; the first say what it is.
            place = draw(st.sampled_from([*range(min(22, len(damaged))), -1]) | st.integers(0, len(damaged) - 1))
            damaged[place] = draw(st.integers(0, 255))
            frames[at] = bytes(damaged)
    return frames


def cut(data: bytes, places: list[float]) -> list[bytes]:
    """Return the data in pieces."""
    offsets = sorted({int(place * len(data)) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(offsets) if end > begin]


PLACES = st.lists(st.floats(0, 1), max_size=4)


def compare(loop: asyncio.AbstractEventLoop, frames: list[bytes], places: list[float]) -> None:
    data = b''.join(frames)
    theirs = Theirs(loop).read([data])
    assert Ours(loop).read(cut(data, places)) == theirs


@settings(max_examples=150, deadline=None)
@given(frames=STREAMS, places=PLACES)
def test_frames_come_to_the_same_as_with_pika(
    loop: asyncio.AbstractEventLoop, frames: list[bytes], places: list[float]
) -> None:
    compare(loop, frames, places)


@settings(max_examples=300, deadline=None)
@given(frames=broken(), places=PLACES)
def test_broken_frames_come_to_the_same_as_with_pika(
    loop: asyncio.AbstractEventLoop, frames: list[bytes], places: list[float]
) -> None:
    data = b''.join(frames)
    theirs, ours = Theirs(loop).read([data]), Ours(loop).read(cut(data, places))
    if isinstance(ours[-1], str) and 'were agreed on' in ours[-1]:
        # pika would wait for the rest of such a frame.
        assert isinstance(theirs[-1], tuple) and theirs[-1][2]
        ours, theirs = ours[:-1], theirs[:-1]
    assert ours == theirs


STREAM = [
    frame.Heartbeat().marshal(),
    *[part for tag, message in enumerate(MESSAGES, 1) for part in delivery(codec.encode(message), tag)],
    *content(spec.Basic.Return(312, 'NO_ROUTE', '', 'key'), spec.BasicProperties(headers={'a': [1]}), b'body'),
    *delivery(Envelope(headers={'x-death': [{'time': datetime(2026, 1, 1, tzinfo=timezone.utc), 'n': Decimal(5)}]})),
]


def test_a_cut_at_any_byte_changes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    data = b''.join(STREAM)
    theirs = Theirs(loop).read([data])
    assert len(theirs) == len(MESSAGES) + 3
    for place in range(1, len(data)):
        assert Ours(loop).read([data[:place], data[place:]]) == theirs
    assert Ours(loop).read([data[at : at + 1] for at in range(len(data))]) == theirs


FIRST, SECOND = (delivery(replace(codec.encode(MESSAGES[6]), body=b'x' * 90), tag) for tag in (1, 2))
OTHER = delivery(codec.encode(MESSAGES[0]), 1, channel=2)


@pytest.mark.parametrize(
    'frames',
    [
        [FIRST[0], FIRST[1], OTHER[0], FIRST[2], OTHER[1], FIRST[3], OTHER[2], FIRST[4], *SECOND],
        [FIRST[0], *SECOND],
        [*FIRST[:2], *SECOND],
        [*FIRST[:3], *SECOND],
        [FIRST[1], *SECOND],
        [FIRST[2], *SECOND],
        [*FIRST, FIRST[2], *SECOND],
        [FIRST[0], OTHER[1], *FIRST[1:]],
        [*delivery(Envelope(body=b'x'), channel=9), *SECOND],
        [*delivery(Envelope(body=b'x'), consumer_tag='ctag1.unknown'), *SECOND],
        [*delivery(Envelope(body=b'x'), consumer_tag='x' * 255), *SECOND],
    ],
)
def test_frames_out_of_order_come_to_the_same_as_with_pika(
    loop: asyncio.AbstractEventLoop, frames: list[bytes]
) -> None:
    compare(loop, frames, [])
    compare(loop, frames, [0.3, 0.5, 0.8])


@pytest.mark.parametrize(
    'table',
    [
        {'x-death': [{'count': 1, 'time': datetime(2026, 1, 1, tzinfo=timezone.utc), 'queue': 'q', 'keys': ['a']}]},
        {'a': {'b': {'c': Decimal('1.5')}}, 'd': None, 'e': b'\xff'},
    ],
)
def test_other_types_are_read_by_pika(loop: asyncio.AbstractEventLoop, table: dict[str, Any]) -> None:
    frames = delivery(Envelope(body=b'x', headers=table))
    data = b''.join(frames)
    assert decode_delivery(data, 0, len(data)) is None
    ours = Ours(loop)
    assert ours.read(frames)[0][1].headers == table
