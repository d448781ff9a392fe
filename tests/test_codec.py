"""Messages to envelopes and back: both ways for what we send, a message or ProtocolError for what anybody sends."""

import dataclasses
import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pika.spec import BasicProperties

from crew import codec
from crew.envelope import Envelope
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
from crew.topology import REPLY_KEY, priority_level
from crew.transports.asyncio import _envelope
from crew.transports.frames import encode_content

# What we send

texts = st.text(st.characters(exclude_categories=['Cs']), max_size=40)
ids = texts.filter(lambda text: 0 < len(text.encode()) <= 255)
names = ids.filter(lambda name: not name.startswith(('crew-', 'x-')) and name not in ('CC', 'BCC'))
header_values: st.SearchStrategy[HeaderValue] = texts | st.integers(-(2**63), 2**63 - 1) | st.booleans()
headers = st.dictionaries(names, header_values, max_size=4)
seconds = st.integers(0, 4_294_967 * 8).map(lambda eighths: eighths / 8)  # whole milliseconds, and exact
moments = st.floats(0.001, 2**31, allow_nan=False)

calls = st.builds(
    Call,
    correlation_id=ids,
    reply_to=texts.filter(lambda text: len(text.encode()) <= 255),
    body=st.binary(max_size=40),
    content_type=texts,
    content_encoding=texts,
    expiration=st.none() | seconds,
    timeout=st.none() | seconds.filter(bool),
    priority=st.sampled_from([0, 1, 2, 3, 4]).map(lambda level: (1 << level) >> 1),
    persistent=st.booleans(),
    sent=st.none() | seconds.map(lambda later: 1_700_000_000 + later),
    more=st.booleans(),
    headers=headers,
).filter(lambda call: call.reply_to or not call.more)
others: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Reply,
        correlation_id=ids,
        body=st.binary(max_size=40),
        content_type=texts,
        content_encoding=texts,
        more=st.booleans(),
        headers=headers,
    ),
    st.builds(
        Chunk,
        correlation_id=ids,
        reply_to=texts,
        offset=st.integers(0, 2**63 - 1),
        last=st.booleans(),
        body=st.binary(max_size=40),
    ),
    st.builds(Credit, correlation_id=ids, reply_to=texts, offset=st.integers(0, 2**63 - 1)),
    st.builds(Reset, correlation_id=ids, reason=texts, timeout=st.booleans()),
    st.builds(
        Failure,
        correlation_id=ids,
        kind=st.sampled_from(['raised', 'timeout', 'refused']),
        type=st.text(max_size=40),
        message=st.text(max_size=40),
        traceback=st.text(max_size=40),
    ),
    st.builds(
        Accept,
        correlation_id=ids,
        inbox=ids,
        ask=st.booleans(),
        redelivered=st.booleans(),
        idempotent=st.booleans(),
        ran=st.just(0.0) | moments,
        timeout=moments,
    ),
    st.builds(Go, correlation_id=ids, reply_to=texts),
    st.builds(Stop, correlation_id=ids, reply_to=texts),
    st.builds(Cancel, correlation_id=ids, reply_to=texts, reason=texts),
    st.builds(Returned, correlation_ids=st.lists(ids, max_size=4).map(tuple)),
    st.builds(Publication, channel=ids, body=st.binary(max_size=40), content_type=texts, content_encoding=texts),
)


@given(calls)
def test_a_call_comes_back_as_it_was(call: Call) -> None:
    # Of the priority the broker is told a level, which is what a worker sees.
    assert codec.decode(codec.encode(call)) == dataclasses.replace(call, priority=priority_level(call.priority))


@given(others)
def test_any_other_message_comes_back_as_it_was(message: Message) -> None:
    assert codec.decode(codec.encode(message)) == message


def sendable(envelope: Envelope) -> bytes:
    """Return the flags and properties of an envelope as they are sent, in the first frame of its content."""
    header, properties, *_ = encode_content(1, envelope, 131064)
    return bytes(header[-2:]) + bytes(properties)


