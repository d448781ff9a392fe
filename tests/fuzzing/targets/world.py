"""Clients, workers and their broker, with everything that can happen to them chosen by bytes.

Connections are lost, at both ends or first at one; what is on its way is late; processes are killed, stopped, stand
still and come back; operators purge, delete and restart; tasks take their time, fail, hang. Whatever happens, of each
call there is one outcome, it has run no more often than it may, what was read is what was written, and a call is lost
only if who ran it was. In the end all works as before, and nothing is left over.
"""

import logging
import math
import random
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

from crew import topology
from crew.exceptions import (
    ConnectionError,
    CrewError,
    ExpirationError,
    RemoteError,
    TimeoutError,
    Unroutable,
    WorkerLost,
)
from crew.messages import Reply
from crew.transports import memory
from crew.worker.consumer import Settings
from crew.worker.deliveries import Limits, Terms
from crew.worker.runs import Outcome, Run
from tests.fuzzing.choices import Choices
from tests.fuzzing.world.clients import Client, Conversation
from tests.fuzzing.world.loops import Clock
from tests.fuzzing.world.wires import Wires
from tests.fuzzing.world.workers import Job, Play, Worker

__all__ = ['check', 'seeds']

URL = 'memory://world'
CONSUMER_TIMEOUT = 100.0

TASKS = {'post': Terms('post'), 'get': Terms('get', idempotent=True, stop_on_cancel=True)}
SKEWS = [0.0, 0.0, 0.0, 0.0, 3.0, -3.0, 4000.0]
TIMES = [0.0, 0.001, 0.01, 0.03, 0.06, 0.3, 1.1, 2.5, 6.0, 11.0, 35.0, 70.0]
SIZES = [1, 1000, 100_000, 300_000, 700_000, 1_100_000]
WAITS = [0.5, 2.0, 10.0, 30.0]
WORKS = [0.0, 0.0, 0.0, 0.03, 0.2, 2.0, 15.0, 95.0, 1000.0]

#: Who says this has met something that cannot be in a world where everybody is ours.
ALARMING = ('dropped', 'refused', 'beyond the credit', 'was due', 'a callback', 'failed', 'malformed')
HARMLESS = (
    'was dropped: its caller is gone',
    'was dropped: the connection was lost while it ran',
    'was dropped: there was no connection any more',
    'dropped call ',
    'is answered by nobody',
)


def check(data: bytes) -> None:
    """Play what the bytes choose."""
    world = World(Choices(data))
    with world.made():
        for _ in range(150):
            if not world.choices:
                break
            world.step()
            world.check()
        world.complete()


