"""Messages that nobody of ours would send: each is refused or dropped, none costs the connection, none comes back."""

import asyncio
import struct

from pika import frame, spec

from crew import codec, topology
from crew.envelope import Envelope
from crew.messages import Call
from crew.private_node import PrivateNode
from crew.transports.asyncio import AsyncioChannel, AsyncioConnection, dial
from tests.stack import Stack
from tests.waiting import wait_until


def short(text: bytes) -> bytes:
    return struct.pack('>B', len(text)) + text


def nested(depth: int) -> bytes:
    """Return a field table that holds a table that holds a table …"""
    table = struct.pack('>I', 0)
    for _ in range(depth):
        entry = short(b'a') + b'F' + table
        table = struct.pack('>I', len(entry)) + entry
    return table


def table(*entries: tuple[bytes, bytes]) -> bytes:
    body = b''.join(short(name) + value for name, value in entries)
    return struct.pack('>I', len(body)) + body


VERSION = (b'crew-v', b'l' + struct.pack('>q', 1))

# The header table and the correlation id of a call, as bytes on the wire.
POISON = {
    'a time out of range': (table(VERSION, (b't', b'T' + struct.pack('>Q', 2**63))), b'1'),
    'a deep table': (table(VERSION, (b't', b'F' + nested(3000))), b'1'),
    'a name that is not UTF-8': (table(VERSION, (b'\xff\xfe', b't\x01')), b'1'),
    'an id that is not UTF-8': (table(VERSION), b'\xff' * 255),
    'no version': (table(), b'1'),
    'another version': (table((b'crew-v', b'l' + struct.pack('>q', 2**40))), b'1'),
    'a version that is a table': (table((b'crew-v', b'F' + nested(3))), b'1'),
    'no id': (table(VERSION), b''),
}


def publish_raw(connection: AsyncioConnection, queue: str, headers: bytes, correlation_id: bytes, body: bytes) -> None:
    """Publish a call whose header frame is made by hand."""
    flags = 1 << 13 | 1 << 10 | 1 << 9 | 1 << 5
    properties = headers + short(correlation_id) + short(b'nobody') + short(b'call')
    payload = struct.pack('>HHQH', spec.Basic.INDEX, 0, len(body), flags) + properties
    pieces = (
        frame.Method(1, spec.Basic.Publish(exchange='', routing_key=queue)).marshal(),
        struct.pack('>BHL', 2, 1, len(payload)) + payload + b'\xce',
        frame.Body(1, body).marshal(),
    )
    for piece in pieces:
        connection._pika._adapter_emit_data(piece)


async def publish_poison(url: str, queue: str, names: list[str]) -> None:
    connection = await dial(url)
    channel = await connection.open_channel()
    for name in names:
        publish_raw(connection, queue, *POISON[name], b'x')
    # A call of the right form that holds no request, one whose body is far from one, and an unknown type.
    send = channel.publish
    send(codec.encode(Call(correlation_id='2', reply_to='nobody', body=b'\xc7\x01\x00\x00\xff\xff\xff\xff')), queue)
    send(Envelope(type='call', correlation_id='3', headers={'crew-v': 1}, body=b'{' * 100_000), queue)
    send(Envelope(type='returned', headers={'crew-v': 1}, body=b'[' * 10_000), queue)
    await _flushed(channel)
    await connection.close()


async def _flushed(channel: AsyncioChannel) -> None:
    # The broker has read all that came before its answer.
    await channel.declare(topology.DEAD_LETTERS)


def test_a_worker_survives_each_and_none_comes_back(stack: Stack, broker: PrivateNode) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    asyncio.run(publish_poison(stack.amqp_url, f'crew.tasks.{stack.queue}', list(POISON)))
    assert front.get('/').body == str(worker.children()[0]).encode()
    line = f'crew.tasks.{stack.queue}\t0'
    wait_until(lambda: line in broker.ctl('list_queues', 'name', 'messages'), 20, 'the queue to be empty')
    assert 'was lost' not in worker.text
    assert worker.text.count('taking requests from') == 1


def test_a_front_and_an_inbox_survive_each(own_stack: Stack, fresh_broker: PrivateNode) -> None:
    front = own_stack.front().await_ready()
    worker = own_stack.worker('faults:app').await_ready()
    queues = fresh_broker.ctl('list_queues', '--quiet', '--no-table-headers', 'name').split()
    private = [name for name in queues if not name.startswith('crew.tasks.')]
    assert len(private) == 2
    for name in private:
        asyncio.run(publish_poison(own_stack.amqp_url, name, list(POISON)))
    assert front.get('/').status == 200
    assert 'was lost' not in front.text + worker.text
    assert worker.text.count('taking requests from') == 1
