"""The access log: a line for each request, and its parts as fields for logs in JSON."""

import logging
from typing import Any

from tornado import httputil

from crew import logs

__all__ = ['log_access']

log = logging.getLogger('crew_wsgi.access')


def log_access(
    context: Any,
    start_line: httputil.RequestStartLine,
    *,
    status: int,
    size: int,
    seconds: float,
    request_id: str,
    note: str,
) -> None:
    """Log a request that is over.

    Args:
        context: who sent it (:class:`crew_wsgi.connections.Context`).
        start_line: of the request.
        status: of the answer; 499 if the client hung up before.
        size: how many bytes of the answer's body were sent.
        seconds: how long it took.
        request_id: its id.
        note: why it came to this, if there is something to tell; with a blank before it.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    client, (method, target, version) = context.remote_ip, start_line
    line = f'{method} {logs.quoted(target)} {version}'
    logs.inform(
        log,
        f'{client} "{line}" {status} {size} {seconds * 1000:.1f}ms id={request_id}{logs.one_line(note)}',
        lambda: {
            'client': client,
            'method': method,
            'target': target,
            'status': status,
            'bytes': size,
            'seconds': round(seconds, 6),
            'request_id': request_id,
        },
    )
