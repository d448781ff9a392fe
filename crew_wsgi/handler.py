"""One HTTP request on its way through the front: head, then body pieces as they come, then the answer.

Tornado reads and writes the connection (its ``HTTPMessageDelegate`` interface, below its web framework); what happens
in between is decided here. A body that is not whole soon, or long, is sent on as its worker asks for it, and an answer
that comes in parts is passed on as the client takes it: of neither is more here than a window (:mod:`crew.streams`).
"""

import asyncio
import logging
import re
import socket
import time
from asyncio.trsock import TransportSocket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from uuid import uuid4

from tornado import httputil

from crew.exceptions import ConnectionError, CrewError, ProtocolError
from crew.master.caller import Caller
from crew.messages import Call, Chunk, Credit, Reply
from crew.streams import Receiver, Sender
from crew.topology import task_queue_name
from crew_wsgi.connections import Exchange
from crew_wsgi.environ import authority, split_target
from crew_wsgi.forwarded import Origin, Proxies
from crew_wsgi.headers import HeaderPairs, end_to_end, is_token
from crew_wsgi.messages import CONTENT_TYPE, Request, Response, decode_response, encode_request
from crew_wsgi.problems import NOT_FOUND, TOO_MANY, UNAVAILABLE, Problem, bad_request, problem_of, respond
from crew_wsgi.routes import Route, Routes

__all__ = ['NO_PROXIES', 'Handler', 'Limits', 'Server']

log = logging.getLogger(__name__)
access_log = logging.getLogger('crew_wsgi.access')

# RFC 9110 §9.2.2: these may be run again when the first attempt may have run.
IDEMPOTENT = frozenset({'GET', 'HEAD', 'OPTIONS', 'TRACE', 'PUT', 'DELETE'})

_REQUEST_ID = re.compile(r'[\x21-\x7e]{1,128}')

#: How long a client that was refused may go on sending before it is cut off: closing at once would reset the
#: connection, and the client would lose the answer (RFC 9112 §9.6).
LINGER = 5.0

#: How much of a response is handed on at once; each piece that leaves shows that the client still reads.
PIECE = 64 * 1024

COUNTABLE = len(str(2**62)) - 1

#: A request whose body is not whole by then is sent on with what there is of it: at so many bytes, or after so many
#: seconds. A slow small body does not hold a worker before.
DISPATCH_AT = 64 * 1024
DISPATCH_AFTER = 0.1

#: How often a client is looked for whose body is not read now.
LOOK_EVERY = 1.0

#: States of a connection in Linux's ``tcp_states.h``: it was reset, and the other end sends no more.
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8

MAX_BODY = 16 * 1024**3


