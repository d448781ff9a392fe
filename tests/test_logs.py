"""What the logs say: whoever has a request's id finds out what became of it."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import quote

import pytest
from tornado.httputil import RequestStartLine

from crew import logs
from crew_wsgi.access import log_access
from crew_wsgi.connections import Context
from tests.stack import Stack
from tests.waiting import wait_until
from tests.wire import Wire

ID = {'X-Request-ID': 'find-me'}


def test_an_application_that_configures_logging_does_not_silence_the_worker(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('logging_of_its_own:app').await_ready()
    assert front.get('/raise', ID).status == 500
    worker.await_log(r'GET /raise \(request find-me\) raised\nTraceback')
    worker.await_log('ValueError: on purpose')


def test_a_failure_that_the_application_caught_is_found_by_its_request_id(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('logging_of_its_own:app').await_ready()
    assert front.get('/caught', ID).status == 500
    worker.await_log(r'GET /caught \(request find-me\): the application answered 500 Internal Server Error')
    front.await_log('"GET /caught HTTP/1.1" 500 .* id=find-me')


def test_a_refusal_says_why(stack: Stack) -> None:
    stack.amqp_url = 'amqp://guest:guest@127.0.0.1:1/%2F'
    front = stack.front().await_listening()
    assert front.get('/', ID).status == 503
    front.await_log(r'503 .* id=find-me \(The queue cannot be reached now\.\)')


@pytest.mark.parametrize('whom', ['supervisor', 'process'])
def test_sigquit_shows_where_everything_is_and_ends_nothing(stack: Stack, whom: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    answer = front.later('GET', '/sleep?for=2')
    wait_until(lambda: bool(stack.runs), 10, 'the run')
    os.kill(worker.pid if whom == 'supervisor' else worker.children()[0], signal.SIGQUIT)
    worker.await_log(r'worker process \d+ is here:\n(.*\n)*.*in sleep')
    front.signal(signal.SIGQUIT)
    front.await_log('most recent call first')
    assert answer.result(10).status == 200


FORGED = 'x\n2026-11-30 14:00:00,000 INFO 532 crew_wsgi.access: 10.0.0.9 "GET /forged HTTP/1.1" 200 5 1.0ms id=forged'


def test_what_an_application_raised_makes_no_line_of_its_own(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('streaming:app').await_ready()
    with Wire(front.port) as wire:
        wire.send(f'GET /fail?blocks=1&why={quote(FORGED)} HTTP/1.1\r\nHost: crew.test\r\n\r\n'.encode())
        with suppress(ConnectionError):
            wire.answer()
    front.await_log(r'is cut: .*LookupError: x\\n2026.*\n(.*\n)*.*"GET /fail\?.*LookupError: x\\n2026.*id=forged')
    assert not re.search('^2026-11-30 14:00:00,000', front.text, re.MULTILINE)


@pytest.mark.parametrize(
    ('target', 'shown'),
    [
        ('/plain?a=%22', '/plain?a=%22'),
        ('/\xe4', '/\xe4'),
        ('/\x9b31m\x85', r'/\x9b31m\x85'),
        ('/" 200 "\\', r'/\" 200 \"\\'),
        ('/\r\n\ud800', r'/\r\n\ud800'),
    ],
)
def test_a_target_cannot_leave_its_quotes(caplog: pytest.LogCaptureFixture, target: str, shown: str) -> None:
    caplog.set_level(logging.INFO, 'crew_wsgi.access')
    log_access(
        Context(('127.0.0.1', 1), 'http'),
        RequestStartLine('GET', target, 'HTTP/1.1'),
        status=200,
        size=5,
        seconds=0.001,
        request_id='1',
        note=' (it said: "\x1b\n")',
    )
    assert caplog.messages == [rf'127.0.0.1 "GET {shown} HTTP/1.1" 200 5 1.0ms id=1 (it said: "\x1b\n")']
    assert caplog.records[0].fields['target'] == target  # type: ignore[attr-defined]


@pytest.mark.parametrize('log_format', ['text', 'json'])
@pytest.mark.parametrize('theirs', [False, True])
def test_what_has_no_handler_looks_like_crews_lines(log_format: str, theirs: bool) -> None:
    script = f"""if True:
        import logging
        from crew import logs
        logs.set_up(log_format='{log_format}')
        if {theirs}:
            logging.basicConfig(format='theirs: %(message)s')
        logging.getLogger('asyncio').warning('socket.send() raised exception.')
        logging.getLogger('asyncio').info('for nobody')
    """
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    if theirs:
        assert line == 'theirs: socket.send() raised exception.'
    elif log_format == 'json':
        assert json.loads(line)['logger'] == 'asyncio'
    else:
        assert re.fullmatch(r'[-\d]+ [:,\d]+ WARNING \d+ asyncio: socket\.send\(\) raised exception\.', line)


@pytest.fixture
def parent() -> Iterator[logging.Logger]:
    logger = logging.getLogger('lines')
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()


def lines_into(parent: logging.Logger, log_format: logs.LogFormat = 'text') -> tuple[logs.LineHandler, io.StringIO]:
    handler, written = logs.console(log_format), io.StringIO()
    handler.setStream(written)
    parent.handlers[:] = [handler]
    return handler, written


@pytest.mark.parametrize('log_format', ['text', 'json'])
def test_a_line_looks_the_same_with_a_record_and_without(parent: logging.Logger, log_format: logs.LogFormat) -> None:
    _, written = lines_into(parent, log_format)
    logger = parent.getChild('child')
    logs.inform(logger, '100 %s "é"', lambda: {'status': 200})
    records: list[logging.LogRecord] = []
    logger.addFilter(lambda record: not records.append(record))
    try:
        logs.inform(logger, '100 %s "é"', lambda: {'status': 200})
    finally:
        logger.filters.clear()
    without, with_record = (re.sub(r'\d\d:\d\d:\d\d,\d+', 'TIME', line) for line in written.getvalue().splitlines())
    assert len(records) == 1
    assert without == with_record
    assert 'lines.child' in without and str(os.getpid()) in without


def test_lines_are_written_together_and_in_their_order(parent: logging.Logger) -> None:
    handler, written = lines_into(parent)
    soon: list[Callable[[], None]] = []
    handler.collect(soon.append)
    for text in ('one', 'two'):
        logs.inform(parent.getChild('child'), text, dict)
    assert not written.getvalue() and len(soon) == 1
    parent.warning('three')
    logs.inform(parent.getChild('child'), 'four', dict)
    assert len(soon) == 1
    soon[0]()
    assert [line.rpartition(' ')[2] for line in written.getvalue().splitlines()] == ['one', 'two', 'three', 'four']


def test_what_nobody_can_read_any_more_ends_nothing(parent: logging.Logger) -> None:
    handler, written = lines_into(parent)
    written.close()
    logs.inform(parent.getChild('child'), 'one', dict)
    handler.flush()


@pytest.mark.parametrize('how', ['propagate', 'level', 'formatter'])
def test_what_somebody_has_set_for_these_lines_holds(parent: logging.Logger, how: str) -> None:
    handler, written = lines_into(parent)
    logger = parent.getChild('child')
    try:
        if how == 'propagate':
            logger.propagate = False
        elif how == 'level':
            handler.setLevel(logging.WARNING)
        else:
            handler.setFormatter(logging.Formatter('%(message)s!'))
        logs.inform(logger, 'one', dict)
    finally:
        logger.propagate = True
    assert written.getvalue() == ('one!\n' if how == 'formatter' else '')


def test_a_line_that_is_made_while_another_thread_writes_is_not_lost(parent: logging.Logger) -> None:
    handler, written = lines_into(parent)
    soon: list[Callable[[], None]] = []
    handler.collect(soon.append)
    logs.inform(parent.getChild('child'), 'one', dict)

    class Slow(logs.TextFormatter):
        def line(self, said: logs.Said) -> str:
            # As another thread may, in the middle of this.
            parent.warning('three')
            return super().line(said)

    formatter, slow = handler.formatter, Slow()
    slow.formatMessage = lambda record: record.message  # type: ignore[method-assign]
    handler.setFormatter(slow)
    logs.inform(parent.getChild('child'), 'two', dict)
    handler.setFormatter(formatter)
    for write in soon:
        write()
    assert [line.rpartition(' ')[2] for line in written.getvalue().splitlines()] == ['one', 'three', 'two']


def test_a_thread_that_is_interrupted_as_it_writes_keeps_no_lock(parent: logging.Logger) -> None:
    handler, written = lines_into(parent)

    class Interrupted(io.StringIO):
        def flush(self) -> None:
            raise SystemExit

    handler.stream = Interrupted()
    with pytest.raises(SystemExit):
        parent.warning('one')
    handler.stream = written
    other = threading.Thread(target=parent.warning, args=('two',), daemon=True)
    other.start()
    other.join(10)
    assert 'two' in written.getvalue()
