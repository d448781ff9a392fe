"""What a worker holds: nothing runs that must not, nothing is acked before its answer is out, whatever comes when."""

from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crew.envelope import Envelope
from crew.messages import Accept, Call, Cancel, Failure, Go, Reply, Reset, Stop
from crew.transports.base import Channel, Delivery
from crew.worker.deliveries import (
    ACCEPT_AFTER,
    ANSWER_WITHIN,
    DEFAULT_TERMS,
    FRESH,
    GIVE_BACK_AFTER,
    HELD_AT_MOST,
    LONGEST_RUN,
    MAX_RUNS,
    PING_EVERY,
    SAY_AGAIN,
    Ack,
    AckEarly,
    Action,
    Cancelled,
    Deliveries,
    Drop,
    GiveBack,
    Held,
    Interrupt,
    Limits,
    Look,
    Ping,
    Publish,
    Replace,
    Republish,
    Retract,
    Start,
    State,
    Terms,
)
from crew.worker.lookahead import CAUTION, SHORT, LookAhead

WALL = 1_700_000_000.0
REPLIES = 'crew.master.1'
INBOX = 'crew.worker.1'
LIMIT = 60.0
KILL_AFTER = 5.0
HELD = 100.0

GO = Go(correlation_id='1', reply_to=REPLIES)
STOP = Stop(correlation_id='1', reply_to=REPLIES)
CANCEL = Cancel(correlation_id='1', reply_to=REPLIES)
REPLY = Reply(correlation_id='1')
BEGUN = Reply(correlation_id='1', more=True)

# The decisions know no channel; whoever carries them out does.
NO_CHANNEL = cast(Channel, None)


def deliveries(
    slots: int = 1, timeout: float | None = None, give_back: bool = False, held_for: float = 1e9
) -> Deliveries:
    held = Deliveries(slots, Limits(timeout, KILL_AFTER, held_for / HELD_AT_MOST), give_back=give_back)
    held.inbox = INBOX
    return held


def arrive(
    to: Deliveries,
    name: str = '1',
    *,
    redelivered: bool = False,
    waited: float = 0.0,
    now: float = 0.0,
    terms: Terms = DEFAULT_TERMS,
    **fields: Any,
) -> list[Action]:
    call = Call(**{'correlation_id': name, 'reply_to': REPLIES, 'timeout': LIMIT, 'sent': WALL - waited, **fields})
    return to.arrive(Delivery(Envelope(), 0, redelivered, NO_CHANNEL), call, terms=terms, now=now, wall=WALL)


def kinds(actions: list[Action]) -> list[type[Action]]:
    return [type(action) for action in actions]


def running(slots: int = 1, give_back: bool = False, held_for: float = 1e9, **fields: Any) -> tuple[Deliveries, Held]:
    """Deliveries with one that has just begun to run."""
    to = deliveries(slots, give_back=give_back, held_for=held_for)
    [start] = arrive(to, **fields)
    assert isinstance(start, Start)
    return to, start.held


def asking(to: Deliveries, name: str = '1', now: float = 0.0) -> Held:
    [publish] = arrive(to, name, redelivered=True, now=now)
    return publish.held


def names(actions: list[Action]) -> list[str]:
    return [action.held.call.correlation_id for action in actions]


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


def test_a_question_says_that_the_task_may_run_twice() -> None:
    [ask] = arrive(deliveries(), redelivered=True, terms=Terms(idempotent=True))
    assert isinstance(ask, Publish)
    assert isinstance(ask.message, Accept)
    assert ask.message.idempotent


@pytest.mark.parametrize('waited', [0.0, 100.0])
@pytest.mark.parametrize('runs', [0, 1])
def test_a_fresh_call_nobody_waits_for_starts_unasked(waited: float, runs: int) -> None:
    assert kinds(arrive(deliveries(), reply_to='', waited=waited, runs=runs)) == [Start]


def test_a_call_nobody_waits_for_starts_unasked_however_long_it_waits_for_a_slot() -> None:
    to, first = running()
    arrive(to, '2', reply_to='')
    assert kinds(to.finished(first, REPLY, now=FRESH + 1)) == [Publish, Ack, Start]


@pytest.mark.parametrize(('runs', 'again'), [(0, True), (1, False), (2, False)])
def test_a_redelivered_call_nobody_waits_for_is_published_anew_and_counted(runs: int, again: bool) -> None:
    to = deliveries()
    [action] = arrive(to, redelivered=True, reply_to='', runs=runs, terms=Terms(idempotent=True))
    assert isinstance(action, Republish if again else Drop)
    if isinstance(action, Republish):
        assert action.runs == runs + 1
    assert len(to) == 0


@pytest.mark.parametrize('runs', [0, 1])
def test_a_redelivered_call_nobody_waits_for_is_dropped_if_it_may_not_run_twice(runs: int) -> None:
    to = deliveries()
    [drop] = arrive(to, redelivered=True, reply_to='', runs=runs)
    assert isinstance(drop, Drop)
    assert 'not idempotent' in drop.reason
    assert len(to) == 0


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
    [drop] = to.caller_gone(REPLIES, '1', now=0.0)
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


def test_ready_it_is_given_back_when_all_slots_have_been_taken_for_long() -> None:
    to, _ = running(give_back=True)
    assert arrive(to, '2', now=0.01) == arrive(to, '3', now=0.011) == []
    assert to.next_deadline() == GIVE_BACK_AFTER
    assert to.tick(GIVE_BACK_AFTER - 0.001) == []
    given_back = to.tick(GIVE_BACK_AFTER)
    assert (kinds(given_back), names(given_back)) == ([GiveBack] * 2, ['2', '3'])
    assert to.next_deadline() == ACCEPT_AFTER
    assert kinds(arrive(to, '4', now=1.0)) == [GiveBack]
    assert len(to) == 1


