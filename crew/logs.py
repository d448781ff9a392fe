"""Where log lines go and how they look: one line on the console, details at ``-v``, JSON for machines."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, cast

__all__ = [
    'LineHandler',
    'LogFormat',
    'Said',
    'TextFormatter',
    'collect',
    'console',
    'inform',
    'one_line',
    'quoted',
    'restore',
    'set_up',
    'spare_threads',
]

LogFormat = Literal['text', 'json']

OURS = ('crew', 'crew_wsgi')
LIBRARIES = ('asyncio', 'pika', 'tornado')

# What would end a quotation, or be taken for an escape.
_IN_QUOTES = str.maketrans({'"': r'\"', '\\': r'\\'})


class Said(NamedTuple):
    """What somebody says to the log, as far as a line shows it.

    Args:
        created: when, in seconds since the epoch.
        level: the level's name.
        process: the process id.
        name: the logger's name.
        message: what is said.
        fields: makes the same for machines; text has no place for it.
    """

    created: float
    level: str
    process: int | None
    name: str
    message: str
    fields: Callable[[], Mapping[str, object]] = dict


class TextFormatter(logging.Formatter):
    """A line of text. The time is the same for many of them, but for its milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0, ''

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line for a record, without its traceback."""
        return self.line(Said(record.created, record.levelname, record.process, record.name, record.message))

    def line(self, said: Said) -> str:
        """Return the line for what is said."""
        return f'{self.time(said.created)} {said.level} {said.process} {said.name}: {said.message}'

    def time(self, created: float) -> str:
        """Return the local time to the millisecond, of a time in seconds since the epoch."""
        second, text = self._last
        whole = int(created)
        if second != whole:
            text = time.strftime(self.default_time_format, time.localtime(whole))
            self._last = whole, text
        return f'{text},{int((created - whole) * 1000):03}'


class JsonFormatter(TextFormatter):
    """A JSON object a line, with the fields that a record carries beside its text."""

    def __init__(self) -> None:
        # Only for who asks for it: a supervisor has no other use of it.
        from json import dumps

        super().__init__()
        self._dumps = dumps

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        fields = getattr(record, 'fields', {})
        if record.exc_info:
            fields = {**fields, 'traceback': self.formatException(record.exc_info)}
        message = record.getMessage()
        return self.line(Said(record.created, record.levelname, record.process, record.name, message, lambda: fields))

    def line(self, said: Said) -> str:
        """Return the line for what is said."""
        own = {
            'time': self.time(said.created),
            'level': said.level,
            'process': said.process,
            'logger': said.name,
            'message': said.message,
        }
        return self._dumps({**own, **said.fields()})


class LineHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines to standard error; many of :func:`inform` at once, where somebody says when.

    Attributes:
        process: the id of this process. Asked for with each line it would take as long as the line.
    """

    process = os.getpid()

    def __init__(self, formatter: TextFormatter) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)
        self._later: Callable[[Callable[[], None]], object] | None = None
        self._lines: deque[str] = deque()
        self._asked = False

    def collect(self, later: Callable[[Callable[[], None]], object]) -> None:
        """Let lines of :func:`inform` leave together, from now on.

        Args:
            later: has what it is given called a little later.
        """
        self.flush()
        self._later, self._asked = later, False

    def put(self, name: str, message: str, fields: Callable[[], Mapping[str, object]]) -> None:
        """Write what a logger says now at level INFO."""
        said = Said(time.time(), 'INFO', self.process, name, message, fields)
        self._lines.append(cast(TextFormatter, self.formatter).line(said))
        if self._later is None:
            self.flush()
        elif not self._asked:
            self._asked = True
            self._later(self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._asked = False
        self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, behind what came before it."""
        if self._lines:
            self.flush()
        super().emit(record)

    def flush(self) -> None:
        """Write what was collected."""
        # Who could be told that standard error takes no more?
        try:
            if self._lines:
                self.stream.write(''.join(self._taken()))
            super().flush()
        except (OSError, ValueError):
            pass

    def _taken(self) -> Iterator[str]:
        # No lock: an interrupted task's thread would keep it (worker/threads.py knows of logging's own only).
        while self._lines:
            try:
                yield f'{self._lines.popleft()}\n'
            except IndexError:
                return


def _forked() -> None:
    LineHandler.process = os.getpid()


os.register_at_fork(after_in_child=_forked)


def console(log_format: LogFormat = 'text') -> LineHandler:
    """Return a handler for standard error, with lines as all of crew's look."""
    return LineHandler(JsonFormatter() if log_format == 'json' else TextFormatter())


def set_up(verbosity: int = 0, log_format: LogFormat = 'text', level: str = 'INFO') -> None:
    """Send what crew logs in this process to standard error.

    Only crew's own loggers are touched: the root is the application's, which may configure it as it likes. What has no
    handler then, such as asyncio's warnings, goes where crew's lines go and looks like them.

    A process that was started without standard error (``2>&-``) gets one that leads nowhere, for others need it, too:
    faulthandler, and PEP 3333 for ``wsgi.errors``.

    Args:
        verbosity: 0 for what matters, 1 for debugging crew, 2 for the libraries under it too.
        log_format: ``text``, or ``json`` for one object a line.
        level: the lowest level that is shown, when ``verbosity`` does not ask for more.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open('w', errors='backslashreplace')  # noqa: SIM115
    handler, last = console(log_format), console(log_format)
    last.setLevel(logging.WARNING)
    logging.lastResort = last
    for name in (*OURS, *(LIBRARIES if verbosity > 1 else ())):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level if verbosity == 0 else logging.DEBUG)
    if verbosity < 2:
        # They report as errors what crew reports in its own words.
        logging.getLogger('pika').setLevel(logging.CRITICAL)
        logging.getLogger('tornado').setLevel(logging.ERROR)


def inform(logger: logging.Logger, message: str, fields: Callable[[], Mapping[str, object]]) -> None:
    """Log at level INFO what is said very often.

    A record, and its way through handlers, take several times what the line takes. So there is none if nobody could
    see it but the handler that :func:`set_up` has made.

    Args:
        logger: whose it is.
        message: what it says.
        fields: makes the same for machines.
    """
    handler = _only_handler(logger)
    if handler is not None:
        handler.put(logger.name, message, fields)
        return
    record = logging.LogRecord(logger.name, logging.INFO, '', 0, message, None, None)
    record.fields = fields()
    logger.handle(record)


def _only_handler(logger: logging.Logger) -> LineHandler | None:
    """Return the handler of :func:`set_up`, if nothing else would see or change what the logger says."""
    parent = logger.parent
    if parent is None or not logger.propagate or logger.handlers or logger.filters or parent.propagate:
        return None
    handler = parent.handlers[0] if len(parent.handlers) == 1 else None
    if not isinstance(handler, LineHandler) or handler.filters or handler.level > logging.INFO:
        return None
    return handler if isinstance(handler.formatter, TextFormatter) else None


def one_line(text: str) -> str:
    """Return what others have said as a line may repeat it.

    What cannot be printed becomes an escape: a line end would let them write lines of their own, and terminals obey
    control characters.
    """
    return text if text.isprintable() else ''.join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode('unicode_escape').decode()


def quoted(text: str) -> str:
    """Return what others have said as a line may repeat it between double quotes, which it cannot end."""
    if '"' in text or '\\' in text:
        text = text.translate(_IN_QUOTES)
    return one_line(text)


def collect(later: Callable[[Callable[[], None]], object]) -> None:
    """Let lines of :func:`inform` leave together, which only one thread may call.

    Args:
        later: has what it is given called a little later in that thread, by its loop.
    """
    for handler in logging.getLogger(OURS[1]).handlers:
        if isinstance(handler, LineHandler):
            handler.collect(later)


def spare_threads() -> None:
    """Leave out of each record which thread made it, which no line shows: for processes that run nobody else's code."""
    logging.logThreads = logging.logMultiprocessing = False


def restore() -> None:
    """Enable crew's loggers again, which an application's ``logging.config`` has disabled unless it said otherwise."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition('.')[0] in OURS:
            logger.disabled = False