def over_the_wire(envelope: Envelope) -> Envelope:
    """An envelope as it is after pika has written and read it."""
    properties = BasicProperties()
    properties.decode(sendable(envelope))
    return _envelope(properties, envelope.body)


@given(headers)
def test_headers_come_back_from_the_wire_as_they_were(headers: dict[str, HeaderValue]) -> None:
    reply = codec.decode(over_the_wire(codec.encode(Reply(correlation_id='1', headers=headers))))
    assert isinstance(reply, Reply)
    assert reply.headers == headers
    # Not as one of pika's own integers, nor a boolean as an integer.
    assert {name: type(value) for name, value in reply.headers.items()} == {
        name: type(value) for name, value in headers.items()
    }


CALL = Call(correlation_id='1', reply_to='crew.master.1', body=b'x', content_type='text/plain', headers={'a': 'b'})

TABLE: list[tuple[Message, Envelope]] = [
    (
        CALL,
        Envelope(
            type='call',
            correlation_id='1',
            reply_to='crew.master.1',
            body=b'x',
            content_type='text/plain',
            headers={'crew-v': 1, 'crew-reply': 'crew.master.1', 'a': 'b'},
        ),
    ),
    (
        Call(correlation_id='1', expiration=0.0015, timeout=2, sent=1_700_000_000.25, persistent=True),
        Envelope(
            type='call',
            correlation_id='1',
            content_type='application/octet-stream',
            headers={'crew-v': 1, 'crew-sent': 1_700_000_000_250, 'crew-timeout': 2000},
            expiration=2,
            persistent=True,
            timestamp=1_700_000_000,
        ),
    ),
    (
        Call(correlation_id='1', content_type='', headers={'text': '', 'number': -(2**63), 'flag': True}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'text': '', 'number': -(2**63), 'flag': True}),
    ),
    (
        Reply(correlation_id='1', body=b'{}', content_type='application/json', content_encoding='gzip'),
        Envelope(
            type='reply',
            correlation_id='1',
            body=b'{}',
            content_type='application/json',
            content_encoding='gzip',
            headers={'crew-v': 1},
        ),
    ),
    (
        Call(correlation_id='1', reply_to='q', more=True),
        Envelope(
            type='call',
            correlation_id='1',
            reply_to='q',
            content_type='application/octet-stream',
            headers={'crew-v': 1, 'crew-reply': 'q', 'crew-more': True},
        ),
    ),
    (
        Reply(correlation_id='1', body=b'x', more=True),
        Envelope(
            type='reply',
            correlation_id='1',
            body=b'x',
            content_type='application/octet-stream',
            headers={'crew-v': 1, 'crew-more': True},
        ),
    ),
    (
        Chunk(correlation_id='1', reply_to='q', offset=2**63 - 1, body=b'x'),
        Envelope(
            type='chunk',
            correlation_id='1',
            reply_to='q',
            body=b'x',
            headers={'crew-v': 1, 'crew-offset': 2**63 - 1},
        ),
    ),
    (
        Chunk(correlation_id='1', offset=3, last=True),
        Envelope(type='chunk', correlation_id='1', headers={'crew-v': 1, 'crew-offset': 3, 'crew-last': True}),
    ),
    (
        Credit(correlation_id='1', reply_to='q', offset=1048576),
        Envelope(
            type='credit',
            correlation_id='1',
            reply_to='q',
            body=b'{"offset": 1048576}',
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Reset(correlation_id='1', reason='KeyError: 3', timeout=True),
        Envelope(
            type='reset',
            correlation_id='1',
            body=b'{"reason": "KeyError: 3", "timeout": true}',
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Failure(correlation_id='1', kind='raised', type='KeyError', message='3', traceback='at'),
        Envelope(
            type='error',
            correlation_id='1',
            body=b'{"kind": "raised", "type": "KeyError", "message": "3", "traceback": "at"}',
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Accept(correlation_id='1', inbox='crew.worker.1', ask=True, redelivered=True, ran=0.5, timeout=60),
        Envelope(
            type='accept',
            correlation_id='1',
            body=(
                b'{"inbox": "crew.worker.1", "ask": true, "redelivered": true, "idempotent": false, '
                b'"ran": 0.5, "timeout": 60}'
            ),
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Accept(correlation_id='1', inbox='q', ask=False, acked=True, ran=2, timeout=3),
        Envelope(
            type='accept',
            correlation_id='1',
            body=(
                b'{"inbox": "q", "ask": false, "redelivered": false, "idempotent": false, "ran": 2, "timeout": 3, '
                b'"acked": true}'
            ),
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Accept(correlation_id='1', inbox='q', ask=False, idempotent=True, timeout=1.5),
        Envelope(
            type='accept',
            correlation_id='1',
            body=(
                b'{"inbox": "q", "ask": false, "redelivered": false, "idempotent": true, "ran": 0.0, "timeout": 1.5}'
            ),
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Publication(channel='news', body=b'x', content_type='text/plain', content_encoding='gzip'),
        Envelope(
            type='publication',
            body=b'x',
            content_type='text/plain',
            content_encoding='gzip',
            headers={'crew-v': 1, 'crew-channel': 'news'},
        ),
    ),
    (
        Cancel(correlation_id='1', reply_to='q', reason='gone'),
        Envelope(
            type='cancel',
            correlation_id='1',
            reply_to='q',
            body=b'{"reason": "gone"}',
            content_type='application/json',
            headers={'crew-v': 1},
        ),
    ),
    (
        Returned(correlation_ids=('1', '2')),
        Envelope(type='returned', body=b'{"ids": ["1", "2"]}', content_type='application/json', headers={'crew-v': 1}),
    ),
    *[
        (
            message,
            Envelope(
                type=type, correlation_id='1', reply_to='q', content_type='application/json', headers={'crew-v': 1}
            ),
        )
        for type, message in cast(
            list[tuple[str, Message]],
            [
                ('go', Go(correlation_id='1', reply_to='q')),
                ('stop', Stop(correlation_id='1', reply_to='q')),
            ],
        )
    ],
]


@pytest.mark.parametrize(('message', 'envelope'), TABLE, ids=lambda value: type(value).__name__)
def test_a_message_has_exactly_this_envelope(message: Message, envelope: Envelope) -> None:
    assert codec.encode(message) == envelope


@pytest.mark.parametrize('seconds', [0.1, 0.0005, 1.0001, 4_294_967])
def test_the_expiration_is_whole_milliseconds_and_never_sooner(seconds: float) -> None:
    # The broker closes the channel on "86400000.0".
    expiration = codec.encode_call(Call(correlation_id='1', expiration=seconds)).expiration
    assert isinstance(expiration, int)
    assert seconds * 1000 <= expiration < seconds * 1000 + 1


@example(1)
@example(1001)
@example(2**40 * 1000 - 1)
@given(st.integers(1, 2**32 * 1000 - 1))
def test_times_that_came_are_sent_on_to_the_millisecond(milliseconds: int) -> None:
    headers = {'crew-v': 1, 'crew-sent': milliseconds, 'crew-timeout': min(milliseconds, 2**32 * 1000 - 1)}
    envelope = Envelope(type='call', correlation_id='1', headers=headers, expiration=milliseconds % 4_294_967_000)
    call = codec.decode(envelope)
    assert isinstance(call, Call)
    again = codec.encode_call(call)
    assert (again.headers, again.expiration) == (headers, envelope.expiration)


def test_a_call_whose_body_goes_on_has_somebody_to_be_asked_for_it() -> None:
    with pytest.raises(ValueError, match='must have a reply_to'):
        codec.encode_call(Call(correlation_id='1', more=True))


def test_a_call_nobody_waits_for_leaves_no_dead_letter_address() -> None:
    assert REPLY_KEY not in codec.encode_call(Call(correlation_id='1')).headers


carriers = pytest.mark.parametrize('carrier', [Call, Reply])


@carriers
@pytest.mark.parametrize(
    'name', ['crew-v', 'crew-', 'crew-anything', 'crew-channel', 'x-death', 'x-match', 'CC', 'BCC']
)
def test_reserved_header_names_are_refused(name: str, carrier: Callable[..., Message]) -> None:
    with pytest.raises(ValueError, match='reserved'):
        codec.encode(carrier(correlation_id='1', headers={name: ''}))


@carriers
@pytest.mark.parametrize('name', ['cc', 'Bcc', 'CCC', 'X-Request-ID', 'crew', ' ', 'n' * 255, 'ü' * 127])
def test_any_other_header_name_is_fine(name: str, carrier: Callable[..., Message]) -> None:
    message = codec.decode(over_the_wire(codec.encode(carrier(correlation_id='1', headers={name: 'a'}))))
    assert isinstance(message, Call | Reply)
    assert message.headers == {name: 'a'}


@carriers
@pytest.mark.parametrize(
    'value',
    [None, 1.5, math.nan, b'', [], {}, Decimal(1), 2**63, -(2**63) - 1, 10**4000],
    ids=lambda value: f'{value!s:.9}',
)
def test_header_values_that_not_every_client_can_carry_are_refused(value: Any, carrier: Callable[..., Message]) -> None:
    with pytest.raises(ValueError, match=r"64 bits or a boolean: 'count'"):
        codec.encode(carrier(correlation_id='1', headers={'count': value}))


@pytest.mark.parametrize(
    'headers', [{'a': 'x' * 65_530}, {str(number): number for number in range(4000)}], ids=['long', 'many']
)
def test_a_header_table_that_does_not_fit_a_frame_is_refused(headers: dict[str, HeaderValue]) -> None:
    with pytest.raises(ValueError, match='AMQP frame'):
        codec.encode(Call(correlation_id='1', headers=headers))


@pytest.mark.parametrize('name', ['', 'n' * 256, 'ü' * 128, b'n', 3, None], ids=lambda name: f'{name!r:.6}')
def test_a_header_name_that_is_no_amqp_short_string_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match='1 to 255 bytes'):
        codec.encode(Reply(correlation_id='1', headers={name: ''}))


@pytest.mark.parametrize('value', ['\ud800', 'a\udfff'])
def test_header_values_that_are_no_utf_8_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match='surrogates'):
        codec.encode(Call(correlation_id='1', headers={'a': value}))


@pytest.mark.parametrize(
    'fields',
    [
        {'correlation_id': ''},
        {'correlation_id': 'x' * 256},
        {'correlation_id': '\ud800'},
        {'reply_to': 'x' * 256},
        {'content_type': 'x' * 256},
        {'content_encoding': 'ü' * 128},
        {'priority': -1},
        {'priority': 256},
        {'expiration': -0.001},
        {'expiration': math.nan},
        {'expiration': math.inf},
        # RabbitMQ closes the channel on more than 2**32 - 1 milliseconds.
        {'expiration': 2**32 / 1000},
        {'timeout': 0},
        {'timeout': math.nan},
        {'timeout': math.inf},
        {'sent': -0.001},
        {'sent': math.nan},
        {'sent': 2.0**40},
    ],
    ids=lambda fields: '{}={!r:.12}'.format(*next(iter(fields.items()))),
)
def test_a_call_that_would_cost_the_connection_cannot_be_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Call(**{'correlation_id': '1', **fields})


@pytest.mark.parametrize('inbox', ['', 'x' * 256, '\ud800'])
def test_an_accept_names_a_queue_that_can_be_written_to(inbox: str) -> None:
    with pytest.raises(ValueError):
        Accept(correlation_id='1', inbox=inbox, ask=False, timeout=1)


@pytest.mark.parametrize('channel', ['', 'x' * 256, 'ü' * 128, '\ud800'])
def test_a_publication_names_a_channel_that_can_be_bound(channel: str) -> None:
    with pytest.raises(ValueError):
        Publication(channel=channel)


@pytest.mark.parametrize('text', ['x', '\0', '\U0001f600'])
def test_a_failure_with_endless_texts_is_cut_to_what_its_reader_takes(text: str) -> None:
    failure = Failure(correlation_id='1', kind='raised', type=text * 10**6, message=text * 10**6, traceback='y' * 10**6)
    decoded = codec.decode(codec.encode(failure))
    assert isinstance(decoded, Failure)
    assert decoded.message.startswith(text * 1000)
    assert decoded.traceback.endswith('y' * 10_000)


def test_only_the_broker_makes_dead_letters() -> None:
    letter = DeadLetter(correlation_id='1', reason='expired', time=None, envelope=Envelope(), queue='q')
    with pytest.raises(ValueError, match='only the broker'):
        codec.encode(letter)


# Dead letters

DIED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)


def dead(reason: str = 'expired', **fields: Any) -> Envelope:
    """CALL as it comes back from the broker, through pika."""
    death = {
        'count': 1,
        'exchange': '',
        'queue': 'crew.tasks.wsgi',
        'reason': reason,
        'routing-keys': ['crew.tasks.wsgi'],
        'time': DIED,
        'original-expiration': '30000',
        **fields,
    }
    original = codec.encode(CALL)
    marks = {'x-death': [death], 'x-first-death-queue': 'crew.tasks.wsgi', 'x-first-death-reason': reason}
    return dataclasses.replace(original, headers={**original.headers, **marks})


@pytest.mark.parametrize('reason', ['expired', 'rejected', 'maxlen', 'delivery_limit'])
def test_a_dead_letter_says_which_call_left_which_queue_when_and_why(reason: str) -> None:
    envelope = dead(reason)
    assert codec.decode(envelope) == DeadLetter(
        correlation_id='1', reason=reason, time=DIED.timestamp(), envelope=envelope, queue='crew.tasks.wsgi'
    )


def test_the_latest_death_counts() -> None:
    older = {'reason': 'maxlen', 'queue': 'other', 'time': DIED - timedelta(days=1)}
    envelope = dead()
    envelope.headers['x-death'].append(older)
    letter = codec.decode(envelope)
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.queue) == ('expired', 'crew.tasks.wsgi')


def test_a_dead_letter_without_a_time_is_still_one() -> None:
    letter = codec.decode(dead(time=None))
    assert isinstance(letter, DeadLetter)
    assert letter.time is None


@pytest.mark.parametrize('deaths', [None, [], {}, 'expired', ['expired'], [None], [{'reason': 3}], [{'queue': b'q'}]])
def test_a_death_nobody_understands_is_a_protocol_error(deaths: Any) -> None:
    envelope = dead()
    with pytest.raises(ProtocolError):
        codec.decode(dataclasses.replace(envelope, headers={**envelope.headers, 'x-death': deaths}))


def test_a_dead_letter_is_published_again_without_what_no_caller_can_have_written() -> None:
    # What pika makes of a name that is not UTF-8, of a float, a decimal and a time: it could not be encoded again.
    odd = {b'\xff': 1, '': 'a', 'float': 10**300, 'decimal': Decimal('1e-255'), 'list': [{b'\xff': None}]}
    envelope = dead()
    letter = codec.decode(dataclasses.replace(envelope, headers={**envelope.headers, **odd}))  # type: ignore[dict-item]
    assert isinstance(letter, DeadLetter)
    again = codec.republish(letter, expiration=30, sent=1)
    assert set(again.headers) == {*codec.encode(CALL).headers, 'crew-sent'}
    sendable(again)


@pytest.mark.parametrize(
    'headers',
    [{'text': 'x' * 65_536}, {str(number): 1 for number in range(10_000)}, {'crew-runs': 2**31}, {'crew-runs': -1}],
    ids=['long', 'many', 'runs', 'less than none'],
)
@pytest.mark.parametrize('envelope', [codec.encode(CALL), dead()], ids=['call', 'dead letter'])
def test_a_call_that_could_not_be_published_again_is_a_protocol_error(envelope: Envelope, headers: Any) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(dataclasses.replace(envelope, headers={**envelope.headers, **headers}))


def test_a_dead_letter_of_a_queue_that_cannot_be_written_to_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match='255 bytes'):
        codec.decode(dead(queue='ü' * 128))


