"""Random messages into a live worker and a live client: each is refused or answered, none kills, stalls or comes back.

``CREW_FUZZ_SEED`` repeats a run, ``CREW_FUZZ_MESSAGES`` says how many messages; ``make fuzz`` sends 100,000.
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from crew import codec, topology
from crew.envelope import Envelope
from crew.exceptions import PayloadError, ProtocolError
from crew.messages import Accept, Cancel, Failure, Go, Message, Publication, Reply, Stop
from crew.payloads import Payload, unpack
from crew.private_node import PrivateNode
from crew.serializers import accepted
from crew.transports.asyncio import AsyncioChannel, AsyncioConnection, dial
from crew.transports.base import Delivery
from tests.forging import KNOWN, Aims, Forge, Forged
from tests.rpc import Script
from tests.stack import APPS
from tests.waiting import wait_until

SEED = int(os.environ.get('CREW_FUZZ_SEED') or random.SystemRandom().randrange(2**32))
MESSAGES = int(os.environ.get('CREW_FUZZ_MESSAGES') or 3000)

TASKS = ('echo', 'nap', 'again', 'fail')
FORKS, THREADS = 2, 4

BATCH = 100

#: More than this in a queue, and the sender waits: good calls must not wait for minutes behind it.
BACKLOG = 300

#: No queue stays so long without getting shorter, however slow the machine is.
STALL = 60.0

# The C library would keep what 30 MB took, in each thread, for the next such value: nothing here must look like a leak.
HONEST = {'MALLOC_MMAP_THRESHOLD_': '1000000', 'MALLOC_TRIM_THRESHOLD_': '1000000'}

MEGABYTE = 1024 * 1024
MAY_GROW = 60 * MEGABYTE


class Barrage:
    """Sends messages, reads its own answers, and knows what is to become of each.

    Attributes:
        answers: how often each id of its own was answered.
        due: the ids that must be answered once; all others may be.
        tally: what became of what was sent.
    """

    def __init__(self, url: str, seed: int, aims: Aims) -> None:
        self._url = url
        self._aims = aims
        self._forge = Forge(seed, aims)
        self._random = random.Random(seed)
        self._channel: AsyncioChannel
        self.answers: Counter[str] = Counter()
        self.due: set[str] = set()
        self.tally: Counter[str] = Counter()
        self._answer: asyncio.Future[Any]

    async def run(self, count: int) -> None:
        """Send so many messages; return when all queues are empty and nothing more comes."""
        connection = await dial(self._url)
        self._channel = await self._listen(connection)
        # Its own connection: the frames are written by hand, onto the first channel.
        sending = await dial(self._url)
        probe = await sending.open_channel(on_closed=self._refused)
        sending.on_close = self._refused
        for at in range(0, count, BATCH):
            for _ in range(min(BATCH, count - at)):
                forged = self._forge.make()
                self._expect(forged)
                sending._pika._adapter_emit_data(forged.frames())
            await self._drained(probe, BACKLOG)
        await self._drained(probe, 0)
        sending.on_close = lambda reason: None
        await sending.close()
        # Longer than a call is asked about.
        await self._quiet(12.0)
        await connection.close()

    async def _listen(self, connection: AsyncioConnection) -> AsyncioChannel:
        channel = await connection.open_channel(on_return=lambda envelope, key: None)
        own = topology.Queue(self._aims.own, exclusive=True, arguments={'x-queue-type': 'classic'})
        await channel.declare(own)
        await channel.declare(topology.dead_letter_binding(own.name))
        await channel.consume(own.name, self._arrived, no_ack=True)
        return channel

    async def _drained(self, probe: AsyncioChannel, limit: int) -> None:
        """Wait until no shared queue is longer. The lengths of private ones are their owners' secret."""
        shortest, since = sys.maxsize, time.monotonic()
        while True:
            longest = 0
            for queue in (*self._aims.tasks, self._aims.consumed):
                longest = max(longest, await self._length(probe, queue))
            if longest <= limit:
                return
            if longest < shortest:
                shortest, since = longest, time.monotonic()
            assert time.monotonic() < since + STALL, f'nobody reads: {longest} messages are in a queue'
            await asyncio.sleep(0.02)

    async def _length(self, probe: AsyncioChannel, queue: str) -> int:
        self._answer = asyncio.get_running_loop().create_future()
        probe._pika.queue_declare(queue, passive=True, callback=self._answer.set_result)
        return int((await asyncio.wait_for(self._answer, STALL)).method.message_count)

    def _refused(self, reason: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(reason)

    async def _quiet(self, timeout: float) -> None:
        """Wait until all that is due has come, or nobody can be expected to send it any more."""
        deadline = time.monotonic() + timeout
        while any(not self.answers[id] for id in self.due):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)

    # What is sent

    def _expect(self, forged: Forged) -> None:
        self.tally['sent'] += 1
        envelope = forged.envelope()
        message = None if envelope is None else _decoded(envelope)
        to = forged.routing_key or self._aims.subscriber
        if forged.exchange and (envelope is None or envelope.headers.get('crew-channel') != 'news'):
            self.tally['to nobody'] += 1
        elif to in self._aims.tasks and envelope is not None:
            self._expect_answer(envelope.reply_to, envelope.correlation_id, envelope.expiration)
        elif to == self._aims.replies:
            self.tally['refused by the client'] += message is None
        elif to == self._aims.subscriber and not isinstance(message, Publication):
            self.tally['refused by the client'] += 1
        elif to == self._aims.subscriber and isinstance(message, Publication) and message.channel == 'news':
            body = Payload(message.body, message.content_type, message.content_encoding)
            self.tally['dropped by the client'] += not _is_readable(body)
        elif to == self._aims.consumed and envelope is None:
            self.tally['read by the client'] += 1
        elif to == self._aims.consumed and envelope is not None:
            kind = envelope.content_type or 'application/octet-stream'
            readable = _is_readable(Payload(envelope.body, kind, envelope.content_encoding))
            self.tally['read by the client' if readable else 'refused by the client'] += 1
        elif to in self._aims.inboxes and isinstance(message, Stop | Cancel) and message.reply_to == self._aims.own:
            self.due.discard(message.correlation_id)

    def _expect_answer(self, reply_to: str, id: str, expiration: int | None) -> None:
        if reply_to == self._aims.own and id.startswith('own-') and expiration is None:
            self.due.add(id)

    # What comes

    def _arrived(self, delivery: Delivery) -> None:
        try:
            message = codec.decode(delivery.envelope)
        except ProtocolError:
            return
        if isinstance(message, (Reply, Failure)):
            self.answers[message.correlation_id] += 1
            self.tally[message.kind if isinstance(message, Failure) else 'replied'] += 1
        elif isinstance(message, Accept) and message.ask:
            id, own = message.correlation_id, self._aims.own
            if self._random.random() < 0.7:
                self.tally['told to go'] += 1
                answer = codec.encode(Go(correlation_id=id, reply_to=own))
            else:
                self.tally['told to stop'] += 1
                self.due.discard(id)
                answer = codec.encode(Stop(correlation_id=id, reply_to=own))
            self._channel.publish(answer, message.inbox, mandatory=True)


