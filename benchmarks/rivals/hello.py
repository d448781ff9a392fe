"""The application that all of them run; without PEP 3333's niceties it is the least that an application can do."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

#: How long a request takes, in seconds.
TAKES = float(os.environ.get('TAKES', '0'))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Say hello; with a body, echo it; with ``?size=N``, send so many bytes."""
    if TAKES:
        time.sleep(TAKES)
    body = b'hello\n'
    if environ['QUERY_STRING'].startswith('size='):
        body = bytes(int(environ['QUERY_STRING'][5:]))
    elif environ.get('CONTENT_LENGTH', '0') not in ('', '0'):
        body = environ['wsgi.input'].read()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])
    return [body]
