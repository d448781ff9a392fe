"""``crew-wsgi-dev``: everything on one console, and nothing left when it ends."""

import http.client
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.stack import APPS, Process, children_of
from tests.waiting import wait_until

SOURCE = 'def app(environ, start_response):\n    body = {}\n    start_response("200 OK", [])\n    return [body]\n'

EXAMPLE = Path(__file__).parent.parent / 'examples' / 'flask_app'


class Dev(Process):
    """A running ``crew-wsgi-dev``."""

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.await_log(r"listening on http://127.0.0.1:([0-9]+)/", 60)[1]}'

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def await_page(self, path: str, status: int, text: str) -> str:
        """Wait for a page, through 503s and reloads."""
        pages: list[str] = []

        def found() -> bool:
            code, page = self.get(path)
            pages.append(page)
            return code == status and text in page

        wait_until(found, 40, f'{status} with {text!r} at {path}:\n{self.text}')
        return pages[-1]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[type[Dev]]:
    """Start ``crew-wsgi-dev`` with arguments; it is ended with the test."""
    started: list[Dev] = []

    def start(*arguments: str) -> Dev:
        env = {'TMPDIR': str(tmp_path), 'CREW_AMQP_URL': ''}
        started.append(Dev('crew_wsgi.dev', ['--port', '0', *arguments], tmp_path / 'dev.log', env))
        return started[-1]

    yield start  # type: ignore[misc]
    for each in started:
        each.kill()


def left_over(directory: Path) -> list[str]:
    """Return the command lines of processes that speak of a directory, and the files in it beside the log."""
    found = [str(path) for path in directory.iterdir() if path.name != 'dev.log']
    for process in Path('/proc').glob('[0-9]*'):
        try:
            environ = (process / 'environ').read_bytes()
            if f'TMPDIR={directory}'.encode() in environ and int(process.name) != os.getpid():
                found.append((process / 'cmdline').read_bytes().decode().replace('\0', ' '))
        except OSError:
            continue
    return [line for line in found if line]


def await_nothing_left(directory: Path) -> None:
    found: list[str] = ['?']

    def nothing_left() -> bool:
        found[:] = left_over(directory)
        return not found

    try:
        wait_until(nothing_left, 30, 'nothing to be left')
    except AssertionError as error:
        raise AssertionError(f'left: {found}') from error


def test_everything_is_served_and_nothing_is_left_after_ctrl_c(dev: type[Dev], tmp_path: Path) -> None:
    console = dev('app:app', '--app-dir', str(EXAMPLE), '--timeout', '2')
    console.await_page('/worker.json', 200, 'pid')
    assert console.get('/error')[0] == 500
    assert console.get('/hang')[0] == 504
    assert re.search(r'^front  \| .* "GET /error HTTP/1.1" 500', console.text, re.MULTILINE)
    assert re.search(r'^worker \| RuntimeError', console.text, re.MULTILINE)
    beam = next(line for line in left_over(tmp_path) if 'beam' in line)
    assert 'rabbit' in beam
    console.signal(signal.SIGINT)
    assert console.wait(30) == 0
    await_nothing_left(tmp_path)


def test_a_node_that_dies_is_started_again(dev: type[Dev], tmp_path: Path) -> None:
    console = dev('app:app', '--app-dir', str(EXAMPLE))
    console.await_page('/worker.json', 200, 'pid')
    for process in Path('/proc').glob('[0-9]*'):
        # Others come and go meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            command = (process / 'cmdline').read_bytes()
            if b'beam.smp' in command and str(tmp_path).encode() in command:
                os.kill(int(process.name), signal.SIGKILL)
    console.await_log('the RabbitMQ node has died')
    console.await_page('/worker.json', 200, 'pid')
    # A hard end leaves nothing either.
    os.kill(console.pid, signal.SIGKILL)
    await_nothing_left(tmp_path)


def test_code_is_loaded_anew_and_the_debugger_shows_what_is_wrong(
    dev: type[Dev], tmp_path: Path, amqp_url: str, queue: str
) -> None:
    module = tmp_path / 'changing.py'
    module.write_text(SOURCE.format('b"first"'))
    console = dev('changing:app', '--debug', '--app-dir', str(tmp_path), '--amqp-url', amqp_url, '--queue', queue)
    console.await_page('/', 200, 'first')
    module.write_text(SOURCE.format('b"second"'))
    console.await_page('/', 200, 'second')
    module.write_text('def app(environ, start_response):\n    nonsense(\n')
    assert 'Debugger' in console.await_page('/', 500, 'was never closed')
    module.write_text(SOURCE.format('[][1]'))
    assert 'Debugger' in console.await_page('/', 500, 'IndexError')
    module.write_text(SOURCE.format('b"third"'))
    console.await_page('/', 200, 'third')
    assert console.terminate() == 0


