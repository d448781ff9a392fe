"""One HTTP request on its way through the front: head, then body pieces as they come, then the answer.

Tornado reads and writes the connection (its ``HTTPMessageDelegate`` interface, below its web framework); what happens
in between is decided here.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tornado import httputil

from crew.exceptions import ConnectionError, CrewError, ProtocolError
from crew.master.caller import Caller
from crew.messages import Call, Reply
from crew_wsgi.headers import end_to_end, is_token
from crew_wsgi.messages import CONTENT_TYPE, MAX_BODY, Request, Response, decode_response, encode_request
from crew_wsgi.problems import TOO_MANY, UNAVAILABLE, Problem, bad_request, problem_of, respond

__all__ = ['Handler', 'Limits', 'Server']

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
        queue: the shared queue's name.
        limits: see :class:`Limits`.
    """

    def __init__(self, caller: Caller, queue: str, limits: Limits) -> None:
        self.caller = caller
        self.queue = queue
        self.limits = limits
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
        connection: where the response is written.
    """

    def __init__(self, server: Server, connection: Any) -> None:
        self._server = server
        self._connection = connection
        self._started = time.monotonic()
        self._start_line = httputil.RequestStartLine('', '', '')
        self._headers = httputil.HTTPHeaders()
        self._request_id = ''
        self._body: list[bytes] = []
        self._size = 0
        self._rest = memoryview(b'')
        self._timer: asyncio.TimerHandle | None = None
        self._call_id: str | None = None
        self._answered = False
        self._refused = False
        self._closing = False
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
        if headers.get('Expect', '').lower() == '100-continue':
            # RFC 9110 §10.1.1: its value is case-insensitive, but Tornado's comparison is not.
            headers['Expect'] = '100-continue'
        problem = self._check_head()
        if problem is not None:
            self._refuse(problem)
        elif self._has_body:
            self._watch_body()

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self._refused:
            return
        self._size += len(chunk)
        if self._size > self._server.limits.max_body:
            self._body.clear()
            self._refuse(self._too_large())
            return
        self._body.append(chunk)
        self._watch_body()

    def finish(self) -> None:
        """Take the end of the request, and send it on."""
        self._stop_timer()
        if self._refused:
            self._end()
            return
        if self._connection.stream.closed():
            # What came before a reset is read to its end, but nobody is there any more.
            self.on_connection_close()
            return
        # From here on Tornado tells of a client that hangs up by this callback alone.
        self._connection.set_close_callback(self.on_connection_close)
        try:
            self._send()
        except ConnectionError as error:
            self._note = f' ({error})'
            self._answer_problem(problem_of(error))
        except (ValueError, CrewError) as error:
            self._note = f' ({error})'
            self._answer_problem(bad_request('The request cannot be carried.'))

    def on_connection_close(self) -> None:
        """Take note that the client hung up."""
        self._stop_timer()
        if self._call_id is not None:
            self._server.caller.cancel(self._call_id)
            self._call_id = None
        if not self._answered:
            self._answered = True
            self._log_access(499, 0)
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
        if len(self._server.open) > limits.max_inflight:
            return TOO_MANY
        if not self._server.caller.reply_to:
            return UNAVAILABLE
        return None

    def _too_large(self) -> Problem:
        return bad_request(f'The body of the request is longer than {self._server.limits.max_body} bytes.', 413)

    # Waiting for the body

    def _watch_body(self) -> None:
        self._set_timer(self._server.limits.body_timeout, self._body_late)

    def _body_late(self) -> None:
        self._refuse(bad_request('The body of the request did not come in time.', 408))
        self._end()

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(delay, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # To the worker and back

    def _send(self) -> None:
        limits = self._server.limits
        request = self._request()
        call = Call(
            correlation_id=uuid4().hex,
            reply_to=self._server.caller.reply_to,
            body=encode_request(request),
            content_type=CONTENT_TYPE,
            expiration=limits.queue_timeout,
            timeout=limits.timeout,
            sent=time.time(),
        )
        idempotent = request.method in IDEMPOTENT
        self._server.caller.send(call, self._server.queue, self._settled, idempotent=idempotent)
        self._call_id = call.correlation_id

    def _request(self) -> Request:
        context = self._connection.context
        address, server = context.address, self._connection.stream.socket.getsockname()
        headers = [
            (name, value)
            for name, value in end_to_end(self._headers.get_all())
            if name.lower() != 'x-request-id' and '_' not in name
        ]
        return Request(
            method=self._start_line.method,
            target=self._start_line.path,
            version=self._start_line.version,
            headers=[*headers, ('X-Request-ID', self._request_id)],
            body=b''.join(self._body),
            scheme=context.protocol,
            client=(address[0], address[1]) if isinstance(address, tuple) else ('', 0),
            server=(server[0], server[1]) if isinstance(server, tuple) else ('localhost', 80),
            request_id=self._request_id,
        )

    def _settled(self, outcome: Reply | CrewError) -> None:
        self._call_id = None
        if isinstance(outcome, CrewError):
            self._note = f' ({outcome})'
            self._answer_problem(problem_of(outcome))
            return
        try:
            response = _reframed(decode_response(outcome.body), self._start_line.method)
        except ProtocolError as error:
            self._note = f' (malformed reply: {error})'
            self._answer_problem(Problem(502, 'http_protocol_error', 'The reply of the worker is malformed.'))
            return
        self._answer(response)

    # To the client

    def _refuse(self, problem: Problem) -> None:
        """Answer before the request is whole."""
        self._refused = True
        self._stop_timer()
        self._body.clear()
        self._server.refuse(self)
        self._note = f' ({problem.detail})'
        response = respond(problem, self._headers.get('Accept', ''))
        self._write(response, close=self._has_body)
        # Who waits for 100 sends nothing, and a length that Tornado cannot count would draw its own answer behind ours.
        lingers = 'Expect' not in self._headers and len(self._headers.get('Content-Length', '')) <= COUNTABLE
        if self._has_body and lingers:
            self._set_timer(LINGER, self._end)
        elif self._has_body:
            self._end()

    def _answer_problem(self, problem: Problem) -> None:
        self._answer(respond(problem, self._headers.get('Accept', '')))

    def _answer(self, response: Response) -> None:
        self._write(response, close=self._server.draining)
        self._write_rest()

    def _write(self, response: Response, *, close: bool) -> None:
        self._answered = True
        headers = httputil.HTTPHeaders()
        for name, value in response.headers:
            headers.add(name, value)
        if 'X-Request-ID' not in headers:
            headers['X-Request-ID'] = self._request_id
        if 'Date' not in headers:
            headers['Date'] = httputil.format_timestamp(time.time())
        if 'Server' not in headers:
            headers['Server'] = 'crew'
        if close:
            headers['Connection'] = 'close'
            self._closing = True
        body = b'' if self._start_line.method == 'HEAD' else response.body
        # Tornado would send other characters as UTF-8; RFC 9112 §4 lets a client ignore the phrase anyway.
        reason = response.reason if response.reason.isascii() else ''
        start_line = httputil.ResponseStartLine('HTTP/1.1', response.code, reason)
        self._connection.write_headers(start_line, headers, body[:PIECE])
        self._rest = memoryview(body)[PIECE:]
        self._log_access(response.code, len(body))

    def _write_rest(self) -> None:
        stream = self._connection.stream
        while self._rest and not stream.closed():
            if stream.writing():
                self._await_client(self._write_rest)
                return
            self._connection.write(self._rest[:PIECE])
            self._rest = self._rest[PIECE:]
        self._end()

    def _end(self) -> None:
        """Tell Tornado that this was all, and see it leave."""
        self._stop_timer()
        stream = self._connection.stream
        if not stream.closed():
            self._connection.finish()
        if not stream.closed() and stream.writing():
            # Until the last byte is the kernel's, closing the connection would cut the response.
            self._await_client(self._sent)
        else:
            self._sent()

    def _await_client(self, then: Callable[[], None]) -> None:
        """Go on when all that was written has left, or the connection is closed, as that of a client that stalls is."""
        self._set_timer(self._server.limits.body_timeout, self._client_stalls)
        self._connection.stream.write(b'').add_done_callback(lambda _: then())

    def _client_stalls(self) -> None:
        log.info(
            'closing the connection of %s: it took none of its response for %g s (request %s)',
            self._connection.context.remote_ip,
            self._server.limits.body_timeout,
            self._request_id,
        )
        self._connection.stream.close()

    def _sent(self) -> None:
        self._stop_timer()
        if self._closing:
            # Where the client asked for that, Tornado has done it.
            self._connection.stream.close()
        self._leave()

    def _leave(self) -> None:
        self._server.leave(self)

    def _log_access(self, status: int, size: int) -> None:
        seconds = time.monotonic() - self._started
        line = self._start_line
        context = self._connection.context
        access_log.info(
            '%s "%s %s %s" %d %d %.1fms id=%s%s',
            context.remote_ip,
            line.method,
            line.path,
            line.version,
            status,
            size,
            seconds * 1000,
            self._request_id,
            self._note,
            extra={
                'fields': {
                    'client': context.remote_ip,
                    'method': line.method,
                    'target': line.path,
                    'status': status,
                    'bytes': size,
                    'seconds': round(seconds, 6),
                    'request_id': self._request_id,
                }
            },
        )


def _reframed(response: Response, method: str) -> Response:
    """Return a reply as it leaves here: its end-to-end fields, and a length that is true on our connection.

    Our own worker sends it so already; of another's, ``Transfer-Encoding`` would lie, and so might its length.

    Raises:
        ProtocolError: the Content-Length is wrong, so who knows what is missing.
    """
    headers = end_to_end(response.headers)
    lengths = [value for name, value in headers if name.lower() == 'content-length']
    bodiless = method == 'HEAD' or response.code in (204, 304)
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
