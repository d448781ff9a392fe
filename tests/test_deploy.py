"""Deploys: SIGHUP loads new code process by process, and neither it nor a restart loses a request."""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crew.master.threaded_client import Client
from tests.stack import Front, Stack, Worker, children_of
from tests.waiting import wait_until

#: In seconds.
PATIENCE = 60

RESPONDS = """
import os

def app(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'%s']
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The file of an application, in a directory of its own."""
    directory = tmp_path / 'deployed'
    directory.mkdir()
    return directory / 'site_app.py'


def deploy(code: Path, version: str) -> None:
    """Put another version there; its size differs, for Python tells two files of one second apart by that."""
    code.write_text(RESPONDS % f'version {version}' + '#' * int(version))


def worker_of(stack: Stack, code: Path, *arguments: str) -> Worker:
    return stack.worker('site_app:app', '--app-dir', str(code.parent), *arguments)


def await_reload(worker: Worker) -> None:
    """Wait until all is new; several processes start one after the other, which takes its time on a busy machine."""
    worker.await_log('reloaded: all worker processes are new', PATIENCE)


def await_answer(front: Front, body: bytes) -> None:
    wait_until(lambda: front.get('/').body == body, PATIENCE, f'{body!r} to be answered')


@contextmanager
def load(front: Front, clients: int = 4) -> Iterator[Callable[[], int]]:
    """Keep clients asking; at the end all that they heard must have been 200. Gives how many answers there were."""
    stopping = threading.Event()
    heard: list[int] = []

    def ask() -> None:
        with front.connection() as connection:
            while not stopping.is_set():
                # A POST, for a GET would be run once more behind our back.
                connection.request('POST', '/', body=b'x')
                response = connection.getresponse()
                response.read()
                heard.append(response.status)

    def client() -> None:
        try:
            ask()
        except Exception as error:
            heard.append(-1)
            failures.append(repr(error))

    failures: list[str] = []
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(heard) > 20, PATIENCE, 'the first answers')
        yield lambda: len(heard)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(30)
    assert not failures
    assert set(heard) == {200}


