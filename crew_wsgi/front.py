"""``crew-wsgi-front``: the server that turns each HTTP request into a task and its reply into the response."""

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tornado import httputil

from crew import logs, topology
from crew.exceptions import BrokerRefused
from crew.ids import unique_id
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
from crew_wsgi.connections import Exchange, HttpServer, Times
from crew_wsgi.forwarded import Network, Proxies, read_networks
from crew_wsgi.handler import Handler
from crew_wsgi.intake import NO_PROXIES
from crew_wsgi.limits import Limits
from crew_wsgi.options import add_broker
from crew_wsgi.problems import Problem
from crew_wsgi.routes import Route, Routes, quoted_prefix, read_route, read_table
from crew_wsgi.server import Server
from crew_wsgi.sockets import describe, inherited_sockets, open_sockets, room_for

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ['Front', 'main']

log = logging.getLogger('crew_wsgi.front')

#: How long who connects waits for the front's own first connection to the broker, rather than hear 503, in seconds.
CONNECTED_WITHIN = 1.0

#: How long a line of the access log may wait for others, to be written with them, in seconds.
LOGGED_WITHIN = 0.01

#: How long an idle connection may bring one more request when the front ends, in seconds.
LAST_REQUEST_WITHIN = 1.0


class Request(Handler):
    """A request of a front; one that is malformed gets an answer of the front, and a line in the access log, too."""

    def refuse(self, problem: Problem, start_line: httputil.RequestStartLine) -> None:
        """Answer that the request is malformed (:class:`crew_wsgi.connections.Delegate`)."""
        if not self.started:
            self._server.enter(self)
            self._started = time.monotonic()
            self._start_line = start_line
            self._request_id = unique_id()
        if not self._discarding:
            self._refuse(problem)