def test_ready_it_is_not_given_back_while_the_youngest_run_is_young() -> None:
    to, _ = running(slots=2, give_back=True)
    arrive(to, '2', now=1.0)
    assert arrive(to, '3', now=1.0) == []
    assert kinds(to.tick(1.0)) == [Publish]
    assert to.next_deadline() == 1.0 + GIVE_BACK_AFTER


def test_ready_it_is_not_given_back_when_a_slot_is_free_in_time() -> None:
    to, first = running(give_back=True)
    arrive(to, '2')
    arrive(to, '3')
    *_, start = to.finished(first, REPLY, now=0.01)
    assert isinstance(start, Start)
    assert to.tick(GIVE_BACK_AFTER) == []
    assert names(to.tick(0.01 + GIVE_BACK_AFTER)) == ['3']


def test_ready_after_a_go_it_is_given_back_too() -> None:
    to, _ = running(give_back=True)
    held = asking(to, '2')
    assert to.told(Go(correlation_id='2', reply_to=REPLIES), now=1.0) == [GiveBack(held)]


def test_ready_in_the_one_queue_of_a_worker_it_waits_here() -> None:
    to, _ = running()
    arrive(to, '2')
    assert kinds(to.tick(100.0)) == [Publish, Interrupt]
    assert len(to) == 2


def test_a_slot_is_kept_for_a_moment_for_a_call_that_came_before_and_asks() -> None:
    to = deliveries(give_back=True)
    held = asking(to)
    assert arrive(to, '2', now=0.001) == []
    assert not to.has_room
    assert to.told(GO, now=0.002) == [Start(held)]
    assert names(to.tick(0.002 + GIVE_BACK_AFTER)) == ['2']


def test_the_moment_is_short() -> None:
    to = deliveries(give_back=True)
    asking(to)
    assert arrive(to, '2', now=0.001) == []
    assert to.next_deadline() == GIVE_BACK_AFTER
    assert kinds(to.tick(GIVE_BACK_AFTER)) == [Start]
    to, _ = deliveries(give_back=True), None
    asking(to)
    assert kinds(arrive(to, '2', now=GIVE_BACK_AFTER)) == [Start]


@pytest.mark.parametrize('gone', [STOP, CANCEL, None])
def test_a_slot_is_kept_no_more_when_the_call_that_asked_is_dropped(gone: Stop | Cancel | None) -> None:
    to = deliveries(give_back=True)
    asking(to)
    arrive(to, '2', now=0.001)
    actions = to.caller_gone(REPLIES, '1', now=0.002) if gone is None else to.told(gone, now=0.002)
    assert kinds(actions) == [Drop, Start]


@pytest.mark.parametrize(('slots', 'give_back'), [(2, True), (1, False)])
def test_no_slot_is_kept_if_there_is_another_or_only_one_queue(slots: int, give_back: bool) -> None:
    to = deliveries(slots, give_back=give_back)
    asking(to)
    assert kinds(arrive(to, '2', now=0.001)) == [Start]


def test_what_was_asked_about_starts_before_what_came_meanwhile() -> None:
    to, first = running()
    arrive(to, '2', now=0.1)
    held = asking(to, '3', now=0.2)
    arrive(to, '4', now=0.3)
    to.told(Go(correlation_id='3', reply_to=REPLIES), now=0.4)
    *_, start = to.finished(first, REPLY, now=0.5)
    assert names([start]) == ['2']
    assert to.finished(start.held, REPLY, now=0.6)[2:] == [Start(held)]


def test_running_for_a_while_the_caller_hears_of_it_and_again_now_and_then() -> None:
    to, held = running()
    assert to.next_deadline() == ACCEPT_AFTER
    assert to.tick(ACCEPT_AFTER - 0.01) == []
    [accept] = to.tick(ACCEPT_AFTER)
    assert accept == Publish(held, Accept(correlation_id='1', inbox=INBOX, ask=False, ran=ACCEPT_AFTER, timeout=LIMIT))
    assert to.tick(1.0) == []
    assert kinds(to.tick(ACCEPT_AFTER + SAY_AGAIN)) == [Publish]
    assert to.tick(ACCEPT_AFTER + SAY_AGAIN + 1.0) == []
    assert kinds(to.tick(LIMIT - 1.0)) == [Publish]
    assert to.next_deadline() == LIMIT


def test_running_after_a_go_needs_no_accept() -> None:
    to = deliveries()
    asking(to)
    to.told(GO, now=0.0)
    assert to.tick(SAY_AGAIN - 0.01) == []
    assert to.next_deadline() == SAY_AGAIN


def test_finished_its_reply_goes_out_before_its_ack() -> None:
    to, held = running()
    assert to.finished(held, REPLY, now=1.0) == [Publish(held, REPLY), Ack(held)]
    assert (len(to), to.busy) == (0, False)


def test_finished_reported_twice_is_answered_once() -> None:
    to, held = running()
    to.finished(held, REPLY, now=1.0)
    assert to.finished(held, Failure(correlation_id='1', kind='timeout'), now=1.0) == []


@pytest.mark.parametrize('outcome', [REPLY, Failure(correlation_id='1', kind='raised')])
def test_after_a_reply_before_its_end_the_caller_hears_nothing_more(outcome: Reply | Failure) -> None:
    to, held = running()
    assert to.reply(held, REPLY) == [Publish(held, REPLY)]
    assert to.reply(held, REPLY) == []
    assert to.tick(1.0) == []
    assert to.finished(held, outcome, now=2.0) == [Ack(held)]


