"""What is declared at the broker: accepted by RabbitMQ 3.8 to 4.3, and the same from both sides."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew import topology
from crew.topology import Binding, Exchange, Queue

QUEUES = {
    'classic task': topology.task_queue('wsgi'),
    'quorum task': topology.task_queue('wsgi', 'quorum'),
    'replies': topology.reply_queue(),
    'inbox': topology.inbox(),
    'subscriber': topology.subscriber_queue(),
    'named': topology.named_queue('orders'),
}

#: Optional arguments that RabbitMQ knows in all versions from 3.8 to 4.3, by type of queue.
KNOWN = {
    'classic': {'x-queue-type', 'x-dead-letter-exchange', 'x-max-priority', 'x-max-length'},
    'quorum': {'x-queue-type', 'x-dead-letter-exchange'},
}

every_queue = pytest.mark.parametrize('queue', QUEUES.values(), ids=QUEUES.keys())


@every_queue
def test_a_queue_is_either_durable_or_exclusive(queue: Queue) -> None:
    # RabbitMQ 4.3 refuses transient queues that are not exclusive.
    assert queue.durable != queue.exclusive


@every_queue
def test_a_queue_carries_only_arguments_that_every_supported_broker_accepts(queue: Queue) -> None:
    assert set(queue.arguments) <= KNOWN[queue.arguments['x-queue-type']]


@every_queue
def test_a_queue_says_its_type_aloud_because_a_virtual_host_may_have_another_default(queue: Queue) -> None:
    assert queue.arguments['x-queue-type'] in ('classic', 'quorum')


@every_queue
def test_a_queue_name_fits_an_amqp_short_string(queue: Queue) -> None:
    assert 0 < len(queue.name.encode()) <= 255


def test_an_exclusive_queue_is_never_a_quorum_queue() -> None:
    # RabbitMQ refuses an exclusive quorum queue.
    assert all(queue.arguments['x-queue-type'] == 'classic' for queue in QUEUES.values() if queue.exclusive)


def test_a_classic_task_queue_has_levels_of_priority_from_the_first_day() -> None:
    assert QUEUES['classic task'].arguments['x-max-priority'] == 8


def test_a_quorum_task_queue_has_no_argument_for_priorities() -> None:
    # RabbitMQ refuses x-max-priority on a quorum queue.
    assert 'x-max-priority' not in QUEUES['quorum task'].arguments


@pytest.mark.parametrize('queue_type', ['classic', 'quorum'])
def test_both_sides_declare_a_task_queue_with_equal_arguments(queue_type: topology.QueueType) -> None:
    assert topology.task_queue('a', queue_type) == topology.task_queue('a', queue_type)


def test_task_queues_are_dead_lettered_to_the_exchange_that_clients_bind() -> None:
    binding = topology.dead_letter_binding('crew.master.1')
    assert QUEUES['classic task'].arguments['x-dead-letter-exchange'] == binding.exchange == 'crew.DLX'
    assert Exchange('crew.DLX', 'headers') == topology.DEAD_LETTERS


def test_a_subscriber_gets_one_channel_of_the_exchange_that_is_published_to() -> None:
    binding = topology.subscription('crew.subscribe.1', 'news')
    assert (binding.queue, binding.exchange) == ('crew.subscribe.1', 'crew.PUBSUB')
    assert Exchange('crew.PUBSUB', 'headers') == topology.PUBLICATIONS


def test_a_subscriber_that_is_far_behind_costs_the_broker_no_more_than_so_many_publications() -> None:
    queue = topology.subscriber_queue()
    assert queue.exclusive
    assert queue.name.startswith('crew.subscribe.')
    # Nothing about overflow: the oldest are dropped, and a publisher is never refused for one slow subscriber.
    assert queue.arguments == {'x-queue-type': 'classic', 'x-max-length': 100_000}


def test_a_queue_that_somebody_else_named_outlives_whoever_consumes_it() -> None:
    assert topology.named_queue('orders') == Queue('orders', arguments={'x-queue-type': 'classic'})
    assert topology.named_queue('orders').durable


@pytest.mark.parametrize(
    ('binding', 'keys'),
    [
        (topology.dead_letter_binding('crew.master.1'), {'crew-reply': 'crew.master.1'}),
        (topology.subscription('crew.subscribe.1', 'x-news'), {'crew-channel': 'x-news'}),
    ],
)
def test_a_binding_uses_no_key_that_the_broker_skips(binding: Binding, keys: dict[str, str]) -> None:
    # A headers exchange ignores keys that begin with x-, so such a binding matches everything.
    arguments = binding.arguments
    assert arguments.pop('x-match') == 'all'
    assert arguments == keys
    assert not any(key.startswith('x-') for key in arguments)


def test_a_binding_matches_all_of_its_keys() -> None:
    assert Binding('q', 'e', {'a': '1', 'b': '2'}).arguments == {'x-match': 'all', 'a': '1', 'b': '2'}


@pytest.mark.parametrize('make', [topology.reply_queue, topology.inbox, topology.subscriber_queue])
def test_a_private_queue_has_a_name_never_used_before(make: Callable[[], Queue]) -> None:
    assert len({make().name for _ in range(1000)}) == 1000


@pytest.mark.parametrize('task', ['', 'x' * 245, 'ü' * 123])
def test_an_id_that_makes_no_amqp_name_is_refused(task: str) -> None:
    with pytest.raises(ValueError, match='1 to 244 bytes'):
        topology.task_queue(task)


@pytest.mark.parametrize('task', ['x', 'x' * 244, 'ü' * 122, 'a.b/c d'])
def test_an_id_of_up_to_244_bytes_is_fine(task: str) -> None:
    assert topology.task_queue(task).name == f'crew.tasks.{task}'


@given(st.text(max_size=300))
def test_a_task_queue_is_valid_or_refused(task: str) -> None:
    try:
        queue = topology.task_queue(task)
    except ValueError:
        return
    assert len(queue.name.encode()) <= 255


def test_priority_levels_are_monotone() -> None:
    levels = [topology.priority_level(priority) for priority in range(256)]
    assert levels == sorted(levels)
    assert (levels[0], levels[255]) == (0, topology.PRIORITY_LEVELS)


def test_priorities_that_differ_much_have_levels_that_differ() -> None:
    assert len({topology.priority_level(priority) for priority in (0, 1, 2, 4, 8, 16, 32, 100, 255)}) == 9
