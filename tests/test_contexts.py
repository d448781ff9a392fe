"""``context``: each run sees its own, whatever runs beside it, and nothing of the run before."""

import contextvars
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest

from crew import TimeoutError, deadlines, worker
from crew.codec import decode
from crew.envelope import Envelope
from crew.master.threaded_client import Client
from crew.messages import Call, Failure, HeaderValue, Publication, Reply
from crew.payloads import pack
from crew.testing import Worker
from crew.transports.memory import MemoryChannel
from crew.worker import context, contexts
from crew.worker.clock import Clock
from crew.worker.greenlets import GreenletRunner
from crew.worker.registry import Registry
from crew.worker.registry import Task as registered
from crew.worker.runs import Outcome, Run, execute
from crew.worker.tasks import registered_task
from crew.worker.threads import ThreadRunner
from tests.waiting import wait_until

SLOTS = 4
LONG = 10.0
CLOCK = Clock(SLOTS)


@pytest.fixture(autouse=True)
def no_settings_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this process as one that is no worker."""
    monkeypatch.setattr(contexts, '_process_settings', None)


def a_run(
    id: str = '1',
    headers: Mapping[str, HeaderValue] = {},
    timeout: float = 60.0,
    publish: Callable[[Publication], None] = lambda publication: None,
) -> Run:
    payload = pack(id)
    call = Call(correlation_id=id, body=payload.body, content_type=payload.content_type, headers=headers)
    owner: Any = SimpleNamespace(publish=publish)
    return Run(call, timeout, CLOCK, 'test', owner)


def runs() -> list[Run]:
    return [a_run(f'call-{slot}', {'number': slot}, timeout=100.0 * (slot + 1)) for slot in range(SLOTS)]


def task_of(function: Callable[[Any], Any], settings: SimpleNamespace | None = None) -> Callable[[Run], Outcome]:
    """Return what runs the task of that function."""
    registry = Registry()
    registered('test', registry=registry)(function)
    return registered_task(registry, settings or SimpleNamespace(), ('json', 'text', 'bytes'))


def run_here(
    function: Callable[[Any], Any], run: Run | None = None, settings: SimpleNamespace | None = None
) -> Outcome:
    """Run a task in this thread, and leave nothing of it here."""
    return contextvars.copy_context().run(execute, task_of(function, settings), run or a_run())


def value(outcome: Outcome) -> str:
    assert isinstance(outcome, Reply), outcome
    return outcome.body.decode()


def sight() -> tuple[object, ...]:
    """What a task sees that is its run's own."""
    return context.correlation_id, context.request_headers['number'], context.deadline // 100, dict(context.headers)


def looks_twice(meet: Callable[[], object]) -> Callable[[Any], bool]:
    """Return a task that looks around, leaves something, meets all others, and looks again."""

    def task(id: str) -> bool:
        number = int(id[-1])
        own = id, number, number
        before = sight()
        context.headers['own'] = id
        meet()
        return (before, sight()) == ((*own, {}), (*own, {'own': id}))

    return task


def check(outcomes: Mapping[Run, Outcome]) -> None:
    for run, outcome in outcomes.items():
        assert value(outcome) == 'true'
        assert isinstance(outcome, Reply)
        assert outcome.headers == {'own': run.call.correlation_id}


# Whatever runs beside it


def test_each_thread_sees_its_own_run() -> None:
    reports: SimpleQueue[tuple[Run, Outcome]] = SimpleQueue()
    barrier = threading.Barrier(SLOTS)
    task = task_of(looks_twice(lambda: barrier.wait(LONG)))
    runner = ThreadRunner(SLOTS, task, lambda run, outcome: reports.put((run, outcome)))
    # The second time each thread has had another run before.
    for _ in range(2):
        for run in reversed(runs()):
            runner.start(run)
        check(dict(reports.get(timeout=LONG) for _ in range(SLOTS)))


def test_each_greenlet_sees_its_own_run() -> None:
    outcomes: dict[Run, Outcome] = {}

    def live() -> None:
        together = gevent.event.Event()
        met = []

        def meet() -> None:
            met.append(1)
            if len(met) % SLOTS == 0:
                together.set()
            together.wait(LONG)

        runner = GreenletRunner(task_of(looks_twice(meet))).report_to(outcomes.__setitem__)
        for run in runs():
            runner.start(run)
        with gevent.Timeout(LONG):
            while len(outcomes) < SLOTS:
                gevent.sleep(0.01)
        gevent.get_hub().destroy()

    # A hub of its own, or this process's would be bound to this test.
    thread = threading.Thread(target=live)
    thread.start()
    thread.join(2 * LONG)
    assert len(outcomes) == SLOTS
    check(outcomes)


