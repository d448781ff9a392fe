"""What runs since when, read by another process without the help of the one that wrote it."""

import os
import warnings
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew.worker.clock import Clock, Record

RECORD = Record(
    correlation_id='1', reply_to='crew.master.1', started=12.5, timeout=60.0, accepted=False, text='GET / (request 1)'
)


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock(3)
    yield clock
    clock.close()


def in_another_process(write: Callable[[], None]) -> None:
    """Run it in a forked child, and wait for its end."""
    with warnings.catch_warnings():
        # Other tests leave threads behind that wait for runs; the child does nothing but write.
        warnings.simplefilter('ignore', DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            write()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_new_clock_shows_nothing(clock: Clock) -> None:
    assert (clock.running(), clock.was_ready, clock.leaving, clock.inbox) == ([], False, False, '')


def test_what_starts_is_read_as_it_was_written(clock: Clock) -> None:
    clock.start(1, *RECORD)
    assert clock.running() == [RECORD]


def test_each_slot_has_its_own_record(clock: Clock) -> None:
    for slot in range(3):
        clock.start(slot, *RECORD._replace(correlation_id=str(slot)))
    clock.stop(1)
    assert [record.correlation_id for record in clock.running()] == ['0', '2']


def test_a_slot_that_is_free_shows_nothing(clock: Clock) -> None:
    clock.start(0, *RECORD)
    clock.stop(0)
    assert clock.running() == []


def test_a_short_record_leaves_nothing_of_a_long_one(clock: Clock) -> None:
    clock.start(0, *RECORD._replace(correlation_id='x' * 255, reply_to='y' * 255, text='z' * 512))
    clock.start(0, *RECORD)
    assert clock.running() == [RECORD]


def test_a_run_can_be_described_while_it_runs(clock: Clock) -> None:
    clock.start(2, *RECORD)
    clock.describe(2, 'POST /report')
    assert clock.running() == [RECORD._replace(text='POST /report')]


def test_a_run_of_which_the_caller_has_heard_says_so(clock: Clock) -> None:
    clock.start(0, *RECORD)
    clock.accept(0)
    assert clock.running() == [RECORD._replace(accepted=True)]
    clock.start(0, *RECORD)
    assert clock.running() == [RECORD]


def test_a_run_whose_time_begins_anew_is_read_so(clock: Clock) -> None:
    clock.start(0, *RECORD)
    clock.start(1, *RECORD)
    clock.accept(1)
    clock.renew(1, 100.25, 30.5)
    assert clock.running() == [RECORD, RECORD._replace(started=100.25, timeout=30.5, accepted=True)]
    clock.stop(1)
    clock.renew(1, 200.0, 30.5)
    assert clock.running() == [RECORD]


@given(st.floats(0.001, 1e9), st.sampled_from([0.5, 60.0, 86400.0, 1e9]))
def test_whatever_the_time_a_renewed_record_is_whole(started: float, timeout: float) -> None:
    clock = Clock(1)
    clock.start(0, *RECORD)
    clock.renew(0, started, timeout)
    assert clock.running() == [RECORD._replace(started=started, timeout=timeout)]
    clock.close()


@pytest.mark.parametrize('written', range(24))
def test_a_record_that_is_being_renewed_is_never_half_old(clock: Clock, written: int) -> None:
    clock.start(0, *RECORD)
    at = clock._at(0) + 2
    before = bytes(clock._memory[at : at + 24])
    clock.renew(0, 98765.4321, 43.21)
    after = bytes(clock._memory[at : at + 24])
    for torn in (after[:written] + before[written:], after[:written] + bytes(24 - written)):
        clock._memory[at : at + 24] = torn
        assert clock.running() in ([], [RECORD], [RECORD._replace(started=98765.4321, timeout=43.21)])


def test_a_process_says_where_it_is_reached_and_when_it_leaves(clock: Clock) -> None:
    clock.set_inbox('crew.worker.1')
    clock.set_ready()
    assert (clock.was_ready, clock.leaving, clock.inbox) == (True, False, 'crew.worker.1')
    clock.set_leaving()
    assert (clock.was_ready, clock.leaving, clock.inbox) == (True, True, 'crew.worker.1')


@pytest.mark.parametrize('text', ['x' * 10_000, 'ü' * 10_000, 'x' + '\U0001f600' * 10_000])
def test_a_long_text_is_cut_and_harms_no_other_record(clock: Clock, text: str) -> None:
    clock.start(1, *RECORD)
    clock.start(0, *RECORD._replace(text=text))
    clock.describe(2, text)
    long, other = clock.running()
    assert text.startswith(long.text.rstrip('\ufffd'))
    assert len(long.text) >= 128
    assert long._replace(text=RECORD.text) == other == RECORD


@pytest.mark.parametrize('text', ['\ud800', 'a\udcffb'])
def test_a_text_that_is_no_utf_8_can_be_written(clock: Clock, text: str) -> None:
    clock.start(0, *RECORD)
    clock.describe(0, text)
    assert clock.running()[0].text == text.encode('utf-8', 'replace').decode()


def test_the_longest_ids_that_amqp_knows_are_whole(clock: Clock) -> None:
    record = RECORD._replace(correlation_id='i' * 255, reply_to='q' * 255)
    clock.start(0, *record)
    clock.set_inbox('b' * 255)
    clock.set_ready()
    assert clock.running() == [record]
    assert clock.inbox == 'b' * 255


@given(
    st.builds(
        Record,
        correlation_id=st.text(st.characters(exclude_categories=['Cs']), max_size=60),
        reply_to=st.text(st.characters(exclude_categories=['Cs']), max_size=60),
        started=st.floats(0.001, 1e9),
        timeout=st.floats(0, 1e6),
        accepted=st.booleans(),
        text=st.text(st.characters(exclude_categories=['Cs']), max_size=128),
    )
)
def test_every_record_comes_back_as_it_was(record: Record) -> None:
    clock = Clock(2)
    clock.start(1, *record)
    assert clock.running() == [record]
    clock.close()


def test_a_half_written_record_is_not_shown(clock: Clock) -> None:
    clock.start(0, *RECORD)
    clock._memory[clock._at(0) + 2] ^= 0xFF  # a byte of the time when it began
    assert clock.running() == []


def test_the_supervisor_reads_what_a_child_wrote(clock: Clock) -> None:
    def write() -> None:
        clock.set_inbox('crew.worker.1')
        clock.set_ready()
        clock.start(2, *RECORD)
        clock.describe(2, 'POST /report')

    in_another_process(write)
    assert (clock.was_ready, clock.inbox) == (True, 'crew.worker.1')
    assert clock.running() == [RECORD._replace(text='POST /report')]


def test_a_child_reads_what_its_parent_wrote(clock: Clock) -> None:
    def read() -> None:
        assert clock.running() == [RECORD]
        clock.stop(0)

    clock.start(0, *RECORD)
    in_another_process(read)
    assert clock.running() == []


def test_a_record_half_written_is_no_run(clock: Clock) -> None:
    clock.start(0, *RECORD)
    clock._memory[clock._at(0) + 1 : clock._at(1)] = bytes(clock._at(1) - clock._at(0) - 1)
    assert clock.running() == []