def test_after_a_reply_before_its_end_a_run_is_still_stopped_when_its_time_is_over() -> None:
    to, held = running()
    to.reply(held, REPLY)
    to.tick(1.0)
    assert to.tick(LIMIT) == [Interrupt(held, 'it ran past its limit of 60 s')]
    assert to.tick(LIMIT + KILL_AFTER) == [Replace(held)]


def test_a_reply_of_a_run_that_nobody_waits_for_goes_nowhere() -> None:
    to, held = running(reply_to='')
    assert to.reply(held, REPLY) == []
    assert to.finished(held, REPLY, now=1.0) == [Ack(held)]


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
    assert interrupt == Interrupt(held, 'it ran past its limit of 60 s; its caller has been told')
    assert to.next_deadline() == LIMIT + KILL_AFTER


def test_overdue_without_anybody_who_waits_the_task_is_only_interrupted() -> None:
    to, held = running(reply_to='')
    assert to.tick(1.0) == []
    assert to.tick(LIMIT) == [Interrupt(held, 'it ran past its limit of 60 s')]


def test_overdue_it_keeps_its_slot_and_its_ack() -> None:
    to, held = running()
    arrive(to, '2')
    to.tick(1.0)
    to.tick(LIMIT)
    assert (to.running, to.busy) == ([held], True)


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


@pytest.mark.parametrize('how', ['cancel', 'gone'])
def test_running_without_anybody_who_waits_it_is_stopped_if_its_terms_say_so(how: str) -> None:
    to, held = running(terms=Terms(stop_on_cancel=True))
    cancelled = to.told(CANCEL, now=1.0) if how == 'cancel' else to.caller_gone(REPLIES, '1', now=1.0)
    assert cancelled == [Cancelled(held), Interrupt(held, 'its caller no longer waits')]
    assert (held.state, to.busy, to.running) == (State.OVERDUE, True, [held])
    assert to.told(CANCEL, now=2.0) == [Cancelled(held)]
    assert to.finished(held, REPLY, now=3.0) == [Ack(held)]


def test_stopped_for_a_cancel_until_the_end_of_patience_the_process_must_be_replaced() -> None:
    to, held = running(terms=Terms(stop_on_cancel=True))
    to.told(CANCEL, now=1.0)
    assert to.tick(1.0 + KILL_AFTER - 0.01) == []
    assert to.tick(1.0 + KILL_AFTER) == [Replace(held)]
    assert not to.busy
    assert to.tick(1e6) == []


def test_overdue_a_cancel_changes_nothing() -> None:
    to, held = running(terms=Terms(stop_on_cancel=True))
    to.tick(1.0)
    to.tick(LIMIT)
    assert to.told(CANCEL, now=LIMIT + 1) == [Cancelled(held)]
    assert to.tick(LIMIT + KILL_AFTER) == [Replace(held)]


# Bodies in parts


def test_a_call_that_has_more_is_accepted_as_it_starts() -> None:
    to = deliveries()
    accept, start = arrive(to, more=True)
    assert isinstance(accept, Publish) and isinstance(start, Start)
    assert accept.message == Accept(correlation_id='1', inbox=INBOX, ask=False, timeout=LIMIT)
    # And not again.
    assert to.tick(ACCEPT_AFTER) == []


def test_a_call_that_has_more_and_was_told_go_is_accepted_already() -> None:
    to = deliveries()
    arrive(to, more=True, redelivered=True)
    assert kinds(to.told(GO, now=1.0)) == [Start]


def test_running_the_beginning_of_an_answer_is_published_behind_accept() -> None:
    to, held = running()
    accept, begun = to.answer(held, BEGUN, now=0.01)
    assert isinstance(accept, Publish) and isinstance(accept.message, Accept) and not accept.message.ask
    assert begun == Publish(held, BEGUN)
    assert to.finished(held, None, now=1.0) == [Ack(held)]


def test_accepted_the_beginning_of_an_answer_is_published_alone() -> None:
    to, held = running()
    assert kinds(to.tick(ACCEPT_AFTER)) == [Publish]
    assert to.answer(held, BEGUN, now=1.0) == [Publish(held, BEGUN)]


def test_with_progress_the_time_begins_anew() -> None:
    to, held = running()
    to.answer(held, BEGUN, now=50.0)
    assert kinds(to.tick(LIMIT)) == [Publish]
    to.progress(held, now=100.0)
    assert kinds(to.tick(100.0 + LIMIT - 0.001)) == [Publish]
    assert kinds(to.tick(100.0 + LIMIT)) == [Publish, Interrupt]


def test_an_answer_that_has_begun_ends_in_a_reset_when_its_time_is_over() -> None:
    to, held = running()
    to.answer(held, BEGUN, now=0.0)
    reset, interrupt = to.tick(LIMIT)
    assert isinstance(reset, Publish) and isinstance(interrupt, Interrupt)
    assert reset.message == Reset(
        correlation_id='1', reason=f'the task ran past its limit of {LIMIT:g} s', timeout=True
    )
    assert to.finished(held, None, now=LIMIT + 1) == [Ack(held)]


def test_an_answer_that_has_begun_ends_in_a_reset_when_its_task_fails() -> None:
    to, held = running()
    to.answer(held, BEGUN, now=0.0)
    failure = Failure(correlation_id='1', kind='raised', type='KeyError', message='3', traceback='secret' * 1000)
    reset = Reset(correlation_id='1', reason='KeyError: 3')
    assert to.finished(held, failure, now=1.0) == [Publish(held, reset), Ack(held)]


