"""``crew-wsgi-dev``: front, worker and a private RabbitMQ node on one console, for development."""

import argparse
import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from crew import logs
from crew.exceptions import NodeError
from crew.installation import find_server
from crew.options import Parser, add_kill_after, add_verbosity, add_version
from crew.private_node import PrivateNode
from crew.transports.addresses import is_memory
from crew.worker.exits import CannotStart
from crew.worker.settings import Limits
from crew_wsgi import front, worker
from crew_wsgi.options import add_broker

__all__ = ['main']

log = logging.getLogger('crew_wsgi.dev')

#: How long the last lines of a process that has ended may take to reach the console.
LAST_WORDS = 0.5

#: How much longer than its own --graceful-timeout a process is waited for.
PATIENCE = 5.0

COLOURS = {'front': '36', 'worker': '33', 'dev': '35'}


class Console:
    """One console for the lines of several processes, told apart by a prefix."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._coloured = output.isatty() and 'NO_COLOR' not in os.environ
        self._lock = threading.Lock()

    def write(self, source: str, line: str) -> None:
        """Write a line of a source."""
        prefix = f'{source:<6} | '
        if self._coloured:
            prefix = f'\x1b[{COLOURS[source]}m{prefix}\x1b[0m'
        with self._lock:
            self._output.write(f'{prefix}{line}\n')
            self._output.flush()


class Command:
    """One of our commands as a process of its own; its lines go to the console, its end to a queue.

    Args:
        source: its name on the console.
        module: the module to run.
        arguments: its command line.
        console: where its lines go.
        ended: gets ``self`` when it has ended.
    """

    def __init__(
        self,
        source: str,
        module: str,
        arguments: Sequence[str],
        console: Console,
        ended: 'queue.SimpleQueue[Command | signal.Signals]',
    ) -> None:
        self.source = source
        # Its own session: Ctrl-C must reach only us, for the front ends before the worker that it waits for. It ends
        # with its standard input, so with us, however we end.
        self._process = subprocess.Popen(
            [sys.executable, '-m', module, *arguments, '--end-with-stdin'],
            # What the application prints should be seen when it is printed, as on a terminal.
            env={**os.environ, 'PYTHONUNBUFFERED': '1'},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        copying = threading.Thread(target=self._copy, args=(console,), daemon=True)
        copying.start()
        threading.Thread(target=self._watch, args=(copying, ended), daemon=True).start()

    def _copy(self, console: Console) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            console.write(self.source, line.decode('utf-8', 'replace').rstrip('\n'))

    def _watch(self, copying: threading.Thread, ended: 'queue.SimpleQueue[Command | signal.Signals]') -> None:
        self._process.wait()
        # For its last words; but a process that the application started may hold the pipe open for as long as it likes.
        copying.join(LAST_WORDS)
        ended.put(self)

    @property
    def exit_code(self) -> int | None:
        """How it ended, or None."""
        return self._process.poll()

    def end(self, number: signal.Signals) -> None:
        """Tell it to end."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with all that it started, for what it does not end will not end by itself."""
        if self._process.poll() is None:
            # It leads its session, hence a group of the same number, unless it ended just now and left nobody behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def serve(options: argparse.Namespace, console: Console) -> int:
    """Run everything until told to end; return the exit code."""
    if options.amqp_urls and any(map(is_memory, options.amqp_urls)):
        return _serve_in_process(options, options.amqp_urls, console)
    if options.amqp_urls:
        return _serve(options, ' '.join(options.amqp_urls), None, console)
    if find_server() is None:
        console.write('dev', 'rabbitmq-server is not installed, so the queue is in memory')
        return _serve_in_process(options, ['memory://dev'], console)
    console.write('dev', 'starting a private RabbitMQ node; it takes some seconds')
    try:
        with PrivateNode() as node:
            return _serve(options, node.url, node, console)
    except NodeError as error:
        console.write('dev', str(error))
        return 2
    except KeyboardInterrupt:
        # While the node was starting.
        return 0


