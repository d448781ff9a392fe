"""A worker inside this process, for tests and for development without RabbitMQ.

It runs tasks in threads, with all limits but the hard one: there is no supervisor, so a thread that will not end is
left behind, and others take its place.
"""

import asyncio
import concurrent.futures
import logging
from contextlib import ExitStack

from crew.transports.threads import LoopThread
from crew.worker.clock import Clock
from crew.worker.consumer import Consumer
from crew.worker.runs import OnFinished, Task
from crew.worker.settings import Settings
from crew.worker.threads import ThreadRunner

__all__ = ['InProcessWorker']

log = logging.getLogger(__name__)


class InProcessWorker:
    """A worker in threads of this process.

    Args:
        settings: see :class:`crew.worker.settings.Settings`; ``memory://`` is welcome.
        task: what each run does.
    """

    def __init__(self, settings: Settings, task: Task) -> None:
        self._settings = settings
        self._task = task
        self._thread = LoopThread('crew-connection')
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stop: asyncio.Event | None = None

    def start(self, timeout: float = 30.0) -> None:
        """Start, and return when it takes tasks.

        Args:
            timeout: how long that may take, in seconds.

        Raises:
            BrokerRefused: the broker refused it.
            TimeoutError: it could not be reached in time.
        """
        self._thread.post(self._begin)
        self._thread.start()
        try:
            self._ready.result(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take nothing more, let what runs end within the graceful timeout, and return then."""
        self._thread.post(self._told_to_stop)
        concurrent.futures.wait([self._ended], self._settings.graceful_timeout + 10.0)
        self._thread.stop()
        self._thread.join(1.0)

    # In the connection's thread

    def _begin(self) -> None:
        self._stop = asyncio.Event()
        self._serving = asyncio.get_running_loop().create_task(self._serve(self._stop))

    def _told_to_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    async def _serve(self, stop: asyncio.Event) -> None:
        try:
            while not await self._serve_once(stop) and not stop.is_set():
                log.error('a task will not end: its thread is left behind, and another takes its place')
        except Exception as error:  # whatever it is, it is for the one who started this
            if self._ready.done():
                log.exception('the worker failed')
            else:
                self._ready.set_exception(error)
        finally:
            self._ended.set_result(None)

    async def _serve_once(self, stop: asyncio.Event) -> bool:
        slots = self._settings.slots
        with ExitStack() as at_end:

            def make_runner(report: OnFinished) -> ThreadRunner:
                runner = ThreadRunner(slots, self._task, report)
                at_end.callback(runner.close)
                return runner

            consumer = Consumer(self._settings, make_runner, Clock(slots))
            serving = asyncio.ensure_future(consumer.run(stop))
            ready = asyncio.ensure_future(consumer.wait_ready())
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ready.cancelled() and ready.exception() is None and not self._ready.done():
                self._ready.set_result(None)
            ready.cancel()
            return await serving
