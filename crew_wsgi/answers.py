"""A reply as it leaves the front: end-to-end fields, and a length that is true on the client's connection."""

import time
from functools import lru_cache

from tornado import httputil

from crew.exceptions import ProtocolError
from crew_wsgi.fields import Fields
from crew_wsgi.headers import COUNTABLE, HeaderPairs
from crew_wsgi.messages import Response

__all__ = ['added_to', 'length_of', 'reframed']

#: What each answer of a front has, in lower case.
_ADDED = frozenset({'x-request-id', 'date', 'server'})


def reframed(response: Response, method: str, *, whole: bool) -> Response:
    """Return a reply as it leaves here: its end-to-end fields, and a length that is true on our connection.

    Args:
        response: what came.
        method: the request's.
        whole: whether all of the body has come with it.

    Our own worker sends it so already; of another's, ``Transfer-Encoding`` would lie, and so might its length.

    Raises:
        ProtocolError: the Content-Length is wrong, so who knows what is missing.
    """
    came = Fields.of(response.headers)
    headers = came.passing
    lengths = headers.get_list('content-length')
    bodiless = method == 'HEAD' or response.code in (204, 304)
    if not whole:
        if bodiless or response.body:
            raise ProtocolError('an answer that has no body came in parts')
        if len(lengths) > 1 or not all(map(_is_length, lengths)):
            raise ProtocolError(f'an answer in parts came with Content-Length {ascii(lengths)[:80]}')
        return response if headers is came else Response(status=response.status, headers=headers)
    if bodiless:
        # RFC 9110 §8.6: what GET would have brought.
        good = not lengths or (len(lengths) == 1 and _is_length(lengths[0]))
    else:
        good = not lengths or lengths == [str(len(response.body))]
    if not good:
        raise ProtocolError(f'a body of {len(response.body)} bytes came with Content-Length {ascii(lengths)[:80]}')
    if response.code == 204:
        # The same section: it must not have one at all.
        headers = headers.replaced('Content-Length', None)
    elif not bodiless and not lengths:
        headers = Fields([*headers, ('Content-Length', str(len(response.body)))])
    elif headers is came and not (bodiless and response.body):
        return response
    return Response(status=response.status, headers=headers, body=b'' if bodiless else response.body)


def _is_length(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= COUNTABLE


def length_of(response: Response) -> int | None:
    """Return the ``Content-Length`` of an answer, or None."""
    length = Fields.of(response.headers).values.get('content-length')
    return None if length is None else int(length)


def added_to(headers: HeaderPairs, request_id: str) -> str:
    """Return what each answer has beside what the application has said, as lines of a head.

    Args:
        headers: what the application has said.
        request_id: of its request.
    """
    date = _date(int(time.time()))
    fields = Fields.of(headers)
    if fields.values.keys().isdisjoint(_ADDED):
        return f'X-Request-ID: {request_id}\r\nDate: {date}\r\nServer: crew\r\n'
    ours = (('X-Request-ID', request_id), ('Date', date), ('Server', 'crew'))
    return Fields((name, value) for name, value in ours if name.lower() not in fields.values).lines


@lru_cache(maxsize=2)
def _date(now: int) -> str:
    """Return the value of ``Date`` (RFC 9110 §6.6.1), which is the same for a second."""
    return httputil.format_timestamp(now)