class Front:
    """An HTTP server in front of a queue. Lives on one asyncio loop.

    Args:
        engine: sends the calls.
        routes: which application a request is for.
        limits: what a request is allowed.
        proxies: who is believed about where a request came from.
        root_path: where all applications are for the client, percent-encoded and without a slash at its end.
        tls: for HTTPS.
    """

    def __init__(
        self,
        engine: Engine,
        routes: Routes,
        limits: Limits,
        *,
        proxies: Proxies = NO_PROXIES,
        root_path: str = '',
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._engine = engine
        self._server = Server(engine.caller, routes, limits, proxies=proxies, root_path=root_path)
        self._http = HttpServer(
            self._begin,
            max_head=limits.max_head,
            max_connections=limits.max_connections,
            times=Times(idle=limits.idle_timeout, head=limits.head_timeout),
            budget=self._server.collected,
            tls=tls,
        )

    def _begin(self, exchange: Exchange) -> Request:
        return Request(self._server, exchange)

    def connect(self) -> None:
        """Connect to the broker."""
        self._engine.start()

    def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections."""
        self._http.add_sockets(sockets)

    async def stop(self, graceful_timeout: float, last_request_within: float = LAST_REQUEST_WITHIN) -> bool:
        """Accept nothing more, let what is in flight finish, close.

        Args:
            graceful_timeout: how long that may take, in seconds.
            last_request_within: how long an idle connection may bring one more request. Its client may be sending that
                just now, and would not know whether it has been run.

        Returns:
            Whether everything in flight was answered.
        """
        deadline = time.monotonic() + graceful_timeout
        # What waits to be accepted would be reset.
        await asyncio.sleep(0)
        self._http.stop()
        self._server.draining = True
        await self._http.wait_closed(min(last_request_within, graceful_timeout))
        draining = asyncio.ensure_future(self._server.drain())
        await asyncio.sleep(0)
        self._http.close_idle()
        await asyncio.wait({draining}, timeout=max(0.0, deadline - time.monotonic()))
        abandoned = len(self._server.open)
        if abandoned:
            log.error('%d requests are abandoned: they did not end in time', abandoned)
        await self._http.close_all_connections()
        await self._engine.close()
        return not abandoned


async def serve(options: argparse.Namespace, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> int:
    """Serve until ``SIGTERM``, ``SIGINT`` or ``SIGHUP``; return the exit code."""
    routes = Routes(options.routes or [Route(options.queue)])
    queues = [topology.task_queue(queue, options.queue_type) for queue in routes.queues]
    logs.collect(partial(asyncio.get_running_loop().call_later, LOGGED_WITHIN))
    engine = Engine(asyncio.get_running_loop(), options.amqp_urls or [DEFAULT_URL], queues, name='crew-wsgi-front')
    limits = Limits(**{name: getattr(options, name) for name in LIMITS})
    limits = replace(limits, max_connections=room_for(limits.max_connections))
    proxies = Proxies(
        networks=options.trusted_proxies or (),
        local=bool(options.trusted_proxies),
        others=options.forwarded or ('drop' if options.trusted_proxies else 'pass'),
        fields=options.proxy_fields,
    )
    front = Front(engine, routes, limits, proxies=proxies, root_path=options.root_path, tls=tls)
    stop, stop_now = _watch_signals()
    if options.end_with_stdin:
        _watch_stdin(stop)
    front.connect()
    for each in sockets:
        log.info('listening on %s', describe(each, tls=tls is not None))
    connected: asyncio.Future[Any] = asyncio.ensure_future(engine.wait_ready())
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    either = {connected, stopping}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=CONNECTED_WITHIN)
    if not connected.done() or connected.exception() is None:
        front.accept(sockets)
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if connected.done():
        connected.result()
        await stopping
    connected.cancel()
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
    told = False

    def on_order() -> None:
        nonlocal told
        (stop_now if told else stop).set()
        told = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_order)
    # A terminal that closes sends it, perhaps twice, and who ends a session sends SIGTERM along: that is one order.
    # Under nohup it means nothing.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    return stop, stop_now


def _watch_stdin(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def on_readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, on_readable)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = Parser(
        prog='crew-wsgi-front', description='HTTP server that puts requests into a RabbitMQ queue for crew-wsgi-worker.'
    )
    add_address(result)
    add_broker(result)
    add_surroundings(result)
    add_routes(result)
    add_limits(result)
    add_verbosity(result.add_argument_group('log'))
    add_end_with_stdin(result)
    add_version(result)
    return result


def add_address(to: argparse.ArgumentParser) -> None:
    """Add where to listen."""
    to.add_argument('--host', default='127.0.0.1', help='address to listen on (default: %(default)s)')
    to.add_argument('--port', type=_port, default=8888, help='port to listen on (default: %(default)s)')
    to.set_defaults(bind=None, certfile=None, keyfile=None, trusted_proxies=None, forwarded=None, root_path='')
    to.set_defaults(routes=None, proxy_fields='either')


def add_surroundings(to: argparse.ArgumentParser) -> None:
    """Add where else to listen, and what is believed of who comes there."""
    group = to.add_argument_group('listening and proxies')
    group.add_argument(
        '--bind',
        action='append',
        metavar='WHERE',
        help='HOST:PORT, [IPV6]:PORT, unix:PATH or fd:NUMBER instead of --host and --port; more than once for several. '
        'Sockets that systemd hands over are used, too',
    )
    group.add_argument('--certfile', metavar='FILE', help='serve HTTPS with this certificate (chain), in PEM')
    group.add_argument('--keyfile', metavar='FILE', help='its private key, if that is not in the same file')
    group.add_argument(
        '--trusted-proxies',
        type=_networks,
        metavar='CIDRS',
        help='addresses of proxies, such as 10.0.0.0/8,::1, whose Forwarded and X-Forwarded-* fields are believed; '
        'unix sockets are, too',
    )
    group.add_argument(
        '--proxy-fields',
        choices=('either', 'forwarded', 'x-forwarded'),
        default='either',
        help='which fields the proxies write; a client can claim anything in those that they pass on unwritten '
        '(default: Forwarded where there is no X-Forwarded-For)',
    )
    group.add_argument(
        '--forwarded',
        choices=('drop', 'pass'),
        help='what becomes of these fields from anybody else: dropped, or passed on unread (default: drop with '
        '--trusted-proxies, else pass)',
    )
    group.add_argument(
        '--root-path',
        type=_root_path,
        metavar='PATH',
        default='',
        help='where the application is for the client, its SCRIPT_NAME; a proxy may have taken it off the path or not',
    )


def add_routes(to: argparse.ArgumentParser) -> None:
    """Add which application a request is for."""
    group = to.add_argument_group('routes')
    group.add_argument(
        '--route',
        dest='routes',
        action='append',
        type=_route,
        metavar='HOST/PREFIX=QUEUE[;timeout=S;queue-timeout=S;priority=N]',
        help='requests for this host and path go to this queue instead of --queue; host or prefix may be left out, the '
        'longest prefix wins and becomes SCRIPT_NAME, what no route takes is 404',
    )
    group.add_argument(
        '--routes',
        dest='routes',
        action='extend',
        type=_routes_file,
        metavar='FILE',
        help='a TOML file with [[route]] tables: match = "HOST/PREFIX", queue = "ID", and the same options',
    )


@dataclass(frozen=True, slots=True)
class _Limit:
    """An option for one field of :class:`crew_wsgi.limits.Limits`."""

    name: str
    type: Callable[[str], Any]
    metavar: str
    help: str

    def add(self, to: argparse._ArgumentGroup) -> None:
        shown = '%(default)d' if self.type is count else '%(default)g'
        to.add_argument(
            f'--{self.name.replace("_", "-")}',
            type=self.type,
            metavar=self.metavar,
            default=getattr(Limits(), self.name),
            help=f'{self.help} (default: {shown})',
        )


_PATIENCE = (
    _Limit('queue_timeout', seconds, 'S', 'from receipt until a worker takes the request, else 503'),
    _Limit('timeout', seconds, 'S', 'how long the application may run, else 504'),
    _Limit(
        'body_timeout',
        seconds,
        'S',
        'without a byte of the request body, else 408, or of the response, which is then cut',
    ),
    _Limit(
        'min_rate',
        count,
        'BYTES',
        'bytes of a body that make good for a second of --body-timeout: a client that is slower is given up, too, '
        'after a while',
    ),
    _Limit('head_timeout', seconds, 'S', 'from the first byte of request line and headers to the last, else 408'),
    _Limit('idle_timeout', seconds, 'S', 'how long a connection is kept without a request'),
)

_SIZES = (
    _Limit('max_inflight', count, 'N', 'requests that wait or run at once, else 503'),
    _Limit(
        'max_connections',
        count,
        'N',
        'connections at once; beyond, that one is closed which has been idle for longest, or the new one '
        'is answered 503',
    ),
    _Limit('max_body', count, 'BYTES', 'longest request body, else 413'),
    _Limit('max_head', count, 'BYTES', 'longest request line and headers together, else 431'),
)

#: The options that :func:`add_limits` adds, as attributes of what is parsed.
LIMITS = tuple(limit.name for limit in (*_PATIENCE, *_SIZES))


def add_limits(to: argparse.ArgumentParser) -> None:
    """Add the limits of a request."""
    group = to.add_argument_group('limits, in seconds and bytes')
    for limit in _PATIENCE:
        limit.add(group)
    add_graceful_timeout(group)
    for limit in _SIZES:
        limit.add(group)


def _port(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f'{text!r} is not a port number')
    return value


def _networks(text: str) -> list[Network]:
    try:
        return read_networks(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _root_path(text: str) -> str:
    try:
        path = quoted_prefix(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if path and not path.startswith('/'):
        raise argparse.ArgumentTypeError(f'{text!r} does not begin with a slash')
    return path


def _route(text: str) -> Route:
    try:
        return read_route(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _routes_file(text: str) -> list[Route]:
    try:
        with Path(text).open('rb') as file:
            return read_table(tomllib.load(file))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f'{text}: {error}') from None


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not options.certfile:
        if options.keyfile:
            raise ValueError('--keyfile needs --certfile')
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(['http/1.1'])
    # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
    context.load_cert_chain(options.certfile, options.keyfile, password='')
    return context


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    logs.set_up(options.verbose, options.log_format)
    logs.spare_threads()
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Listen and serve until told to end; return the exit code."""
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    try:
        Routes(options.routes or ())
        tls = _tls(options)
    except (OSError, ValueError) as error:
        named = f'--certfile {options.certfile}: ' if isinstance(error, OSError) else ''
        return _fail(f'{named}{error}')
    with ExitStack() as at_end:
        try:
            sockets = inherited_sockets()
        except (OSError, ValueError) as error:
            return _fail(f'cannot use the sockets of LISTEN_FDS: {error}')
        for bind in options.bind or ([] if sockets else [_address(options)]):
            try:
                sockets += open_sockets(bind, at_end)
            except OSError as error:
                reason = error.strerror or error
                instead = '--bind' if options.bind else '--host or --port'
                return _fail(f'cannot listen on {bind}: {reason}; choose another {instead}')
            except ValueError as error:
                return _fail(f'--bind: {error}')
        try:
            return asyncio.run(serve(options, sockets, tls))
        except BrokerRefused as error:
            return _fail(str(error))


def _address(options: argparse.Namespace) -> str:
    return f'[{options.host}]:{options.port}' if ':' in options.host else f'{options.host}:{options.port}'


def _fail(why: str) -> int:
    print(f'crew-wsgi-front: {why}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