@pytest.mark.parametrize('state', ['overdue', 'orphaned', 'nobody waits'])
def test_an_answer_does_not_begin_when_it_is_too_late(state: str) -> None:
    to, held = running(reply_to='' if state == 'nobody waits' else REPLIES)
    if state == 'overdue':
        to.tick(LIMIT)
    elif state == 'orphaned':
        to.lost()
    assert to.answer(held, BEGUN, now=LIMIT) == []
    assert not held.answering


def waiting() -> tuple[Deliveries, Held]:
    """Deliveries with one that waits for its caller's own end, since 10."""
    to = deliveries()
    *_, start = arrive(to, more=True)
    to.pause(start.held, now=10.0)
    return to, start.held


def test_while_it_waits_for_the_callers_end_its_time_stands_still_and_the_caller_is_looked_for() -> None:
    to, held = waiting()
    now = 10.0
    for _ in range(100):
        now += PING_EVERY
        assert to.tick(now - 0.001) == []
        assert to.tick(now) == [Ping(held)]
    to.progress(held, now=now)
    assert kinds(to.tick(now + LIMIT - 0.001)) == [Publish]
    assert kinds(to.tick(now + LIMIT)) == [Publish, Interrupt]


def test_who_goes_on_waiting_is_not_looked_for_less_often() -> None:
    to, held = waiting()
    to.pause(held, now=11.0)
    assert to.tick(10.0 + PING_EVERY) == [Ping(held)]


def test_what_is_overdue_does_not_wait_for_anybody() -> None:
    to, held = running()
    to.tick(LIMIT)
    to.pause(held, now=LIMIT)
    assert to.tick(LIMIT + KILL_AFTER) == [Replace(held)]


def test_a_run_is_found_while_it_can_be_answered() -> None:
    to, held = running()
    assert to.find(REPLIES, '1') is held
    assert to.find(REPLIES, '2') is to.find('crew.master.2', '1') is None
    to.lost()
    assert to.find(REPLIES, '1') is None


# What else is promised


def test_running_a_cancel_is_passed_on_and_the_run_goes_on() -> None:
    to, held = running()
    assert to.told(CANCEL, now=0.0) == [Cancelled(held)]
    assert to.caller_gone(REPLIES, '1', now=0.0) == [Cancelled(held)]
    assert to.finished(held, REPLY, now=1.0) == [Publish(held, REPLY), Ack(held)]


@pytest.mark.parametrize('message', [GO, STOP])
def test_running_a_late_answer_means_nothing(message: Go | Stop) -> None:
    to, held = running()
    assert to.told(message, now=0.0) == []
    assert to.running == [held]


@pytest.mark.parametrize('message', [GO, STOP, CANCEL])
def test_what_is_about_nothing_here_means_nothing(message: Go | Stop | Cancel) -> None:
    assert deliveries().told(message, now=0.0) == deliveries().caller_gone(REPLIES, '1', now=0.0) == []


def test_the_same_id_of_another_caller_is_another_call() -> None:
    to = deliveries(slots=2)
    arrive(to)
    assert kinds(arrive(to, reply_to='crew.master.2')) == [Start]
    assert to.told(Cancel(correlation_id='1', reply_to='crew.master.3'), now=0.0) == []


def test_the_same_id_of_calls_that_nobody_waits_for_is_another_call() -> None:
    to = deliveries(slots=2)
    [first] = arrive(to, reply_to='')
    [second] = arrive(to, reply_to='')
    assert kinds([first, second]) == [Start, Start]
    assert to.running == [first.held, second.held]
    assert to.told(Cancel(correlation_id='1', reply_to=''), now=0.0) == []
    assert to.finished(first.held, REPLY, now=1.0) == [Ack(first.held)]
    assert to.finished(second.held, REPLY, now=1.0) == [Ack(second.held)]


def test_there_is_room_while_a_call_could_begin() -> None:
    to, first = running(slots=2)
    assert to.has_room
    arrive(to, '2')
    assert not to.has_room
    to.lost()
    assert not to.has_room
    to.finished(first, REPLY, now=1.0)
    assert to.has_room
    to.drain()
    assert not to.has_room


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


def test_while_draining_nothing_is_given_back_one_by_one() -> None:
    to, _ = running(give_back=True)
    arrive(to, '2')
    to.drain()
    assert kinds(to.tick(1.0)) == [Publish]
    assert arrive(to, '3', now=1.0) == []
    assert len(to.take_unstarted()) == 2


def test_while_draining_a_call_nobody_waits_for_keeps_its_count() -> None:
    to = deliveries()
    to.drain()
    assert kinds(arrive(to, '1', redelivered=True, reply_to='')) == [Drop]
    assert kinds(arrive(to, '2', redelivered=True, reply_to='', terms=Terms(idempotent=True))) == [Republish]
    assert arrive(to, '3', reply_to='') == []
    assert len(to.take_unstarted()) == 1


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
    assert to.tick(LIMIT) == [Interrupt(held, 'it ran past its limit of 60 s')]
    assert to.tick(LIMIT + KILL_AFTER) == [Replace(held)]


def test_a_call_that_comes_back_while_its_first_run_goes_on_is_another_delivery() -> None:
    to, first = running(slots=2)
    to.lost()
    second = asking(to)
    assert to.told(GO, now=0.0) == [Start(second)]
    assert to.told(CANCEL, now=0.0) == [Cancelled(second)]
    assert to.finished(first, REPLY, now=1.0) == []
    assert to.finished(second, REPLY, now=1.0) == [Publish(second, REPLY), Ack(second)]


# What the broker would take back


def acked(slots: int = 1, **fields: Any) -> tuple[Deliveries, Held]:
    """Deliveries with one that runs and was acked before the broker took it back."""
    to, held = running(slots, held_for=HELD, **{'timeout': 1000.0, **fields})
    for now in (1.0, HELD - 0.1):
        assert AckEarly(held) not in to.tick(now)
    assert AckEarly(held) in to.tick(HELD)
    return to, held


