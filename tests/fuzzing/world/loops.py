"""An asyncio loop that runs when it is told to, by a clock that goes on when it is told to."""

import asyncio
import contextvars
import heapq
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

__all__ = ['Clock', 'Loop']

EPOCH = 1_700_000_000.0


class Clock:
    """The time.

    Attributes:
        now: what ``time.monotonic`` says.
        skew: how far the wall clock of who runs now is off.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.skew = 0.0

    def monotonic(self) -> float:
        """Stand in for ``time.monotonic``."""
        return self.now

    def time(self) -> float:
        """Stand in for ``time.time``."""
        return EPOCH + self.now + self.skew

    @contextmanager
    def instead_of_time(self) -> Iterator[None]:
        """Be the time for all of crew."""
        standing_in = types.SimpleNamespace(monotonic=self.monotonic, time=self.time)
        names: list[tuple[object, Any]] = [
            (time, standing_in),
            (time.monotonic, self.monotonic),
            (time.time, self.time),
        ]
        changed: list[tuple[dict[str, Any], str, Any]] = []
        for module in [module for name, module in sys.modules.items() if name.startswith('crew.')]:
            space = vars(module)
            for name in ('time', 'monotonic'):
                for original, ours in names:
                    if space.get(name) is original:
                        changed.append((space, name, original))
                        space[name] = ours
                        break
        try:
            yield
        finally:
            for space, name, original in changed:
                space[name] = original


class Loop(asyncio.AbstractEventLoop):
    """A loop of which every turn is taken from outside.

    Args:
        clock: the time.
        skew: how far the wall clock is off where it runs.

    Attributes:
        errors: what callbacks and tasks raised that nobody took.
    """

    _numbers = count()

    def __init__(self, clock: Clock, skew: float = 0.0) -> None:
        self.errors: list[dict[str, Any]] = []
        self._clock = clock
        self._skew = skew
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    # From outside

    def turn(self) -> bool:
        """Run what is ready; return whether there was anything."""
        timers = self._timers
        while timers and (timers[0][2].cancelled() or timers[0][0] <= self._clock.now):
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)
        if not self._ready:
            return False
        # As running(), which costs more.
        asyncio._set_running_loop(self)
        self._clock.skew = self._skew
        try:
            for _ in range(len(self._ready)):
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(None)
            self._clock.skew = 0.0
        return True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the running loop."""
        before = asyncio._get_running_loop(), self._clock.skew
        asyncio._set_running_loop(self)
        self._clock.skew = self._skew
        try:
            yield
        finally:
            asyncio._set_running_loop(before[0])
            self._clock.skew = before[1]

    def due(self) -> float | None:
        """Return when there is something to do next, without having been told anything else."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def end(self) -> list[str]:
        """Cancel all tasks, and run until they are over; return those that are not."""
        for _ in range(50):
            for task in list(self._tasks):
                task.cancel()
            while self.turn():
                pass
            if not self._tasks:
                break
            self._clock.now += 60.0
        return [repr(task) for task in self._tasks]

    # For those who run on it

    def time(self) -> float:
        return self._clock.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._clock.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: it is passed over when it is due."""

    def create_future(self) -> 'asyncio.Future[Any]':
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> 'asyncio.Task[Any]':  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False
