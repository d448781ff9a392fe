"""Run a WSGI application once (PEP 3333): environ in, response out, whole or in parts; nothing is sent from here.

A response that is whole when the application is done leaves whole. One that is yielded in pieces leaves as they come:
PEP 3333 wants no piece to wait for the next.

The rules that the application must keep are checked where it breaks them, so that its own traceback shows the place.
"""

import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from crew_wsgi.headers import HOP_BY_HOP, HeaderPairs, check_headers, end_to_end
from crew_wsgi.messages import Response, check_status

__all__ = ['Application', 'ApplicationError', 'StartResponse', 'Stream', 'run_application']

log = logging.getLogger(__name__)

#: The longest body that leaves in one message with its head.
MAX_WHOLE = 64 * 1024

#: How many header fields are kept that were seen to be good: an application has few, and sends them with each response.
KEPT_FIELDS = 256
#: How long these are at most, in characters.
MAX_KEPT_FIELD = 256

#: What a response is that nobody waits for: half of one cannot be judged by the rules.
UNHEARD = Response(status='499 Client Closed Request')

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


class StartResponse(Protocol):
    """The ``start_response`` callable of PEP 3333."""

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Begin the response; return the ``write`` callable."""


Application: TypeAlias = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class ApplicationError(Exception):
    """Raised when the application breaks a rule of PEP 3333 or of HTTP."""


class Stream(Protocol):
    """Where a response goes that leaves in parts."""

    def begin(self, response: Response) -> None:
        """Send the head; the body of ``response`` is empty."""

    def write(self, data: bytes) -> None:
        """Send bytes of the body, waiting while too many are on their way.

        Raises:
            BrokenPipeError: nobody takes them any more.
        """

    def end(self) -> None:
        """Send the end of the body, although the application goes on."""

    def answer(self, response: Response) -> None:
        """Send the whole response, although the application goes on."""


def run_application(
    application: Application,
    environ: dict[str, Any],
    stream: Stream,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Response | None:
    """Call the application. Its iterable's ``close`` is called once, whatever happens.

    Args:
        application: the WSGI application.
        environ: its environ.
        stream: where a response goes that leaves in parts.
        cancelled: asked between pieces; when true nobody waits for the rest: none of it is asked for, and what is
            returned is a 499.

    Returns:
        The response, or None if all of it has gone to ``stream``.

    Raises:
        ApplicationError: the application broke a rule.
        Exception: whatever it raised.
    """
    execution = _Execution(environ, stream)
    try:
        result = application(environ, execution.start_response)
        close = getattr(result, 'close', None)
        try:
            # What has one piece is whole with it; nothing is to be gained by sending it before the end is known.
            single = isinstance(result, (list, tuple)) and len(result) == 1
            for piece in result:
                execution.take(piece)
                if execution.satisfied or cancelled():
                    break
                if not single:
                    execution.flush()
            # The client need not wait for that.
            if close is not None and not cancelled():
                execution.complete()
        finally:
            if close is not None:
                close()
    except BrokenPipeError:
        if not cancelled():
            raise
    # Asked again, because the application may have seen it first and left off by itself.
    if execution.completed:
        return None
    return UNHEARD if cancelled() else execution.finish()


class _Execution:
    """What the application has said so far."""

    def __init__(self, environ: dict[str, Any], stream: Stream) -> None:
        self._method = environ['REQUEST_METHOD']
        self._request_id = environ.get('crew.request_id', '')
        self._stream = stream
        self._status: str | None = None
        self._headers: HeaderPairs = ()
        self._length: int | None = None
        # A response to HEAD, a 204 or a 304 has no body (RFC 9110 §6.4.1).
        self._bodiless = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._begun = False
        self.completed = False

    # What the application calls

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            try:
                if self._headers_sent:
                    # Too late to say something else; PEP 3333 wants the error to end the request then.
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it holds the frame that holds it
        elif self._status is not None:
            raise ApplicationError('start_response was called twice without exc_info')
        self._headers, self._length, dropped = _checked(status, headers)
        self._status = status
        self._bodiless = self._method == 'HEAD' or status[:3] in ('204', '304')
        if dropped:
            log.warning('request %s: hop-by-hop headers were dropped, they are the server’s own', self._request_id)
        return self.write

    def write(self, data: bytes) -> None:
        self.take(data)
        self.flush()

    def take(self, data: bytes) -> None:
        """Take a piece of the body."""
        if not isinstance(data, bytes):
            raise ApplicationError(f'a piece of the body must be bytes, not {type(data).__name__}')
        if not data:
            return
        if self._status is None:
            raise ApplicationError('the body began before start_response was called')
        self._size += len(data)
        if self._bodiless:
            return
        excess = 0 if self._length is None else self._size - self._length
        if excess > 0:
            # Whoever reads the response would take what is too much for the beginning of the next one.
            if excess >= len(data):
                return
            cut = f'a body of more than its Content-Length of {self._length} bytes was cut'
            log.warning('%s (request %s)', cut, self._request_id)
            data = data[: len(data) - excess]
        self._pieces.append(data)

    def flush(self) -> None:
        """Send what there is of the body; if that is all of it, the end, too."""
        if not self._pieces or self.completed:
            return
        if self._length is not None and self._size >= self._length:
            self.complete()
            return
        if not self._begun:
            self._begin()
        self._send()

    def complete(self) -> None:
        """Send all that has not gone, for the response is whole; the application may go on.

        Raises:
            ApplicationError: see :meth:`finish`.
        """
        if self.completed:
            return
        response = self.finish()
        self.completed = True
        if response is None:
            self._stream.end()
        else:
            self._stream.answer(response)

    def _begin(self) -> None:
        self._begun = True
        self._stream.begin(self._response(b'', self._length))

    def _send(self) -> None:
        data = self._pieces[0] if len(self._pieces) == 1 else b''.join(self._pieces)
        self._pieces.clear()
        self._stream.write(data)

    @property
    def _headers_sent(self) -> bool:
        return self._size > 0

    # What becomes of it

    @property
    def satisfied(self) -> bool:
        """Whether no more of the body is needed."""
        return self._bodiless

    def finish(self) -> Response | None:
        """Return the response, or None if all of it has gone to the stream.

        Raises:
            ApplicationError: the application never called ``start_response``, or its body is shorter than it said.
        """
        if self._status is None:
            raise ApplicationError('the application never called start_response')
        if self._bodiless:
            # RFC 9110 §8.6: a 204 must not have a Content-Length. For HEAD and 304 it says what GET would have brought.
            return self._response(b'', None if self._status.startswith('204') else self._length)
        if self._length is not None and self._size < self._length:
            raise ApplicationError(f'the body has {self._size} bytes, but its Content-Length says {self._length}')
        if not self._begun:
            body = b''.join(self._pieces)
            if len(body) <= MAX_WHOLE:
                return self._response(body, len(body))
            self._length = len(body)
            self._begin()
        if self._pieces:
            self._send()
        return None

    def _response(self, body: bytes, length: int | None) -> Response:
        # One Content-Length in one spelling, whatever the application wrote: 05, or 5 twice, is where smuggling begins.
        headers = self._headers if length is None else [*self._headers, ('Content-Length', str(length))]
        return Response(status=self._status or '', headers=headers, body=body)


def _checked(status: str, headers: list[tuple[str, str]]) -> tuple[HeaderPairs, int | None, bool]:
    """Return the header fields but Content-Length, what that says, and whether some were dropped as hop-by-hop.

    Raises:
        ApplicationError: they, or the status, are not what PEP 3333 and RFC 9110 want.
    """
    if not isinstance(status, str):
        raise ApplicationError(f'the status must be a string, not {type(status).__name__}')
    if not isinstance(headers, list):
        raise ApplicationError(f'the headers must be a list, not {type(headers).__name__}')
    try:
        check_status(status)
    except ValueError as error:
        raise ApplicationError(str(error)) from error
    fields: list[tuple[str, str]] = []
    length: str | None = None
    hop_by_hop = False
    for pair in headers:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise ApplicationError(f'a header must be a pair of strings, not {pair!r}')
        try:
            short = len(pair[0]) + len(pair[1]) <= MAX_KEPT_FIELD
            field, name = _usual_field(*pair) if short else _read_field(*pair)
        except TypeError:  # what has no length, or cannot be hashed, is no string either
            raise ApplicationError(f'a header must be a pair of strings, not {pair!r}') from None
        if name != 'content-length':
            fields.append(field)
            hop_by_hop = hop_by_hop or name in HOP_BY_HOP
        elif length not in (None, field[1]) or not (field[1].isascii() and field[1].isdigit()):
            raise ApplicationError('the Content-Length of the response is not one number')
        else:
            length = field[1]
    passing = end_to_end(fields) if hop_by_hop else fields
    return passing, None if length is None else int(length), hop_by_hop


def _read_field(name: str, value: str) -> tuple[tuple[str, str], str]:
    """Return a header field as it is sent on, and its name in lower case.

    Raises:
        TypeError: name or value is no string.
        ApplicationError: there are characters in it that must not be.
    """
    if not (isinstance(name, str) and isinstance(value, str)):
        raise TypeError
    # RFC 9110 §5.5: blanks around a value do not belong to it.
    field = name, value.strip(' \t')
    try:
        check_headers([field])
    except ValueError as error:
        raise ApplicationError(str(error)) from error
    return field, name.lower()


#: An application has the same fields in many of its answers.
_usual_field = lru_cache(maxsize=KEPT_FIELDS)(_read_field)