def test_held_for_long_a_run_is_acked_and_its_caller_told_to_look_for_the_worker() -> None:
    to, held = running(held_for=HELD, timeout=1000.0)
    to.tick(HELD - 0.1)
    assert to.next_deadline() == HELD
    [accept, ack] = to.tick(HELD)
    expected = Accept(correlation_id='1', inbox=INBOX, ask=False, acked=True, ran=HELD, timeout=1000.0)
    assert (accept, ack) == (Publish(held, expected), AckEarly(held))
    assert to.running == [held]


def test_acked_early_it_is_answered_and_not_acked_again() -> None:
    to, held = acked()
    assert to.finished(held, REPLY, now=HELD + 1) == [Publish(held, REPLY)]
    assert (len(to), to.running) == (0, [])


def test_acked_early_it_says_so_again_now_and_then() -> None:
    to, _ = acked()
    [say] = to.tick(HELD + SAY_AGAIN)
    assert isinstance(say, Publish)
    assert isinstance(say.message, Accept)
    assert say.message.acked


def test_acked_early_it_still_meets_its_limits() -> None:
    to, held = acked(timeout=HELD + 5)
    assert kinds(to.tick(HELD + 5)) == [Publish, Interrupt]
    assert kinds(to.tick(HELD + 5 + KILL_AFTER)) == [Replace]
    assert to.finished(held, None, now=HELD + 20) == []


def test_acked_early_without_anybody_who_waits_it_is_only_acked() -> None:
    to, held = acked(reply_to='')
    assert to.finished(held, REPLY, now=HELD + 1) == []


def test_overdue_it_is_only_acked() -> None:
    to, held = running(held_for=HELD, timeout=HELD - 1)
    to.tick(HELD - 1)
    assert to.tick(HELD) == [AckEarly(held)]
    assert to.finished(held, None, now=HELD + 1) == []


def test_waiting_for_its_callers_end_it_is_acked_and_goes_on_waiting() -> None:
    to, held = running(held_for=HELD, timeout=LIMIT)
    to.answer(held, BEGUN, now=0.0)
    to.pause(held, now=1.0)
    assert kinds(to.tick(HELD)) == [Publish, AckEarly, Ping]
    assert to.tick(HELD + PING_EVERY) == [Ping(held)]


def test_acked_early_it_keeps_its_slot_and_what_comes_in_its_place_is_given_back() -> None:
    to, held = acked()
    assert not to.has_room
    assert kinds(arrive(to, '2', now=HELD + 1)) == [GiveBack]
    to.finished(held, REPLY, now=HELD + 2)
    assert kinds(arrive(to, '3', now=HELD + 2)) == [Start]
    # From then on the broker knows again how many may run.
    assert arrive(to, '4', now=HELD + 2) == []
    assert to.tick(HELD + 2.5)
    assert len(to) == 2


def test_acked_early_the_other_slots_are_used() -> None:
    to, _ = acked(slots=2)
    assert to.has_room
    assert kinds(arrive(to, '2', now=HELD + 1)) == [Start]


def test_ready_for_long_it_is_given_back() -> None:
    to, _ = running(held_for=HELD, timeout=1000.0)
    arrive(to, '2', now=50.0)
    assert kinds(to.tick(HELD)) == [Publish, AckEarly, GiveBack]
    to, _ = running(held_for=HELD, timeout=1000.0)
    [held] = to.running
    held.release_by = float('inf')
    arrive(to, '2', now=50.0)
    assert GiveBack not in kinds(to.tick(50.0 + HELD - 0.1))
    assert to.next_deadline() == 50.0 + HELD
    assert GiveBack in kinds(to.tick(50.0 + HELD))


def test_what_the_broker_has_taken_back_already_is_not_acked() -> None:
    to, held = running(held_for=HELD, timeout=1000.0)
    to.lost()
    assert to.tick(HELD) == []
    to, held = acked()
    to.lost()
    assert not to.has_room
    assert to.finished(held, REPLY, now=HELD + 2) == []
    assert to.has_room


# Looking ahead


def looking(slots: int = 1, ahead: int = 2) -> Deliveries:
    """Deliveries that have seen enough short runs to look ahead, and hold nothing."""
    to = Deliveries(slots, Limits(), ahead=ahead, look_ahead=LookAhead(slots))
    to.inbox = INBOX
    decided: list[Action] = []
    for number in range(CAUTION):
        [start] = arrive(to, f'short {number}')
        assert isinstance(start, Start)
        decided = to.finished(start.held, REPLY, now=0.0, took=0.0005)
    assert kinds(decided) == [Publish, Ack, Look]
    assert to.tick(0.9) == []
    return to


def test_after_some_short_runs_calls_are_fetched_ahead_and_queued_before_there_is_a_slot() -> None:
    to = looking()
    assert [kinds(arrive(to, name, now=1.0)) for name in 'abcd'] == [[Start], [Start], [Start], []]
    assert len(to.running) == 1


def test_what_is_queued_begins_in_its_order_as_others_end() -> None:
    to = looking()
    first, second = (arrive(to, name, now=1.0)[0].held for name in 'ab')
    assert second.state is State.QUEUED
    assert kinds(to.finished(first, REPLY, now=1.001)) == [Publish, Ack]
    assert second.state is State.RUNNING
    assert to.running == [second]


