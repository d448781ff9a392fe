"""One worker process: the task is loaded in the main thread, the connection lives in a thread of its own.

Signals are read by the connection's thread from a wake-up pipe, which the interpreter writes even while the main thread
computes. The same thread watches the lifeline, a pipe that only the supervisor holds open: when it ends, nobody is
there to stop a task that hangs, so the process finishes what it runs and ends too.
"""

import asyncio
import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from crew import logs
from crew.exceptions import BrokerRefused
from crew.transports.threads import start_native
from crew.worker.consumer import Consumer
from crew.worker.exits import CANNOT_START, GAVE_UP, CannotStart
from crew.worker.runs import OnFinished, Runner, Task, out_of_memory
from crew.worker.settings import Settings
from crew.worker.signals import OURS, SIGNALS, signal_pipe
from crew.worker.threads import ThreadRunner
from crew.worker.ties import Ties

__all__ = ['CannotStart', 'serve']

log = logging.getLogger(__name__)


def serve(settings: Settings, load: Callable[[], Task], ties: Ties, *, gevent: bool = False) -> int:
    """Be a worker process until told to end by ``SIGTERM``; return the exit code.

    Args:
        settings: see :class:`crew.worker.settings.Settings`.
        load: returns the task; called in this thread, after monkey-patching when ``gevent``.
        ties: see :class:`crew.worker.ties.Ties`.
        gevent: whether runs are greenlets of a patched process instead of threads.
    """
    faulthandler.register(signal.SIGQUIT, file=ties.stacks, all_threads=True)
    # What crashes the interpreter writes its stacks there, too; an application that wants them elsewhere says so later.
    faulthandler.enable(file=ties.stacks, all_threads=True)
    signals = _watch_signals()
    if gevent:
        # All of ours is loaded before anything is patched.
        importlib.import_module('crew.transports.asyncio')
        _patch()
    # What was found in a directory before the fork may be older than the code that is to be loaded.
    importlib.invalidate_caches()
    try:
        if settings.slots > ties.clock.slots:
            raise CannotStart('more calls are to run at once than the supervisor knows of: start the worker anew')
        with _kept_signals():
            task = _loaded(load)
    except CannotStart as error:
        ties.clock.set_reason(str(error))
        log.error('%s', error)
        return CANNOT_START
    logs.restore()
    if gevent:
        return _serve_greenlets(settings, task, ties, signals)
    connection = _ConnectionThread(settings, lambda on_finished: ThreadRunner(settings.slots, task, on_finished))
    thread = threading.Thread(target=connection.run, args=(ties, signals), name='crew-connection', daemon=True)
    thread.start()
    thread.join()
    return connection.exit_code


def _loaded(load: Callable[[], Task]) -> Task:
    try:
        return load()
    except (KeyboardInterrupt, SystemExit) as error:
        # The application's own, for no signal raises it here. Every new process would do the same.
        log.debug('loading was ended', exc_info=error)
        raise CannotStart(f'the worker cannot start: {type(error).__name__} was raised as it was loaded') from error


class _ConnectionThread:
    """The thread that owns the connection: runs the consumer's loop."""

    def __init__(self, settings: Settings, make_runner: Callable[[OnFinished], Runner]) -> None:
        self._settings = settings
        self._make_runner = make_runner
        self.exit_code = GAVE_UP

    def run(self, ties: Ties, signals: int) -> None:
        try:
            self.exit_code = asyncio.run(self._run(ties, signals))
        except BrokerRefused as error:
            log.error('%s', error)
            self.exit_code = CANNOT_START
        except Exception:  # the edge of the thread: whatever it is, the process ends and is replaced
            log.exception('the connection thread failed')

    async def _run(self, ties: Ties, signals: int) -> int:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal() -> None:
            for number in os.read(signals, 64):
                # A second one means nothing: systemd tells the whole family to end, and so does the supervisor. To end
                # at once is the supervisor's word, and SIGKILL.
                if number == signal.SIGTERM:
                    stop.set()

        def on_lifeline() -> None:
            loop.remove_reader(ties.lifeline)
            log.warning('the supervisor is gone, so this worker ends too')
            stop.set()

        loop.add_reader(signals, on_signal)
        loop.add_reader(ties.lifeline, on_lifeline)
        consumer = Consumer(self._settings, self._make_runner, ties.clock)

        def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if not isinstance(context.get('exception'), MemoryError):
                loop.default_exception_handler(context)
                return
            # Whatever this thread was about to do has not been done, and nobody knows what it was.
            try:
                consumer.give_up('there is no memory left for its connection')
            except MemoryError:
                out_of_memory()

        loop.set_exception_handler(on_exception)
        return 0 if await consumer.run(stop) else GAVE_UP


def _watch_signals() -> int:
    # A terminal sends Ctrl-C and its end to every process; the supervisor decides what they mean.
    reading = signal_pipe(OURS)
    _shield_forks()
    # What was sent since the fork arrives now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return reading


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Take back the signals that an application makes its own as it is loaded: its handlers would end what runs."""
    ours = {number: signal.getsignal(number) for number in OURS}
    # It can only be asked for by setting another; what comes just then must wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    yield
    for number, handler in ours.items():
        if signal.getsignal(number) is not handler:
            log.warning('the application handles %s itself; a worker does without that: use atexit', number.name)
            signal.signal(number, handler)
    # An event loop that the application has run leaves none.
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


def _shield_forks() -> None:
    """Give processes that the application forks the usual signals: theirs would end this worker in their place."""

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)

    os.register_at_fork(
        # A child may be told to end before it has run a line of its own.
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, OURS),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS),
        after_in_child=in_child,
    )


def _patch() -> None:
    from gevent import get_hub, monkey

    # The first hub that a process makes gets the main loop, the one that may watch children.
    get_hub()
    with warnings.catch_warnings():
        # It warns of classes made from ssl's before; there are none.
        warnings.simplefilter('ignore', monkey.MonkeyPatchWarning)
        monkey.patch_all()


def _serve_greenlets(settings: Settings, task: Task, ties: Ties, signals: int) -> int:
    import gevent
    from gevent.event import Event

    from crew.worker.greenlets import GreenletRunner

    runner = GreenletRunner(task)
    connection = _ConnectionThread(settings, runner.report_to)
    ended = Event()
    wake_up = gevent.get_hub().loop.async_()
    wake_up.start(ended.set)

    def run() -> None:
        try:
            connection.run(ties, signals)
        finally:
            wake_up.send()

    start_native(run, 'crew-connection')
    ended.wait()
    return connection.exit_code
