"""An application that configures logging as the documentation shows it, which disables all loggers made before."""

import logging.config
from collections.abc import Callable, Iterable
from typing import Any

logging.config.dictConfig({'version': 1, 'root': {'level': 'WARNING'}})


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Raise, or answer with a status that says that it failed."""
    if environ['PATH_INFO'] == '/raise':
        raise ValueError('on purpose')
    start_response('500 Internal Server Error', [('Content-Type', 'text/plain')])
    return [b'caught']
