"""One HTTP request on its way through the front: head, then body pieces as they come, then the answer.

The connection is read and written elsewhere (:mod:`crew_wsgi.connections`, by Tornado's ``HTTPMessageDelegate``
interface); what happens in between is decided here. A body that is not whole soon, or long, is sent on as its worker
asks for it (:mod:`crew_wsgi.upload`), and an answer that comes in parts is passed on as the client takes it
(:mod:`crew_wsgi.download`): of neither is more here than a window (:mod:`crew.streams`).
"""

import logging
import time
from collections.abc import Awaitable

from tornado import httputil

from crew import logs
from crew.exceptions import ConnectionError, CrewError, ProtocolError
from crew.ids import unique_id
from crew.messages import Call, Chunk, Credit, Reply
from crew.topology import task_queue_name
from crew_wsgi.access import log_access
from crew_wsgi.answers import added_to, length_of, reframed
from crew_wsgi.connections import Exchange
from crew_wsgi.download import PIECE, Download
from crew_wsgi.fields import Fields
from crew_wsgi.intake import Head, request_id_of, too_large
from crew_wsgi.limits import COLLECTED_AT_ONCE
from crew_wsgi.messages import CONTENT_TYPE, Response, decode_response
from crew_wsgi.patience import Patience
from crew_wsgi.problems import Problem, bad_request, problem_of, respond
from crew_wsgi.server import Server
from crew_wsgi.tcp import is_reset, reset
from crew_wsgi.timer import Timer
from crew_wsgi.upload import Upload

__all__ = ['Handler']

log = logging.getLogger(__name__)

# RFC 9110 §9.2.2: these may be run again when the first attempt may have run.
IDEMPOTENT = frozenset({'GET', 'HEAD', 'OPTIONS', 'TRACE', 'PUT', 'DELETE'})

#: How long a client that was refused may go on sending before it is cut off: closing at once would reset the
#: connection, and the client would lose the answer (RFC 9112 §9.6).
LINGER = 5.0

#: A body of unknown length may be one end of a conversation: what there is of it is sent on after so many seconds. One
#: with a length is whole at some time, and no worker is held before, up to ``COLLECTED_AT_ONCE``.
DISPATCH_AFTER = 0.1


# Of a request before its head has come.
NO_FIELDS = Fields()
NO_START_LINE = httputil.RequestStartLine('', '', '')


