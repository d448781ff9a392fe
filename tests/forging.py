"""Random messages as bytes on the wire: what nobody of ours would send, and what only RabbitMQ must still take."""

import gzip
import json
import random
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from pika import frame, spec
from pika.spec import BasicProperties

from crew.envelope import Envelope
from crew.transports.asyncio import _envelope

#: The ids under which the client makes calls whose ids are known to everybody.
KNOWN = ('known-0', 'known-1', 'known-2')

TYPES = ('call', 'reply', 'error', 'accept', 'go', 'stop', 'cancel', 'returned', 'publication')

# AMQP 0-9-1 §4.2.6: the bit of each property, in the order in which they follow.
FLAGS = {
    'content_type': 15,
    'content_encoding': 14,
    'headers': 13,
    'delivery_mode': 12,
    'priority': 11,
    'correlation_id': 10,
    'reply_to': 9,
    'expiration': 8,
    'message_id': 7,
    'timestamp': 6,
    'type': 5,
    'app_id': 3,
}

#: What RabbitMQ takes for its own kind of reply queue.
DIRECT = 'amq.rabbitmq.reply-to'

FRAME_MAX = 128 * 1024

#: More than any reader may make of one message.
BOMB = 200 * 1024 * 1024


def short(text: bytes) -> bytes:
    """Return a short string."""
    return struct.pack('>B', len(text)) + text


def table(entries: dict[bytes, bytes]) -> bytes:
    """Return a field table of encoded values."""
    body = b''.join(short(name) + value for name, value in entries.items())
    return struct.pack('>I', len(body)) + body


def long_string(text: bytes) -> bytes:
    """Return a field that is a string."""
    return b'S' + struct.pack('>I', len(text)) + text


def integer(value: int) -> bytes:
    """Return a field that is an integer of 64 bits."""
    return b'l' + struct.pack('>q', value)


@dataclass(frozen=True, slots=True)
class Aims:
    """Where messages can be sent, and where answers can be wished to.

    Args:
        tasks: the tasks' shared queues.
        inboxes: those of the worker's processes.
        replies: the client's reply queue.
        subscriber: the queue of the client's subscriptions.
        consumed: a queue that the client consumes.
        own: the sender's own queue.
    """

    tasks: list[str]
    inboxes: list[str]
    replies: str
    subscriber: str
    consumed: str
    own: str

    @property
    def queues(self) -> list[str]:
        """All that is read by those who are under fire."""
        return [*self.tasks, *self.inboxes, self.replies, self.subscriber, self.consumed]


@dataclass(slots=True)
class Forged:
    """One message.

    Attributes:
        exchange: where it is published.
        routing_key: by what it is routed.
        fields: its properties, encoded.
        body: its body.
    """

    exchange: str
    routing_key: str
    body: bytes
    fields: dict[str, bytes] = field(default_factory=dict)

    @property
    def properties(self) -> bytes:
        """The flags and the properties, as they stand in the header frame."""
        names = [name for name in FLAGS if name in self.fields]
        flags = sum(1 << FLAGS[name] for name in names)
        return struct.pack('>H', flags) + b''.join(self.fields[name] for name in names)

    def frames(self) -> bytes:
        """Return the frames that publish it on the first channel."""
        method = frame.Method(1, spec.Basic.Publish(exchange=self.exchange, routing_key=self.routing_key)).marshal()
        head = struct.pack('>HHQ', spec.Basic.INDEX, 0, len(self.body)) + self.properties
        pieces = [method, struct.pack('>BHL', 2, 1, len(head)) + head + b'\xce']
        step = FRAME_MAX - 8
        pieces += [frame.Body(1, self.body[at : at + step]).marshal() for at in range(0, len(self.body), step)]
        return b''.join(pieces)

    def envelope(self) -> Envelope | None:
        """Return what its reader sees, or None if nobody could decode it."""
        try:
            return _envelope(BasicProperties().decode(self.properties), self.body)
        except Exception:
            return None


