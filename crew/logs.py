"""Where log lines go and how they look: one line on the console, details at ``-v``, JSON for machines."""

import json
import logging
import sys
from typing import Literal

__all__ = ['LogFormat', 'set_up']

LogFormat = Literal['text', 'json']

TEXT = '%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s'


class JsonFormatter(logging.Formatter):
    """A JSON object a line, with the fields that a record carries beside its text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        fields = {
            'time': self.formatTime(record),
            'level': record.levelname,
            'process': record.process,
            'logger': record.name,
            'message': record.getMessage(),
            **getattr(record, 'fields', {}),
        }
        if record.exc_info:
            fields['traceback'] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(verbosity: int = 0, log_format: LogFormat = 'text') -> None:
    """Send this process's log to standard error.

    Args:
        verbosity: 0 for what matters, 1 for debugging crew, 2 for the libraries too.
        log_format: ``text``, or ``json`` for one object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == 'json' else logging.Formatter(TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if verbosity == 0 else logging.DEBUG)
    # pika reports as errors what crew reports in its own words, and asyncio its choice of a selector.
    logging.getLogger('pika').setLevel(logging.DEBUG if verbosity > 1 else logging.CRITICAL)
    logging.getLogger('asyncio').setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    logging.getLogger('tornado').setLevel(logging.DEBUG if verbosity > 0 else logging.ERROR)
