"""Acks in few frames: what was to be acknowledged is, and nothing that is still in somebody's hands."""

from hypothesis import given
from hypothesis import strategies as st

from crew.transports.acks import Acks


class Channel:
    """A channel at the broker: what it has delivered and waits for."""

    def __init__(self) -> None:
        self.acks = Acks()
        self.waits: set[int] = set()
        self.tag = 0

    def deliver(self, *, no_ack: bool = False, seen: bool = True) -> int:
        self.tag += 1
        if not no_ack:
            self.waits.add(self.tag)
        if seen:
            self.acks.arrived(self.tag, no_ack=no_ack)
        return self.tag

    def collect(self) -> set[int]:
        """Take the acks; return what they were for."""
        acked: set[int] = set()
        for tag, multiple in self.acks.collect():
            # RabbitMQ closes the channel when it does not wait for the tag itself.
            assert tag in self.waits - acked
            acked |= {each for each in self.waits if each <= tag} if multiple else {tag}
        self.waits -= acked
        return acked


def test_all_of_a_turn_are_one_frame() -> None:
    channel = Channel()
    for _ in range(5):
        channel.acks.ack(channel.deliver())
    assert channel.acks.collect() == [(5, True)]


def test_one_is_one_frame_for_it_alone() -> None:
    channel = Channel()
    assert channel.acks.ack(channel.deliver())
    assert channel.acks.collect() == [(1, False)]
    assert channel.acks.collect() == []


def test_what_runs_is_not_acknowledged_along() -> None:
    channel = Channel()
    for _ in range(6):
        channel.deliver()
    for tag in (1, 6, 2, 4):
        channel.acks.ack(tag)
    assert channel.acks.collect() == [(2, True), (6, False), (4, False)]
    channel.waits -= {1, 2, 4, 6}
    for tag in (5, 3):
        channel.acks.ack(tag)
    assert channel.acks.collect() == [(5, True)]


def test_nor_is_what_was_not_seen() -> None:
    channel = Channel()
    channel.deliver(seen=False)
    for _ in range(2):
        channel.acks.ack(channel.deliver())
    assert channel.acks.collect() == [(2, False), (3, False)]


def test_the_first_of_a_turn_is_told_from_the_others() -> None:
    acks = Acks()
    assert [acks.ack(1), acks.ack(2)] == [True, False]
    acks.collect()
    assert acks.ack(3)


STEPS = st.lists(st.tuples(st.sampled_from('dddnuakc'), st.integers(0, 5)), max_size=60)


@given(STEPS)
def test_exactly_what_was_to_be_is_acknowledged(steps: list[tuple[str, int]]) -> None:
    channel = Channel()
    held: list[int] = []
    due: set[int] = set()
    for step, number in steps:
        if step == 'd':
            held.append(channel.deliver())
        elif step == 'n':
            channel.deliver(no_ack=True)
        elif step == 'u' and number == 0:
            channel.deliver(seen=False)
        elif step == 'a' and held:
            due.add(held[number % len(held)])
            channel.acks.ack(held.pop(number % len(held)))
        elif step == 'k' and held:
            tag = held.pop(number % len(held))
            channel.acks.nack(tag)
            channel.waits.discard(tag)
        elif step == 'c':
            assert channel.collect() == due
            due = set()
    assert channel.collect() == due
