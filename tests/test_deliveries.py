"""What a worker holds: nothing runs that must not, nothing is acked before its answer is out, whatever comes when."""

from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crew.envelope import Envelope
from crew.messages import Accept, Call, Cancel, Failure, Go, Reply, Stop
from crew.transports.base import Channel, Delivery
from crew.worker.deliveries import (
    ACCEPT_AFTER,
    ANSWER_WITHIN,
    FRESH,
    LONGEST_RUN,
    Ack,
    Action,
    Cancelled,
    Deliveries,
    Drop,
    Held,
    Interrupt,
    Limits,
    Publish,
    Replace,
    Start,
    State,
)

WALL = 1_700_000_000.0
REPLIES = 'crew.master.1'
INBOX = 'crew.worker.1'
LIMIT = 60.0
KILL_AFTER = 5.0

GO = Go(correlation_id='1', reply_to=REPLIES)
STOP = Stop(correlation_id='1', reply_to=REPLIES)
CANCEL = Cancel(correlation_id='1', reply_to=REPLIES)
REPLY = Reply(correlation_id='1')

# The decisions know no channel; whoever carries them out does.
NO_CHANNEL = cast(Channel, None)


def deliveries(slots: int = 1, timeout: float | None = None) -> Deliveries:
    held = Deliveries(slots, Limits(timeout, KILL_AFTER))
    held.inbox = INBOX
    return held


def arrive(
    to: Deliveries, name: str = '1', *, redelivered: bool = False, waited: float = 0.0, now: float = 0.0, **fields: Any
) -> list[Action]:
    call = Call(**{'correlation_id': name, 'reply_to': REPLIES, 'timeout': LIMIT, 'sent': WALL - waited, **fields})
    return to.arrive(Delivery(Envelope(), 0, redelivered, NO_CHANNEL), call, now=now, wall=WALL)


def kinds(actions: list[Action]) -> list[type[Action]]:
    return [type(action) for action in actions]


def running(slots: int = 1, **fields: Any) -> tuple[Deliveries, Held]:
    """Deliveries with one that has just begun to run."""
    to = deliveries(slots)
    [start] = arrive(to, **fields)
    assert isinstance(start, Start)
    return to, start.held


def asking(to: Deliveries, name: str = '1') -> Held:
    [publish] = arrive(to, name, redelivered=True)
    return publish.held


# The table, row by row


def test_a_fresh_delivery_starts_when_a_slot_is_free() -> None:
    to = deliveries()
    [start] = arrive(to)
    assert isinstance(start, Start)
    assert (start.held.state, start.held.started) == (State.RUNNING, 0.0)


def test_a_fresh_delivery_is_ready_while_no_slot_is_free() -> None:
    to, first = running()
    assert arrive(to, '2') == []
    *_, start = to.finished(first, REPLY, now=1.0)
    assert isinstance(start, Start)
    assert (start.held.call.correlation_id, start.held.started) == ('2', 1.0)


def test_a_delivery_that_waited_here_for_a_slot_is_asked_about() -> None:
    to, first = running()
    arrive(to, '2')
    *_, ask = to.finished(first, REPLY, now=FRESH + 0.1)
    assert isinstance(ask, Publish)
    assert isinstance(ask.message, Accept)
    assert (ask.message.ask, ask.message.redelivered) == (True, False)


def test_after_a_go_it_starts_unasked_however_long_it_waits_for_a_slot() -> None:
    to, first = running()
    asking(to, '2')
    to.told(Go(correlation_id='2', reply_to=REPLIES), now=0.0)
    assert kinds(to.finished(first, REPLY, now=50.0)) == [Publish, Ack, Start]


@pytest.mark.parametrize(('redelivered', 'waited'), [(True, 0.0), (False, FRESH + 0.01), (True, 100.0)])
def test_a_delivery_that_may_have_lost_its_caller_is_asked_about(redelivered: bool, waited: float) -> None:
    to = deliveries()
    [ask] = arrive(to, redelivered=redelivered, waited=waited, now=3.0)
    assert isinstance(ask, Publish)
    expected = Accept(correlation_id='1', inbox=INBOX, ask=True, redelivered=redelivered, timeout=LIMIT)
    assert ask.message == expected
    assert (to.running, to.next_deadline()) == ([], 3.0 + ANSWER_WITHIN)


