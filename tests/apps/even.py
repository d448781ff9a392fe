"""An application that takes ``$TAKES`` seconds for a request and says who ran it and how long it had waited."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the process id and the wait; all processes of a machine share the monotonic clock."""
    waited = time.monotonic() - float(environ['HTTP_X_SENT'])
    time.sleep(float(os.environ.get('TAKES', '0.02')))
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [f'{os.getpid()} {waited}'.encode()]