def test_a_dead_letter_published_again_is_the_call_with_a_new_wait() -> None:
    letter = codec.decode(dead())
    assert isinstance(letter, DeadLetter)
    again = codec.republish(letter, expiration=30, sent=1_700_000_000.5)
    assert codec.decode(again) == dataclasses.replace(CALL, expiration=30, sent=1_700_000_000.5)
    assert (again.expiration, again.timestamp) == (30_000, 1_700_000_000)
    assert not [name for name in again.headers if name.startswith('x-')]


@given(calls)
def test_publishing_again_keeps_all_that_the_caller_said(call: Call) -> None:
    first = codec.encode(call)
    letter = codec.decode(dataclasses.replace(first, headers={**first.headers, 'x-death': [{}]}))
    assert isinstance(letter, DeadLetter)
    again = codec.republish(letter, expiration=7, sent=5)
    before = codec.decode(first)
    assert isinstance(before, Call)
    assert codec.decode(again) == dataclasses.replace(before, expiration=7, sent=5)


# Bodies in parts

OFFSETS = [None, -1, 2**63, 1.0, True, '1', [], math.nan]


@pytest.mark.parametrize('offset', OFFSETS)
def test_an_offset_that_cannot_be_is_a_protocol_error(offset: Any) -> None:
    headers = {'crew-v': 1, 'crew-offset': offset}
    body = json.dumps({'offset': offset}).encode()
    for envelope in (
        Envelope(type='chunk', correlation_id='1', headers=headers),
        Envelope(type='credit', correlation_id='1', headers={'crew-v': 1}, body=body),
    ):
        with pytest.raises(ProtocolError):
            codec.decode(envelope)