NO_PROXIES = Proxies()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the front allows a request; sizes in bytes, times in seconds.

    Args:
        max_body: the longest request body.
        max_head: the longest request line and header section together.
        max_inflight: how many requests may be read, wait, run and be answered at once.
        queue_timeout: from receipt until a worker accepts.
        timeout: from the start of the run to the response.
        body_timeout: without a byte of the body from the client, or without one of the response to it.
    """

    max_body: int = MAX_BODY
    max_head: int = 64 * 1024
    max_inflight: int = 1000
    queue_timeout: float = 30.0
    timeout: float = 60.0
    body_timeout: float = 60.0


class Server:
    """What all requests of a front share.

    Args:
        caller: sends calls.
        routes: which application a request is for.
        limits: see :class:`Limits`.
        proxies: who is believed about where a request came from.
        root_path: where all applications are for the client, without a slash at its end.
    """

    def __init__(
        self, caller: Caller, routes: Routes, limits: Limits, *, proxies: Proxies = NO_PROXIES, root_path: str = ''
    ) -> None:
        self.caller = caller
        self.routes = routes
        self.limits = limits
        self.proxies = proxies
        self.root_path = root_path
        self.open: set[Handler] = set()
        self.refused: set[Handler] = set()
        self.draining = False
        self._drained: asyncio.Future[None] | None = None

    def enter(self, handler: 'Handler') -> None:
        """Count a request that begins."""
        self.open.add(handler)

    def refuse(self, handler: 'Handler') -> None:
        """Count a request as no longer in flight, though its client may still send, or read the answer."""
        self.open.discard(handler)
        self.refused.add(handler)

    def leave(self, handler: 'Handler') -> None:
        """Count a request as over: all of the response has been sent, or the client is gone."""
        self.open.discard(handler)
        self.refused.discard(handler)
        if not self._busy and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drain(self) -> None:
        """Return when no request is open any more, and who was refused has the answer."""
        self.draining = True
        if self._busy:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    @property
    def _busy(self) -> bool:
        return bool(self.open or self.refused)


class Handler(httputil.HTTPMessageDelegate):
    """One request.

    Args:
        server: what it shares with others.
        exchange: where the response is written.
    """

    def __init__(self, server: Server, exchange: Exchange) -> None:
        self._server = server
        self._exchange = exchange
        self._started = time.monotonic()
        self._start_line = httputil.RequestStartLine('', '', '')
        self._headers = httputil.HTTPHeaders()
        self._request_id = ''
        self._route: Route | None = None
        self._mount = ''
        self._root = ''
        self._origin = Origin(('', 0), 'http')
        self._passed: HeaderPairs = ()
        self._call_id: str | None = None
        # The body of the request: collected until it is sent on, then what the worker has not asked for yet.
        self._body: list[bytes] = []
        self._size = 0
        self._body_timer: asyncio.TimerHandle | None = None
        self._dispatch_timer: asyncio.TimerHandle | None = None
        self._upload: Sender | None = None
        self._held_back: asyncio.Future[None] | None = None
        self._body_ended = False
        self._expects = False
        # The answer: what has come of it and the client has not taken yet.
        self._client_timer: asyncio.TimerHandle | None = None
        self._answered = False
        self._download: Receiver | None = None
        self._rest: deque[memoryview] = deque()
        self._taken = 0
        self._remaining: int | None = None
        self._whole = False
        self._pumping = False
        self._discarding = False
        self._closing = False
        self._unbounded = False
        self._paused = False
        self._status = 0
        self._written = 0
        self._logged = False
        self._note = ''

    @property
    def started(self) -> bool:
        """Whether a head has come; before it, the connection is idle."""
        return bool(self._start_line.method)

    # From the client

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        """Take the head; refuse what must not be queued before its body is read."""
        assert isinstance(start_line, httputil.RequestStartLine)
        self._server.enter(self)
        self._started = time.monotonic()
        self._start_line = start_line
        self._headers = headers
        given = headers.get('X-Request-ID', '')
        self._request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        # RFC 9110 §10.1.1: its value is case-insensitive. Taken away, or Tornado would answer it at once: the client is
        # told to go on when the application reads.
        self._expects = headers.get('Expect', '').lower() == '100-continue' and start_line.version != 'HTTP/1.0'
        headers.pop('Expect', None)
        problem = self._check_head()
        if problem is not None:
            self._refuse(problem)
        elif self._expects and self._has_body:
            self._exchange.set_close_callback(self.on_connection_close)
            self._dispatch()
        elif self._has_body:
            self._watch_body()
            self._dispatch_timer = _call_later(DISPATCH_AFTER, self._dispatch)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body; the next is read when what is returned is done."""
        if self._discarding:
            return None
        self._size += len(chunk)
        if self._size > self._server.limits.max_body:
            self._body.clear()
            self._refuse(self._too_large())
            return None
        self._watch_body()
        if self._upload is not None:
            self._upload.write(chunk)
            return self._send_body()
        self._body.append(chunk)
        if self._size >= DISPATCH_AT:
            self._dispatch()
        return None

    def finish(self) -> None:
        """Take the end of the request."""
        self._stop_body_timer()
        self._body_ended = True
        if self._discarding:
            self._end()
            return
        if self._upload is not None:
            self._upload.end()
            self._send_body()
            return
        self._dispatch()

    def on_connection_close(self) -> None:
        """Take note that the client hung up."""
        self._stop_timers()
        self._discarding = self._answered = True
        self._read_on()
        if self._call_id is not None:
            self._server.caller.cancel(self._call_id)
            self._call_id = None
        if not self._logged:
            self._note = self._note or (' (the client hung up)' if self._status else '')
            self._log_access(self._status or 499)
        self._leave()

    # Checking

    @property
    def _has_body(self) -> bool:
        return 'Content-Length' in self._headers or 'Transfer-Encoding' in self._headers

    def _check_head(self) -> Problem | None:
        limits = self._server.limits
        method, target = self._start_line.method, self._start_line.path
        size = len(method) + len(target) + sum(len(name) + len(value) + 4 for name, value in self._headers.get_all())
        if size > limits.max_head:
            return bad_request(f'The head of the request is longer than {limits.max_head} bytes.', 431)
        if not is_token(method):
            return bad_request('The method is not a token.')
        hosts = len(self._headers.get_list('Host'))
        if hosts > 1 or (not hosts and self._start_line.version != 'HTTP/1.0'):
            # RFC 9112 §3.2: who serves several names must not guess which one is meant.
            return bad_request('There must be one Host header.')
        if method == 'CONNECT':
            return bad_request('This server is no proxy for CONNECT.', 501)
        if not (target.lower().startswith(('/', 'http://', 'https://')) or (target == '*' and method == 'OPTIONS')):
            return bad_request('The request target is neither a path nor a URL.')
        length = self._headers.get('Content-Length', '')
        if length.isascii() and length.isdigit() and int(length[:20]) > limits.max_body:
            return self._too_large()
        self._find_origin()
        if not self._find_route():
            return NOT_FOUND
        if len(self._server.open) > limits.max_inflight:
            return TOO_MANY
        if not self._server.caller.reply_to:
            return UNAVAILABLE
        return None

    def _find_origin(self) -> None:
        """Find out where the request came from, and what the application gets of its fields."""
        context = self._exchange.context
        address = context.address
        peer = (str(address[0]), int(address[1])) if isinstance(address, tuple) else ('', 0)
        fields = list(self._headers.get_all())
        self._origin, self._passed = self._server.proxies.origin(peer, context.protocol, fields)

    def _find_route(self) -> bool:
        """Find out which application the request is for; return whether there is one."""
        path, _ = split_target(self._start_line.path)
        host = self._origin.host or authority(self._start_line.path) or self._headers.get('Host', '')
        root_path = self._server.root_path
        # A proxy may have taken the root path off, or not.
        within = root_path if path == root_path or path.startswith(f'{root_path}/') else ''
        self._route = self._server.routes.find(host, path.removeprefix(within))
        if self._route is None:
            return False
        self._root = self._origin.prefix + ('' if within else root_path)
        self._mount = within + self._route.prefix
        return True

    def _too_large(self) -> Problem:
        return bad_request(f'The body of the request is longer than {self._server.limits.max_body} bytes.', 413)

    # Waiting for the body

    def _watch_body(self) -> None:
        self._stop_body_timer()
        if self._call_id is not None or not self._answered:
            self._body_timer = _call_later(self._server.limits.body_timeout, self._body_late)

    def _body_late(self) -> None:
        late = 'The body of the request did not come in time.'
        if self._answered:
            self._cut(late)
            return
        self._refuse(bad_request(late, 408))
        self._end()

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _stop_dispatch_timer(self) -> None:
        if self._dispatch_timer is not None:
            self._dispatch_timer.cancel()
            self._dispatch_timer = None

    def _stop_client_timer(self) -> None:
        if self._client_timer is not None:
            self._client_timer.cancel()
            self._client_timer = None

    def _stop_timers(self) -> None:
        self._stop_body_timer()
        self._stop_dispatch_timer()
        self._stop_client_timer()

    # To the worker

    def _dispatch(self) -> None:
        """Send the request on, with what has come of its body."""
        self._stop_dispatch_timer()
        connection = self._exchange.connection
        if connection.closed or (self._body_timer is not None and _tcp_state(connection.socket) == TCP_CLOSE):
            # What came before a reset is read to its end, but nobody is there any more.
            connection.abort()
            self.on_connection_close()
            return
        # From here on Tornado tells of a client that hangs up by this callback alone.
        self._exchange.set_close_callback(self.on_connection_close)
        try:
            self._send()
        except ConnectionError as error:
            self._note = f' ({error})'
            self._give_problem(problem_of(error))
        except (ValueError, CrewError) as error:
            self._note = f' ({error})'
            self._give_problem(bad_request('The request cannot be carried.'))

    def _send(self) -> None:
        limits, route = self._server.limits, self._route
        assert route is not None
        request = self._request()
        call = Call(
            correlation_id=uuid4().hex,
            reply_to=self._server.caller.reply_to,
            body=encode_request(request),
            content_type=CONTENT_TYPE,
            expiration=route.queue_timeout or limits.queue_timeout,
            timeout=route.timeout or limits.timeout,
            priority=route.priority,
            sent=time.time(),
            more=self._has_body and not self._body_ended,
        )
        idempotent = request.method in IDEMPOTENT
        self._server.caller.send(call, task_queue_name(route.queue), self._received, idempotent=idempotent)
        self._call_id = call.correlation_id
        self._body.clear()
        if call.more:
            # Nothing goes before the application reads, and nothing of the body is read either.
            self._upload = Sender(call.correlation_id, credit=0)
            self._stop_body_timer()

    def _send_body(self) -> Awaitable[None] | None:
        """Send what the worker takes of the body; return what is done when more may be read."""
        assert self._upload is not None
        for chunk in self._upload.take():
            self._server.caller.tell(chunk)
        self._mind_clock()
        if not self._upload.pending:
            return None
        # Whoever reads slowly is the application; the client is not to blame.
        self._stop_body_timer()
        self._body_timer = _call_later(LOOK_EVERY, self._look_for_client)
        if self._held_back is None:
            self._held_back = asyncio.get_running_loop().create_future()
        return self._held_back

    def _look_for_client(self) -> None:
        """Find out whether the client is still there: Tornado finds out by reading, and nothing is read now."""
        connection = self._exchange.connection
        if connection.closed or _tcp_state(connection.socket) in (TCP_CLOSE, TCP_CLOSE_WAIT):
            connection.abort()
            self.on_connection_close()
        elif self._held_back is not None:
            self._body_timer = _call_later(LOOK_EVERY, self._look_for_client)

    def _granted(self, credit: Credit) -> None:
        """Take the worker's word for how far the body may go."""
        if self._upload is None or not self._upload.grant(credit.offset):
            # The same once more is how a worker looks whether anybody is here.
            return
        if self._expects and not self._answered:
            self._exchange.connection.write(b'HTTP/1.1 100 Continue\r\n\r\n')
        self._expects = False
        self._send_body()
        if not self._upload.pending:
            self._read_on()
            if not self._body_ended:
                self._watch_body()

    def _read_on(self) -> None:
        held_back, self._held_back = self._held_back, None
        if held_back is not None and not held_back.done():
            held_back.set_result(None)

    def _mind_clock(self) -> None:
        """Stop the clock of the run while it waits for the client, and for nothing else."""
        if self._call_id is None:
            return
        upload = self._upload
        for_body = upload is not None and not self._body_ended and not upload.pending and upload.wanted
        paused = for_body or bool(self._rest)
        if paused and not self._paused:
            self._server.caller.pause(self._call_id)
        elif self._paused and not paused:
            self._server.caller.resume(self._call_id)
        self._paused = paused

    def _request(self) -> Request:
        server = self._exchange.connection.socket.getsockname()
        host = self._origin.host
        headers = [
            (name, host if host and name.lower() == 'host' else value)
            for name, value in end_to_end(self._passed)
            if name.lower() != 'x-request-id' and '_' not in name
        ]
        return Request(
            method=self._start_line.method,
            target=self._start_line.path,
            version=self._start_line.version,
            headers=[*headers, ('X-Request-ID', self._request_id)],
            body=b''.join(self._body),
            scheme=self._origin.scheme,
            client=self._origin.client,
            server=(server[0], server[1]) if isinstance(server, tuple) else ('localhost', 80),
            root=self._root,
            mount=self._mount,
            request_id=self._request_id,
        )

    # From the worker

    def _received(self, part: Reply | Chunk | Credit | CrewError) -> None:
        if isinstance(part, Credit):
            self._granted(part)
            return
        if isinstance(part, CrewError) or (part.last if isinstance(part, Chunk) else not part.more):
            self._call_id = None
            # Nobody waits for the rest of the body any more.
            self._stop_body_timer()
        try:
            if isinstance(part, CrewError):
                self._failed(part)
            elif isinstance(part, Chunk):
                self._take(part)
            else:
                response = _reframed(decode_response(part.body), self._start_line.method, whole=not part.more)
                self._begin(response, whole=not part.more)
        except ProtocolError as error:
            self._malformed(error)

    def _failed(self, error: CrewError) -> None:
        self._note = f' ({error})'
        if self._answered:
            self._cut(str(error))
        else:
            self._give_problem(problem_of(error))

    def _malformed(self, error: ProtocolError) -> None:
        if self._call_id is not None:
            self._server.caller.cancel(self._call_id)
            self._call_id = None
        self._note = f' (malformed reply: {error})'
        if self._answered:
            self._cut(str(error))
        else:
            self._give_problem(Problem(502, 'http_protocol_error', 'The reply of the worker is malformed.'))

    # To the client

    def _refuse(self, problem: Problem) -> None:
        """Answer before the request is whole, whatever its worker may say."""
        if self._call_id is not None:
            self._server.caller.cancel(self._call_id)
            self._call_id = None
        if self._answered:
            self._cut(problem.detail)
            return
        self._note = f' ({problem.detail})'
        self._server.refuse(self)
        self._give_problem(problem)

    def _give_problem(self, problem: Problem) -> None:
        self._begin(respond(problem, self._headers.get('Accept', '')), whole=True)

    def _begin(self, response: Response, *, whole: bool) -> None:
        """Write the head, and what there is of the body."""
        if self._answered:
            raise ProtocolError('a second answer came')
        self._answered = True
        self._stop_dispatch_timer()
        self._status = response.code
        early = self._has_body and not self._body_ended
        lengths = [value for name, value in response.headers if name.lower() == 'content-length']
        self._remaining = int(lengths[0]) if lengths and not whole else None
        # RFC 9112 §6.3: without a length and without chunks, the end of the connection is the end of the body.
        self._unbounded = not whole and not lengths and self._start_line.version == 'HTTP/1.0'
        self._closing = self._server.draining or early or self._unbounded
        body = b'' if self._start_line.method == 'HEAD' else response.body
        self._write_head(response, body[:PIECE])
        self._written = min(len(body), PIECE)
        self._whole = whole
        if not whole:
            self._download = Receiver()
        if len(body) > PIECE:
            self._rest.append(memoryview(body)[PIECE:])
        self._pump()

    def _write_head(self, response: Response, body: bytes) -> None:
        headers = list(response.headers)
        names = {name.lower() for name, _ in headers}
        if 'x-request-id' not in names:
            headers.append(('X-Request-ID', self._request_id))
        if 'date' not in names:
            headers.append(('Date', _date(int(time.time()))))
        if 'server' not in names:
            headers.append(('Server', 'crew'))
        # Tornado would send other characters as UTF-8; RFC 9112 §4 lets a client ignore the phrase anyway.
        reason = response.reason if response.reason.isascii() else ''
        self._exchange.write_headers(response.code, reason, headers, body, closes=self._closing)

    def _take(self, chunk: Chunk) -> None:
        """Take a part of the answer's body."""
        if self._download is None:
            raise ProtocolError('a chunk came without the beginning of an answer')
        data = self._download.receive(chunk)
        if self._remaining is not None:
            self._remaining -= len(data)
            if self._remaining < 0 or (chunk.last and self._remaining):
                raise ProtocolError('the body is not as long as its Content-Length')
        if data:
            self._rest.append(memoryview(data))
        self._whole = chunk.last
        self._pump()

    def _pump(self) -> None:
        """Write what there is for as long as the client takes it."""
        if self._pumping:
            return
        connection = self._exchange.connection
        if connection.closed:
            self.on_connection_close()
            return
        while self._rest and not connection.closed:
            if connection.writing:
                self._mind_clock()
                self._await_client(self._pump_on)
                return
            piece = self._rest.popleft()
            if len(piece) > PIECE:
                self._rest.appendleft(piece[PIECE:])
                piece = piece[:PIECE]
            self._exchange.write(bytes(piece))
            self._written += len(piece)
            self._credit(len(piece))
        self._mind_clock()
        if self._whole and not self._rest:
            self._all_written()

    def _pump_on(self) -> None:
        self._pumping = False
        self._stop_client_timer()
        self._pump()

    def _credit(self, size: int) -> None:
        """Let the worker send more when the client has taken some."""
        self._taken += size
        if self._download is None or self._call_id is None:
            return
        credit = self._download.consumed(self._taken)
        if credit is not None:
            self._server.caller.tell(Credit(correlation_id=self._call_id, offset=credit))

    def _all_written(self) -> None:
        self._log_access(self._status)
        if self._body_ended:
            self._end()
            return
        # The request is not whole. What is still to come of it is read and thrown away for a while.
        self._discarding = True
        if not self._has_body:
            # Its end comes next.
            return
        self._stop_body_timer()
        self._upload = None
        self._read_on()
        # Who waits for 100 sends nothing, and a length that Tornado cannot count would draw its own answer behind ours.
        if self._expects or len(self._headers.get('Content-Length', '')) > COUNTABLE:
            self._end()
        else:
            self._body_timer = _call_later(LINGER, self._end)

    def _cut(self, why: str) -> None:
        """Close the connection in the middle of an answer: ended, it would look whole."""
        log.warning('the answer to request %s is cut: %s', self._request_id, why)
        self._note = self._note or f' (cut: {why})'
        self._log_access(self._status)
        self._stop_timers()
        if self._call_id is not None:
            self._server.caller.cancel(self._call_id)
            self._call_id = None
        self._rest.clear()
        self._discarding = True
        self._read_on()
        connection = self._exchange.connection
        if self._unbounded and not connection.closed:
            # Its end is all that such a body has: a plain close would say that this was it, a reset does not.
            connection.reset()
        connection.abort()
        self._leave()

    def _end(self) -> None:
        """Tell Tornado that this was all, and see it leave."""
        self._stop_timers()
        connection = self._exchange.connection
        if not connection.closed:
            self._exchange.finish()
        if connection.writing:
            # Until the last byte is the kernel's, closing the connection would cut the response.
            self._await_client(self._sent)
        else:
            self._sent()

    def _await_client(self, then: Callable[[], None]) -> None:
        """Go on when all that was written has left, or the connection is closed, as that of a client that stalls is."""
        self._pumping = True
        self._client_timer = _call_later(self._server.limits.body_timeout, self._client_stalls)
        self._exchange.connection.when_drained(then)

    def _client_stalls(self) -> None:
        log.info(
            'closing the connection of %s: it took none of its response for %g s (request %s)',
            self._exchange.context.remote_ip,
            self._server.limits.body_timeout,
            self._request_id,
        )
        self._exchange.connection.abort()

    def _sent(self) -> None:
        self._stop_timers()
        if self._closing:
            # Where the client asked for that, Tornado has done it.
            self._exchange.connection.close()
        self._leave()

    def _leave(self) -> None:
        self._server.leave(self)

    def _log_access(self, status: int) -> None:
        self._logged = True
        seconds = time.monotonic() - self._started
        line = self._start_line
        context = self._exchange.context
        access_log.info(
            '%s "%s %s %s" %d %d %.1fms id=%s%s',
            context.remote_ip,
            line.method,
            line.path,
            line.version,
            status,
            self._written,
            seconds * 1000,
            self._request_id,
            self._note,
            extra={
                'fields': {
                    'client': context.remote_ip,
                    'method': line.method,
                    'target': line.path,
                    'status': status,
                    'bytes': self._written,
                    'seconds': round(seconds, 6),
                    'request_id': self._request_id,
                }
            },
        )