@pytest.mark.parametrize('waited', [0.0, FRESH, -100.0])
def test_a_delivery_that_came_at_once_starts_unasked_even_if_clocks_differ(waited: float) -> None:
    assert kinds(arrive(deliveries(), waited=waited)) == [Start]


def test_a_call_nobody_waits_for_is_never_asked_about() -> None:
    assert kinds(arrive(deliveries(), redelivered=True, reply_to='')) == [Start]


def test_asking_go_starts_it() -> None:
    to = deliveries()
    held = asking(to)
    assert to.told(GO, now=2.0) == [Start(held)]
    assert held.started == 2.0


def test_asking_go_makes_it_ready_while_no_slot_is_free() -> None:
    to, first = running()
    held = asking(to, '2')
    assert to.told(Go(correlation_id='2', reply_to=REPLIES), now=0.0) == []
    assert to.finished(first, REPLY, now=1.0) == [Publish(first, REPLY), Ack(first), Start(held)]


@pytest.mark.parametrize('message', [STOP, CANCEL])
def test_asking_stop_or_cancel_drops_it(message: Stop | Cancel) -> None:
    to = deliveries()
    asking(to)
    [drop] = to.told(message, now=0.0)
    assert isinstance(drop, Drop)
    assert len(to) == 0


def test_asking_a_caller_that_is_gone_drops_it() -> None:
    to = deliveries()
    held = asking(to)
    [drop] = to.caller_gone(REPLIES, '1')
    assert isinstance(drop, Drop)
    assert drop.held is held
    assert to.told(GO, now=0.0) == []


def test_asking_no_answer_drops_it() -> None:
    to = deliveries()
    asking(to)
    assert to.tick(ANSWER_WITHIN - 0.01) == []
    assert kinds(to.tick(ANSWER_WITHIN)) == [Drop]
    assert (to.told(GO, now=11.0), len(to), to.next_deadline()) == ([], 0, None)


def test_ready_cancel_drops_it() -> None:
    to, first = running()
    arrive(to, '2')
    [drop] = to.told(Cancel(correlation_id='2', reply_to=REPLIES), now=0.0)
    assert isinstance(drop, Drop)
    assert drop.held.call.correlation_id == '2'
    assert to.finished(first, REPLY, now=1.0) == [Publish(first, REPLY), Ack(first)]


def test_running_for_a_while_the_caller_hears_of_it_once() -> None:
    to, held = running()
    assert to.next_deadline() == ACCEPT_AFTER
    assert to.tick(ACCEPT_AFTER - 0.01) == []
    [accept] = to.tick(ACCEPT_AFTER)
    assert accept == Publish(held, Accept(correlation_id='1', inbox=INBOX, ask=False, ran=ACCEPT_AFTER, timeout=LIMIT))
    assert to.tick(1.0) == []
    assert to.next_deadline() == LIMIT


def test_running_after_a_go_needs_no_accept() -> None:
    to = deliveries()
    asking(to)
    to.told(GO, now=0.0)
    assert to.tick(LIMIT - 0.01) == []
    assert to.next_deadline() == LIMIT


def test_finished_its_reply_goes_out_before_its_ack() -> None:
    to, held = running()
    assert to.finished(held, REPLY, now=1.0) == [Publish(held, REPLY), Ack(held)]
    assert (len(to), to.busy) == (0, False)


def test_finished_reported_twice_is_answered_once() -> None:
    to, held = running()
    to.finished(held, REPLY, now=1.0)
    assert to.finished(held, Failure(correlation_id='1', kind='timeout'), now=1.0) == []


def test_finished_without_anybody_who_waits_is_acked_in_silence() -> None:
    to, held = running(reply_to='')
    assert to.finished(held, REPLY, now=1.0) == [Ack(held)]


