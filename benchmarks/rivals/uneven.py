"""An application whose requests take as long as they say, and tell which process ran them, and when."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Take as many seconds as the query says."""
    began = time.monotonic()
    takes = float(environ['QUERY_STRING'] or 0)
    if takes:
        time.sleep(takes)
    body = f'{os.getpid()} {began} {time.monotonic()}'.encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])
    return [body]
