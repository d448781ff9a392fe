"""The five clients behind one blocking interface, so that one suite holds all of them to the same promises.

Each face runs its framework in a thread of its own, as a program of that framework would in its main thread.
"""

import asyncio
import concurrent.futures
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from threading import Thread
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
from twisted.internet import defer, reactor

from crew.envelope import Envelope
from crew.master import asyncio as for_asyncio
from crew.master import gevent as for_gevent
from crew.master import threaded_client as for_threads
from crew.master import tornado as for_tornado
from crew.master import twisted as for_twisted
from crew.serializers import accepted
from crew.transports.addresses import dial
from crew.worker.consumer import Settings
from crew.worker.deliveries import Terms
from crew.worker.in_process import InProcessWorker
from crew.worker.registry import Registry, Task
from crew.worker.tasks import registered_task

__all__ = ['FACES', 'Asyncio', 'Client', 'Face', 'Outcome', 'Threads', 'put', 'serving', 'take']

LONG = 10.0


class Outcome(concurrent.futures.Future[Any]):
    """What a client's method brings, whatever its framework waits on."""

    headers: Any = None
    waited_on: Any = None


class Client:
    """A client of one face, used from the test's thread."""

    def __init__(self, face: 'Face', client: Any) -> None:
        self.face = face
        self.raw = client

    def call(self, *arguments: Any, **options: Any) -> Outcome:
        """Make a call; raise what the client's method itself raises."""
        return self.face.do(lambda: self.raw.call(*arguments, **options))

    def get(self, *arguments: Any, **options: Any) -> Any:
        """Make a call and wait for its value."""
        return self.call(*arguments, **options).result(LONG)

    def run(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call another method and wait for its end."""
        return self.face.do(lambda: getattr(self.raw, method)(*arguments, **options)).result(LONG)

    def cancel(self, outcome: Outcome) -> None:
        """Give up what is waited on, in the way of the framework."""
        self.face.do(lambda: outcome.waited_on.cancel() and None).result(LONG)


class Face(ABC):
    """One framework."""

    #: The module of its client.
    module: Any
    #: What brings the end of a call that was given up.
    cancelled: type[BaseException]

    def start(self) -> None:
        """Start what the framework needs."""
        return

    def stop(self) -> None:
        """End that."""
        return

    @abstractmethod
    def do(self, work: Callable[[], Any]) -> Outcome:
        """Do something where the framework does such things; return when it has returned, or raise what it raises."""

    def client(self, *arguments: Any, **options: Any) -> Client:
        """Make a client."""
        made: list[Any] = []
        self.do(lambda: made.append(self.module.Client(*arguments, **options)))
        return Client(self, made[0])

    @contextlib.contextmanager
    def open(self, *arguments: Any, **options: Any) -> Iterator[Client]:
        """Make a client, and close it in the end."""
        client = self.client(*arguments, **options)
        try:
            yield client
        finally:
            client.run('close')

    def __repr__(self) -> str:
        return type(self).__name__.lower()


class Threads(Face):
    """The blocking client, in the test's own thread."""

    module = for_threads
    cancelled = concurrent.futures.CancelledError

    def do(self, work: Callable[[], Any]) -> Outcome:
        """Do it here."""
        outcome = Outcome()
        outcome.waited_on = waited_on = work()
        if not isinstance(waited_on, for_threads.Result):
            outcome.set_result(waited_on)
            return outcome

        def done(result: Any) -> None:
            outcome.headers = result.headers
            try:
                outcome.set_result(result.result())
            except BaseException as error:
                outcome.set_exception(error)

        waited_on.add_done_callback(done)
        return outcome


class Asyncio(Face):
    """The asyncio client, on a loop in a thread."""

    module = for_asyncio
    cancelled = asyncio.CancelledError

    def start(self) -> None:
        """Start the loop."""
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG)
        self._loop.close()

    def do(self, work: Callable[[], Any]) -> Outcome:
        """Do it on the loop."""
        outcome = Outcome()
        begun: concurrent.futures.Future[None] = concurrent.futures.Future()

        async def run() -> None:
            try:
                outcome.waited_on = work()
            except BaseException as error:
                begun.set_exception(error)
                return
            begun.set_result(None)
            try:
                value = await outcome.waited_on if asyncio.isfuture(outcome.waited_on) else outcome.waited_on
                outcome.headers = getattr(outcome.waited_on, 'headers', None)
                outcome.set_result(value)
            except BaseException as error:
                outcome.set_exception(error)

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        begun.result(LONG)
        return outcome


