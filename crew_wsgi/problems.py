"""The answers that the front makes itself: a status, the cause for machines (RFC 9209), a body for the reader.

``Proxy-Status`` names the cause on each of them, so that nobody takes them for the application's.
"""

import html
import json
import math
from dataclasses import dataclass
from http import HTTPStatus

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from crew.exceptions import (
    Blocked,
    ConnectionError,
    CrewError,
    ExpirationError,
    RemoteError,
    TimeoutError,
    Unroutable,
    WorkerLost,
)
from crew_wsgi.messages import Response

__all__ = ['Problem', 'plain', 'problem_of', 'respond', 'too_long', 'too_many']


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the front answers itself.

    Args:
        status: the HTTP status code.
        error: an error type of RFC 9209 §2.3.
        detail: what happened, in one sentence for the client.
        retry_after: after how many seconds it may be worth trying again, or None.
    """

    status: int
    error: str
    detail: str
    retry_after: int | None = None


CROWDED = Problem(503, 'connection_limit_reached', 'Too many clients are connected.', 1)
NOT_FOUND = Problem(404, 'destination_not_found', 'There is no application for this host and path.')
UNAVAILABLE = Problem(503, 'destination_unavailable', 'The queue cannot be reached now.', 5)
UNKNOWN = Problem(
    504, 'http_response_timeout', 'Neither queue nor worker has answered in time; the request may have run.'
)

#: A longer ``Accept``, in characters, is not read: one of 64 KiB would take a third of a second of everybody's time.
#: Browsers send less than 200.
LONGEST_ACCEPT = 1024

_OFFERS = ('text/plain', 'text/html', 'application/problem+json', 'application/json')


def bad_request(detail: str, status: int = 400) -> Problem:
    """Return the problem of a request that the client must mend."""
    return Problem(status, 'http_request_error', detail)


def too_many(wait: float) -> Problem:
    """Return the problem of a request beyond the greatest number in flight.

    Args:
        wait: how long it would wait for a worker, in seconds, as far as that is known.
    """
    return Problem(503, 'connection_limit_reached', 'Too many requests are in flight.', _half(wait))


def too_long(wait: float) -> Problem:
    """Return the problem of a request that would wait so many seconds, which is too long."""
    detail = f'Too many requests are waiting: another would wait for about {wait:.0f} s.'
    return Problem(503, 'destination_unavailable', detail, _half(wait))


def _half(wait: float) -> int:
    """Return after how many seconds only half of those that wait now will wait still."""
    return max(1, math.ceil(wait / 2))


def problem_of(error: CrewError, *, idempotent: bool = True) -> Problem:
    """Return what a client is told when its call ended in ``error``; docs/architecture.md has the table.

    Args:
        error: what it ended in.
        idempotent: whether it does no harm to send the request again though it has run.
    """
    if isinstance(error, Unroutable):
        return Problem(503, 'destination_unavailable', 'There is no queue for this application.', 5)
    if isinstance(error, ExpirationError):
        # Without a dead letter nobody knows: a worker may have run it whose word did not get here.
        if error.time is None and not idempotent:
            return UNKNOWN
        return Problem(503, 'destination_unavailable', 'No worker took the request in time.', 5)
    if isinstance(error, TimeoutError):
        return Problem(504, 'http_response_timeout', 'The application did not answer in time.')
    if isinstance(error, WorkerLost):
        return Problem(502, 'connection_terminated', 'The worker died while it ran the request.')
    if isinstance(error, RemoteError):
        if error.refused:
            return Problem(502, 'http_protocol_error', 'The worker did not understand the request.')
        return Problem(500, 'proxy_internal_error', 'The application failed.')
    if isinstance(error, Blocked):
        return Problem(503, 'destination_unavailable', 'The broker takes no messages now.', 5)
    if isinstance(error, ConnectionError) and error.published:
        return Problem(502, 'connection_terminated', 'The connection to the broker was lost; the request may have run.')
    return UNAVAILABLE


def respond(problem: Problem, accept: str = '') -> Response:
    """Return the response that tells a problem.

    Args:
        problem: what to tell.
        accept: the request's ``Accept``: JSON (RFC 9457) for who prefers it, a page for browsers, else plain text;
            that, too, for who says more than anybody needs to.
    """
    media_type, body = _body(problem, accept)
    headers = [
        ('Content-Type', media_type),
        ('Content-Length', str(len(body))),
        ('Cache-Control', 'no-store'),
        ('Proxy-Status', f'crew; error={problem.error}; details="{problem.detail}"'),
    ]
    if problem.retry_after is not None:
        headers.append(('Retry-After', str(problem.retry_after)))
    return Response(status=f'{problem.status} {_phrase(problem.status)}', headers=headers, body=body)


def plain(problem: Problem) -> bytes:
    """Return a whole answer for a client whose request is not looked at."""
    response = respond(problem)
    lines = [f'HTTP/1.1 {response.status}', *(f'{name}: {value}' for name, value in response.headers)]
    return '\r\n'.join([*lines, 'Server: crew', 'Connection: close', '', '']).encode() + response.body


def _body(problem: Problem, accept: str) -> tuple[str, bytes]:
    title = _phrase(problem.status)
    read = accept if len(accept) <= LONGEST_ACCEPT else ''
    wanted = parse_accept_header(read, MIMEAccept).best_match(_OFFERS) if read else None
    if wanted in ('application/json', 'application/problem+json'):
        fields = {'type': 'about:blank', 'title': title, 'status': problem.status, 'detail': problem.detail}
        return 'application/problem+json', json.dumps(fields).encode()
    if wanted == 'text/html':
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{problem.status} {title}</title>'
            f'<h1>{problem.status} {title}</h1><p>{html.escape(problem.detail)}</p></html>\n'
        )
        return 'text/html; charset=utf-8', page.encode()
    return 'text/plain; charset=utf-8', f'{problem.status} {title}\n{problem.detail}\n'.encode()


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
