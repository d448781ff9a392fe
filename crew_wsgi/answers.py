"""A reply as it leaves the front: end-to-end fields, and a length that is true on the client's connection."""

import time
from functools import lru_cache

from tornado import httputil

from crew.exceptions import ProtocolError
from crew_wsgi.headers import COUNTABLE, HeaderPairs, end_to_end
from crew_wsgi.messages import Response

__all__ = ['completed', 'length_of', 'reframed']


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
    headers = end_to_end(response.headers)
    unchanged = len(headers) == len(response.headers)
    lengths = [value for name, value in headers if name.lower() == 'content-length']
    bodiless = method == 'HEAD' or response.code in (204, 304)
    if not whole:
        if bodiless or response.body:
            raise ProtocolError('an answer that has no body came in parts')
        if len(lengths) > 1 or not all(map(_is_length, lengths)):
            raise ProtocolError(f'an answer in parts came with Content-Length {", ".join(lengths)[:80]}')
        return response if unchanged else Response(status=response.status, headers=headers)
    if bodiless:
        # RFC 9110 §8.6: what GET would have brought.
        good = not lengths or (len(lengths) == 1 and _is_length(lengths[0]))
    else:
        good = lengths in ([], [str(len(response.body))])
    if not good:
        raise ProtocolError(f'a body of {len(response.body)} bytes came with Content-Length {lengths}')
    if response.code == 204:
        # The same section: it must not have one at all.
        headers = [(name, value) for name, value in headers if name.lower() != 'content-length']
    elif not bodiless and not lengths:
        headers.append(('Content-Length', str(len(response.body))))
    elif unchanged and not (bodiless and response.body):
        return response
    return Response(status=response.status, headers=headers, body=b'' if bodiless else response.body)


def _is_length(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= COUNTABLE


def length_of(response: Response) -> int | None:
    """Return the ``Content-Length`` of an answer, or None."""
    return next((int(value) for name, value in response.headers if name.lower() == 'content-length'), None)


def completed(headers: HeaderPairs, request_id: str) -> HeaderPairs:
    """Return the fields of an answer with those that each has.

    Args:
        headers: what the application has said.
        request_id: of its request.
    """
    names = {name.lower() for name, _ in headers}
    return [
        *headers,
        *(
            (name, value)
            for name, value in (
                ('X-Request-ID', request_id),
                ('Date', _date(int(time.time()))),
                ('Server', 'crew'),
            )
            if name.lower() not in names
        ),
    ]


@lru_cache(maxsize=2)
def _date(now: int) -> str:
    """Return the value of ``Date`` (RFC 9110 §6.6.1), which is the same for a second."""
    return httputil.format_timestamp(now)