class Forge:
    """Makes messages, the same ones for the same seed.

    Args:
        seed: decides everything but the time.
        aims: where to.
    """

    def __init__(self, seed: int, aims: Aims) -> None:
        self._random = random.Random(seed)
        self._aims = aims
        self._serial = 0
        self._next: list[Forged] = []
        self._bomb = _zeros(BOMB)
        self._big_text = _zeros(30 * 1024 * 1024)

    def make(self) -> Forged:
        """Return the next message."""
        if self._next:
            return self._next.pop()
        if self._chance(0.01):
            # A run that may begin once more, and its end: what makes a client publish a call again.
            known = self._random.choice(KNOWN)
            self._next.append(self._message('call', self._aims.replies, known, dead=True))
            return self._message('accept', self._aims.replies, known)
        to = self._random.choices(
            [
                self._aims.tasks,
                self._aims.inboxes,
                [self._aims.replies],
                [self._aims.subscriber],
                [self._aims.consumed],
            ],
            [50, 18, 18, 7, 7],
        )[0]
        usual: dict[int, tuple[str, ...]] = {0: ('call',), 1: ('go', 'stop', 'cancel'), 3: ('publication',)}
        lists = [self._aims.tasks, self._aims.inboxes, [self._aims.replies], [self._aims.subscriber]]
        kinds = usual.get(lists.index(to), TYPES) if to in lists else TYPES
        return self._message(self._random.choice(kinds if self._chance(0.8) else TYPES), self._random.choice(to))

    # The parts

    def _message(self, kind: str, to: str, known: str | None = None, dead: bool = False) -> Forged:
        reply_to = self._reply_to()
        id = self._id(kind, to, reply_to) if known is None else known.encode()
        headers = {b'crew-v': integer(1)}
        fields = {'type': short(kind.encode()), 'correlation_id': short(id)}
        if kind in ('call', 'go', 'stop', 'cancel'):
            fields['reply_to'] = short(reply_to)
        exchange, routing_key = '', to
        if kind in ('call', 'reply', 'publication'):
            body = self._value(fields)
        else:
            fields['content_type'] = short(b'application/json')
            body = self._control(kind)
        if kind == 'call':
            headers[b'crew-reply'] = long_string(reply_to)
            self._times(fields, headers, deaf=self._is_deaf(reply_to))
        if kind == 'publication':
            headers[b'crew-channel'] = long_string(self._random.choice([b'news', b'news', b'other']))
            if to == self._aims.subscriber and self._chance(0.7):
                exchange, routing_key = 'crew.PUBSUB', ''
        tables = self._chance(0.8)
        if dead or (kind == 'call' and self._chance(0.15)):
            headers[b'x-death'] = self._deaths() if tables else self._field()
        if dead or self._chance(0.4):
            for _ in range(self._random.randint(1, 4)):
                headers[self._header_name()] = self._field()
        if self._chance(0.002):
            many = {b'%d' % number: b'b\x01' for number in range(13_000)}
            headers.update(many if self._chance(0.5) else {b'long': long_string(self._bytes(60_000))})
        elif self._chance(0.002):
            headers[b'long'] = long_string(b'x' * self._random.choice([1000, 60_000, 66_000]))
        if known is None or self._chance(0.2):
            for _ in range(self._random.choices([0, 1, 2, 3], [35, 40, 15, 10])[0]):
                self._mutate(fields, headers)
        if 'expiration' in fields and b'x-death' in headers and not tables:
            # RabbitMQ 3.10 looks into it when the message expires, and its queue crashes.
            del headers[b'x-death']
        if self._chance(0.98):
            fields['headers'] = table(headers)
        if self._chance(0.05):
            body = self._bytes(self._random.choice([0, 1, 10, 1000, 20_000]))
        return Forged(exchange, routing_key, body, fields)

    def _mutate(self, fields: dict[str, bytes], headers: dict[bytes, bytes]) -> None:
        choose = self._random.choice
        name = choose(list(FLAGS))
        if name == 'headers':
            headers[
                choose([b'crew-v', b'crew-sent', b'crew-timeout', b'crew-runs', b'crew-reply', b'crew-channel'])
            ] = self._field() if self._chance(0.5) else integer(self._integer(64))
            if b'crew-sent' in headers:
                # A stale call is asked about for ten seconds: only of those who will say something.
                headers[b'crew-sent'] = self._fresh()
        elif name == 'delivery_mode':
            fields[name] = bytes([choose([1, 2])])  # others close the channel of who sends them
        elif name == 'priority':
            fields[name] = bytes([choose([0, 1, 8, 9, 10, 128, 255])])
        elif name == 'timestamp':
            fields[name] = struct.pack('>Q', self._random.getrandbits(choose([1, 31, 62, 64])))
        elif name == 'expiration':
            # Again those that RabbitMQ takes.
            fields[name] = short(choose([b'0', b'1', b'50', b'+50', b'0050', b'1000', b'60000', b'4294967295']))
        elif name == 'correlation_id' and self._chance(0.5):
            fields.pop(name, None)
        elif name == 'content_encoding':
            fields[name] = short(choose([b'gzip', b'GZIP', b'identity', b'deflate', b'gzip, gzip', b'', b'\xff']))
        elif name == 'type':
            fields[name] = short(choose([*(kind.encode() for kind in TYPES), b'', b'chunk', b'Call', b'\xff\xfe']))
        elif name in fields and self._chance(0.3):
            fields.pop(name, None)
        elif name == 'content_type':
            fields[name] = short(
                choose(
                    [
                        b'application/json',
                        b'application/json; charset=utf-16',
                        b'text/plain',
                        b'application/octet-stream',
                        b'application/python-pickle',
                        b'application/x-crew-http',
                        b'',
                        b'/',
                        self._bytes(255),
                    ]
                )
            )
        elif name != 'reply_to':
            fields[name] = short(self._bytes(choose([0, 1, 20, 255])))

    def _reply_to(self) -> bytes:
        kinds: list[Callable[[], bytes]] = [
            lambda: self._aims.own.encode(),
            lambda: self._aims.replies.encode(),
            lambda: b'',
            lambda: b'nowhere',
            lambda: self._bytes(self._random.choice([1, 20, 255])),
            lambda: self._random.choice([b'crew.DLX', b'amq.direct', b'crew.PUBSUB', DIRECT.encode() + b'.g2']),
            lambda: self._random.choice(self._aims.queues).encode(),
        ]
        return self._random.choices(kinds, [45, 15, 12, 12, 8, 5, 1])[0]()

    def _is_deaf(self, reply_to: bytes) -> bool:
        return reply_to.decode('utf-8', 'replace') in (*self._aims.tasks, *self._aims.inboxes, self._aims.consumed) or (
            reply_to == self._aims.subscriber.encode()
        )

    def _id(self, kind: str, to: str, reply_to: bytes) -> bytes:
        self._serial += 1
        if reply_to == self._aims.own.encode():
            told = kind in ('go', 'stop', 'cancel') and to in self._aims.inboxes
            return b'own-%d' % max(0, self._serial - (self._random.randint(1, 100) if told else 0))
        kinds: list[Callable[[], bytes]] = [
            lambda: self._random.choice(KNOWN).encode(),
            lambda: b'unknown-%d' % self._serial,
            lambda: b'own-%d' % self._random.randint(max(0, self._serial - 100), self._serial),
            lambda: b'same',
            lambda: b'',
            lambda: self._bytes(255),
            lambda: b'x' * 255,
        ]
        return self._random.choices(kinds, [30, 30, 10, 5, 5, 10, 10])[0]()

    def _times(self, fields: dict[str, bytes], headers: dict[bytes, bytes], deaf: bool) -> None:
        headers[b'crew-sent'] = self._fresh()
        if self._chance(0.1) and not deaf:
            headers[b'crew-sent'] = integer(self._random.choice([0, -1, 2**62, 1_700_000_000_000]))
        if self._chance(0.3):
            headers[b'crew-timeout'] = integer(self._random.choice([1, 2, 10, 1000, 60_000, 2**31, 2**62, 0, -5]))
        if self._chance(0.05):
            headers[b'crew-runs'] = integer(self._random.choice([0, 1, 2, -1, 2**62]))
        fields['delivery_mode'] = b'\x01'

    def _fresh(self) -> bytes:
        return integer(int(time.time() * 1000))

    def _deaths(self) -> bytes:
        queue = self._random.choice([*self._aims.tasks, self._aims.replies, 'nowhere', '', 'q' * 300, '\N{SNOWMAN}'])
        death = {
            b'reason': long_string(self._random.choice([b'expired', b'rejected', b'maxlen', b'', b'\xff'])),
            b'queue': long_string(queue.encode()),
            b'time': b'T' + struct.pack('>Q', self._random.getrandbits(self._random.choice([31, 31, 31, 40]))),
        }
        if self._chance(0.2):
            death[self._random.choice(list(death))] = self._field()
        one = b'F' + table(death)
        return b'A' + struct.pack('>I', len(one)) + one

    # Header fields

    def _header_name(self) -> bytes:
        names = [
            b'x',
            b'',
            b'\xff\xfe',
            b'crew-',
            b'x-custom',
            b'crew-sent ',
            b'n' * 255,
            '\N{SNOWMAN}'.encode(),
            b'a\0b',
        ]
        return self._random.choice(names)

    def _field(self, depth: int = 0) -> bytes:
        bits = self._random.getrandbits
        kinds: list[Callable[[], bytes]] = [
            lambda: b't' + bytes([bits(1)]),
            lambda: b'b' + bytes([bits(8)]),
            lambda: b'B' + bytes([bits(8)]),
            lambda: b's' + struct.pack('>H', bits(16)),
            lambda: b'u' + struct.pack('>H', bits(16)),
            lambda: b'I' + struct.pack('>I', bits(32)),
            lambda: b'i' + struct.pack('>I', bits(32)),
            lambda: integer(self._integer(64)),
            lambda: b'd' + struct.pack('>d', self._random.choice([0.0, -1.5, 1e308, 5e-324, 1e18, 1e19])),
            lambda: b'D' + bytes([self._random.choice([0, 2, 28, 255])]) + struct.pack('>I', bits(32)),
            lambda: long_string(self._random.choice([b'', b'text', b'\xff', self._bytes(300)])),
            lambda: b'x' + struct.pack('>I', 3) + self._bytes(3),
            lambda: b'T' + struct.pack('>Q', bits(self._random.choice([31, 38, 64]))),
            lambda: b'V',
        ]
        if depth < 4:
            kinds += [lambda: self._array(depth), lambda: self._table(depth)]
        if depth == 0 and self._chance(0.05):
            return b'F' + self._deep(self._random.choice([30, 200, 400, 900, 3000]))
        return self._random.choice(kinds)()

    def _array(self, depth: int) -> bytes:
        inside = b''.join(self._field(depth + 1) for _ in range(self._random.randint(0, 4)))
        return b'A' + struct.pack('>I', len(inside)) + inside

    def _table(self, depth: int) -> bytes:
        return b'F' + table({self._header_name(): self._field(depth + 1) for _ in range(self._random.randint(0, 4))})

    def _deep(self, depth: int) -> bytes:
        result = struct.pack('>I', 0)
        for _ in range(depth):
            entry = short(b'a') + b'F' + result
            result = struct.pack('>I', len(entry)) + entry
        return result

    # Bodies

    def _value(self, fields: dict[str, bytes]) -> bytes:
        """Return the body of a value, and say in the properties what it is (or is not)."""
        fields['content_type'] = short(b'application/json')
        if self._chance(0.7):
            argument = self._random.choice([None, 'text', 3, [1, 2], {'for': 0.001}, {'for': 0.02}, {'for': 'long'}])
            body = json.dumps(argument).encode()
        else:
            body = self._odd_json()
        if self._chance(0.0004):
            fields['content_encoding'] = short(b'gzip')
            return self._bomb
        if self._chance(0.0002):
            fields['content_encoding'] = short(b'gzip')
            return self._big_text
        if self._chance(0.1):
            fields['content_encoding'] = short(b'gzip')
            return self._gzip(body)
        if self._chance(0.2):
            kind = self._random.choice([b'text/plain', b'application/octet-stream', b'application/python-pickle'])
            fields['content_type'] = short(kind)
        return body

    def _gzip(self, body: bytes) -> bytes:
        whole = gzip.compress(body, 1)
        at = self._random.randrange(len(whole))
        damaged = [
            whole,
            whole,
            whole[:at],
            whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :],
            whole + whole,
            whole + b'x',
            zlib.compress(body),
            b'',
        ]
        return self._random.choice(damaged)

    def _odd_json(self) -> bytes:
        depth = self._random.choice([10, 500, 990, 20_000])
        odd: list[Callable[[], bytes]] = [
            lambda: b'[' * depth,
            lambda: b'[' * depth + b']' * depth,
            lambda: b'{"a":' * depth + b'1' + b'}' * depth,
            lambda: b'9' * self._random.choice([19, 400, 4300, 4301, 50_000]),
            lambda: self._random.choice([b'NaN', b'[Infinity]', b'-Infinity', b'1e999', b'-1e999', b'1e-999', b'-0']),
            lambda: b'"' + self._bytes(20) + b'"',
            lambda: self._random.choice(
                [rb'"\ud800"', rb'"\u0000"', b'"\xed\xa0\x80"', '"\N{SNOWMAN}"'.encode('utf-16')]
            ),
            lambda: b'{"for": 0, "for": 1, "": null}',
            lambda: b'"' + b'a' * self._random.choice([1000, 33_000]) + b'"',
            lambda: b'',
            lambda: b'\xef\xbb\xbf{}',
            lambda: self._bytes(200),
        ]
        return self._random.choice(odd)()

    def _control(self, kind: str) -> bytes:
        choose = self._random.choice
        times = [0, 0.1, 1, 60, 1e9, -1, 1e300, True, None, '1']
        fields: dict[str, object] = {}
        if kind == 'error':
            text = choose(['', 'text', '\ud800', 'x' * 10_000, '\x1b[31m\r\n2026 Traceback'])
            fields = {'kind': choose(['raised', 'timeout', 'refused', 'other']), 'type': 'E', 'message': text}
        elif kind == 'accept':
            inboxes = [
                *self._aims.queues,
                self._aims.own,
                'nowhere',
                '',
                'q' * 300,
                '\ud800',
                '\N{SNOWMAN}' * 80,
                'a\0',
            ]
            fields = {
                'inbox': choose(inboxes),
                'ask': self._chance(0.4),
                'redelivered': self._chance(0.5),
                'idempotent': self._chance(0.7),
                'ran': choose(times[:4]),
                'timeout': choose(times[1:5]),
            }
        elif kind == 'cancel':
            fields = {'reason': choose(['', 'text', '\ud800', 'x' * 10_000])}
        elif kind == 'returned':
            fields = {
                'ids': [choose([*KNOWN, 'unknown', '', '\ud800', 'x' * 300]) for _ in range(choose([0, 1, 3, 500]))]
            }
        if fields and self._chance(0.15):
            fields[choose(list(fields))] = choose([*times, [], {}, 'text', 10**400, 'x' * 100_000])
        if self._chance(0.05):
            return self._odd_json()
        return json.dumps(fields).encode()

    # Chance

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _integer(self, bits: int) -> int:
        return self._random.getrandbits(self._random.randint(1, bits - 1)) * self._random.choice([1, -1])

    def _bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    megabyte = bytes(1024 * 1024)
    return b''.join(packer.compress(megabyte) for _ in range(count // len(megabyte))) + packer.flush()