def test_when_a_run_is_not_short_what_waits_behind_it_is_given_back_and_nothing_more_is_fetched() -> None:
    to = looking()
    held = [arrive(to, name, now=1.0) for name in 'abcd']
    queued = [held[1][0].held, held[2][0].held]
    assert to.next_deadline() == pytest.approx(1.0 + SHORT)
    assert to.tick(1.0 + SHORT / 2) == []
    look, retract = to.tick(1.0 + SHORT)
    assert isinstance(look, Look) and look.window == 0
    assert isinstance(retract, Retract)
    given = to.retracted(queued, now=1.0 + SHORT)
    assert (kinds(given), names(given)) == ([GiveBack] * 3, ['b', 'c', 'd'])
    assert kinds(arrive(to, 'e', now=1.0 + SHORT)) == []
    assert kinds(to.tick(1.0 + SHORT)) == [GiveBack]


def test_a_run_that_lasts_ends_the_fetching_even_if_nothing_waits() -> None:
    to = looking()
    arrive(to, 'a', now=1.0)
    assert to.next_deadline() == pytest.approx(1.0 + SHORT)
    assert kinds(to.tick(1.0 + SHORT)) == [Look]


def test_nothing_is_given_back_for_a_run_whose_end_is_only_not_reported() -> None:
    to = looking()
    first = arrive(to, 'a', now=1.0)[0].held
    # It has ended, but the report comes later than the next delivery.
    assert kinds(arrive(to, 'b', now=1.0 + 2 * SHORT)) == []
    assert kinds(to.finished(first, REPLY, now=1.0 + 2 * SHORT, took=0.0001)) == [Publish, Ack, Start]


def test_while_a_slot_is_free_a_long_run_keeps_nobody_waiting() -> None:
    to = looking(slots=2)
    arrive(to, 'a', now=1.0)
    assert [kind for kind in kinds(to.tick(2.0)) if kind is not Publish] == []
    assert kinds(arrive(to, 'b', now=2.0)) == [Start]


def test_what_was_taken_back_goes_with_the_connection() -> None:
    to = looking()
    queued = [arrive(to, name, now=1.0)[0].held for name in 'abc'][1:]
    to.lost(queued)
    assert (len(to), len(to.running)) == (1, 1)
    assert not any(held.orphaned for held in queued)


def test_nothing_overtakes_what_came_before_and_is_asked_about_for_a_moment() -> None:
    to = looking()
    [ask] = arrive(to, 'a', redelivered=True, now=1.0)
    assert arrive(to, 'b', now=1.0001) == []
    started = to.told(Go(correlation_id='a', reply_to=REPLIES), now=1.001)
    assert (kinds(started), names(started)) == ([Start, Start], ['a', 'b'])
    assert ask.held.state is State.RUNNING


# Whatever the sequence of events


