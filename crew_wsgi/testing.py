"""For the tests of WSGI applications: the application behind front, queue and worker, all in this process.

With pytest, put ``pytest_plugins = ['crew.testing', 'crew_wsgi.testing']`` into ``conftest.py``:

>>> def test_it_greets(crew_bridge):
...     bridge = crew_bridge(app)
...     assert urllib.request.urlopen(bridge.url + '/').read() == b'hello'

The broker is that of :mod:`crew.testing`. :class:`Bridge` is a context manager, too.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import pytest
from tornado import netutil

from crew import topology
from crew.master.engine import Engine
from crew.transports.addresses import checked
from crew.transports.threads import LoopThread
from crew.worker.settings import Limits as RunLimits
from crew_wsgi.front import Front
from crew_wsgi.gateway import Application
from crew_wsgi.limits import Limits
from crew_wsgi.routes import Route, Routes
from crew_wsgi.worker import in_process

__all__ = ['Bridge', 'crew_bridge']

B = TypeVar('B', bound='Bridge')

STARTED_WITHIN = 30.0
STOPPED_WITHIN = 10.0


class Bridge:
    """A front and a worker around an application. A context manager, or :meth:`start` and :meth:`stop`.

    Args:
        application: the WSGI application.
        url: the broker.
        threads: how many requests run at once.
        queue: the id of the application.
        limits: what the front allows a request (:class:`crew_wsgi.limits.Limits`).

    Attributes:
        port: where it listens on 127.0.0.1, once it is started.
    """

    def __init__(
        self,
        application: Application,
        *,
        url: str = 'memory://',
        threads: int = 1,
        queue: str = 'wsgi',
        limits: Limits | None = None,
    ) -> None:
        self._urls = checked(url)
        self._id = queue
        self._queue = topology.task_queue(queue)
        self._limits = limits or Limits()
        self._worker = in_process(
            application,
            self._urls,
            queue,
            threads=threads,
            limits=RunLimits(kill_after=1.0),
            graceful_timeout=5.0,
        )
        self._thread = LoopThread('crew-front')
        self._front: Front | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The address to make requests to, without a slash at its end."""
        return f'http://127.0.0.1:{self.port}'

    def start(self) -> None:
        """Start, and return when requests are taken.

        Raises:
            BrokerRefused: the broker refused it.
            TimeoutError: it could not be reached in time.
        """
        self._worker.start()
        self._thread.start()
        self._run(self._listen, STARTED_WITHIN)

    def stop(self) -> None:
        """Answer what is in flight, for at most five seconds, and end."""
        self._run(self._stop, STOPPED_WITHIN)
        self._thread.stop()
        self._thread.join(STOPPED_WITHIN)
        self._worker.stop()

    def _run(self, work: Callable[[], Any], timeout: float) -> None:
        """Run a coroutine function on the front's loop, and wait for its end."""
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()

        def begin() -> None:
            self._working = asyncio.ensure_future(work())
            self._working.add_done_callback(end)

        def end(task: 'asyncio.Future[None]') -> None:
            error = task.exception()
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(None)

        self._thread.post(begin)
        ended.result(timeout)

    async def _listen(self) -> None:
        engine = Engine(asyncio.get_running_loop(), self._urls, [self._queue], name='crew-wsgi-front')
        self._front = Front(engine, Routes([Route(self._id)]), self._limits)
        sockets = netutil.bind_sockets(0, '127.0.0.1')
        self.port = sockets[0].getsockname()[1]
        self._front.connect()
        await engine.wait_ready()
        self._front.accept(sockets)

    async def _stop(self) -> None:
        if self._front is not None:
            await self._front.stop(5.0, last_request_within=0.0)

    def __enter__(self: B) -> B:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


@pytest.fixture
def crew_bridge(crew_broker: str) -> Iterator[Callable[..., Bridge]]:
    """Put an application behind the bridge: takes the arguments of :class:`Bridge` except ``url``."""
    started: list[Bridge] = []

    def start(application: Application, **options: Any) -> Bridge:
        bridge = Bridge(application, url=crew_broker, **options)
        bridge.start()
        started.append(bridge)
        return bridge

    yield start
    for bridge in reversed(started):
        bridge.stop()