class Tornado(Asyncio):
    """Tornado's client; its loop is asyncio's."""

    module = for_tornado


class Gevent(Face):
    """gevent's client, with a hub in a thread."""

    module = for_gevent
    cancelled = gevent.GreenletExit

    def start(self) -> None:
        """Start the hub."""
        begun: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._work: deque[Callable[[], None]] = deque()
        self._thread = Thread(target=self._run, args=(begun,), daemon=True)
        self._thread.start()
        begun.result(LONG)

    def stop(self) -> None:
        """End the hub."""
        self._post(self._stopped.set)
        self._thread.join(LONG)

    def _run(self, begun: 'concurrent.futures.Future[None]') -> None:
        hub = gevent.get_hub()
        self._stopped = gevent.event.Event()
        self._wake_up = hub.loop.async_()
        self._wake_up.start(self._obey)
        begun.set_result(None)
        self._stopped.wait()
        self._wake_up.close()
        hub.destroy()

    def _obey(self) -> None:
        while self._work:
            gevent.spawn(self._work.popleft())

    def _post(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        self._wake_up.send()

    def do(self, work: Callable[[], Any]) -> Outcome:
        """Do it in a greenlet."""
        outcome = Outcome()
        begun: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                outcome.waited_on = work()
            except BaseException as error:
                begun.set_exception(error)
                return
            begun.set_result(None)
            try:
                is_result = isinstance(outcome.waited_on, for_gevent.Result)
                value = outcome.waited_on.wait() if is_result else outcome.waited_on
                outcome.headers = getattr(outcome.waited_on, 'headers', None)
                outcome.set_result(value)
            except BaseException as error:
                outcome.set_exception(error)

        self._post(run)
        begun.result(2 * LONG)
        return outcome


class Twisted(Face):
    """Twisted's client; the reactor runs in a thread, once in the life of the process."""

    module = for_twisted
    cancelled = defer.CancelledError

    def start(self) -> None:
        """Start the reactor."""
        self._thread = Thread(target=reactor.run, kwargs={'installSignalHandlers': False}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the reactor."""
        reactor.callFromThread(reactor.stop)
        self._thread.join(LONG)

    def do(self, work: Callable[[], Any]) -> Outcome:
        """Do it in the reactor's thread."""
        outcome = Outcome()
        begun: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                outcome.waited_on = work()
            except BaseException as error:
                begun.set_exception(error)
                return
            begun.set_result(None)
            if not isinstance(outcome.waited_on, defer.Deferred):
                outcome.set_result(outcome.waited_on)
                return
            outcome.waited_on.addCallbacks(succeeded, lambda failure: outcome.set_exception(failure.value))

        def succeeded(value: Any) -> None:
            outcome.headers = outcome.waited_on.headers
            outcome.set_result(value)

        reactor.callFromThread(run)
        begun.result(LONG)
        return outcome


FACES: tuple[type[Face], ...] = (Asyncio, Tornado, Threads, Gevent, Twisted)


# What stands at the other end


@contextlib.contextmanager
def serving(
    url: str, accept: tuple[str, ...] = (), prefetch: int | None = None, **tasks: Callable[[Any], Any]
) -> Iterator[InProcessWorker]:
    """Run tasks in a thread of this process, under the names of the other arguments."""
    registry = Registry()
    for id, function in tasks.items():
        Task(id, registry=registry)(function)
    queues = [Terms(id, stop_on_cancel=True) for id in tasks]
    settings = Settings(urls=[url], queues=queues, publishes=True, prefetch=prefetch)
    worker = InProcessWorker(settings, registered_task(registry, SimpleNamespace(), accepted(accept)))
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def put(url: str, queue: str, *envelopes: Envelope) -> None:
    """Put messages into a queue, as somebody who knows nothing of crew."""

    async def put() -> None:
        connection = await dial(url)
        channel = await connection.open_channel(confirm=True)
        for envelope in envelopes:
            channel.publish(envelope, queue)
        await channel.confirmed()
        await connection.close()

    asyncio.run(put())


def take(url: str, queue: str, count: int = 1) -> list[Envelope]:
    """Take messages out of a queue, as they are."""

    async def take() -> list[Envelope]:
        connection = await dial(url)
        channel = await connection.open_channel()
        taken: asyncio.Queue[Envelope] = asyncio.Queue()
        await channel.consume(queue, lambda delivery: taken.put_nowait(delivery.envelope), no_ack=True)
        envelopes = [await asyncio.wait_for(taken.get(), LONG) for _ in range(count)]
        await connection.close()
        return envelopes

    return asyncio.run(take())