def _serve_in_process(options: argparse.Namespace, urls: Sequence[str], console: Console) -> int:
    """Run front, worker and broker in this process; return the exit code."""
    if options.gevent or options.processes > 1:
        console.write('dev', '--gevent and --processes need RabbitMQ, for they need processes of their own')
        return 2
    console.write('dev', f'one process with {options.threads} threads; what will not end is left behind, not killed')
    try:
        application = worker.load(options)
    except CannotStart as error:
        console.write('dev', str(error))
        return 2
    options.amqp_urls = urls
    running = worker.in_process(
        application,
        urls,
        options.queue,
        threads=options.threads,
        limits=Limits(options.timeout, options.kill_after),
        graceful_timeout=options.graceful_timeout,
    )
    running.start()
    try:
        code = front.run(options)
    finally:
        running.stop()
    if options.debug and _code_changed():
        # Nothing that was imported can be trusted to be as it was: so all is begun anew, by the same command line.
        os.execv(sys.executable, sys.orig_argv)
    return code


def _code_changed() -> bool:
    # Loaded only with --debug, for werkzeug is large.
    from crew_wsgi.debug import code_changed

    return code_changed.is_set()


def _serve(options: argparse.Namespace, url: str, node: PrivateNode | None, console: Console) -> int:
    events: queue.SimpleQueue[Command | signal.Signals] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
    # The URL goes by the environment: a command line can be read by every user of the machine.
    os.environ['CREW_AMQP_URL'] = url
    commands = [
        Command('worker', 'crew_wsgi.worker', _worker_arguments(options), console, events),
        Command('front', 'crew_wsgi.front', _front_arguments(options), console, events),
    ]
    try:
        failed = _wait(events, node, console)
        if failed is not None:
            console.write('dev', f'the {failed.source} has ended with code {failed.exit_code}, so everything does')
            return failed.exit_code or 1
        console.write('dev', 'ending')
        return 0
    finally:
        # A second Ctrl-C reaches them as their second, and ends them at once.
        for command in reversed(commands):
            _end(command, events, console, options.graceful_timeout + PATIENCE)


def _wait(
    events: 'queue.SimpleQueue[Command | signal.Signals]', node: PrivateNode | None, console: Console
) -> Command | None:
    """Wait until told to end, or until a command ends by itself; return that. Restart the node if it dies."""
    while True:
        try:
            event = events.get(timeout=1.0)
        except queue.Empty:
            if node is not None and not node.alive():
                console.write('dev', 'the RabbitMQ node has died; starting it again')
                node.start()
            continue
        return event if isinstance(event, Command) else None


def _end(
    command: Command, events: 'queue.SimpleQueue[Command | signal.Signals]', console: Console, timeout: float
) -> None:
    command.end(signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while command.exit_code is None:
        try:
            event = events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            console.write('dev', f'the {command.source} did not end within {timeout:g} s, so it is killed')
            command.kill()
            return
        if isinstance(event, signal.Signals):
            command.end(signal.SIGTERM)


def _front_arguments(options: argparse.Namespace) -> list[str]:
    return _shared_arguments(options) + _spell(options, ('host', 'port', *front.LIMITS))


def _worker_arguments(options: argparse.Namespace) -> list[str]:
    slots = ('gevent',) if options.gevent else ('threads',)
    names = ('app_dir', 'processes', 'prefetch', 'kill_after', *slots)
    debug = ['--debug'] if options.debug else []
    return [options.app, *debug, *_shared_arguments(options), *_spell(options, names)]


def _shared_arguments(options: argparse.Namespace) -> list[str]:
    return ['-v'] * options.verbose + _spell(options, ('queue', 'queue_type', 'graceful_timeout', 'log_format'))


def _spell(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    values = {name: getattr(options, name) for name in names}
    return [f'--{name.replace("_", "-")}={value}' for name, value in values.items() if value is not None]


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = Parser(
        prog='crew-wsgi-dev',
        description='Serve a WSGI application through a queue on this machine: front, worker and, unless told of a '
        'broker, a private RabbitMQ node that is removed at the end.',
    )
    worker.add_application(result)
    front.add_address(result)
    add_broker(result, 'a private node, or memory:// where RabbitMQ is not installed', memory=True)
    worker.add_slots(result)
    front.add_limits(result)
    add_kill_after(result, Limits().kill_after)
    result.add_argument('--debug', action='store_true', help=worker.DEBUG_HELP)
    add_verbosity(result.add_argument_group('log'))
    add_version(result)
    result.set_defaults(end_with_stdin=False)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    worker.check_slots(command, options)
    logs.set_up(options.verbose, options.log_format)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return serve(options, Console(sys.stdout))


if __name__ == '__main__':
    sys.exit(main())