FORKING = """
import contextvars, os, sys, time
from argparse import Namespace
from crew.messages import Call
from crew.worker import context, contexts
from crew.worker.clock import Clock
from crew.worker.runs import Run

def run(id):
    return Run(Call(correlation_id=id), 60.0, Clock(1))

def look():
    return context.settings.uuid, context.settings.node_uuid, context.settings.given, context.correlation_id

contexts.enter(run('parent'), contexts.make_settings(Namespace(), {'given': 'parent'}))
print(*look(), flush=True)
for id in ('child-1', 'child-2'):
    if os.fork() == 0:
        inherited = look()
        contexts.enter(run(id), contexts.make_settings(Namespace(), {'given': id}))
        print(*inherited, flush=True)
        print(*look(), flush=True)
        os._exit(0)
    os.wait()
print(*look(), flush=True)
"""


def test_after_a_fork_each_process_has_its_own() -> None:
    ran = subprocess.run([sys.executable, '-c', FORKING], capture_output=True, text=True, timeout=60)
    assert ran.stderr == ''
    parent, *others = [tuple(line.split()) for line in ran.stdout.splitlines()]
    inherited_1, child_1, inherited_2, child_2, after = others
    # What a task forks goes on as the task that it was.
    assert parent == inherited_1 == inherited_2 == after
    assert [line[2:] for line in (parent, child_1, child_2)] == [(id, id) for id in ('parent', 'child-1', 'child-2')]
    assert len({line[0] for line in (parent, child_1, child_2)}) == 3
    assert len({line[1] for line in (parent, child_1, child_2)}) == 1


def test_two_processes_have_one_node_uuid_and_two_uuids() -> None:
    code = (
        'from argparse import Namespace; from crew.worker import contexts;'
        'settings = contexts.make_settings(Namespace(), {}); print(settings.uuid, settings.node_uuid)'
    )
    ran = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60) for _ in range(2)]
    (one, one_node), (other, other_node) = (each.stdout.split() for each in ran)
    assert one != other
    assert one_node == other_node
    assert one_node not in (one, other)


# Headers


def test_headers_go_with_the_value_and_are_empty_for_each_run() -> None:
    def task(id: str) -> str:
        seen = dict(context.headers)
        context.headers[id] = True
        return str(seen)

    together = contextvars.copy_context()
    outcomes = [together.run(execute, task_of(task), a_run(id)) for id in ('a', 'b')]
    assert [value(outcome) for outcome in outcomes] == ['"{}"', '"{}"']
    assert [outcome.headers for outcome in outcomes if isinstance(outcome, Reply)] == [{'a': True}, {'b': True}]


def test_headers_may_be_assigned() -> None:
    given: dict[str, HeaderValue] = {'a': 1}

    def task(id: str) -> None:
        context.headers = given
        context.headers['b'] = 'two'

    outcome = run_here(task)
    assert isinstance(outcome, Reply)
    assert outcome.headers == {'a': 1, 'b': 'two'}
    assert given == {'a': 1}


def test_request_headers_are_there_to_be_read() -> None:
    def task(id: str) -> object:
        with pytest.raises(TypeError):
            context.request_headers['a'] = 2  # type: ignore[index]
        return dict(context.request_headers)

    assert value(run_here(task, a_run(headers={'a': 1, 'b': 'two'}))) == '{"a":1,"b":"two"}'


# Settings


def test_settings_are_what_run_was_given_and_more(no_settings_left: None) -> None:
    options = Namespace(forks=2)
    made = contexts.make_settings(options, {'database': 'x'})
    assert context.settings is made
    assert (made.database, made.options) == ('x', options)
    assert made.uuid != made.node_uuid

    def task(id: str) -> None:
        context.settings.added = id

    run_here(task, settings=made)
    assert context.settings.added == '1'


@pytest.mark.parametrize('name', ['uuid', 'node_uuid', 'options'])
def test_names_that_the_worker_sets_are_taken(name: str) -> None:
    for use in (contexts.check_settings, lambda values: contexts.make_settings(Namespace(), values)):
        with pytest.raises(ValueError, match=rf'context\.settings\.{name} is set by the worker itself'):
            use({name: 1, 'other': 2})
    # Said before anything is looked at or started.
    with pytest.raises(ValueError, match=name):
        worker.run(**{name: 1})


# Outside of a task

OUTSIDE: list[tuple[str, Callable[[], object]]] = [
    ('headers', lambda: context.headers),
    ('headers =', lambda: setattr(context, 'headers', {})),
    ('request_headers', lambda: context.request_headers),
    ('pubsub', lambda: context.pubsub),
    ('deadline', lambda: context.deadline),
    ('cancelled', lambda: context.cancelled),
    ('correlation_id', lambda: context.correlation_id),
]


