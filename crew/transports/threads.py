"""An asyncio loop in a native thread of its own, for those who have no loop, or another kind of it.

Also under gevent: a patched thread would be one more greenlet of the hub, and stand still while another computes; the
native one has a hub of its own.
"""

import _thread
import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from crew.transports.bell import Bell
from crew.transports.futures import look_at

__all__ = ['LoopThread', 'start_native']

log = logging.getLogger(__name__)

#: How long what is still under way, such as a connection that is being made, may take to end, in seconds.
ENDED_WITHIN = 1.0


def start_native(run: Callable[[], None], name: str) -> None:
    """Run something in a new thread of the operating system, whatever has been patched; the process may end before it.

    Args:
        run: what to run.
        name: the thread's name.
    """
    start = _original('start_new_thread')
    if start is _thread.start_new_thread:
        threading.Thread(target=run, name=name, daemon=True).start()
    else:
        start(run, ())


def _original(name: str) -> Any:
    """Return a function of ``_thread`` as it was before gevent patched it, if it did."""
    if 'gevent.monkey' not in sys.modules:
        return getattr(_thread, name)
    from gevent.monkey import get_original

    return get_original('_thread', name)


class LoopThread:
    """A thread that runs an asyncio loop until it is told to stop.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: Bell | None = None
        self._work: deque[Callable[[], None]] = deque()
        self._woken = False
        self._alive = _original('allocate_lock')()
        self._ident: int | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start the thread. What was posted before is done first.

        Raises:
            OSError: there is no file descriptor for its loop, so there is no thread, and nothing is done.
            RuntimeError: there can be no more threads.
        """
        self._alive.acquire()
        made = _original('allocate_lock')()
        made.acquire()
        try:
            start_native(lambda: self._run(made.release), self._name)
        except BaseException:
            self._alive.release()
            raise
        made.acquire()
        if self._failure is not None:
            raise self._failure

    def post(self, work: Callable[[], None]) -> None:
        """Have something done on the loop, in order; from any thread. One wake-up serves all that is posted then."""
        self._work.append(work)
        bell = self._bell
        if bell is None or self._woken:
            return
        try:
            self._woken = True
            bell.ring()
        except RuntimeError:  # it has been stopped, and closed just now
            log.debug('not done, the thread %s has ended', self._name)
        except BaseException:  # an interrupt: without a wake-up, nothing would ever be done again
            self._woken = False
            raise

    def stop(self) -> None:
        """End the loop after what was posted before; from any thread."""
        self.post(self._stop)

    def is_current(self) -> bool:
        """Return whether this is called in the thread itself, where nobody may wait for it."""
        return bool(self._ident == _original('get_ident')())

    def join(self, timeout: float) -> bool:
        """Wait for the end of the loop; return whether it has ended. Blocks the whole thread, under gevent too.

        Args:
            timeout: how long to wait, in seconds.
        """
        ended: bool = self._alive.acquire(timeout=timeout)
        if ended:
            self._alive.release()
        return ended

    def _stop(self) -> None:
        assert self._loop is not None
        self._loop.stop()

    def _run(self, made: Callable[[], None]) -> None:
        self._ident = _original('get_ident')()
        try:
            loop = self._make_loop()
        except BaseException as error:  # whatever it is, it is for the one who starts this
            self._failure = error
            self._alive.release()
            return
        finally:
            made()
        asyncio.set_event_loop(loop)
        # From here on posts wake us; what came before does not.
        loop.call_soon(self._obey)
        try:
            loop.run_forever()
            loop.run_until_complete(_end_tasks())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            self._alive.release()

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        # In this thread, because under gevent its selector belongs to the hub of the thread that makes it.
        loop = asyncio.new_event_loop()
        try:
            bell = Bell(loop, self._obey)
        except BaseException:
            loop.close()
            raise
        self._loop, self._bell = loop, bell
        return loop

    def _obey(self) -> None:
        self._woken = False
        while self._work:
            work = self._work.popleft()
            try:
                work()
            except Exception:  # one piece of work must not keep the others from being done
                log.exception('something posted to the thread %s failed', self._name)


async def _end_tasks() -> None:
    """Cancel what is still under way on this loop, and see it end: it would leave its sockets open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        ended, _ = await asyncio.wait(tasks, timeout=ENDED_WITHIN)
        for task in ended:
            look_at(task)