@pytest.mark.parametrize('type', ['chunk', 'credit'])
def test_an_offset_must_be_there(type: str) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(Envelope(type=type, correlation_id='1', headers={'crew-v': 1}, body=b'{}'))


@pytest.mark.parametrize(('type', 'name'), [('call', 'crew-more'), ('reply', 'crew-more'), ('chunk', 'crew-last')])
@pytest.mark.parametrize('flag', [1, 'true', None])
def test_a_flag_that_is_none_is_a_protocol_error(type: str, name: str, flag: Any) -> None:
    headers = {'crew-v': 1, 'crew-offset': 0, name: flag}
    with pytest.raises(ProtocolError):
        codec.decode(Envelope(type=type, correlation_id='1', headers=headers))


def test_a_chunk_comes_back_from_the_wire_as_it_was() -> None:
    chunk = Chunk(correlation_id='1', reply_to='q', offset=2**63 - 1, last=True, body=b'x')
    assert codec.decode(over_the_wire(codec.encode(chunk))) == chunk


# What anybody sends

TYPES = ['call', 'reply', 'error', 'accept', 'go', 'stop', 'cancel', 'returned', 'publication']
TYPES += ['chunk', 'credit', 'reset']

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
table_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.text(max_size=5)
    | st.decimals()
    | st.datetimes(timezones=st.just(timezone.utc)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
table_names = (
    st.sampled_from(['crew-sent', 'crew-timeout', 'crew-runs', 'crew-reply', 'crew-channel', 'x-death', 'CC'])
    | st.sampled_from(['crew-more', 'crew-offset', 'crew-last'])
    | st.text(max_size=5)
    | st.binary(max_size=3)
)
deaths = st.lists(
    st.dictionaries(st.sampled_from(['reason', 'time', 'queue']), table_values, max_size=3), min_size=1, max_size=2
)
field_names = st.sampled_from(
    [
        'kind',
        'type',
        'message',
        'traceback',
        'inbox',
        'ask',
        'redelivered',
        'idempotent',
        'ran',
        'timeout',
        'reason',
        'ids',
    ]
)
control_bodies = st.dictionaries(field_names, json_values, max_size=6).map(lambda fields: json.dumps(fields).encode())

envelopes = st.builds(
    Envelope,
    body=control_bodies | json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20),
    type=st.sampled_from(TYPES) | st.text(max_size=5),
    correlation_id=st.text(max_size=5) | st.just('x' * 300),
    reply_to=st.text(max_size=5),
    content_type=st.text(max_size=5),
    content_encoding=st.text(max_size=5),
    headers=st.builds(
        lambda version, table, death: {**table, **death, **version},
        st.just({'crew-v': 1}) | st.dictionaries(st.just('crew-v'), table_values),
        st.dictionaries(table_names, table_values, max_size=4),
        st.just({}) | st.fixed_dictionaries({'x-death': deaths}),
    ),
    expiration=st.none() | st.integers(),
    priority=st.integers(),
    persistent=st.booleans(),
    timestamp=st.none() | st.integers(),
)


