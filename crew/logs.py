"""Where log lines go and how they look: one line on the console, details at ``-v``, JSON for machines."""

import logging
import sys
import time
from typing import Literal

__all__ = ['LogFormat', 'restore', 'set_up', 'spare_threads']

LogFormat = Literal['text', 'json']

OURS = ('crew', 'crew_wsgi')
LIBRARIES = ('asyncio', 'pika', 'tornado')

TEXT = '%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s'


class TextFormatter(logging.Formatter):
    """A line of text. The time is the same for many of them, but for its milliseconds."""

    def __init__(self, text: str | None = None) -> None:
        super().__init__(text)
        self._last = 0, ''

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the local time of a record, to the millisecond."""
        second, text = self._last
        if second != int(record.created):
            second = int(record.created)
            text = time.strftime(self.default_time_format, time.localtime(second))
            self._last = second, text
        return f'{text},{int(record.msecs):03}'


class JsonFormatter(TextFormatter):
    """A JSON object a line, with the fields that a record carries beside its text."""

    def __init__(self) -> None:
        # Only for who asks for it: a supervisor has no other use of it.
        from json import dumps

        super().__init__()
        self._dumps = dumps

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
        return self._dumps(fields)


def set_up(verbosity: int = 0, log_format: LogFormat = 'text', level: str = 'INFO') -> None:
    """Send what crew logs in this process to standard error.

    Only crew's own loggers are touched: the root is the application's, which may configure it as it likes.

    Args:
        verbosity: 0 for what matters, 1 for debugging crew, 2 for the libraries under it too.
        log_format: ``text``, or ``json`` for one object a line.
        level: the lowest level that is shown, when ``verbosity`` does not ask for more.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == 'json' else TextFormatter(TEXT))
    for name in (*OURS, *(LIBRARIES if verbosity > 1 else ())):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level if verbosity == 0 else logging.DEBUG)
    if verbosity < 2:
        # They report as errors what crew reports in its own words.
        logging.getLogger('pika').setLevel(logging.CRITICAL)
        logging.getLogger('tornado').setLevel(logging.ERROR)


def spare_threads() -> None:
    """Leave out of each record which thread made it, which no line shows: for processes that run nobody else's code."""
    logging.logThreads = logging.logMultiprocessing = False


def restore() -> None:
    """Enable crew's loggers again, which an application's ``logging.config`` has disabled unless it said otherwise."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition('.')[0] in OURS:
            logger.disabled = False