@lru_cache(maxsize=2)
def _date(now: int) -> str:
    """Return the value of ``Date`` (RFC 9110 §6.6.1), which is the same for a second."""
    return httputil.format_timestamp(now)


def _tcp_state(connection: TransportSocket) -> int:
    """Return the state of a connection, whatever of it is still to be read; 0 if it is not one of TCP."""
    try:
        return int(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except OSError:
        return 0


def _call_later(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay, callback)


def _reframed(response: Response, method: str, *, whole: bool) -> Response:
    """Return a reply as it leaves here: its end-to-end fields, and a length that is true on our connection.

    Args:
        response: what came.
        method: the request's.
        whole: whether all of the body has come with it.

    Our own worker sends it so already; of another's, ``Transfer-Encoding`` would lie, and so might its length.

    Raises:
        ProtocolError: the Content-Length is wrong, so who knows what is missing.
    """
    headers = end_to_end(response.headers)
    lengths = [value for name, value in headers if name.lower() == 'content-length']
    bodiless = method == 'HEAD' or response.code in (204, 304)
    if not whole:
        if bodiless or response.body:
            raise ProtocolError('an answer that has no body came in parts')
        if len(lengths) > 1 or not all(value.isascii() and value.isdigit() for value in lengths):
            raise ProtocolError(f'an answer in parts came with Content-Length {lengths}')
        return Response(status=response.status, headers=headers)
    if bodiless:
        # RFC 9110 §8.6: what GET would have brought.
        good = not lengths or (len(lengths) == 1 and lengths[0].isascii() and lengths[0].isdigit())
    else:
        good = lengths in ([], [str(len(response.body))])
    if not good:
        raise ProtocolError(f'a body of {len(response.body)} bytes came with Content-Length {lengths}')
    if response.code == 204:
        # The same section: it must not have one at all.
        headers = [(name, value) for name, value in headers if name.lower() != 'content-length']
    elif not bodiless and not lengths:
        headers.append(('Content-Length', str(len(response.body))))
    return Response(status=response.status, headers=headers, body=b'' if bodiless else response.body)
