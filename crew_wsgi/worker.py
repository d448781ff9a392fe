"""``crew-wsgi-worker``: takes requests from the queue and runs a WSGI application for each."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crew import logs
from crew.options import (
    Parser,
    add_consumer_timeout,
    add_end_with_stdin,
    add_graceful_timeout,
    add_kill_after,
    add_verbosity,
    add_version,
    count,
    seconds,
)
from crew.transports.addresses import DEFAULT_URL, safe_url
from crew.worker.launch import launch
from crew.worker.settings import Limits, Settings, Terms
from crew_wsgi.options import add_broker

if TYPE_CHECKING:
    from crew.worker.in_process import InProcessWorker
    from crew.worker.runs import Task
    from crew_wsgi.gateway import Application

__all__ = ['in_process', 'load', 'main']

DEFAULT_LIMITS = Limits()

DEBUG_HELP = 'reload on code change, and werkzeug’s debugger in the browser; never where strangers reach it'


def in_process(
    application: 'Application',
    urls: Sequence[str],
    queue: str,
    *,
    threads: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    graceful_timeout: float = 28.0,
) -> 'InProcessWorker':
    """Return a worker that runs an application in threads of this process.

    Args:
        application: the WSGI application.
        urls: the broker; ``memory://`` is welcome.
        queue: the id of the application.
        threads: how many requests run at once.
        limits: of each run; the hard one leaves a thread behind that will not end.
        graceful_timeout: how long running requests may take when it is stopped, in seconds.
    """
    from crew.worker.in_process import InProcessWorker
    from crew_wsgi.task import wsgi_task

    settings = Settings(
        urls=urls,
        queues=[Terms(queue)],
        slots=threads,
        prefetch=threads,
        limits=limits,
        graceful_timeout=graceful_timeout,
        name='crew-wsgi-worker',
    )
    return InProcessWorker(settings, wsgi_task(application, multithread=threads > 1, multiprocess=False))


def parser(prog: str = 'crew-wsgi-worker') -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = Parser(prog=prog, description='Take requests from a RabbitMQ queue and run a WSGI application for each.')
    add_application(result)
    add_broker(result)
    add_slots(result)
    group = result.add_argument_group('limits, in seconds')
    group.add_argument('--timeout', type=seconds, metavar='S', help='longest run; it only lowers what the front says')
    add_kill_after(group, DEFAULT_LIMITS.kill_after)
    add_graceful_timeout(group)
    add_consumer_timeout(group, DEFAULT_LIMITS.consumer_timeout)
    result.add_argument('--debug', action='store_true', help=DEBUG_HELP)
    add_verbosity(result.add_argument_group('log'))
    add_end_with_stdin(result)
    add_version(result)
    return result


def add_application(to: argparse.ArgumentParser) -> None:
    """Add what is to be run."""
    to.add_argument('app', metavar='MODULE:APP', help='the application: module:attribute or module:factory()')
    to.add_argument('--app-dir', metavar='DIR', default='.', help='put first on sys.path (default: %(default)s)')


def add_slots(to: argparse.ArgumentParser) -> None:
    """Add what says how many requests run at once."""
    group = to.add_argument_group('how many at once')
    kind = group.add_mutually_exclusive_group()
    kind.add_argument('--threads', type=count, metavar='N', default=1, help='threads a process (default: %(default)d)')
    kind.add_argument('--gevent', type=count, metavar='N', help='greenlets a process, of a monkey-patched application')
    group.add_argument('--processes', type=count, metavar='P', default=1, help='processes (default: %(default)d)')
    group.add_argument(
        '--prefetch',
        type=count,
        metavar='N',
        help='requests a process may hold (default: as many as it runs at once, and for as long as requests take less '
        'than 5 ms, some more, which it gives back when one takes longer). More than it runs at once are held whatever '
        'they take, and may wait behind a slow one while another worker is idle',
    )


def check_slots(command: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error where options contradict each other."""
    slots = options.gevent or options.threads
    if options.prefetch is not None and options.prefetch < slots:
        command.error(f'--prefetch {options.prefetch} would leave some of {slots} threads or greenlets without work')
    if options.debug and options.processes > 1:
        command.error('--debug needs one process: the debugger keeps what it shows in memory')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    check_slots(command, options)
    slots = options.gevent or options.threads
    logs.set_up(options.verbose, options.log_format)
    urls = options.amqp_urls or [DEFAULT_URL]
    settings = Settings(
        urls=urls,
        queues=[Terms(options.queue)],
        queue_type=options.queue_type,
        slots=slots,
        prefetch=options.prefetch,
        limits=Limits(options.timeout, options.kill_after, options.consumer_timeout),
        graceful_timeout=options.graceful_timeout,
        name='crew-wsgi-worker',
    )

    def load_task() -> 'Task':
        # For the processes that run it, not for their supervisor.
        from crew_wsgi.task import wsgi_task

        return wsgi_task(load(options), multithread=slots > 1, multiprocess=options.processes > 1)

    return launch(
        settings,
        load_task,
        what=f'{options.app} on queue {options.queue} at {", ".join(map(safe_url, urls))}',
        processes=options.processes,
        gevent=bool(options.gevent),
        lifeline=0 if options.end_with_stdin else None,
    )


def load(options: argparse.Namespace) -> 'Application':
    """Return the application that the command line names, behind the debugger if it says so.

    Raises:
        CannotStart: there is none.
    """
    from crew_wsgi.loader import add_app_dir, load_application

    if not options.debug:
        return load_application(options.app, options.app_dir)
    # werkzeug is large.
    from crew_wsgi.debug import load_debugged, reload_on_change

    add_app_dir(options.app_dir)
    reload_on_change()
    return load_debugged(lambda: load_application(options.app, options.app_dir))


if __name__ == '__main__':
    sys.exit(main())