class AnyOrder(RuleBasedStateMachine):
    """A broker, callers and a runner that do what they like, and the rules that must hold nevertheless."""

    SLOTS = 2
    GIVE_BACK = False
    HELD_FOR = 1e9
    AHEAD = 0
    NAMES = st.sampled_from('abcd')
    QUEUES = st.sampled_from([Terms('1'), Terms('2', True), Terms('3', False, True), Terms('4', True, True)])

    def __init__(self) -> None:
        super().__init__()
        self.to = self.made()
        self.now = 0.0
        #: The tags of what the broker holds as unacked on the connection in use.
        self.unacked: set[int] = set()
        #: And those of what it does not know of any more, while its channel is there.
        self.early: set[int] = set()
        self.ends: Counter[Held] = Counter()
        self.answered: Counter[Held] = Counter()
        self.asked: set[Held] = set()
        self.allowed: set[Held] = set()
        self.forbidden: set[Held] = set()
        self.silenced: set[Held] = set()
        #: Those that were answered before they ended.
        self.replied: set[Held] = set()
        self.runs: list[Held] = []
        self.ended: list[Held] = []
        self.draining = self.over = False
        self.tag = 0
        #: What was given to the runner and has not begun, and how much may be fetched ahead.
        self.waiting: list[Held] = []
        self.window = 0

    def made(self) -> Deliveries:
        return deliveries(self.SLOTS, give_back=self.GIVE_BACK, held_for=self.HELD_FOR)

    # Events

    @rule(
        name=NAMES,
        terms=QUEUES,
        redelivered=st.booleans(),
        waited=st.sampled_from([0.0, 0.0, 5.0]),
        quick=st.booleans(),
        runs=st.sampled_from([None, None, 0, 1]),
    )
    def arrive(self, name: str, terms: Terms, redelivered: bool, waited: float, quick: bool, runs: int | None) -> None:
        """``runs`` is None for a call that somebody waits for."""
        if self.over:
            return
        self.tag += 1
        delivery = Delivery(Envelope(), self.tag, redelivered, NO_CHANNEL)
        call = Call(
            correlation_id=name,
            reply_to=REPLIES if runs is None else '',
            timeout=0.03 if quick else LIMIT,
            sent=WALL - waited,
            runs=runs or 0,
        )
        self.unacked.add(self.tag)
        self.do(self.to.arrive(delivery, call, terms=terms, now=self.now, wall=WALL))

    @rule(name=NAMES, what=st.sampled_from([Go, Go, Go, Stop, Cancel]))
    def tell(self, name: str, what: type[Go] | type[Stop] | type[Cancel]) -> None:
        waiting = [held for held in self.asked if held.call.correlation_id == name and held.state is State.ASKING]
        for held in waiting:
            (self.allowed if what is Go else self.forbidden).add(held)
        self.asked -= set(waiting)
        if what is Cancel:
            self.stops(name)
        self.do(self.to.told(what(correlation_id=name, reply_to=REPLIES), now=self.now))

    @rule(name=NAMES)
    def caller_gone(self, name: str) -> None:
        self.forbidden |= {held for held in self.asked if held.call.correlation_id == name}
        self.asked -= self.forbidden
        self.stops(name)
        self.do(self.to.caller_gone(REPLIES, name, now=self.now))

    def stops(self, name: str) -> None:
        """Note what must be stopped now because its caller no longer waits."""
        self.silenced |= {
            held
            for held in self.runs
            if held.state is State.RUNNING
            and held.terms.stop_on_cancel
            and not held.orphaned
            and (held.call.reply_to, held.call.correlation_id) == (REPLIES, name)
        }

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), what=st.sampled_from(['answer', 'reply', 'progress', 'pause']))
    def stream(self, data: st.DataObject, what: str) -> None:
        held = data.draw(st.sampled_from(self.runs))
        if what == 'answer' and not held.answering:
            self.do(self.to.answer(held, Reply(correlation_id=held.call.correlation_id, more=True), now=self.now))
        elif what == 'reply' and not held.answering:
            self.do(self.to.reply(held, Reply(correlation_id=held.call.correlation_id)))
            if self.answered[held]:
                self.replied.add(held)
        elif what == 'progress':
            self.to.progress(held, now=self.now)
        elif what == 'pause' and held.accepted:
            self.to.pause(held, now=self.now)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), twice=st.booleans())
    def finish(self, data: st.DataObject, twice: bool) -> None:
        held = data.draw(st.sampled_from(self.runs))
        self.runs.remove(held)
        self.ended.append(held)
        if self.waiting:
            self.runs.append(self.waiting.pop(0))
        reply: Reply | Failure | None = Reply(correlation_id=held.call.correlation_id)
        failure = Failure(correlation_id=held.call.correlation_id, kind='raised')
        if held.replied:
            reply = data.draw(st.sampled_from([reply, failure]))
        if held.answering:
            reply = data.draw(st.sampled_from([None, failure]))
            self.answered[held] += reply is None and held.state is State.RUNNING
        took = data.draw(st.sampled_from([0.0, 0.0, 0.1])) if self.AHEAD else 0.0
        self.do(self.to.finished(held, reply, now=self.now, took=took))
        if twice:
            assert self.to.finished(held, reply, now=self.now) == []

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.06, 1.0, 6.0, 11.0, 70.0]), late=st.booleans())
    def pass_time(self, seconds: float, late: bool) -> None:
        """``late`` if nobody looks before it is over."""
        end = self.now + seconds
        while not late and (due := self.to.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.tick()
        self.now = end
        self.tick()

    def tick(self) -> None:
        self.do(self.to.tick(self.now))
        due = self.to.next_deadline()
        assert due is None or due > self.now

    @rule()
    def lose(self) -> None:
        self.waiting, unbegun = [], self.waiting
        self.to.lost(unbegun)
        self.window = 0
        self.unacked.clear()
        self.early.clear()
        self.asked.clear()

    @precondition(lambda self: self.tag > 8)
    @rule()
    def drain(self) -> None:
        self.to.drain()
        self.draining = True

    @precondition(lambda self: self.draining)
    @rule()
    def put_back(self) -> None:
        self.retract()
        unstarted = self.to.take_unstarted()
        for held in unstarted:
            assert held not in self.runs
            self.end(held)
        self.asked -= set(unstarted)
        self.over = True

    # What is decided

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Look):
                assert action.window != self.window
                self.window = action.window
                continue
            held = action.held
            if isinstance(action, Retract):
                assert held in self.waiting
                self.retract()
            elif isinstance(action, Start):
                self.start(held)
            elif isinstance(action, Publish):
                assert held.delivery.tag in self.unacked | self.early, (
                    'published on a channel that is gone, or after its ack'
                )
                self.publish(held, action.message)
            elif isinstance(action, Ack):
                silent = held in self.silenced - self.replied or not held.call.reply_to
                assert self.answered[held] == (not silent), 'acked before it was answered, or answered in vain'
                assert held in self.ended
                self.end(held)
            elif isinstance(action, AckEarly):
                assert held in self.runs and self.now >= held.arrived + self.HELD_FOR
                self.end(held)
                self.early.add(held.delivery.tag)
            elif isinstance(action, (Drop, GiveBack, Republish)):
                assert held not in self.runs + self.waiting and held not in self.ended
                self.forbidden.add(held)
                self.asked.discard(held)
                self.end(held)
                self.leave(action)
            elif isinstance(action, Cancelled):
                assert held in self.runs + self.waiting
            else:
                assert held in self.runs
                if isinstance(action, Ping):
                    assert held.paused and held.state is State.RUNNING
                if isinstance(action, Interrupt):
                    assert held in self.silenced or self.now >= held.started + held.timeout

    def retract(self) -> None:
        self.waiting, unbegun = [], self.waiting
        self.do(self.to.retracted(unbegun, now=self.now))

    def leave(self, action: Action) -> None:
        """Check what goes away unstarted."""
        if isinstance(action, GiveBack):
            late = self.now >= action.held.arrived + self.HELD_FOR
            assert late or (self.may_give_back and not self.draining and len(self.runs) == self.SLOTS)
        if isinstance(action, Republish):
            held = action.held
            assert held.redelivered and held.terms.idempotent and not held.call.reply_to
            assert held.call.runs < action.runs < MAX_RUNS

    def start(self, held: Held) -> None:
        assert not self.draining
        assert held not in self.runs and held not in self.ended
        assert held not in self.forbidden
        if held.call.reply_to:
            fresh = not held.redelivered and held.call.sent == WALL and self.now - held.arrived <= FRESH
            assert held in self.allowed or fresh
            alive = [other for other in self.runs if not other.orphaned]
            assert held.key not in [other.key for other in alive], 'it runs already'
        else:
            assert not held.redelivered
        assert held.delivery.tag in self.unacked
        if len(self.runs) < self.SLOTS:
            self.runs.append(held)
        else:
            assert held.state is State.QUEUED
            self.waiting.append(held)

    def publish(self, held: Held, message: Accept | Reply | Failure | Reset) -> None:
        assert held.call.reply_to
        assert isinstance(message, Reset) <= held.answering
        if isinstance(message, Reply) and message.more:
            assert held.accepted and not self.answered[held]
            return
        if isinstance(message, Accept):
            assert message.ask == (held not in self.runs)
            assert message.idempotent == held.terms.idempotent
            assert not self.answered[held]
            if message.ask:
                self.asked.add(held)
        else:
            self.answered[held] += 1
            assert self.answered[held] == 1

    def end(self, held: Held) -> None:
        """Take note of an ack, a drop, a giving back or a publishing anew: there is one of each delivery."""
        self.ends[held] += 1
        assert self.ends[held] == 1
        self.unacked.remove(held.delivery.tag)

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        assert len(self.runs) <= self.SLOTS
        assert len(self.waiting) <= self.AHEAD
        assert set(self.to.running) == set(self.runs)

    @invariant()
    def whatever_the_broker_waits_for_is_held_here(self) -> None:
        alive = sum(not held.orphaned and not held.acked for held in self.runs)
        assert len(self.unacked) == len(self.to) - len(self.runs) + alive

    @invariant()
    def a_slot_is_free_only_when_nothing_is_ready_or_what_came_before_asks(self) -> None:
        ready, free = self.to._ready, self.SLOTS - len(self.runs)
        if ready and free and not self.draining:
            asked = [held for held in self.asked if held.arrived < ready[0].arrived]
            young = [held for held in asked if self.now < held.due - ANSWER_WITHIN + GIVE_BACK_AFTER]
            assert self.gives_back or self.AHEAD
            assert len(young) >= free
            assert self.due() <= self.now + GIVE_BACK_AFTER

    @invariant()
    def nothing_is_ready_for_long_in_one_of_several_queues(self) -> None:
        if self.gives_back and self.to._ready and len(self.runs) == self.SLOTS and not self.draining:
            youngest = max(held.started for held in self.runs)
            assert self.now < youngest + GIVE_BACK_AFTER
            assert self.due() <= youngest + GIVE_BACK_AFTER

    @invariant()
    def nothing_is_held_that_the_broker_would_take_back(self) -> None:
        for held in (*self.runs, *self.to._ready):
            assert held.acked or held.orphaned or self.now < held.arrived + self.HELD_FOR or held.due == float('inf')

    @property
    def may_give_back(self) -> bool:
        return self.gives_back

    @property
    def gives_back(self) -> bool:
        return self.GIVE_BACK or any(held.acked for held in self.runs)

    @invariant()
    def what_is_stopped_is_on_its_way_out(self) -> None:
        assert all(held.state is State.OVERDUE for held in self.runs if held in self.silenced)

    def due(self) -> float:
        due = self.to.next_deadline()
        return float('inf') if due is None else due