def test_overdue_the_caller_hears_timeout_and_the_task_is_interrupted() -> None:
    to, held = running()
    to.tick(1.0)
    publish, interrupt = to.tick(LIMIT)
    assert isinstance(publish, Publish)
    assert isinstance(publish.message, Failure)
    assert publish.message.kind == 'timeout'
    assert interrupt == Interrupt(held)
    assert to.next_deadline() == LIMIT + KILL_AFTER


def test_overdue_without_anybody_who_waits_the_task_is_only_interrupted() -> None:
    to, held = running(reply_to='')
    assert to.tick(1.0) == []
    assert to.tick(LIMIT) == [Interrupt(held)]


def test_overdue_it_keeps_its_slot_and_its_ack() -> None:
    to, held = running()
    arrive(to, '2')
    to.tick(1.0)
    to.tick(LIMIT)
    assert (to.running, to.busy) == ([held], False)


def test_overdue_then_finished_it_is_only_acked() -> None:
    to, held = running()
    to.tick(1.0)
    to.tick(LIMIT)
    assert to.finished(held, REPLY, now=LIMIT + 1) == [Ack(held)]


def test_overdue_until_the_end_of_patience_the_process_must_be_replaced_once() -> None:
    to, held = running()
    to.tick(1.0)
    to.tick(LIMIT)
    assert to.tick(LIMIT + KILL_AFTER - 0.01) == []
    assert to.tick(LIMIT + KILL_AFTER) == [Replace(held)]
    assert (to.tick(1e6), to.next_deadline()) == ([], None)


# What else is promised


def test_running_a_cancel_is_passed_on_and_the_run_goes_on() -> None:
    to, held = running()
    assert to.told(CANCEL, now=0.0) == [Cancelled(held)]
    assert to.caller_gone(REPLIES, '1') == [Cancelled(held)]
    assert to.finished(held, REPLY, now=1.0) == [Publish(held, REPLY), Ack(held)]


@pytest.mark.parametrize('message', [GO, STOP])
def test_running_a_late_answer_means_nothing(message: Go | Stop) -> None:
    to, held = running()
    assert to.told(message, now=0.0) == []
    assert to.running == [held]


@pytest.mark.parametrize('message', [GO, STOP, CANCEL])
def test_what_is_about_nothing_here_means_nothing(message: Go | Stop | Cancel) -> None:
    assert deliveries().told(message, now=0.0) == deliveries().caller_gone(REPLIES, '1') == []


def test_the_same_id_of_another_caller_is_another_call() -> None:
    to = deliveries(slots=2)
    arrive(to)
    assert kinds(arrive(to, reply_to='crew.master.2')) == [Start]
    assert to.told(Cancel(correlation_id='1', reply_to='crew.master.3'), now=0.0) == []


@pytest.mark.parametrize('state', ['asking', 'ready', 'running'])
def test_a_call_that_is_here_already_is_dropped(state: str) -> None:
    to, _ = running()
    name = {'asking': '2', 'ready': '3', 'running': '1'}[state]
    asking(to, '2')
    arrive(to, '3')
    assert kinds(arrive(to, name)) == [Drop]
    assert len(to) == 3


@pytest.mark.parametrize(
    ('call', 'own', 'limit'),
    [
        ({'timeout': 5.0}, None, 5.0),
        ({'timeout': 5.0}, 9.0, 5.0),
        ({'timeout': 9.0}, 5.0, 5.0),
        ({'timeout': None}, 5.0, 5.0),
        ({'timeout': None}, None, LONGEST_RUN),
        ({'timeout': None, 'expiration': 30.0}, None, 29.5),
        ({'timeout': None, 'expiration': 0.25}, None, 0.001),
        ({'timeout': None, 'expiration': 30.0, 'sent': None}, None, 30.0),
        ({'timeout': None, 'expiration': 30.0, 'sent': WALL + 1e6}, None, 30.0),
    ],
)
def test_a_run_may_take_what_its_caller_and_its_worker_both_allow(
    call: dict[str, Any], own: float | None, limit: float
) -> None:
    [start] = arrive(deliveries(timeout=own), waited=0.5, **call)
    assert start.held.timeout == limit