class Handler:
    """One request, a :class:`crew_wsgi.connections.Delegate`.

    Args:
        server: what it shares with others.
        exchange: where the response is written.
    """

    def __init__(self, server: Server, exchange: Exchange) -> None:
        self._server = server
        self._exchange = exchange
        self._started = time.monotonic()
        self._start_line = NO_START_LINE
        self._headers = NO_FIELDS
        self._request_id = ''
        self._head: Head | None = None
        self._call_id: str | None = None
        # Most requests have no body, and most answers leave at once.
        self._upload: Upload | None = None
        self._download: Download | None = None
        self._written = 0
        self._ended = False
        # When the request is sent on though its body is not whole; later, when its client is cut off.
        self._timer = Timer()
        self._answered = False
        self._discarding = False
        self._closing = False
        self._unbounded = False
        self._paused = False
        self._status = 0
        self._logged = False
        self._note = ''

    @property
    def started(self) -> bool:
        """Whether a head has come; before it, the connection is idle."""
        return bool(self._start_line.method)

    # From the client

    def headers_received(self, start_line: httputil.RequestStartLine, headers: Fields) -> None:
        """Take the head; refuse what must not be queued before its body is read."""
        self._server.enter(self)
        self._started = time.monotonic()
        self._start_line = start_line
        self._headers = headers
        self._request_id = request_id_of(headers)
        # RFC 9110 §10.1.1: its value is case-insensitive. The client is told to go on when the application reads.
        expects = headers.get('expect').lower() == '100-continue' and start_line.version != 'HTTP/1.0'
        headers = self._headers = headers.replaced('Expect', None)
        chunked = 'transfer-encoding' in headers.values
        if chunked or 'content-length' in headers.values:
            self._upload = self._uploading(expects)
        head = self._server.intake.read(start_line, headers, self._exchange.context, self._request_id)
        if isinstance(head, Problem):
            self._refuse(head)
            return
        self._head = head
        if self._upload is None:
            return
        problem = self._server.admit(head.route)
        if problem is not None:
            # Now, for nobody should send a body for nothing.
            self._refuse(problem)
        elif expects:
            self._exchange.set_close_callback(self.on_connection_close)
            self._dispatch()
        else:
            self._upload.watch()
            if chunked:
                self._timer.start(DISPATCH_AFTER, self._dispatch)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body; the next is read when what is returned is done."""
        if self._discarding:
            return None
        upload = self._upload
        assert upload is not None
        if upload.size + len(chunk) > self._server.limits.max_body:
            upload.clear()
            self._refuse(too_large(self._server.limits.max_body))
            return None
        held_back = upload.take(chunk)
        self.mind_clock()
        if self._call_id is None and not self._answered and upload.size >= COLLECTED_AT_ONCE:
            self._dispatch()
        return held_back

    def finish(self) -> None:
        """Take the end of the request."""
        self._ended = True
        if self._upload is not None:
            self._upload.end()
        if self._discarding:
            self._end()
        elif self._call_id is not None or self._answered:
            self.mind_clock()
        else:
            self._dispatch()

    def on_connection_close(self) -> None:
        """Take note that the client hung up."""
        self._stop_timers()
        self._discarding = self._answered = True
        if self._upload is not None:
            self._upload.discard()
        self._cancel()
        if not self._logged:
            self._note = self._note or (' (the client hung up)' if self._status else '')
            self._log_access(self._status or 499)
        self._leave()

    def body_late(self) -> None:
        late = 'The body of the request did not come in time.'
        if self._answered:
            self._cut(late)
            return
        self._refuse(bad_request(late, 408))
        self._end()

    def body_crowded(self) -> None:
        self._refuse(bad_request('The body of the request comes slowly, and there is no room for it now.', 408))
        self._end()

    def answer_crowded(self) -> None:
        self._give_up_client('it takes its answer slowly, and there is no room for that now')

    def _stop_timers(self) -> None:
        self._timer.stop()
        if self._upload is not None:
            self._upload.stop()
        if self._download is not None:
            self._download.stop()

    # To the worker

    def _dispatch(self) -> None:
        """Send the request on, with what has come of its body."""
        self._timer.stop()
        connection = self._exchange.connection
        if connection.closed or is_reset(connection.socket):
            # What came before a reset is read to its end, but nobody is there any more.
            connection.abort()
            self.on_connection_close()
            return
        # From here on this alone tells of a client that hangs up.
        self._exchange.set_close_callback(self.on_connection_close)
        assert self._head is not None
        problem = self._server.admit(self._head.route)
        if problem is not None:
            self._refuse(problem)
            return
        try:
            self._send()
        except ConnectionError as error:
            self._note = f' ({error})'
            self._give_problem(problem_of(error))
        except (ValueError, CrewError) as error:
            self._note = f' ({error})'
            self._give_problem(bad_request('The request cannot be carried.'))

    def _send(self) -> None:
        limits, head = self._server.limits, self._head
        assert head is not None
        route, upload = head.route, self._upload
        body = b'' if upload is None else upload.collected
        call = Call(
            correlation_id=unique_id(),
            reply_to=self._server.caller.reply_to,
            body=head.carried(body, self._exchange.connection.address),
            content_type=CONTENT_TYPE,
            expiration=route.queue_timeout or limits.queue_timeout,
            timeout=route.timeout or limits.timeout,
            priority=route.priority,
            sent=time.time(),
            more=upload is not None and not self._ended,
        )
        idempotent = self._start_line.method in IDEMPOTENT
        line = self._server.line(route)
        self._server.caller.send(call, task_queue_name(route.queue), self._received, idempotent=idempotent, line=line)
        self._call_id = call.correlation_id
        self._server.send(self)
        if upload is not None:
            if call.more:
                upload.begin(call.correlation_id)
            else:
                upload.clear()

    def _granted(self, credit: Credit) -> None:
        """Take the worker's word for how far the body may go."""
        upload = self._upload
        if upload is None or not upload.grant(credit):
            return
        if upload.expects and not self._answered:
            self._exchange.connection.write(b'HTTP/1.1 100 Continue\r\n\r\n')
        upload.expects = False
        upload.send()
        self.mind_clock()
        upload.go_on()

    def mind_clock(self) -> None:
        """Stop the clock of the run while it waits for the client, and for nothing else."""
        if self._call_id is None:
            return
        starving = self._upload is not None and self._upload.starving
        paused = starving or (self._download is not None and self._download.held_up)
        if paused and not self._paused:
            self._server.caller.pause(self._call_id)
        elif self._paused and not paused:
            self._server.caller.resume(self._call_id)
        self._paused = paused

    def credit(self, offset: int) -> None:
        if self._call_id is not None:
            self._server.caller.tell(Credit(correlation_id=self._call_id, offset=offset))

    def _cancel(self) -> None:
        """Let the worker know that nobody waits any more."""
        if self._call_id is not None:
            self._server.caller.cancel(self._call_id)
            self._call_id = None
            self._server.settle(self)

    # From the worker

    def _received(self, part: Reply | Chunk | Credit | CrewError) -> None:
        if isinstance(part, Credit):
            self._granted(part)
            return
        if isinstance(part, CrewError) or (part.last if isinstance(part, Chunk) else not part.more):
            self._call_id = None
            self._server.settle(self)
            if self._upload is not None:
                self._upload.abandon()
        try:
            if isinstance(part, CrewError):
                self._failed(part)
            elif isinstance(part, Chunk):
                self._downloading().take(part)
            else:
                response = reframed(decode_response(part.body), self._start_line.method, whole=not part.more)
                self._begin(response, whole=not part.more)
        except ProtocolError as error:
            self._malformed(error)

    def _failed(self, error: CrewError) -> None:
        self._note = f' ({error})'
        if self._answered:
            self._cut(str(error))
        else:
            idempotent = self._start_line.method in IDEMPOTENT
            self._give_problem(problem_of(error, idempotent=idempotent))

    def _malformed(self, error: ProtocolError) -> None:
        self._cancel()
        self._note = f' (malformed reply: {error})'
        if self._answered:
            self._cut(str(error))
        else:
            self._give_problem(Problem(502, 'http_protocol_error', 'The reply of the worker is malformed.'))

    # To the client

    def _refuse(self, problem: Problem) -> None:
        """Answer before the request is whole, whatever its worker may say."""
        self._cancel()
        if self._upload is not None:
            self._upload.abandon()
        if self._answered:
            self._cut(problem.detail)
            return
        self._note = f' ({problem.detail})'
        self._server.refuse(self)
        self._give_problem(problem)

    def _give_problem(self, problem: Problem) -> None:
        self._begin(respond(problem, self._headers.get('accept')), whole=True)

    def _begin(self, response: Response, *, whole: bool) -> None:
        """Write the head, and what there is of the body."""
        if self._answered:
            raise ProtocolError('a second answer came')
        self._answered = True
        if self._upload is not None:
            self._upload.interactive = True
        self._timer.stop()
        code = self._status = response.code
        early = self._upload is not None and not self._ended
        length = None if whole else length_of(response)
        # RFC 9112 §6.3: without a length and without chunks, the end of the connection is the end of the body.
        self._unbounded = not whole and length is None and self._start_line.version == 'HTTP/1.0'
        self._closing = self._server.draining or early or self._unbounded
        body = b'' if self._start_line.method == 'HEAD' else response.body
        added = added_to(response.headers, self._request_id)
        if not whole or len(body) > PIECE or self._exchange.connection.closed:
            self._downloading().begin(response, added, body, whole=whole, length=length, closes=self._closing)
            return
        self._exchange.write_headers(code, response.reason, response.headers, body, closes=self._closing, added=added)
        self._written = len(body)
        self.answer_written()

    def _uploading(self, expects: bool) -> Upload:
        server = self._server
        return Upload(
            self, self._exchange.connection, server.caller, server.collected, self._patience(), expects=expects
        )

    def _downloading(self) -> Download:
        if self._download is None:
            self._download = Download(self, self._exchange, self._server.untaken, self._patience())
        return self._download

    def _patience(self) -> Patience:
        return Patience(self._server.limits.body_timeout, self._server.limits.min_rate)

    def answer_written(self) -> None:
        self._log_access(self._status)
        if self._ended:
            self._end()
            return
        # The request is not whole. What is still to come of it is read and thrown away for a while.
        self._discarding = True
        if self._upload is None:
            # Its end comes next.
            return
        self._upload.discard()
        # Who waits for 100 sends nothing; but nobody has to wait for long (RFC 9110 §10.1.1), and curl does not.
        if self._upload.expects and not self._upload.size and not self._exchange.connection.unread:
            self._end()
        else:
            self._timer.start(LINGER, self._end)

    def _cut(self, why: str) -> None:
        """Close the connection in the middle of an answer: ended, it would look whole."""
        log.warning('the answer to request %s is cut: %s', self._request_id, logs.one_line(why))
        self._note = self._note or f' (cut: {why})'
        self._log_access(self._status)
        self._stop_timers()
        self._cancel()
        if self._download is not None:
            self._download.clear()
        self._discarding = True
        if self._upload is not None:
            self._upload.discard()
        if self._unbounded:
            # Its end is all that such a body has: a plain close would say that this was it.
            reset(self._exchange.connection)
        self._exchange.connection.abort()
        self._leave()

    def _end(self) -> None:
        """Tell the connection that this was all, and see it leave."""
        connection = self._exchange.connection
        if not connection.closed:
            self._exchange.finish()
        if connection.writing:
            self._stop_timers()
            # Until the last byte is the kernel's, closing the connection would cut the response.
            self._downloading().await_client(self._sent)
        else:
            self._sent()

    def answer_late(self) -> None:
        limits = self._server.limits
        self._give_up_client(f'it reads too slowly, {limits.body_timeout:g} s behind {limits.min_rate} bytes a second')

    def _give_up_client(self, why: str) -> None:
        log.info(
            'closing the connection of %s: %s (request %s)', self._exchange.context.remote_ip, why, self._request_id
        )
        # What the kernel holds for it is given up, too.
        reset(self._exchange.connection)

    def _sent(self) -> None:
        self._stop_timers()
        if self._closing:
            self._exchange.connection.close()
        self._leave()

    def _leave(self) -> None:
        self._server.leave(self)
        # They know their owner: kept, all of them would wait for the garbage collector.
        self._upload = self._download = None

    def _log_access(self, status: int) -> None:
        self._logged = True
        log_access(
            self._exchange.context,
            self._start_line,
            status=status,
            size=self._written if self._download is None else self._download.written,
            seconds=time.monotonic() - self._started,
            request_id=self._request_id,
            note=self._note,
        )