@settings(max_examples=500, deadline=None)
@given(envelopes)
def test_whatever_comes_a_message_or_a_protocol_error_comes_out(envelope: Envelope) -> None:
    try:
        message = codec.decode(envelope)
    except ProtocolError:
        return
    assert isinstance(message, Message)
    if isinstance(message, Call | Reply):
        assert all(type(value) in (str, int, bool) for value in message.headers.values())
    if isinstance(message, DeadLetter):
        sendable(codec.republish(message, expiration=1, sent=1.0))


def control(type: str, body: bytes) -> Envelope:
    return Envelope(type=type, correlation_id='1', body=body, headers={'crew-v': 1})


ACCEPT = b'{"inbox": "q", "ask": %s, "redelivered": false, "ran": %s, "timeout": %s}'


@pytest.mark.parametrize(
    'envelope',
    [
        control('', b''),
        control('CALL', b''),
        control('error', b'{"kind": "raised"'),
        control('error', b'{}'),
        control('error', b'[]'),
        control('error', b'{"kind": "exploded"}'),
        control('error', b'{"kind": ["raised"]}'),
        control('error', b'{"kind": "raised", "message": 3}'),
        control('accept', ACCEPT % (b'1', b'0', b'1')),
        control('accept', ACCEPT % (b'null', b'0', b'1')),
        control('accept', ACCEPT % (b'true', b'true', b'1')),
        control('accept', ACCEPT % (b'true', b'"0"', b'1')),
        control('accept', ACCEPT % (b'true', b'NaN', b'1')),
        control('accept', ACCEPT % (b'true', b'0', b'NaN')),
        control('accept', ACCEPT % (b'true', b'0', b'Infinity')),
        control('accept', ACCEPT % (b'true', b'0', b'-1')),
        control('accept', ACCEPT % (b'true', b'0', b'0')),
        control('accept', ACCEPT % (b'true', b'-1', b'1')),
        control('accept', ACCEPT % (b'true', b'0', b'1e400')),
        control('accept', ACCEPT % (b'true', b'0', b'9' * 400)),
        control('accept', ACCEPT % (b'true', b'0', b'9' * 5000)),
        control('accept', (ACCEPT % (b'true', b'0', b'1')).replace(b'{', b'{"idempotent": 1, ')),
        control('accept', (ACCEPT % (b'true', b'0', b'1')).replace(b'{', b'{"idempotent": null, ')),
        control('publication', b'x'),
        *[
            Envelope(type='publication', headers={'crew-v': 1, 'crew-channel': channel})
            for channel in ('', 'x' * 256, 3, True, None, b'news', ['news'], '\ud800')
        ],
        Envelope(type='publication', headers={'crew-channel': 'news'}),
        control('cancel', b''),
        control('cancel', b'\xff\xfe\x00'),
        control('cancel', b'{"reason": null}'),
        control('returned', b'{"ids": {"1": 2}}'),
        control('returned', b'{"ids": [1]}'),
        control('returned', b'[' * 100_000),
        control('returned', b'{"ids": ' + b'[' * 900 + b']' * 900 + b'}'),
        control('returned', b'{"ids": []' + b' ' * 1024 * 1024 + b'}'),
        Envelope(type='go', correlation_id='1'),
        Envelope(type='go', correlation_id='1', headers={'crew-v': 2}),
        Envelope(type='go', correlation_id='1', headers={'crew-v': '1'}),
        Envelope(type='go', correlation_id='1', headers={'crew-v': 10**5000}),
        Envelope(type='call', headers={'crew-v': 1}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-sent': 'now'}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-sent': Decimal(1)}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-timeout': 0}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-timeout': 10**400}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-sent': -1}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-sent': 10**40}),
        # Its run would wait for ever for what nobody sends.
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1, 'crew-more': True}),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1}, expiration=-1),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1}, expiration=10**254),
        Envelope(type='call', correlation_id='1', headers={'crew-v': 1}, expiration=10**400),
    ],
    ids=lambda envelope: f'{envelope.type}-{envelope.body[:60]!r}-{list(envelope.headers)}',
)
def test_a_malformed_message_is_a_protocol_error(envelope: Envelope) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(envelope)