class AnyOrderOfSeveralQueues(AnyOrder):
    """The same in a worker that gives back."""

    GIVE_BACK = True


class AnyOrderOfSeveralQueuesInOneSlot(AnyOrderOfSeveralQueues):
    """The same with the least that there can be."""

    SLOTS = 1


class AnyOrderAhead(AnyOrder):
    """The same in a worker that looks ahead."""

    AHEAD = 2

    def made(self) -> Deliveries:
        look_ahead = LookAhead(self.SLOTS)
        for _ in range(CAUTION - 2):
            look_ahead.ran(0.0005)
        made = Deliveries(self.SLOTS, Limits(None, KILL_AFTER, 1e9), ahead=self.AHEAD, look_ahead=look_ahead)
        made.inbox = INBOX
        return made

    @property
    def may_give_back(self) -> bool:
        youngest = max((held.started for held in self.runs), default=self.now)
        return self.gives_back or self.now >= youngest + SHORT

    @invariant()
    def nothing_waits_for_long_and_nothing_is_fetched_behind_what_is_not_short(self) -> None:
        if len(self.runs) == self.SLOTS and not self.draining and (self.waiting or self.to._ready or self.window):
            assert self.due() <= max(held.started for held in self.runs) + SHORT + 1e-9


class AnyOrderAheadInOneSlot(AnyOrderAhead):
    """The same with the least that there can be."""

    SLOTS = 1


class AnyOrderOfLongRuns(AnyOrder):
    """The same where the broker soon takes back what is held."""

    HELD_FOR = 20.0


class AnyOrderOfLongRunsInOneSlot(AnyOrderOfLongRuns):
    """The same with the least that there can be."""

    SLOTS = 1


ENOUGH = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = ENOUGH
TestAnyOrderAhead = AnyOrderAhead.TestCase
TestAnyOrderAhead.settings = ENOUGH
TestAnyOrderAheadInOneSlot = AnyOrderAheadInOneSlot.TestCase
TestAnyOrderAheadInOneSlot.settings = ENOUGH
TestAnyOrderOfLongRuns = AnyOrderOfLongRuns.TestCase
TestAnyOrderOfLongRuns.settings = ENOUGH
TestAnyOrderOfLongRunsInOneSlot = AnyOrderOfLongRunsInOneSlot.TestCase
TestAnyOrderOfLongRunsInOneSlot.settings = ENOUGH
TestAnyOrderOfSeveralQueues = AnyOrderOfSeveralQueues.TestCase
TestAnyOrderOfSeveralQueues.settings = ENOUGH
TestAnyOrderOfSeveralQueuesInOneSlot = AnyOrderOfSeveralQueuesInOneSlot.TestCase
TestAnyOrderOfSeveralQueuesInOneSlot.settings = ENOUGH
