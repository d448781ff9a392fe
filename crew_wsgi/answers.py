"""A reply as it leaves the front: end-to-end fields, and a length that is true on the client's connection."""

import time

from tornado import httputil

from crew.exceptions import ProtocolError
from crew_wsgi.headers import end_to_end
from crew_wsgi.messages import Response

__all__ = ['head_of', 'length_of', 'reframed']


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


def length_of(response: Response) -> int | None:
    """Return the ``Content-Length`` of an answer, or None."""
    return next((int(value) for name, value in response.headers if name.lower() == 'content-length'), None)


def head_of(
    response: Response, request_id: str, *, closing: bool
) -> tuple[httputil.ResponseStartLine, httputil.HTTPHeaders]:
    """Return status line and fields of an answer.

    Args:
        response: the answer.
        request_id: of its request.
        closing: whether the connection ends with it.
    """
    headers = httputil.HTTPHeaders()
    for name, value in response.headers:
        headers.add(name, value)
    if 'X-Request-ID' not in headers:
        headers['X-Request-ID'] = request_id
    if 'Date' not in headers:
        headers['Date'] = httputil.format_timestamp(time.time())
    if 'Server' not in headers:
        headers['Server'] = 'crew'
    if closing:
        headers['Connection'] = 'close'
    # Tornado would send other characters as UTF-8; RFC 9112 §4 lets a client ignore the phrase anyway.
    reason = response.reason if response.reason.isascii() else ''
    return httputil.ResponseStartLine('HTTP/1.1', response.code, reason), headers