def test_sighup_loads_new_code(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    worker = worker_of(stack, code, '--processes', '2').await_ready(2)
    assert front.get('/').body == b'version 1'
    before = set(worker.children())
    deploy(code, '2')
    worker.signal(signal.SIGHUP)
    await_reload(worker)
    wait_until(lambda: len(worker.children()) == 2, PATIENCE, 'the old ones to end')
    assert not before & set(worker.children())
    assert {front.get('/').body for _ in range(10)} == {b'version 2'}
    assert worker.terminate() == 0


def test_what_replaces_a_dead_process_after_a_reload_has_the_new_code_too(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    worker = worker_of(stack, code).await_ready()
    deploy(code, '2')
    worker.signal(signal.SIGHUP)
    await_reload(worker)
    wait_until(lambda: len(worker.children()) == 1, PATIENCE, 'the old one to end')
    os.kill(worker.children()[0], signal.SIGKILL)
    worker.await_ready(3)
    assert front.get('/').body == b'version 2'


@pytest.mark.parametrize(
    ('broken', 'reason'),
    [
        ('import nowhere_to_be_found', r"ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ('def app(:', 'SyntaxError'),
        ('import os; os._exit(3)', 'exited with code 3'),
        ('import os; os.kill(os.getpid(), 11)', 'killed by SIGSEGV'),
        ('apq = None', "has no attribute 'app'"),
    ],
)
def test_new_code_that_does_not_start_leaves_the_old_serving(
    stack: Stack, code: Path, broken: str, reason: str
) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    worker = worker_of(stack, code, '--processes', '2').await_ready(2)
    before = worker.children()
    code.write_text(broken)
    worker.signal(signal.SIGHUP)
    line = worker.await_log(r'the reload has stopped: .*', PATIENCE)[0]
    assert reason in line.replace('\\', '')
    assert 'The 2 worker processes' in line
    assert front.get('/').body == b'version 1'
    assert worker.children() == before
    deploy(code, '22')
    worker.signal(signal.SIGHUP)
    await_reload(worker)
    await_answer(front, b'version 22')


def test_a_second_sighup_begins_anew_when_the_first_is_done(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    worker = worker_of(stack, code, '--processes', '2').await_ready(2)
    worker.signal(signal.SIGHUP)
    worker.await_log('told to reload: ')
    deploy(code, '2')
    worker.signal(signal.SIGHUP)
    worker.await_log('told to reload while that is under way')
    wait_until(lambda: worker.text.count('reloaded: all') == 2, PATIENCE, 'both to be done')
    wait_until(lambda: len(worker.children()) == 2, PATIENCE, 'the old ones to end')
    assert {front.get('/').body for _ in range(10)} == {b'version 2'}
    # Never more than one new process at a time.
    assert worker.text.count('taking requests from') == 6


def test_sigterm_during_a_reload_ends_everything(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    stack.front().await_ready()
    worker = worker_of(stack, code, '--processes', '2').await_ready(2)
    code.write_text('import time; time.sleep(1000)')
    worker.signal(signal.SIGHUP)
    wait_until(lambda: len(worker.children()) == 3, PATIENCE, 'the new one to start')
    family = worker.children()
    assert worker.terminate() == 0
    assert not [pid for pid in family if Path(f'/proc/{pid}').exists()]


def test_sighup_to_a_worker_process_does_nothing(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    worker = worker_of(stack, code).await_ready()
    before = worker.children()
    os.kill(before[0], signal.SIGHUP)
    assert front.get('/').body == b'version 1'
    assert worker.children() == before


def test_a_request_that_runs_is_finished_by_the_old_process(stack: Stack, tmp_path: Path) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    answer = front.later('POST', f'/wait?file={tmp_path}/over')
    wait_until(lambda: bool(stack.runs), PATIENCE, 'the run')
    worker.signal(signal.SIGHUP)
    await_reload(worker)
    assert front.get('/').status == 200
    assert not answer.done()
    (tmp_path / 'over').touch()
    assert answer.result(10).status == 200


def test_three_workers_are_reloaded_one_after_the_other_and_no_request_fails(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    workers = [worker_of(stack, code, '--processes', '2').await_ready(2) for _ in range(3)]
    with load(front):
        deploy(code, '2')
        for worker in workers:
            worker.signal(signal.SIGHUP)
            await_reload(worker)
            wait_until(lambda worker=worker: len(worker.children()) == 2, PATIENCE, 'the old ones to end')
    assert {front.get('/').body for _ in range(10)} == {b'version 2'}


@pytest.mark.parametrize('whole_group', [False, True])
def test_three_workers_are_replaced_one_after_the_other_and_no_request_fails(
    stack: Stack, code: Path, whole_group: bool
) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    workers = [worker_of(stack, code, '--prefetch', '5').await_ready() for _ in range(3)]
    with load(front):
        deploy(code, '2')
        for worker in workers:
            worker_of(stack, code).await_ready()
            if whole_group:
                # As systemd does: every process of the service is told to end.
                for child in worker.children():
                    os.kill(child, signal.SIGTERM)
            assert worker.terminate() == 0
    assert {front.get('/').body for _ in range(10)} == {b'version 2'}


def test_the_debugger_goes_on_after_a_reload(stack: Stack, code: Path) -> None:
    deploy(code, '1')
    front = stack.front().await_ready()
    worker = worker_of(stack, code, '--debug').await_ready()
    worker.signal(signal.SIGHUP)
    await_reload(worker)
    worker.await_ready(2)
    deploy(code, '2')
    await_answer(front, b'version 2')
    assert 'the reload has stopped' not in worker.text


# Programs that call run() themselves


PROGRAM = """
import sys
from crew.worker import Task, run

@Task('version')
def version(argument):
    return %r

if __name__ == '__main__':
    run()
"""


def test_a_program_of_tasks_is_run_anew(amqp_url: str, tmp_path: Path) -> None:
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM % 'one')
    log = tmp_path / 'log'
    command = [sys.executable, str(program), '--amqp-url', amqp_url, '--forks', '2']
    with log.open('wb') as output:
        worker = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        with Client(amqp_url, tasks=['version']) as client:
            assert client.call('version', None).wait(timeout=20) == 'one'
            wait_until(lambda: log.read_text().count('taking requests') == 2, PATIENCE, 'both to be ready')
            program.write_text('1 / 0')
            worker.send_signal(signal.SIGHUP)
            wait_until(lambda: 'the reload has stopped' in log.read_text(), PATIENCE, 'the reload to stop')
            assert {client.call('version', None).wait(timeout=20) for _ in range(4)} == {'one'}
            program.write_text(PROGRAM % 'two and more')
            worker.send_signal(signal.SIGHUP)
            wait_until(lambda: 'reloaded: all' in log.read_text(), PATIENCE, f'the reload: {log.read_text()}')
            wait_until(lambda: len(children_of(worker.pid)) == 2, PATIENCE, 'the old ones to end')
            assert {client.call('version', None).wait(timeout=20) for _ in range(4)} == {'two and more'}
    finally:
        worker.terminate()
        assert worker.wait(20) == 0
    assert log.read_text().count('starting 1 tasks') == 1


# Terminals


@contextmanager
def on_a_terminal(stack: Stack, code: Path, log: Path, *before: str) -> Iterator[tuple[int, int]]:
    """Start a worker on a terminal of its own; give its process id and the terminal's other end."""
    command = [*before, sys.executable, '-m', 'crew_wsgi.worker', 'site_app:app', '--app-dir', str(code.parent)]
    command += ['--amqp-url', stack.amqp_url, '--queue', stack.queue]
    pid, terminal = pty.fork()
    if pid == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)
    try:
        wait_until(lambda: log.exists() and 'taking requests from' in log.read_text(), PATIENCE, 'it to be ready')
        yield pid, terminal
    finally:
        for child in children_of(pid):
            os.kill(child, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_terminal_that_closes_ends_the_worker(stack: Stack, code: Path, tmp_path: Path) -> None:
    deploy(code, '1')
    log = tmp_path / 'log'
    with on_a_terminal(stack, code, log) as (pid, terminal):
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: 'reloaded: all' in log.read_text(), PATIENCE, 'the reload')
        os.close(terminal)
        wait_until(lambda: 'the terminal is gone: finishing' in log.read_text(), PATIENCE, 'it to end')
        wait_until(lambda: Path(f'/proc/{pid}/stat').read_text().split()[2] == 'Z', PATIENCE, 'its end')


def test_nohup_outlives_the_terminal_and_can_be_reloaded(stack: Stack, code: Path, tmp_path: Path) -> None:
    deploy(code, '1')
    log = tmp_path / 'log'
    with on_a_terminal(stack, code, log, 'nohup') as (pid, terminal):
        os.close(terminal)
        wait_until(lambda: 'the terminal is gone; going on' in log.read_text(), PATIENCE, 'it to notice')
        # A moment later it would be an order; what comes just then is the terminal's.
        wait_until(lambda: _reloads(pid, log), PATIENCE, 'a reload')


def _reloads(pid: int, log: Path) -> bool:
    os.kill(pid, signal.SIGHUP)
    return 'told to reload' in log.read_text()