def test_a_run_shorter_than_the_accept_is_still_limited() -> None:
    to, held = running(timeout=0.01)
    assert kinds(to.tick(0.01)) == [Publish, Interrupt]
    assert held.state is State.OVERDUE


def test_deliveries_start_in_the_order_in_which_they_came() -> None:
    to, first = running()
    for name in '234':
        arrive(to, name)
    order = []
    while first is not None:
        starts = [action.held for action in to.finished(first, REPLY, now=0.0) if isinstance(action, Start)]
        order += [held.call.correlation_id for held in starts]
        first = starts[0] if starts else None  # type: ignore[assignment]
    assert order == ['2', '3', '4']


def test_after_a_drain_nothing_starts() -> None:
    to, first = running()
    arrive(to, '2')
    held = asking(to, '3')
    to.drain()
    assert to.told(Go(correlation_id='3', reply_to=REPLIES), now=0.0) == []
    assert arrive(to, '4') == []
    assert to.finished(first, REPLY, now=1.0) == [Publish(first, REPLY), Ack(first)]
    assert {each.call.correlation_id for each in to.take_unstarted()} == {'2', '3', '4'}
    assert held.state is State.READY
    assert len(to) == 0


def test_a_redelivery_is_asked_about_even_while_draining() -> None:
    # Put back without a question, it would count as never started, although a worker may have died of it.
    to = deliveries()
    to.drain()
    [ask] = arrive(to, redelivered=True)
    assert isinstance(ask, Publish)
    assert to.take_unstarted() == [ask.held]


def test_when_the_connection_is_lost_runs_go_on_unanswered_and_keep_their_slot() -> None:
    to, first = running()
    arrive(to, '2')
    to.lost()
    assert to.running == [first]
    assert to.busy
    assert arrive(to, '3') == []
    assert kinds(to.finished(first, REPLY, now=1.0)) == [Start]


def test_when_the_connection_is_lost_a_run_still_meets_its_limits() -> None:
    to, held = running()
    to.lost()
    assert to.tick(1.0) == []
    assert to.tick(LIMIT) == [Interrupt(held)]
    assert to.tick(LIMIT + KILL_AFTER) == [Replace(held)]


def test_a_call_that_comes_back_while_its_first_run_goes_on_is_another_delivery() -> None:
    to, first = running(slots=2)
    to.lost()
    second = asking(to)
    assert to.told(GO, now=0.0) == [Start(second)]
    assert to.told(CANCEL, now=0.0) == [Cancelled(second)]
    assert to.finished(first, REPLY, now=1.0) == []
    assert to.finished(second, REPLY, now=1.0) == [Publish(second, REPLY), Ack(second)]


# Whatever the sequence of events


