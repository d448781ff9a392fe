"""``crew-wsgi-front``: the server that turns each HTTP request into a task and its reply into the response."""

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import weakref
from collections.abc import Sequence
from typing import Any

from tornado import httputil, netutil
from tornado.httpserver import HTTPServer

from crew import logs, topology
from crew.exceptions import BrokerRefused
from crew.master.engine import Engine
from crew.options import (
    Parser,
    add_end_with_stdin,
    add_graceful_timeout,
    add_verbosity,
    add_version,
    count,
    seconds,
)
from crew.transports.addresses import DEFAULT_URL
from crew_wsgi.handler import Handler, Limits, Server
from crew_wsgi.options import add_broker

__all__ = ['Front', 'main']

log = logging.getLogger('crew_wsgi.front')

IDLE_TIMEOUT = 75.0

# Tornado answers a longer head by closing the connection; up to this it reaches our own check, which says 431.
TORNADO_HEAD = 8

# Our own limits say 413; Tornado's would say 400.
UNLIMITED = 2**62


class Front(httputil.HTTPServerConnectionDelegate):
    """An HTTP server in front of a queue. Lives on one asyncio loop.

    Args:
        engine: sends the calls.
        queue: the shared queue's name.
        limits: what a request is allowed.
    """

    def __init__(self, engine: Engine, queue: str, limits: Limits) -> None:
        self._engine = engine
        self._server = Server(engine.caller, queue, limits)
        self._handlers: weakref.WeakKeyDictionary[object, Handler] = weakref.WeakKeyDictionary()
        self._http = HTTPServer(
            self,
            idle_connection_timeout=IDLE_TIMEOUT,
            max_header_size=limits.max_head * TORNADO_HEAD,
            max_body_size=UNLIMITED,
            max_buffer_size=UNLIMITED,
        )

    def start_request(self, server_conn: object, request_conn: Any) -> Handler:
        """Make the delegate of the next request of a connection (Tornado's ``HTTPServerConnectionDelegate``)."""
        handler = Handler(self._server, request_conn)
        self._handlers[server_conn] = handler
        return handler

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections, and connect to the broker."""
        self._http.add_sockets(sockets)
        self._engine.start()

    async def stop(self, graceful_timeout: float) -> bool:
        """Accept nothing more, let what is in flight finish, close.

        Args:
            graceful_timeout: how long that may take, in seconds.

        Returns:
            Whether everything in flight was answered.
        """
        self._http.stop()
        draining = asyncio.ensure_future(self._server.drain())
        await asyncio.sleep(0)
        for server_conn, handler in list(self._handlers.items()):
            if not handler.started:
                server_conn.stream.close()  # type: ignore[attr-defined]
        await asyncio.wait({draining}, timeout=graceful_timeout)
        abandoned = len(self._server.open)
        if abandoned:
            log.error('%d requests are abandoned: they did not end in time', abandoned)
        await self._http.close_all_connections()
        await self._engine.close()
        return not abandoned


async def serve(options: argparse.Namespace, sockets: Sequence[socket.socket]) -> int:
    """Serve until ``SIGTERM`` or ``SIGINT``; return the exit code."""
    queue = topology.task_queue(options.queue, options.queue_type)
    engine = Engine(asyncio.get_running_loop(), options.amqp_urls or [DEFAULT_URL], [queue], name='crew-wsgi-front')
    limits = Limits(
        max_body=options.max_body,
        max_head=options.max_head,
        max_inflight=options.max_inflight,
        queue_timeout=options.queue_timeout,
        timeout=options.timeout,
        body_timeout=options.body_timeout,
    )
    front = Front(engine, queue.name, limits)
    stop, stop_now = _watch_signals()
    if options.end_with_stdin:
        _watch_stdin(stop)
    front.listen(sockets)
    for each in sockets:
        log.info('listening on http://%s/', _authority(each))
    refused = asyncio.ensure_future(engine.wait_ready())
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait({refused, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if refused.done():
        refused.result()
        await stopping
    refused.cancel()
    log.info('told to end: answering what is in flight, for at most %g s', options.graceful_timeout)
    ending: asyncio.Future[Any] = asyncio.ensure_future(front.stop(options.graceful_timeout))
    now: asyncio.Future[Any] = asyncio.ensure_future(stop_now.wait())
    await asyncio.wait({ending, now}, return_when=asyncio.FIRST_COMPLETED)
    if ending.done():
        return 0 if ending.result() else 1
    log.warning('told to end at once')
    return 1


def _watch_signals() -> tuple[asyncio.Event, asyncio.Event]:
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, stop_now


def _watch_stdin(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def on_readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, on_readable)


def _authority(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = Parser(
        prog='crew-wsgi-front', description='HTTP server that puts requests into a RabbitMQ queue for crew-wsgi-worker.'
    )
    add_address(result)
    add_broker(result)
    add_limits(result)
    add_verbosity(result.add_argument_group('log'))
    add_end_with_stdin(result)
    add_version(result)
    return result


def add_address(to: argparse.ArgumentParser) -> None:
    """Add where to listen."""
    to.add_argument('--host', default='127.0.0.1', help='address to listen on (default: %(default)s)')
    to.add_argument('--port', type=_port, default=8888, help='port to listen on (default: %(default)s)')


def add_limits(to: argparse.ArgumentParser) -> None:
    """Add the limits of a request."""
    group = to.add_argument_group('limits, in seconds and bytes')
    defaults = Limits()
    group.add_argument(
        '--queue-timeout',
        type=seconds,
        metavar='S',
        default=defaults.queue_timeout,
        help='from receipt until a worker takes the request, else 503 (default: %(default)g)',
    )
    group.add_argument(
        '--timeout',
        type=seconds,
        metavar='S',
        default=defaults.timeout,
        help='how long the application may run, else 504 (default: %(default)g)',
    )
    group.add_argument(
        '--body-timeout',
        type=seconds,
        metavar='S',
        default=defaults.body_timeout,
        help='without a byte of the request body, else 408, or of the response, which is then cut '
        '(default: %(default)g)',
    )
    add_graceful_timeout(group)
    group.add_argument(
        '--max-inflight',
        type=count,
        metavar='N',
        default=defaults.max_inflight,
        help='requests that wait, run or are being answered at once, else 503 (default: %(default)d)',
    )
    group.add_argument(
        '--max-body',
        type=count,
        metavar='BYTES',
        default=defaults.max_body,
        help='longest request body, else 413 (default: %(default)d)',
    )
    group.add_argument(
        '--max-head',
        type=count,
        metavar='BYTES',
        default=defaults.max_head,
        help='longest request line and headers together, else 431 (default: %(default)d)',
    )


def _port(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f'{text!r} is not a port number')
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    logs.set_up(options.verbose, options.log_format)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Listen and serve until told to end; return the exit code."""
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    try:
        sockets = netutil.bind_sockets(options.port, options.host, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        where = f'{options.host}:{options.port}'
        print(f'crew-wsgi-front: cannot listen on {where}: {reason}; choose another --host or --port', file=sys.stderr)
        return 2
    try:
        return asyncio.run(serve(options, sockets))
    except BrokerRefused as error:
        print(f'crew-wsgi-front: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
