"""``run()``: the command line of a worker script, and what it starts."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crew import logs
from crew.options import (
    Parser,
    add_consumer_timeout,
    add_end_with_stdin,
    add_graceful_timeout,
    add_kill_after,
    add_queue_type,
    add_urls,
    add_verbosity,
    add_version,
    count,
    password,
    seconds,
)
from crew.serializers import accepted
from crew.transports.addresses import DEFAULT_URL, checked, safe_url, url_of
from crew.worker import contexts
from crew.worker.exits import CannotStart
from crew.worker.launch import launch
from crew.worker.registry import Registry, tasks
from crew.worker.settings import Limits, Settings, Terms

if TYPE_CHECKING:
    from crew.worker.runs import Task

__all__ = ['parser', 'run', 'terms']

log = logging.getLogger(__name__)

LEVELS = ('debug', 'info', 'warning', 'error', 'critical')


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser of a worker script."""
    result = Parser(description='Take tasks from RabbitMQ queues and run them.')
    broker = result.add_argument_group('broker')
    add_urls(broker, f'the options below, or {DEFAULT_URL}')
    broker.add_argument('-H', '--host', help='the broker’s host (default: 127.0.0.1)')
    broker.add_argument('-P', '--port', type=count, help='its port (default: 5672)')
    broker.add_argument('--username', help='user name (default: guest)')
    broker.add_argument(
        '--password',
        type=password,
        help='password (default: guest); better in $CREW_AMQP_URL, which others cannot read',
    )
    broker.add_argument('--vhost', help='virtual host (default: /)')
    add_queue_type(broker)
    slots = result.add_argument_group('how many at once')
    slots.add_argument(
        '--forks',
        type=count,
        metavar='N',
        default=1,
        help='processes, replaced when they die (default: %(default)d)',
    )
    kind = slots.add_mutually_exclusive_group()
    kind.add_argument('--threads', type=count, metavar='N', default=1, help='threads a process (default: %(default)d)')
    kind.add_argument('--gevent', type=count, metavar='N', help='greenlets a process, which is monkey-patched')
    limits = result.add_argument_group('limits, in seconds')
    limits.add_argument('--timeout', type=seconds, metavar='S', help='longest run; it only lowers what the caller says')
    add_kill_after(limits, Limits().kill_after)
    add_graceful_timeout(limits)
    add_consumer_timeout(limits, Limits().consumer_timeout)
    result.add_argument(
        '--accept',
        action='append',
        choices=['pickle'],
        default=[],
        help='also read arguments in this form; whoever can publish a pickle can run code here',
    )
    console = result.add_argument_group('log')
    add_verbosity(console)
    console.add_argument(
        '--logging',
        metavar='LEVEL',
        type=str.lower,
        choices=LEVELS,
        default='info',
        help='lowest level that is shown: ' + ', '.join(LEVELS) + ' (default: %(default)s)',
    )
    add_end_with_stdin(result)
    add_version(result)
    return result


def run(**settings: Any) -> None:
    """Be a worker: parse the command line, and run the tasks of this process until told to end by SIGTERM or SIGINT.

    To be called at the end of a script that has defined its tasks with :class:`crew.worker.Task`, or imported them. The
    main process watches one or several worker processes and replaces those that die or hang. On SIGHUP it replaces them
    by new ones that run the script from its beginning, so with its code as it is then.

    Args:
        settings: become ``context.settings``. They are made before the worker processes are forked: use
            :func:`crew.worker.on_start` for what must not be shared between processes, such as database connections.

    Raises:
        SystemExit: with 1 when something had to be abandoned, with 2 when the worker cannot start; a line in the log
            says why.
        ValueError: a setting has a name that the worker itself uses.
    """
    contexts.check_settings(settings)
    command = parser()
    options = command.parse_args()
    logs.set_up(options.verbose, options.log_format, options.logging.upper())
    # What the script itself logs goes the same way, unless it has set that up.
    logging.basicConfig(handlers=[logs.console()], level=options.logging.upper())
    if not len(tasks):
        command.error('there are no tasks: decorate functions with @Task, and import their modules before run()')
    code = _supervise(options, _urls(command, options), settings)
    if code:
        sys.exit(code)


def terms(registry: Registry) -> list[Terms]:
    """Return on which terms each registered task's calls are run."""
    return [Terms(task.id, idempotent=task.idempotent, stop_on_cancel=True) for task in registry]


def _urls(command: argparse.ArgumentParser, options: argparse.Namespace) -> Sequence[str]:
    parts = options.host, options.port, options.username, options.password, options.vhost
    if not any(part is not None for part in parts):
        return options.amqp_urls or [DEFAULT_URL]
    if options.amqp_urls is not None and options.amqp_urls is not command.get_default('amqp_urls'):
        command.error('--amqp-url says it all: leave out --host, --port, --username, --password and --vhost')
    url = url_of(
        options.host or '127.0.0.1',
        options.port or 5672,
        options.vhost or '/',
        options.username or '',
        options.password or '',
    )
    try:
        return checked(url)
    except ValueError as error:
        command.error(str(error))


def _supervise(options: argparse.Namespace, urls: Sequence[str], values: Mapping[str, Any]) -> int:
    settings = Settings(
        urls=urls,
        queues=terms(tasks),
        queue_type=options.queue_type,
        slots=options.gevent or options.threads,
        limits=Limits(options.timeout, options.kill_after, options.consumer_timeout),
        graceful_timeout=options.graceful_timeout,
        publishes=True,
        name='crew-worker',
    )
    return launch(
        settings,
        _loader(options, values),
        what=f'{len(tasks)} tasks at {", ".join(map(safe_url, urls))}',
        processes=options.forks,
        gevent=bool(options.gevent),
        lifeline=0 if options.end_with_stdin else None,
    )


def _loader(options: argparse.Namespace, values: Mapping[str, Any]) -> Callable[[], 'Task']:
    def load() -> 'Task':
        from crew.worker.tasks import registered_task

        made = contexts.make_settings(options, values)
        for starter in tasks.starters:
            try:
                starter(made)
            except BaseException as error:  # the application's own, sys.exit() too: every new process would do the same
                log.exception('%s failed', getattr(starter, '__qualname__', starter))
                raise CannotStart(f'the worker cannot start: {type(error).__name__}: {error}') from error
        return registered_task(tasks, made, accepted(options.accept))

    return load
