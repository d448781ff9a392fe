"""The worker's end of the connection: deliveries become runs, runs become replies, replies are acked.

One thread owns the connection, this object and all decisions; tasks run elsewhere and only report their end. What is
decided in ``deliveries`` is carried out here.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from crew import codec, topology
from crew.envelope import Envelope
from crew.exceptions import ConnectionError, CrewError, ProtocolError
from crew.messages import (
    Accept,
    Call,
    Cancel,
    Chunk,
    Credit,
    Failure,
    Go,
    Publication,
    Reply,
    Reset,
    Returned,
    Stop,
)
from crew.transports.addresses import dial
from crew.transports.alarm import Alarm
from crew.transports.base import Channel, Connection, Delivery
from crew.transports.bell import Bell
from crew.transports.session import Session
from crew.worker.bodies import Signal
from crew.worker.clock import Clock
from crew.worker.deliveries import (
    Ack,
    AckEarly,
    Action,
    Cancelled,
    Deliveries,
    Drop,
    GiveBack,
    Held,
    Interrupt,
    Look,
    Ping,
    Publish,
    Replace,
    Republish,
    Retract,
    Start,
    State,
)
from crew.worker.lookahead import LookAhead
from crew.worker.runs import OnFinished, Outcome, Run, Runner, out_of_memory
from crew.worker.settings import Settings, Terms

__all__ = ['Consumer', 'Settings']

log = logging.getLogger(__name__)

#: The priority of the consumer that looks ahead: it gets what no consumer that has a slot can take.
BEHIND = -1


@dataclass(slots=True, eq=False)
class _Queue:
    """One shared queue, and the tags of its consumers: one, and one that looks ahead, which may come and go."""

    name: str
    terms: Terms
    channel: Channel
    consumer: str | None = None
    looking: str | None = None


class Consumer:
    """One worker process's consumer. Lives on one asyncio loop.

    Args:
        settings: see :class:`Settings`.
        make_runner: makes what runs the tasks; given where to report the end of a run.
        clock: where runs are written down for the supervisor.
    """

    def __init__(self, settings: Settings, make_runner: Callable[[OnFinished], Runner], clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._runner = make_runner(self._report)
        several = len(settings.queues) > 1
        # Of several queues, which call is next depends on what their callers say meanwhile.
        ahead = 0 if several else self._runner.ahead
        look_ahead = LookAhead(settings.slots) if ahead and settings.prefetch is None else None
        self._deliveries = Deliveries(
            settings.slots, settings.limits, give_back=several, ahead=ahead, look_ahead=look_ahead
        )
        self._runs: dict[Held, Run] = {}
        self._held: dict[Run, Held] = {}
        self._late: list[tuple[Run, Envelope]] = []
        self._reports: deque[tuple[Run, Outcome, bool]] = deque()
        self._publications: deque[tuple[Envelope, str]] = deque()
        self._reporting = False
        self._bell = Bell(self._loop, self._collect)
        self._alarm = Alarm(self._loop, self._tick)
        self._channel: Channel | None = None
        self._notes: Channel | None = None
        self._queues: dict[str, _Queue] = {}
        self._paused: set[_Queue] = set()  # those whose consumers are stopped, for there is no slot for their calls
        self._moving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._idle = asyncio.Event()
        self._stuck: asyncio.Future[Any] = self._loop.create_future()
        self._ending = False
        self._prepared = asyncio.Event()
        self._prepared.set()
        self._session = Session(settings.urls, lambda url: dial(url, name=settings.name), self._prepare, self._on_lost)

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until told to stop; then finish what runs, answer it, and close.

        Args:
            stop: set by the owner when the process is to end.

        Returns:
            True if everything that ran has ended. False if something would not, so the process must be thrown away.

        Raises:
            BrokerRefused: the broker refused the very first connection.
        """
        self._session.start()
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        connected: asyncio.Future[Any] = asyncio.ensure_future(self._session.wait_ready())
        try:
            await asyncio.wait({connected, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                connected.result()
            await asyncio.wait({stopping, self._stuck}, return_when=asyncio.FIRST_COMPLETED)
            patience = self._settings.graceful_timeout
            if self._stuck.done():
                self._clock.set_leaving()
                patience = self._settings.limits.kill_after
            return await self._drain(patience)
        finally:
            stopping.cancel()
            connected.cancel()
            self._alarm.stop()
            for late, _ in self._late:
                log.warning('the answer to %s was dropped: there was no connection any more', late.text)
            await self._session.close()
            if not self._held:
                self._bell.silence()

    async def wait_ready(self) -> None:
        """Wait until calls are taken, once :meth:`run` has begun.

        Raises:
            BrokerRefused: the broker refused the very first connection.
        """
        await self._session.wait_ready()

    def give_up(self, reason: str) -> None:
        """Let :meth:`run` end, with a last moment for what runs, because this process can no longer be trusted."""
        if not self._stuck.done():
            log.error('this process is replaced: %s', reason)
            self._stuck.set_result(None)

    # Connecting

    async def _prepare(self, connection: Connection) -> None:
        self._prepared.clear()
        try:
            await self._set_up(connection)
        finally:
            self._prepared.set()

    async def _set_up(self, connection: Connection) -> None:
        settings = self._settings
        self._connection = connection
        queues = [topology.task_queue(terms.task, settings.queue_type) for terms in settings.queues]
        exchanges = [topology.DEAD_LETTERS, *([topology.PUBLICATIONS] if settings.publishes else [])]
        await connection.ensure(*exchanges, *queues)
        channel = await connection.open_channel(on_return=self._returned)
        inbox = topology.inbox()
        await channel.declare(inbox)
        await channel.consume(inbox.name, self._told, no_ack=True)
        self._send_late(channel)
        # A call that comes while the other queues are being consumed may hold the interpreter: then it is too late.
        self._clock.set_inbox(inbox.name)
        self._deliveries.inbox = inbox.name
        self._channel, self._notes = channel, None
        self._queues = {
            queue.name: _Queue(queue.name, terms, channel) for queue, terms in zip(queues, settings.queues, strict=True)
        }
        self._paused.clear()
        async with self._moving:
            for each in self._queues.values():
                await self._consume(each)
        self._clock.set_ready()
        names = ', '.join(queue.name for queue in queues)
        log.info('taking requests from %s, %d at once', names, settings.slots)

    async def _consume(self, queue: _Queue) -> None:
        slots = self._settings.slots
        ahead = (self._settings.prefetch or slots) - slots
        if not self._ending:
            queue.consumer = await self._begin_consuming(queue, slots)
        if ahead and not self._ending:
            queue.looking = await self._begin_consuming(queue, ahead)

    async def _begin_consuming(self, queue: _Queue, prefetch: int, priority: int = 0) -> str:
        # All on one channel, or what was sent first could arrive last.
        on_delivery = partial(self._arrived, queue)
        return await queue.channel.consume(queue.name, on_delivery, prefetch=prefetch, priority=priority)

    @staticmethod
    async def _stop_consuming(queue: _Queue) -> None:
        tags = [tag for tag in (queue.consumer, queue.looking) if tag is not None]
        queue.consumer = queue.looking = None
        await asyncio.gather(*map(queue.channel.cancel, tags))

    def _on_lost(self, reason: Exception) -> None:
        running = len(self._deliveries.running)
        if running and not self._ending:
            log.warning('%d running calls cannot be answered any more: the connection was lost', running)
        self._connection = self._channel = self._notes = None
        self._queues = {}
        self._paused.clear()
        unbegun = self._take_unbegun()
        for held, run in self._runs.items():
            self._break(held, run, reason)
        self._deliveries.lost(unbegun)

    # From the broker

    def _arrived(self, queue: _Queue, delivery: Delivery) -> None:
        try:
            call = codec.decode(delivery.envelope)
            if not isinstance(call, Call):
                raise ProtocolError(f'a {delivery.envelope.type} message has no place in a shared queue')
        except ProtocolError as error:
            self._refuse(delivery, error)
            return
        now, wall = time.monotonic(), time.time()
        self._do(self._deliveries.arrive(delivery, call, terms=queue.terms, now=now, wall=wall))

    def _refuse(self, delivery: Delivery, error: ProtocolError) -> None:
        """Answer and ack what nobody understands: requeued, it would come back for ever."""
        envelope = delivery.envelope
        log.warning('refused message %r: %s', envelope.correlation_id, error)
        if envelope.reply_to and envelope.correlation_id:
            refusal = Failure(
                correlation_id=envelope.correlation_id, kind='refused', type='ProtocolError', message=str(error)
            )
            delivery.channel.publish(codec.encode(refusal), envelope.reply_to, mandatory=True)
        delivery.channel.ack(delivery.tag)

    def _told(self, delivery: Delivery) -> None:
        try:
            message = codec.decode(delivery.envelope)
        except ProtocolError as error:
            log.warning('dropped a message from the inbox: %s', error)
            return
        if isinstance(message, (Go, Stop, Cancel)):
            self._do(self._deliveries.told(message, now=time.monotonic()))
        elif isinstance(message, (Chunk, Credit)):
            self._stream(message)

    def _returned(self, envelope: Envelope, routing_key: str) -> None:
        if envelope.type in ('accept', 'chunk', 'credit'):
            self._do(self._deliveries.caller_gone(routing_key, envelope.correlation_id, now=time.monotonic()))
        else:
            log.warning('the %s to call %s was dropped: its caller is gone', envelope.type, envelope.correlation_id)

    # From the runner

    def _report(self, run: Run, outcome: Outcome) -> None:
        """Take the end of a run, in whichever thread it ended."""
        self._reports.append((run, outcome, True))
        # An interrupt may have cut short the first report of this end just before the wake-up.
        self._wake_up(again=run.interrupted)

    def _wake_up(self, *, again: bool = False) -> None:
        """Have collected what runs have said; one wake-up serves all that is said meanwhile."""
        if again or not self._reporting:
            self._reporting = True
            try:
                self._bell.ring()
            except RuntimeError:  # a task that went on for longer than anybody waited for it
                log.debug('the end of a run is not heard: the loop is closed')

    def _collect(self) -> None:
        self._reporting = False
        while self._reports:
            run, outcome, ended = self._reports.popleft()
            # Now: what a run has published leaves before its reply.
            if self._publications:
                self._publish_out()
            if outcome is None:
                self._send_answer(run, ended=ended)
            if not ended:
                continue
            held = self._held.pop(run, None)
            if held is None:
                continue
            del self._runs[held]
            self._runner.settled(run)
            # They know the run, and it them: what is unread should not wait for the collector of such circles.
            run.input = run.output = None
            if held.orphaned:
                self._answer_late(run, held, outcome)
            took = run.ended - run.started
            self._do(self._deliveries.finished(held, outcome, now=time.monotonic(), took=took))
        self._publish_out()

    def _answer_late(self, run: Run, held: Held, outcome: Outcome) -> None:
        """Answer on another connection than the call came by: its caller may be connected still, and wait."""
        unanswered = held.state is State.RUNNING and outcome is not None and not held.answering
        if not held.call.reply_to or not unanswered:
            log.warning('the answer to %s was dropped: the connection was lost while it ran', run.text)
            return
        assert outcome is not None
        # No more than there are slots, for nothing is taken without a connection.
        self._late.append((run, self._encoded(held, outcome)))
        if self._channel is not None:
            self._send_late(self._channel)

    def _send_late(self, channel: Channel) -> None:
        late, self._late = self._late, []
        for run, envelope in late:
            channel.publish(envelope, run.call.reply_to, mandatory=True)
            log.info('%s was answered on a new connection: the one it came by was lost', run.text)

    # Carrying out what was decided

    def _do(self, actions: list[Action]) -> None:
        # Those queues are asked first: acked before, the one that was served last would be served next again.
        resumes = bool(self._paused) and self._deliveries.has_room
        acks: list[Ack] = []
        unstarted: list[Held] = []
        for action in actions:
            if isinstance(action, Publish):
                self._publish(action)
            elif isinstance(action, Ack):
                if resumes:
                    acks.append(action)
                else:
                    delivery = action.held.delivery
                    delivery.channel.ack(delivery.tag)
            elif isinstance(action, Start):
                self._start(action.held)
            elif isinstance(action, GiveBack):
                unstarted.append(action.held)
            else:
                self._carry_out(action)
        if unstarted:
            self._spawn(self._pause(unstarted))
        if resumes:
            self._spawn(self._resume(acks))
        if self._ending and not self._deliveries.busy:
            self._idle.set()
        due = self._deliveries.next_deadline()
        if due is not None:
            self._alarm.set(due)

    def _tick(self) -> None:
        # What has ended meanwhile is not late.
        self._collect()
        self._do(self._deliveries.tick(time.monotonic()))

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Look):
            self._spawn(self._look())
            return
        held = action.held
        if isinstance(action, AckEarly):
            self._spawn(self._ack_early(held))
        elif isinstance(action, Retract):
            self._retract()
        elif isinstance(action, Drop):
            log.info('dropped call %s: %s', held.call.correlation_id, action.reason)
            held.delivery.channel.ack(held.delivery.tag)
        elif isinstance(action, Cancelled):
            self._runs[held].cancelled = True
            self._break(held, self._runs[held], ConnectionError('the caller is gone'))
        elif isinstance(action, Interrupt):
            run = self._runs[held]
            log.warning('%s is stopped: %s', run.text, action.reason)
            self._runner.interrupt(run)
            # It may wait for bytes in a call that no interrupt reaches.
            run.fail_bodies(TimeoutError(action.reason))
        elif isinstance(action, Republish):
            self._republish(held, action.runs)
        elif isinstance(action, Ping):
            self._ping(held)
        elif isinstance(action, Replace):
            self._replace(held)

    def _publish(self, action: Publish) -> None:
        held = action.held
        held.delivery.channel.publish(self._encoded(held, action.message), held.call.reply_to, mandatory=True)
        run = self._runs.get(held)
        if run is not None:
            run.accept()

    def _encoded(self, held: Held, message: Accept | Reply | Failure | Reset) -> Envelope:
        try:
            return codec.encode(message)
        except ValueError as error:
            log.error('the answer to call %s cannot be sent: %s', held.call.correlation_id, error)
            return codec.encode(
                Failure(correlation_id=held.call.correlation_id, kind='raised', type='ValueError', message=str(error))
            )

    def _republish(self, held: Held, runs: int) -> None:
        """Put a call that nobody waits for back into its queue, as one that was never delivered."""
        wall = time.time()
        call = held.call
        left = call.expiration
        if left is not None and call.sent is not None:
            left = min(left, max(0.001, call.sent + left - wall))
        again = dataclasses.replace(call, runs=runs, expiration=left, sent=wall)
        log.info('published call %s anew: nobody waits for it, and it has begun %d times', call.correlation_id, runs)
        # Its priority has become a level on its way here, and would be taken for one once more.
        envelope = dataclasses.replace(codec.encode(again), priority=held.delivery.envelope.priority)
        held.delivery.channel.publish(envelope, topology.task_queue_name(held.terms.task))
        held.delivery.channel.ack(held.delivery.tag)

    def _start(self, held: Held) -> None:
        run = Run(held.call, held.timeout, self._clock, held.terms.task, self, accepted=held.accepted)
        self._runs[held] = run
        self._held[run] = held
        self._runner.start(run)

    def _retract(self) -> None:
        self._do(self._deliveries.retracted(self._take_unbegun(), now=time.monotonic()))

    def _take_unbegun(self) -> list[Held]:
        """Take back what was given to the runner and has not begun."""
        unbegun = []
        for run in self._runner.retract():
            held = self._held[run]
            if held.acked:
                # The broker does not have it any more, so nobody else can run it.
                self._runner.start(run)
                continue
            del self._held[run], self._runs[held]
            unbegun.append(held)
        return unbegun

    def _replace(self, held: Held) -> None:
        run = self._runs[held]
        log.error(
            '%s did not end within %g s after it was stopped, so this process is replaced; it is here:\n%s',
            run.text,
            self._settings.limits.kill_after,
            self._runner.stacks(),
        )
        if not self._stuck.done():
            self._stuck.set_result(held)

    # Bodies in parts

    def make_signal(self) -> Signal:
        """Return what a task can wait for; see :class:`crew.worker.runs.Owner`."""
        return self._runner.make_signal()

    def answered(self, run: Run) -> None:
        """Take note that a run has something to send; see :class:`crew.worker.runs.Owner`."""
        self._reports.append((run, None, False))
        self._wake_up()

    def wanted(self, run: Run, offset: int, waiting: bool) -> None:
        """Take note that a run needs more of its body; see :class:`crew.worker.runs.Owner`."""
        self._loop.call_soon_threadsafe(self._grant, run, offset, waiting)

    def exhausted(self, run: Run) -> None:
        """Take note that memory is gone; see :class:`crew.worker.runs.Owner`."""
        self._loop.call_soon_threadsafe(self._leave_for_memory, run)

    def _leave_for_memory(self, run: Run) -> None:
        try:
            self.give_up(f'there is hardly any memory left after {run.text}')
        except MemoryError:
            out_of_memory()

    def _send_answer(self, run: Run, *, ended: bool = False) -> None:
        held, output = self._held.get(run), run.output
        if held is None or run.broken is not None:
            return
        if run.reply is not None:
            whole, run.reply = run.reply, None
            self._do(self._deliveries.reply(held, whole))
            if run.input is not None:
                run.input.fail(ConnectionError('the answer has gone'))
        if output is None:
            return
        if output.reply is not None:
            reply, output.reply = output.reply, None
            self._do(self._deliveries.answer(held, reply, now=time.monotonic()))
        if not held.answering or held.state is not State.RUNNING:
            return
        for chunk in output.collect(ended=ended):
            held.delivery.channel.publish(codec.encode(chunk), held.call.reply_to, mandatory=True)
        if output.sender.finished:
            self._deliveries.all_sent(held)
        self._keep_time(run, held, paused=output.sender.stalled)

    def _grant(self, run: Run, offset: int, waiting: bool) -> None:
        held = self._held.get(run)
        if held is None or run.input is None or run.broken is not None:
            return
        credit = run.input.receiver.consumed(offset)
        if credit is not None:
            message = Credit(correlation_id=held.call.correlation_id, offset=credit)
            held.delivery.channel.publish(codec.encode(message), held.call.reply_to, mandatory=True)
        self._keep_time(run, held, paused=waiting and run.input.receiver.received <= offset)

    def _stream(self, message: Chunk | Credit) -> None:
        held = self._deliveries.find(message.reply_to, message.correlation_id)
        run = None if held is None else self._runs.get(held)
        if held is None or run is None or run.broken is not None:
            return
        if isinstance(message, Credit):
            # What says nothing new is no progress: the time of the run goes on.
            if run.output is not None and run.output.grant(message.offset):
                self._send_answer(run)
        elif run.input is not None:
            try:
                run.input.feed(message)
            except ProtocolError as error:
                log.warning('%s: %s', run.text, error)
                self._break(held, run, error)
            self._keep_time(run, held, paused=False)

    def _keep_time(self, run: Run, held: Held, *, paused: bool) -> None:
        """Let the time of a run begin anew, or stand still while it waits for the caller's own end."""
        now = time.monotonic()
        if paused:
            self._deliveries.pause(held, now=now)
        else:
            self._deliveries.progress(held, now=now)
        self._alarm.set(held.due)
        run.renew(now, paused=paused)

    def _break(self, held: Held, run: Run, error: Exception) -> None:
        run.fail_bodies(error)
        if held.paused:
            # What it waited for will not come, so from here on the time is its own.
            self._keep_time(run, held, paused=False)

    def _ping(self, held: Held) -> None:
        output, correlation_id = self._runs[held].output, held.call.correlation_id
        message: Chunk | Credit
        if output is not None and output.sender.stalled:
            message = Chunk(correlation_id=correlation_id, offset=output.sender.sent)
        else:
            body = self._runs[held].input
            message = Credit(correlation_id=correlation_id, offset=0 if body is None else body.receiver.credit)
        held.delivery.channel.publish(codec.encode(message), held.call.reply_to, mandatory=True)

    # Publishing to subscribers

    def publish(self, publication: Publication) -> None:
        """Give a value to everybody who has subscribed; from any thread.

        Raises:
            ConnectionError: there is no connection now.
        """
        envelope = codec.encode(publication)
        if self._channel is None:
            raise ConnectionError('there is no connection to the broker')
        self._publications.append((envelope, publication.channel))
        self._wake_up()

    def _publish_out(self) -> None:
        while self._publications:
            envelope, name = self._publications.popleft()
            if self._channel is None:
                log.warning('a publication on %r was dropped: the connection was lost', name)
            else:
                self._channel.publish(envelope, '', exchange=topology.PUBLICATIONS.name)

    # Looking ahead

    async def _look(self) -> None:
        """Have as many calls fetched ahead as it was last decided."""
        for queue in self._queues.values():
            looking, queue.looking = queue.looking, None
            if looking is not None:
                await queue.channel.cancel(looking)
            # What has been decided meanwhile is carried out by whoever comes next.
            window = self._deliveries.window
            if window and queue not in self._paused and not self._ending:
                # Giving back must not take longer than it has to. Where the broker allows no channel for it, nothing is
                # fetched ahead.
                await self._open_notes()
                queue.looking = await self._begin_consuming(queue, window, BEHIND)
                log.debug('fetching %d calls ahead', window)

    # Giving back while others run

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(self._moved(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _moved(self, work: Coroutine[Any, Any, None]) -> None:
        # One after the other, or a queue would be cancelled while it is being consumed again.
        try:
            async with self._moving:
                await work
        except CrewError as error:
            log.debug('left undone, for the connection is lost: %s', error)

    async def _pause(self, unstarted: list[Held]) -> None:
        """Consume no more from the queues that these came from, and put them back."""
        for name in {topology.task_queue_name(held.terms.task) for held in unstarted}:
            queue = self._queues.get(name)
            if queue is not None and queue not in self._paused:
                self._paused.add(queue)
                await self._stop_consuming(queue)
        await self._put_back(unstarted)
        if self._deliveries.has_room:
            await self._resume([])

    async def _resume(self, acks: list[Ack]) -> None:
        """Consume again what was paused, and only then acknowledge what has ended."""
        for queue in self._queues.values():
            if queue in self._paused and not self._ending:
                self._paused.discard(queue)
                await self._consume(queue)
        for ack in acks:
            ack.held.delivery.channel.ack(ack.held.delivery.tag)

    async def _ack_early(self, held: Held) -> None:
        """Acknowledge what runs, before the broker takes it back; nothing is to come in its place without a slot."""
        if held.orphaned:
            return
        text = self._runs[held].text if held in self._runs else f'call {held.call.correlation_id}'
        if not self._deliveries.has_room:
            for queue in self._queues.values():
                self._paused.add(queue)
                await self._stop_consuming(queue)
        held.delivery.channel.ack(held.delivery.tag)
        if held.call.reply_to:
            log.info('%s is acked while it runs: the broker would take it back (--consumer-timeout)', text)
        else:
            log.warning('%s is acked while it runs; if this process dies it is lost, for nobody waits for it', text)
        if self._paused and self._deliveries.has_room:
            await self._resume([])

    async def _put_back(self, unstarted: list[Held]) -> None:
        """Put back deliveries that were not started: their callers are told first, and a redelivery is no run then."""
        if not unstarted or self._connection is None:
            return
        notes = await self._open_notes()
        for reply_to in {held.call.reply_to for held in unstarted if held.call.reply_to}:
            ids = tuple(held.call.correlation_id for held in unstarted if held.call.reply_to == reply_to)
            notes.publish(codec.encode(Returned(correlation_ids=ids)), reply_to)
        await notes.confirmed()
        for held in unstarted:
            if held.call.reply_to:
                held.delivery.channel.nack(held.delivery.tag)
            else:
                # Redelivered, it would count as one that may have run.
                self._republish(held, held.call.runs)
        log.debug('gave back %d calls that were not started', len(unstarted))

    async def _open_notes(self) -> Channel:
        """Return the channel on which callers are told what was given back, opened when it is first wanted."""
        if self._notes is None:
            if self._connection is None:
                raise ConnectionError('the connection to the broker is lost')
            self._notes = await self._connection.open_channel(confirm=True)
        return self._notes

    # Ending

    async def _drain(self, patience: float) -> bool:
        """Take nothing more, put back what has not begun, and wait for what runs."""
        self._ending = True
        deadline = self._loop.time() + patience
        self._deliveries.drain()
        try:
            await asyncio.wait_for(self._give_back(), min(patience, 10.0))
        except (CrewError, asyncio.TimeoutError) as error:
            log.warning('could not give back what was not started: %s', error)
        if self._deliveries.busy:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), max(0.0, deadline - self._loop.time()))
        for run in self._held:
            log.error('%s is abandoned: it has not ended', run.text)
        return not self._held

    async def _give_back(self) -> None:
        """Put back what was not started: a nack alone would come straight back, and would count as a run."""
        # A consumer that is only being started would take calls behind our back.
        await self._prepared.wait()
        async with self._moving:
            for queue in self._queues.values():
                await self._stop_consuming(queue)
            self._collect()
            self._retract()
            unstarted = self._deliveries.take_unstarted()
            await self._put_back(unstarted)
        if unstarted:
            log.info('gave back %d calls that were not started', len(unstarted))