@pytest.mark.parametrize('use', [use for _, use in OUTSIDE], ids=[name for name, _ in OUTSIDE])
def test_outside_of_a_task_there_is_none_of_it(use: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match=r'only context\.settings is there outside of a task'):
        use()


def test_outside_of_a_worker_there_are_no_settings() -> None:
    with pytest.raises(RuntimeError, match=r'context\.settings is made when the worker starts'):
        _ = context.settings
    assert deadlines.time_left() is None


def test_a_thread_that_a_task_starts_has_the_settings_only() -> None:
    made = contexts.make_settings(Namespace(), {})
    seen: SimpleQueue[object] = SimpleQueue()

    def look() -> None:
        seen.put(context.settings)
        try:
            seen.put(context.correlation_id)
        except RuntimeError as error:
            seen.put(error)

    def task(id: str) -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(LONG)

    run_here(task, settings=made)
    assert seen.get(timeout=LONG) is made
    assert isinstance(seen.get(timeout=LONG), RuntimeError)


# Time, and nobody who waits


def test_the_deadline_counts_down_and_bounds_what_is_called() -> None:
    def task(id: str) -> list[float]:
        first = context.deadline
        wait_until(lambda: context.deadline < first - 0.05)
        left = deadlines.time_left()
        assert left is not None
        assert deadlines.bounded(1000.0) <= left
        assert deadlines.bounded(0.5) == 0.5
        return [first, context.deadline, left]

    outcome = run_here(task, a_run(timeout=30.0))
    first, second, left = map(float, value(outcome).strip('[]').split(','))
    assert 20.0 < second < first <= 30.0
    assert left == pytest.approx(second, abs=1.0)


def test_the_deadline_is_nothing_when_the_time_is_over() -> None:
    def task(id: str) -> float:
        wait_until(lambda: context.deadline == 0.0)
        with pytest.raises(TimeoutError):
            deadlines.bounded(1.0)
        return context.deadline

    assert value(run_here(task, a_run(timeout=0.02))) == '0.0'


def test_a_task_may_look_whether_anybody_waits() -> None:
    run = a_run()

    def task(id: str) -> list[bool]:
        before = context.cancelled
        run.cancelled = True
        return [before, context.cancelled]

    assert value(run_here(task, run)) == '[false,true]'


# Publishing


def test_what_is_published_is_packed_as_a_value() -> None:
    published: list[Publication] = []

    def task(id: str) -> None:
        context.pubsub.publish('news', {'a': 1})
        context.pubsub.publish('news', b'raw')
        context.pubsub.publish('news', 'text', 'text', gzip=True)

    assert isinstance(run_here(task, a_run(publish=published.append)), Reply)
    assert [(each.channel, each.content_type, each.content_encoding) for each in published] == [
        ('news', 'application/json', ''),
        ('news', 'application/octet-stream', ''),
        ('news', 'text/plain', 'gzip'),
    ]
    assert [each.body for each in published[:2]] == [b'{"a":1}', b'raw']


@pytest.mark.parametrize(('channel', 'message'), [('', 1), ('x' * 256, 1), ('news', object())])
def test_what_cannot_be_published_is_the_tasks_mistake(channel: str, message: object) -> None:
    outcome = run_here(lambda id: context.pubsub.publish(channel, message))
    assert isinstance(outcome, Failure)
    assert outcome.kind == 'raised'
    assert outcome.type in ('ValueError', 'PayloadError')


def test_what_a_task_publishes_leaves_before_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[tuple[str, str]] = []
    publish = MemoryChannel.publish

    def note(self: MemoryChannel, envelope: Envelope, routing_key: str, **options: Any) -> None:
        message = decode(envelope)
        if isinstance(message, Publication):
            left.append(('publication', message.channel))
        elif isinstance(message, Reply):
            left.append(('reply', message.correlation_id))
        publish(self, envelope, routing_key, **options)

    registry = Registry()

    @registered('publish', registry=registry)
    def task(_: object) -> None:
        context.pubsub.publish(str(context.correlation_id), 'news')

    monkeypatch.setattr(MemoryChannel, 'publish', note)
    # The ends of others' runs may be taken just when one has published.
    with Worker(registry, threads=4), Client('memory://') as client:
        for _ in range(10):
            for result in [client.call('publish') for _ in range(200)]:
                result.wait(20)
    replied = [each for what, each in left if what == 'reply']
    assert len(replied) == 2000
    places = {each: place for place, each in enumerate(left)}
    assert all(places['publication', each] < places['reply', each] for each in replied)