class AnyOrder(RuleBasedStateMachine):
    """A broker, a caller and a runner that do what they like, and the rules that must hold nevertheless."""

    SLOTS = 2
    NAMES = st.sampled_from('abcd')

    def __init__(self) -> None:
        super().__init__()
        self.to = deliveries(self.SLOTS)
        self.now = 0.0
        #: The tags of what the broker holds as unacked on the connection in use.
        self.unacked: set[int] = set()
        self.acked: Counter[Held] = Counter()
        self.answered: Counter[Held] = Counter()
        self.asked: set[Held] = set()
        self.allowed: set[Held] = set()
        self.forbidden: set[Held] = set()
        self.runs: list[Held] = []
        self.ended: list[Held] = []
        self.draining = self.over = False
        self.tag = 0

    # Events

    @rule(name=NAMES, redelivered=st.booleans(), waited=st.sampled_from([0.0, 5.0]), quick=st.booleans())
    def arrive(self, name: str, redelivered: bool, waited: float, quick: bool) -> None:
        if self.over:
            return
        self.tag += 1
        delivery = Delivery(Envelope(), self.tag, redelivered, NO_CHANNEL)
        call = Call(correlation_id=name, reply_to=REPLIES, timeout=0.03 if quick else LIMIT, sent=WALL - waited)
        self.unacked.add(self.tag)
        self.do(self.to.arrive(delivery, call, now=self.now, wall=WALL))

    @rule(name=NAMES, what=st.sampled_from([Go, Go, Go, Stop, Cancel]))
    def tell(self, name: str, what: type[Go] | type[Stop] | type[Cancel]) -> None:
        waiting = [held for held in self.asked if held.call.correlation_id == name and held.state is State.ASKING]
        for held in waiting:
            (self.allowed if what is Go else self.forbidden).add(held)
        self.do(self.to.told(what(correlation_id=name, reply_to=REPLIES), now=self.now))
        self.asked -= set(waiting)

    @rule(name=NAMES)
    def caller_gone(self, name: str) -> None:
        self.forbidden |= {held for held in self.asked if held.call.correlation_id == name}
        self.asked -= self.forbidden
        self.do(self.to.caller_gone(REPLIES, name))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), twice=st.booleans())
    def finish(self, data: st.DataObject, twice: bool) -> None:
        held = data.draw(st.sampled_from(self.runs))
        self.runs.remove(held)
        self.ended.append(held)
        reply = Reply(correlation_id=held.call.correlation_id)
        self.do(self.to.finished(held, reply, now=self.now))
        if twice:
            assert self.to.finished(held, reply, now=self.now) == []

    @rule(seconds=st.sampled_from([0.01, 0.06, 1.0, 6.0, 11.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.to.tick(self.now))
        due = self.to.next_deadline()
        assert due is None or due > self.now

    @rule()
    def lose(self) -> None:
        self.to.lost()
        self.unacked.clear()
        self.asked.clear()

    @precondition(lambda self: self.tag > 8)
    @rule()
    def drain(self) -> None:
        self.to.drain()
        self.draining = True

    @precondition(lambda self: self.draining)
    @rule()
    def put_back(self) -> None:
        unstarted = self.to.take_unstarted()
        for held in unstarted:
            assert held not in self.runs
            self.unacked.remove(held.delivery.tag)
        self.asked -= set(unstarted)
        self.over = True

    # What is decided

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            held = action.held
            if isinstance(action, Start):
                self.start(held)
            elif isinstance(action, Publish):
                assert held.delivery.tag in self.unacked, 'published on a channel that is gone, or after its ack'
                self.publish(held, action.message)
            elif isinstance(action, Ack):
                assert self.answered[held] == 1, 'acked before it was answered'
                self.ack(held)
            elif isinstance(action, Drop):
                assert held not in self.runs and held not in self.ended
                self.forbidden.add(held)
                self.asked.discard(held)
                self.ack(held)
            else:
                assert held in self.runs

    def start(self, held: Held) -> None:
        assert not self.draining
        assert held not in self.runs and held not in self.ended
        assert held not in self.forbidden
        assert held in self.allowed or not held.redelivered
        assert held.delivery.tag in self.unacked
        self.runs.append(held)

    def publish(self, held: Held, message: Accept | Reply | Failure) -> None:
        if isinstance(message, Accept):
            assert message.ask == (held not in self.runs)
            if message.ask:
                self.asked.add(held)
        else:
            self.answered[held] += 1
            assert self.answered[held] == 1

    def ack(self, held: Held) -> None:
        self.acked[held] += 1
        assert self.acked[held] == 1
        self.unacked.remove(held.delivery.tag)

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        assert len(self.runs) <= self.SLOTS
        assert set(self.to.running) == set(self.runs)

    @invariant()
    def whatever_the_broker_waits_for_is_held_here(self) -> None:
        alive = sum(not held.orphaned for held in self.runs)
        assert len(self.unacked) == len(self.to) - len(self.runs) + alive

    @invariant()
    def a_slot_is_free_only_when_nothing_is_ready(self) -> None:
        assert self.draining or len(self.runs) == self.SLOTS or not self.to._ready


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
