"""An application that takes as long as it is told, and says who ran a request and how long that had waited."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the process id and the wait; all processes of a machine share the monotonic clock.

    It takes ``$TAKES`` seconds, or what the request says in ``X-Takes``.
    """
    waited = time.monotonic() - float(environ['HTTP_X_SENT'])
    takes = float(environ.get('HTTP_X_TAKES', os.environ.get('TAKES', '0.02')))
    if takes:
        time.sleep(takes)
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [f'{os.getpid()} {waited}'.encode()]