def test_a_short_string_that_is_no_utf_8_can_still_be_answered_to() -> None:
    # pika gives bytes then. Were it longer than it came, the refusal could not be sent, and the message would loop.
    properties = BasicProperties(reply_to=b'q' + b'\xff' * 254)
    reply_to = _envelope(properties, b'').reply_to
    assert reply_to == 'q' + '?' * 254
    sendable(Envelope(reply_to=reply_to))


def test_an_error_of_a_kind_without_end_says_so_in_a_line() -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.decode(control('error', b'{"kind": "%s"}' % (b'x' * 1_000_000)))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize('depth', [50, 200, 400, 600, 800, 990, 5000, 100_000])
@pytest.mark.parametrize('field', ['inbox', 'ask', 'timeout'])
def test_a_deeply_nested_field_is_a_protocol_error(field: str, depth: int) -> None:
    nested = b'[' * depth + b']' * depth
    body = b'{"inbox": "q", "ask": true, "redelivered": false, "ran": 0, "timeout": 1, "%s": %s}'
    with pytest.raises(ProtocolError):
        codec.decode(control('accept', body % (field.encode(), nested)))


def test_a_worker_that_says_nothing_of_idempotence_means_no() -> None:
    accept = codec.decode(control('accept', ACCEPT % (b'true', b'0', b'1')))
    assert accept == Accept(correlation_id='1', inbox='q', ask=True, ran=0, timeout=1)


@example('crew-x', 'a')
@example('x-custom', 'a')
@example('', 'a')
@example('n', 2**63)
@example('n', 1.5)
@example('n', None)
@example('n', b'a')
@example('n', [1])
@given(st.text(max_size=5).filter(lambda name: name != 'crew-v'), table_values)
def test_a_call_shows_only_headers_that_its_caller_can_have_written(name: str, value: Any) -> None:
    call = codec.decode(Envelope(type='call', correlation_id='1', headers={name: value, 'crew-v': 1}))
    assert isinstance(call, Call)
    shown = isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63)
    shown = shown and name not in ('', 'CC', 'BCC') and not name.startswith(('crew-', 'x-'))
    assert call.headers == ({name: value} if shown else {})
