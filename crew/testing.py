"""For the tests of programs that use crew: a worker with my tasks and a client, in this process or on RabbitMQ.

With pytest, put ``pytest_plugins = ['crew.testing']`` into ``conftest.py``:

>>> def test_it_doubles(crew_worker, crew_client):
...     crew_worker(double)
...     assert crew_client.call('double', 21).wait(5) == 42

The broker is ``memory://``, a new one for each test, so nothing needs to be installed.
``pytest --crew-broker=rabbitmq`` runs the same tests against a private RabbitMQ node. :class:`Worker` is a context
manager, too.
"""

from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from types import ModuleType, TracebackType
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from crew.master.threaded_client import Client
from crew.private_node import PrivateNode
from crew.serializers import accepted
from crew.transports import memory
from crew.transports.addresses import checked
from crew.worker import contexts
from crew.worker.in_process import InProcessWorker
from crew.worker.registry import Registry, tasks
from crew.worker.settings import Limits, Settings, Terms
from crew.worker.tasks import registered_task

__all__ = ['Worker', 'crew_broker', 'crew_client', 'crew_node', 'crew_worker']

W = TypeVar('W', bound='Worker')


class Worker:
    """A worker in threads of this process. A context manager, or :meth:`start` and :meth:`stop`.

    All limits are kept but the hard one: a thread that will not end is left behind, and another takes its place.

    Args:
        only: the tasks: functions decorated with ``Task``, classes that were bound, ids, modules for all of theirs, or
            one registry. None at all is every task of this process.
        url: the broker.
        threads: how many tasks run at once.
        settings: what ``context.settings`` has, as given to ``run()``.
        timeout: longest run, in seconds; it only lowers what the caller says.
        accept: ``{'pickle'}`` to read that too.

    Raises:
        ValueError: there is no such task.
    """

    def __init__(
        self,
        *only: Callable[..., Any] | type | str | ModuleType | Registry,
        url: str = 'memory://',
        threads: int = 1,
        settings: dict[str, Any] | None = None,
        timeout: float | None = None,
        accept: Collection[str] = (),
    ) -> None:
        registry = tasks if not only else _chosen(only)
        made = contexts.make_settings(Namespace(threads=threads, timeout=timeout), settings or {})
        for starter in registry.starters:
            starter(made)
        self._worker = InProcessWorker(
            Settings(
                urls=checked(url),
                queues=[Terms(task.id, idempotent=task.idempotent, stop_on_cancel=True) for task in registry],
                slots=threads,
                prefetch=threads,
                limits=Limits(timeout, kill_after=1.0),
                graceful_timeout=5.0,
                publishes=True,
            ),
            registered_task(registry, made, accepted(accept)),
        )
        self.settings = made

    def start(self) -> None:
        """Start, and return when it takes tasks.

        Raises:
            BrokerRefused: the broker refused it.
            TimeoutError: it could not be reached in time.
        """
        self._worker.start()

    def stop(self) -> None:
        """Let what runs end, for at most five seconds."""
        self._worker.stop()

    def __enter__(self: W) -> W:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _chosen(only: Sequence[Callable[..., Any] | type | str | ModuleType | Registry]) -> Registry:
    if isinstance(only[0], Registry):
        return only[0]
    result = Registry()
    result.starters = tasks.starters
    for each in only:
        found = [task for task in tasks if task.is_of(each)]
        if not found:
            raise ValueError(f'{each!r} is no task, and has none: decorate it with @Task, or import what does')
        for task in found:
            result.add(task)
    return result


# Fixtures


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--crew-broker``."""
    parser.addoption(
        '--crew-broker',
        choices=('memory', 'rabbitmq'),
        default='memory',
        help='what the fixtures of crew.testing run on (default: %(default)s)',
    )


@pytest.fixture(scope='session')
def crew_node() -> Iterator[PrivateNode]:
    """A private RabbitMQ node for the whole session, started when it is first asked for."""
    with PrivateNode() as node:
        yield node


@pytest.fixture
def crew_broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of this test's broker: one in memory of its own, or with ``--crew-broker=rabbitmq`` a private node."""
    if request.config.getoption('--crew-broker') == 'rabbitmq':
        yield request.getfixturevalue('crew_node').url
        return
    url = f'memory://{uuid4().hex}'
    yield url
    memory.forget(url)


@pytest.fixture
def crew_worker(crew_broker: str) -> Iterator[Callable[..., Worker]]:
    """Start a worker: a function that takes the arguments of :class:`Worker` except ``url``. It ends with the test."""
    started: list[Worker] = []

    def start(*only: Any, **options: Any) -> Worker:
        worker = Worker(*only, url=crew_broker, **options)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in reversed(started):
        worker.stop()


@pytest.fixture
def crew_client(crew_broker: str) -> Iterator[Client]:
    """A blocking client; others are made with the URL ``crew_broker``. It is closed with the test."""
    client = Client(crew_broker)
    yield client
    client.close()