def test_an_application_that_is_not_there_ends_it(dev: type[Dev], amqp_url: str, queue: str) -> None:
    console = dev('nothere:app', '--amqp-url', amqp_url, '--queue', queue)
    assert console.wait(30) == 2
    assert "there is no module 'nothere'" in console.text
    assert 'Traceback' not in console.text


@pytest.fixture
def orphaning(
    dev: type[Dev], tmp_path: Path, amqp_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dev]:
    """It serves an application that has started a process which outlives it."""
    orphan = tmp_path / 'orphan'
    monkeypatch.setenv('ORPHAN', str(orphan))
    monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
    arguments = ['--amqp-url', amqp_url, '--queue', queue, '--graceful-timeout', '1']
    yield dev('orphaning:app', '--app-dir', str(APPS), *arguments)
    with suppress(ProcessLookupError):
        os.kill(int(orphan.read_text()), signal.SIGKILL)


def test_what_the_application_prints_is_seen_at_once(orphaning: Dev) -> None:
    orphaning.await_page('/', 200, 'ok')
    # A line of the log may be written at the same moment.
    orphaning.await_log(r'(?m)^worker \| .*this was printed')


def test_a_process_that_the_application_left_behind_is_not_waited_for(orphaning: Dev) -> None:
    orphaning.await_page('/', 200, 'ok')
    orphaning.signal(signal.SIGINT)
    assert orphaning.wait(20) == 0


def worker_of(dev: Dev) -> int:
    return next(pid for pid in children_of(dev.pid) if b'crew_wsgi.worker' in Path(f'/proc/{pid}/cmdline').read_bytes())


def test_a_worker_that_dies_ends_everything_whatever_it_leaves_behind(orphaning: Dev) -> None:
    orphaning.await_page('/', 200, 'ok')
    os.kill(worker_of(orphaning), signal.SIGKILL)
    assert orphaning.wait(20) != 0
    assert 'the worker has ended with code -9' in orphaning.text


def test_a_worker_that_does_not_end_is_killed(orphaning: Dev) -> None:
    orphaning.await_page('/', 200, 'ok')
    supervisor = worker_of(orphaning)
    processes = [supervisor, *children_of(supervisor)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    orphaning.signal(signal.SIGINT)
    assert orphaning.wait(30) == 0
    assert 'the worker did not end within 6 s, so it is killed' in orphaning.text
    wait_until(lambda: not any(Path(f'/proc/{process}').exists() for process in processes), 10, 'all to be killed')


def test_without_rabbitmq_the_queue_is_in_memory_and_it_says_so(dev: type[Dev], tmp_path: Path) -> None:
    console = dev('basic:hello', '--app-dir', str(APPS), '--amqp-url', 'memory://here', '--threads', '2')
    console.await_page('/here', 200, '')
    assert 'one process with 2 threads' in console.text
    assert console.terminate() == 0
    await_nothing_left(tmp_path)


def test_in_memory_code_is_loaded_anew_when_it_changes(dev: type[Dev], tmp_path: Path) -> None:
    module = tmp_path / 'changing.py'
    module.write_text(SOURCE.format('b"before"'))
    console = dev('changing:app', '--debug', '--app-dir', str(tmp_path), '--amqp-url', 'memory://here')
    console.await_page('/', 200, 'before')
    module.write_text(SOURCE.format('b"after, and longer"'))
    console.await_log('has changed')
    wait_until(lambda: console.text.count('listening on') == 2, 30, f'a second start:\n{console.text}')
    port = console.text.rpartition('listening on http://127.0.0.1:')[2].partition('/')[0]
    with closing(http.client.HTTPConnection('127.0.0.1', int(port), timeout=30)) as connection:

        def page() -> bytes:
            connection.request('GET', '/')
            return connection.getresponse().read()

        wait_until(lambda: page() == b'after, and longer', 30, 'the new page')
    assert console.terminate() == 0


@pytest.mark.parametrize('more', [['--processes', '2'], ['--gevent', '5']])
def test_what_needs_processes_is_refused_in_memory(dev: type[Dev], more: list[str]) -> None:
    console = dev('basic:hello', '--app-dir', str(APPS), '--amqp-url', 'memory://here', *more)
    assert console.wait() == 2
    assert 'need RabbitMQ' in console.text