class Listener(logging.Handler):
    """Hears what is logged, and keeps what is alarming."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.alarming: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        text = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            self.alarming.append(f'{text}: {record.exc_info[1]!r}')
        elif any(word in text for word in ALARMING) and not any(word in text for word in HARMLESS):
            self.alarming.append(text)


class World:
    """Everybody."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.clock = Clock()
        self.wires = Wires()
        self.listener = Listener()
        self.clients: list[Client] = []
        self.workers: list[Worker] = []
        self.dead: list[Client | Worker] = []
        self.calls: dict[str, Conversation] = {}
        self.half_cut: list[memory.MemoryConnection] = []
        self.number = 0
        self.deleted = False
        self.probing = False
        self.shared: memory.SharedBroker

    def made(self) -> ExitStack:
        """Make it, and unmake it in the end."""
        stack = ExitStack()
        stack.enter_context(self.clock.instead_of_time())
        # The same bytes are the same world: names and pauses, too.
        names = (f'{number:032x}' for number in range(1, 10**9))
        stack.enter_context(patch.object(topology, 'unique_id', lambda: next(names)))
        state = random.getstate()
        random.seed(0)
        stack.callback(random.setstate, state)
        root = logging.getLogger('crew')
        before = root.level, root.propagate
        root.setLevel(logging.WARNING)
        root.propagate = False
        root.addHandler(self.listener)
        stack.callback(lambda: (root.removeHandler(self.listener), root.setLevel(before[0])))
        stack.callback(setattr, root, 'propagate', before[1])
        memory.forget(URL)
        self.shared = memory.broker(URL)
        self.shared.core = self.wires
        stack.callback(self.unmake)
        choices = self.choices
        for _ in range(1 + choices.below(2)):
            self.clients.append(Client(self.clock, URL, list(TASKS), choices.pick(SKEWS)))
        for _ in range(1 + choices.below(2)):
            self.hire()
        self.settle()
        return stack

    def unmake(self) -> None:
        """Let nothing be left of it, however it has ended."""
        memory.forget(URL)
        for party in (*self.clients, *self.workers, *self.dead):
            with warnings.catch_warnings():
                # Of a process that was killed, some coroutines have never begun.
                warnings.simplefilter('ignore', RuntimeWarning)
                left = party.loop.end()
            assert not left, f'it cannot be cancelled: {left}'

    def hire(self) -> None:
        """Start a worker."""
        choices = self.choices
        tasks = choices.pick([['post', 'get'], ['get', 'post'], ['post'], ['get']])
        if not self.workers:
            tasks = ['post', 'get']
        manner = choices.byte()
        slots = 1 + manner % 2
        fetched = choices.pick([0, 1, 2, 8]) if len(tasks) == 1 else 0
        settings = Settings(
            urls=[URL],
            queues=[TASKS[task] for task in tasks],
            slots=slots,
            prefetch=slots + fetched,
            limits=Limits(choices.pick([None, 20.0]), 5.0, CONSUMER_TIMEOUT),
            graceful_timeout=10.0,
        )
        # Threads take some ahead, greenlets none.
        ahead = (16, 16, 1, 0)[manner // 2 % 4]
        self.workers.append(Worker(self.clock, settings, choices.pick(SKEWS), ahead, self.play, self.ended))

    # Events

    def step(self) -> None:
        """Let something happen; then everybody goes on, or not at once."""
        choices = self.choices
        kind = choices.byte()
        later = kind >= 128
        kind &= 31
        if kind < 6:
            self.call()
        elif kind < 12:
            self.pass_time(choices.pick(TIMES))
        elif kind < 16:
            self.converse()
        elif kind == 16:
            self.turn()
        elif kind < 19:
            self.hold()
        elif kind < 21:
            self.stand_still()
        elif kind < 23:
            self.cut()
        elif kind < 25:
            self.kill()
        elif kind == 25:
            self.told_to_end()
        elif kind < 28:
            if len(self.workers) < 3:
                self.hire()
        elif kind == 28:
            self.operate()
        elif kind == 29:
            self.notice()
        elif kind == 30:
            self.operation(self.wires.set_alarm if choices.flag() else self.wires.clear_alarm)
        else:
            self.cancel()
        if not later:
            self.settle()

    def call(self) -> None:
        """Call something."""
        choices = self.choices
        client = choices.pick(self.clients)
        task, flags = choices.pick(list(TASKS)), choices.byte()
        known, more, alone = bool(flags & 1), flags & 6 == 6, flags & 0x38 == 0x38
        play = Play()
        if flags & 0x40:
            play = Play(
                works=choices.pick(WORKS),
                reads=choices.pick([0, 1, 10**7]) if choices.flag() else choices.pick(SIZES),
                pieces=tuple(choices.pick(SIZES) for _ in range(choices.below(5))),
                pause=choices.pick([0.0, 0.0, 0.02, 3.0, 25.0]),
                raises=choices.rarely(),
                obeys=not choices.rarely(),
            )
            end = choices.byte()
            play.twice, play.rests = bool(end & 1), bool(end & 2)
        self.number += 1
        conversation = Conversation(
            f'call-{self.number}',
            task,
            (known and not alone) or TASKS[task].idempotent,
            play,
            self.clock.now,
            choices.pick(WAITS),
            choices.pick([None, 0.5, 30.0, 300.0]),
            alone,
        )
        # As from threads, which publish by turns of their own, or not.
        try:
            client.call(conversation, known=known, more=more and not alone, persistent=choices.flag())
        except CrewError:
            return
        self.calls[conversation.id] = conversation
        # Its connection may be gone, and it has not heard of that.
        members = [member for member in self.shared._members.values() if member.loop is client.loop]
        conversation.cut = not any(member.wire.open and member._lost is None for member in members)

    def converse(self) -> None:
        """Go on with a body."""
        choices = self.choices
        client = choices.pick(self.clients)
        conversations = [each for each in client.conversations if each.sender is not None or each.receiver is not None]
        if not conversations:
            return
        conversation = choices.pick(conversations[-200:])
        what, size = choices.below(4), choices.pick(SIZES)
        if what == 0:
            client.write(conversation, size)
        elif what == 1:
            client.finish(conversation)
        else:
            client.take(conversation, size)

    def cancel(self) -> None:
        """Give a call up."""
        client = self.choices.pick(self.clients)
        if client.conversations:
            client.cancel(self.choices.pick(client.conversations[-200:]))

    def turn(self) -> None:
        """Let one go on by one turn."""
        party = self.choices.pick(self.parties)
        if not party.paused:
            party.loop.turn()
            if isinstance(party, Worker):
                party.go_on()

    def hold(self) -> None:
        """Hold up what somebody says, or let some of it arrive."""
        connections = list(self.shared._members)
        if not connections:
            return
        connection, how = self.choices.pick(connections), self.choices.below(4)
        if how < 2:
            self.wires.held.add(connection)
            return
        self.wires.held.discard(connection)
        self.operation(partial(self.wires.arrive, connection, 1 + self.choices.byte() if how == 2 else 1_000_000))

    def stand_still(self) -> None:
        """Let a process stand still, or go on."""
        party = self.choices.pick(self.parties)
        party.paused = not party.paused

    def cut(self) -> None:
        """Cut a connection; both ends notice, or only one does at once."""
        members = list(self.shared._members.values())
        if not members:
            return
        member, how = self.choices.pick(members), self.choices.below(3)
        self.mark(member)
        if how == 1:
            # The broker sees it now, the client later.
            self.operation(partial(self.wires.drop, member.wire))
            self.half_cut.append(member)
            return
        self.wires.lingers = how == 2
        self.end_member(member)
        self.wires.lingers = False

    def end_member(self, member: memory.MemoryConnection) -> None:
        """Let a client see that its connection is gone."""
        self.wires._way.pop(member.wire, None)
        with member.loop.running():  # type: ignore[attr-defined]
            member._end('the wire was cut')

    def mark(self, member: memory.MemoryConnection) -> None:
        """Take note of who is hit when a connection is lost."""
        for client in self.clients:
            if client.loop is member.loop:
                for conversation in client.conversations:
                    conversation.cut = conversation.cut or conversation.open
        for worker in self.workers:
            if worker.loop is member.loop:
                self.bereave(worker)

    def bereave(self, worker: Worker) -> None:
        """Take note of what a worker runs that is lost."""
        for job in worker.jobs:
            self.wires.lost[job.run.call.correlation_id] += 1

    def notice(self) -> None:
        """Let everybody see what was cut."""
        self.operation(self.wires.notice)
        half_cut, self.half_cut = self.half_cut, []
        for member in half_cut:
            self.mark(member)
            self.end_member(member)

    def kill(self) -> None:
        """Kill a worker."""
        if self.workers:
            self.bury(self.choices.pick(self.workers))

    def bury(self, worker: Worker) -> None:
        """Let a worker's process be gone."""
        self.bereave(worker)
        for member in list(self.shared._members.values()):
            if member.loop is worker.loop:
                self.wires._way.pop(member.wire, None)
                self.operation(partial(self.shared.leave, member.wire))
        worker.dead = True
        self.workers.remove(worker)
        self.dead.append(worker)

    def told_to_end(self) -> None:
        """Tell a worker to end."""
        if self.workers:
            self.choices.pick(self.workers).told_to_end()

    def operate(self) -> None:
        """Let an operator meddle."""
        how = self.choices.below(4)
        queue = topology.task_queue(self.choices.pick(list(TASKS))).name
        for conversation in self.calls.values():
            conversation.meddled = True
        if how == 0 and queue in self.wires.queues():
            self.operation(partial(self.wires.purge, queue))
        elif how == 1 and queue in self.wires.queues():
            for worker in self.workers:
                self.bereave(worker)
            self.deleted = True
            self.operation(partial(self.wires.delete, queue))
        elif how == 2:
            self.hit_everybody()
            self.operation(partial(self.wires.close_all_connections, 'because'))
        else:
            self.hit_everybody()
            members = list(self.shared._members.values())
            self.operation(self.wires.restart)
            for member in members:
                self.end_member(member)

    def hit_everybody(self) -> None:
        """Take note of who is hit when all connections are lost."""
        for member in list(self.shared._members.values()):
            self.mark(member)

    def operation(self, operation: Callable[[], Any]) -> None:
        """Do something at the broker, and wake those to whom it speaks."""
        self.shared.run(operation)

    # Time

    @property
    def parties(self) -> list[Client | Worker]:
        """All processes that live."""
        return [*self.clients, *self.workers]

    def settle(self) -> None:
        """Let everybody go on until nobody has anything to do."""
        for turn in range(1, 5001):
            if turn % 100 == 0:
                # Sums of times are rounded: an alarm may ring a hair too soon, and would again if none passed at all.
                self.clock.now += 1e-6
            moved = False
            for party in self.parties:
                if not party.paused:
                    moved = party.loop.turn() or moved
                    if isinstance(party, Worker):
                        moved = party.go_on() or moved
            self.reap()
            if not moved:
                return
            # Or who rings a rounding error too early would ring for ever.
            self.clock.now = math.nextafter(self.clock.now, math.inf)
        raise AssertionError('they go on for ever without time passing')

    def reap(self) -> None:
        """Replace workers that have ended or given themselves up."""
        for worker in list(self.workers):
            if worker.serving.done():
                if worker.serving.exception() is not None:
                    raise worker.serving.exception() or AssertionError
                assert worker.serving.result() or worker.stopping or self.stuck(worker)
                self.bury(worker)

    @staticmethod
    def stuck(worker: Worker) -> bool:
        """Return whether a worker had a reason to give itself up."""
        return any(job.run.interrupted and not job.play.obeys for job in worker.jobs)

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.now + seconds
        self.settle()
        while True:
            dues = [party.loop.due() for party in self.parties if not party.paused]
            dues += [worker.due() for worker in self.workers if not worker.paused]
            due = min((due for due in dues if due is not None), default=end)
            if due >= end:
                break
            # Alarms may ring a moment late.
            self.clock.now = max(self.clock.now, due) + 1e-6
            self.tick()
        self.clock.now = max(self.clock.now, end)
        self.tick()

    def tick(self) -> None:
        """Let everybody see how late it is."""
        if any(party.paused for party in self.parties) or self.wires.slow or self.half_cut or self.wires._alarm:
            for conversation in self.calls.values():
                conversation.slow = True
        self.operation(partial(self.wires.close_late, CONSUMER_TIMEOUT))
        self.settle()
        for worker in self.workers:
            assert worker.paused or not worker.dawdles, 'a call waits behind what is not short'
            worker.note_kept()

    # Tasks

    def play(self, run: Run) -> Play:
        """Take note that a task begins; return what it is to do."""
        conversation = self.calls[run.call.correlation_id]
        conversation.starts += 1
        most = 2 if conversation.idempotent else 1
        assert conversation.starts <= most, f'{conversation.id} runs {conversation.starts} times, and may {most} times'
        # In the end nothing takes long, not even what waits to run once more for nobody.
        return Play() if self.probing else conversation.play

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Take note of what a run came to."""
        conversation = self.calls[job.run.call.correlation_id]
        if outcome is None or isinstance(outcome, Reply):
            conversation.answers.append(job.written if outcome is None else None)
        else:
            conversation.failures += 1
            # A worker that is to end gives up what runs at last, and was acked early, perhaps.
            self.wires.lost[conversation.id] += job.run.broken is not None

    # What must be

    def check(self) -> None:
        """Fail if something is wrong already."""
        assert not self.listener.alarming, self.listener.alarming
        for party in self.parties:
            assert not party.loop.errors, party.loop.errors
        for worker in self.workers:
            worker.check()
        for client in self.clients:
            assert not client.counters.refused

    def complete(self) -> None:
        """Let all be well again: everything comes to its end, and works as before."""
        self.heal()
        for _ in range(600):
            if not any(each.open for each in self.calls.values()):
                break
            self.go_on_with_bodies()
            self.pass_time(1.0)
            self.keep_staffed()
            self.check()
        for conversation in self.calls.values():
            self.judge(conversation)
        self.probe()
        self.close()

    def heal(self) -> None:
        """End all troubles."""
        self.operation(self.wires.clear_alarm)
        for party in self.parties:
            party.paused = False
        self.wires.held.clear()
        for member in list(self.shared._members.values()):
            self.operation(partial(self.wires.arrive, member.wire))
        self.settle()
        self.notice()
        self.settle()
        self.keep_staffed()
        self.check()

    def keep_staffed(self) -> None:
        """See to it that there is a worker of each task."""
        if not any(len(worker.settings.queues) == 2 and not worker.stopping for worker in self.workers):
            staff, self.workers = self.workers, []
            self.hire()
            self.workers = staff + self.workers
            self.settle()

    def go_on_with_bodies(self) -> None:
        """Let every client send and take what there is."""
        for client in self.clients:
            for conversation in client.conversations:
                client.finish(conversation)
                client.take(conversation, 10**7)

    def judge(self, conversation: Conversation) -> None:
        """Fail if an outcome cannot be."""
        assert not conversation.open, f'{conversation} has no outcome'
        outcome, lost = conversation.outcome, self.wires.lost[conversation.id] > 0
        if conversation.cancelled or conversation.alone:
            return
        waited = conversation.settled - conversation.began
        text = f'{outcome!r} after {waited:.3f} s of {conversation}'
        if isinstance(outcome, Unroutable):
            assert self.deleted, text
        elif isinstance(outcome, ExpirationError):
            assert waited >= conversation.expiration - 0.01 or conversation.meddled, text
            # A worker that dies before it has said anything leaves no trace.
            known = conversation.starts and not (conversation.slow or conversation.meddled or lost)
            assert not known, f'it ran: {text}'
        elif isinstance(outcome, WorkerLost):
            assert lost or conversation.meddled, f'its worker lives: {text}'
        elif isinstance(outcome, TimeoutError):
            # Who looks ahead keeps what it was allowed to run, though no slot gets free; its caller counts meanwhile.
            workers = [*self.workers, *self.dead_workers]
            overdue = any(conversation.id in worker.overdue | worker.kept for worker in workers)
            assert overdue or conversation.slow or lost, f'it had time: {text}'
        elif isinstance(outcome, RemoteError):
            assert conversation.failures, text
        elif isinstance(outcome, ConnectionError):
            assert conversation.cut, text
        elif isinstance(outcome, Reply):
            assert outcome.body == conversation.id.encode() and None in conversation.answers, text
        else:
            assert outcome is not None and not isinstance(outcome, CrewError), text
            assert conversation.arrived in conversation.answers, f'an answer was cut, and looks whole: {text}'

    @property
    def dead_workers(self) -> list[Worker]:
        """The workers that are gone."""
        return [each for each in self.dead if isinstance(each, Worker)]

    def probe(self) -> None:
        """Fail unless a new call of each task is answered soon."""
        self.probing = True
        for worker in list(self.workers):
            # What hangs takes its slot for as long as it likes.
            if any(self.hangs(job) for job in worker.jobs):
                self.bury(worker)
        self.keep_staffed()
        self.pass_time(20.0)
        for client in self.clients:
            for task in TASKS:
                self.number += 1
                probe = Conversation(f'probe-{self.number}', task, True, Play(), self.clock.now, 30.0, 10.0)
                self.calls[probe.id] = probe
                client.call(probe, known=True, more=False, persistent=False)
                self.pass_time(3.0)
                assert isinstance(probe.outcome, Reply), f'it is not as before: {probe}'

    @staticmethod
    def hangs(job: Job) -> bool:
        """Return whether a task may take long still: one that nobody waits for writes until its time is over, too."""
        play = job.play
        slow = max(play.works, play.pause) > 10
        return bool(slow or not play.obeys or play.reads or job.left or job.writing)

    def close(self) -> None:
        """Let everybody end, and fail if anything is left over."""
        self.pass_time(70.0)
        for worker in list(self.workers):
            worker.told_to_end()
        self.pass_time(12.0)
        assert not self.workers, f'they have not ended: {[worker.jobs for worker in self.workers]}'
        for client in self.clients:
            assert len(client.caller) == 0 and not client.caller._unsent
            assert client.caller._calls.next_deadline() is None
            closing = client.loop.create_task(client.close())
            self.settle()
            assert closing.done() and closing.exception() is None
        self.check()
        for name, status in self.wires.queues().items():
            assert name.startswith(topology.TASKS) and status.unacked == status.consumers == 0, name
            left = [envelope.correlation_id for envelope in self.wires.peek(name)]
            assert not left, f'nobody has taken {left}'
        for client in self.clients:
            assert not client.loop._tasks, client.loop._tasks


def seeds() -> list[bytes]:
    """Return a few calls in peace, and what may happen while some wait behind others in one worker."""
    call = bytes([0, 0, 0, 0x40, 5, 0, 0, 2, 1, 2, 0, 1, 0, 0, 3, 1, 0])
    # Two workers, of which the second looks ahead; calls at once, which are short, or work for a moment.
    two, short = bytes([0, 0, 1, *bytes(4), 2, 0, 3, 0, 0]), bytes([128, 0, 0, 0, 2, 0, 0])
    works = bytes([128, 0, 0, 0x40, 3, *bytes(6), 2, 2, 0, 0])
    # A slot that is slow to take the next; and a task that works for long, behind short ones.
    rests, long = bytes([128, 0, 0, 0x40, *bytes(7), 2, 2, 0, 0]), bytes([128, 0, 0, 0x40, 5, *bytes(7), 3, 3, 0])
    bursts = [short * 8, works * 8, works + short * 7]
    happens = [[6, 1], [6, 2], [7, 6], [25, 1], [21, 2, 0], [23, 1], [31, 0, 5], [28, 2], [19, 2, 7, 6], [8, 2, 25, 1]]
    return [
        bytes(4) + call,
        bytes(4) + call * 4 + bytes([6, 8]),
        bytes([1, 0, 0, 0, 1, 0]) + call * 2 + bytes([23, 0, 26]),
        *(two + burst + bytes([12, 0, *each]) for burst in bursts for each in happens),
        *(two + rests * 6 + long * 2 + bytes([12, 0, *each]) for each in happens[:4]),
        # In the middle of it: the worker goes on by a few turns, and is told to end, or loses its connection.
        *(two + rests * 8 + bytes(turns * [144, 2] + each) for turns in range(6) for each in ([153, 1], [149, 2, 0])),
    ]