def _decoded(envelope: Envelope) -> Message | None:
    try:
        return codec.decode(envelope)
    except ProtocolError:
        return None


def _is_readable(payload: Payload) -> bool:
    try:
        unpack(payload, accepted(()))
    except PayloadError:
        return False
    return True


class Client:
    """``apps/fuzzed_client.py`` as a process."""

    def __init__(self, url: str, prefix: str, log: Path) -> None:
        self.log = log
        with log.open('wb') as output:
            self._popen = subprocess.Popen(
                [sys.executable, str(APPS / 'fuzzed_client.py')],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **HONEST, 'CREW_AMQP_URL': url, 'QUEUE': prefix, 'KNOWN': ' '.join(KNOWN)},
                text=True,
            )
        assert self._read() == 'ready'

    @property
    def pid(self) -> int:
        return self._popen.pid

    def end_calls(self) -> None:
        """Let it make no more calls."""
        self._write()

    def report(self) -> dict[str, Any]:
        """Return its report, when all calls have been settled."""
        self._write()
        return dict(json.loads(self._read()))

    def kill(self) -> None:
        """End it."""
        self._popen.kill()
        self._popen.communicate()

    def _write(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write('\n')
        self._popen.stdin.flush()

    def _read(self) -> str:
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()


@pytest.fixture
def worker(fresh_broker: PrivateNode, queue: str, tmp_path: Path) -> Iterator[Script]:
    """The worker script under fire."""
    arguments = ['--amqp-url', fresh_broker.url, '--forks', str(FORKS), '--threads', str(THREADS)]
    worker = Script(APPS / 'fuzzed.py', arguments, tmp_path / 'worker.log', {**HONEST, 'QUEUE': queue})
    try:
        worker.await_ready(FORKS)
        yield worker
    finally:
        worker.kill()


@pytest.fixture
def client(worker: Script, fresh_broker: PrivateNode, queue: str, tmp_path: Path) -> Iterator[Client]:
    """The client under fire."""
    client = Client(fresh_broker.url, queue, tmp_path / 'client.log')
    yield client
    client.kill()


def test_each_is_refused_or_answered_and_nobody_dies_or_stalls(
    fresh_broker: PrivateNode, worker: Script, client: Client, queue: str
) -> None:
    print(f'CREW_FUZZ_SEED={SEED} CREW_FUZZ_MESSAGES={MESSAGES}')
    aims = _aims(fresh_broker, queue)
    processes = [psutil.Process(pid) for pid in (client.pid, worker.pid, *worker.children())]
    before = [process.memory_info().rss for process in processes]
    barrage = Barrage(fresh_broker.url, SEED, aims)
    began = time.monotonic()
    asyncio.run(barrage.run(MESSAGES))
    seconds = time.monotonic() - began
    client.end_calls()
    wait_until(lambda: _is_empty(fresh_broker, queue), 60, 'the queues to be empty')
    report = client.report()
    grown = [process.memory_info().rss - size for process, size in zip(processes, before, strict=True)]
    megabytes = [size // MEGABYTE for size in grown]
    print(f'{seconds:.1f} s, {len(barrage.due)} answers due, grown {megabytes} MB, {dict(barrage.tally)}, {report}')

    assert not report['wrong']
    assert report['counts']['right'] > seconds
    answered = {id: times for id, times in barrage.answers.items() if id.startswith('own-')}
    assert not [id for id, times in answered.items() if times > 1], 'answered more than once'
    assert not [id for id in barrage.due if id not in answered], 'never answered'
    counters = report['counters']
    assert counters['refused'] >= barrage.tally['refused by the client']
    assert counters['dropped'] == barrage.tally['dropped by the client']
    # More, for answers were wished to there, too.
    assert report['counts']['consumed'] >= barrage.tally['read by the client']
    assert [process.pid for process in processes] == [client.pid, worker.pid, *worker.children()]
    assert max(grown) < MAY_GROW
    wait_until(lambda: _is_idle(processes), 20, 'all to be idle')
    _check_log(worker.text)
    _check_log(client.log.read_text(errors='replace'))


def _aims(broker: PrivateNode, prefix: str) -> Aims:
    names = broker.ctl('list_queues', '--quiet', '--no-table-headers', 'name').split()

    def starting(start: str) -> list[str]:
        return [name for name in names if name.startswith(start)]

    return Aims(
        tasks=[topology.task_queue_name(f'{prefix}.{task}') for task in TASKS],
        inboxes=starting('crew.worker.'),
        replies=starting('crew.master.')[0],
        subscriber=starting('crew.subscribe.')[0],
        consumed=f'{prefix}.consumed',
        own=topology.reply_queue().name,
    )


def _is_empty(broker: PrivateNode, prefix: str) -> bool:
    """Return whether no queue has a message, nobody holds one, and each is consumed as at the start."""
    fields = ('name', 'messages_ready', 'messages_unacknowledged', 'consumers')
    rows = [row.split('\t') for row in broker.ctl('list_queues', '--quiet', '--no-table-headers', *fields).splitlines()]
    consumers = [FORKS if row[0].startswith(topology.TASKS) else 1 for row in rows]
    return [row[1:] for row in rows] == [['0', '0', str(count)] for count in consumers]


def _is_idle(processes: list[psutil.Process]) -> bool:
    def spent() -> float:
        return sum(process.cpu_times().user + process.cpu_times().system for process in processes)

    before = spent()
    time.sleep(1)
    return spent() - before < 0.2


def _check_log(text: str) -> None:
    """Find no traceback but those of what the tasks raise, and nothing that came to one of our last resorts."""
    tracebacks = re.findall(r'^Traceback .*(?:\n[ \t].*)*\n(\S.*)$(?!\n\nThe above)', text, re.MULTILINE)
    unknown = [line for line in tracebacks if 'Known: ' not in line and 'cannot be sent' not in line]
    assert not unknown, unknown
    edges = re.findall(
        r'.*(?:was lost|a message was dropped|failed|never retrieved|is replaced|starting another).*', text
    )
    assert not edges, edges[:10]
    assert text.count('taking requests from') in (0, FORKS)
