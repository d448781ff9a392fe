"""The article's application, as processes: each page over real HTTP, a real queue and a real worker."""

import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from email.message import Message
from pathlib import Path

import psutil
import pytest

from crew.master.threaded_client import Client
from crew.private_node import PrivateNode
from tests.stack import Process, children_of
from tests.waiting import wait_until

DIRECTORY = Path(__file__).parent.parent / 'examples' / 'article'

#: What a page answers: its status, its text and its headers.
Page = tuple[int, str, Message]


class Article:
    """The server and its worker; requests are made in threads."""

    def __init__(self, amqp_url: str, directory: Path) -> None:
        self.amqp_url = amqp_url
        self._directory = directory
        self._threads = ThreadPoolExecutor(50)
        self.worker = self.start_worker()
        self.master = self._start('master', '--port', '0')
        self.port = int(self.master.await_log(r'listening on http://127\.0\.0\.1:(\d+)/')[1])

    def start_worker(self) -> Process:
        """Start another worker, and wait until it takes tasks."""
        self.worker = self._start('worker')
        self.worker.await_log('taking requests from')
        return self.worker

    def get(self, path: str) -> Page:
        return self.later(path).result(30)

    def post(self, path: str, data: bytes) -> Page:
        return self.later(path, data).result(30)

    def later(self, path: str, data: bytes | None = None) -> 'Future[Page]':
        return self._threads.submit(fetch, f'http://127.0.0.1:{self.port}{path}', data)

    def await_waiting(self, number: int) -> None:
        """Wait until so many in all have come to wait for a post."""
        wait_until(lambda: self.master.text.count('waiting for a post') >= number, 15, f'{number} waiting')

    @property
    def have_waited(self) -> int:
        return self.master.text.count('waiting for a post')

    def close(self) -> None:
        """End both as a person would; they say that they have ended well."""
        try:
            assert self.master.terminate() == 0, self.master.text
            assert self.worker.terminate() == 0, self.worker.text
        finally:
            self.master.kill()
            self.worker.kill()
            self._threads.shutdown()

    def _start(self, module: str, *arguments: str) -> Process:
        log = self._directory / f'{module}-{time.monotonic_ns()}.log'
        return Process(module, list(arguments), log, {'PYTHONPATH': str(DIRECTORY), 'CREW_AMQP_URL': self.amqp_url})


@pytest.fixture(scope='module')
def console(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """All in one command, which needs seconds to start: meanwhile the tests of the pages run."""
    directory = tmp_path_factory.mktemp('console')
    env = {'PYTHONPATH': str(DIRECTORY), 'TMPDIR': str(directory)}
    run = Process('run', ['--port', '0'], directory / 'run.log', env)
    yield run
    run.kill()


@pytest.fixture(scope='module')
def article(broker: PrivateNode, console: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Article]:
    with closing(Article(broker.url, tmp_path_factory.mktemp('article'))) as article:
        yield article


def fetch(url: str, data: bytes | None = None) -> Page:
    try:
        with urllib.request.urlopen(url, data, timeout=30) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def stat_in(page: Page) -> tuple[int, int]:
    """Return which process has run how many tasks."""
    match = re.search(r'process (\d+) has run (\d+) tasks\n$', page[1])
    assert match, page
    return int(match[1]), int(match[2])


def test_the_main_page_is_what_the_task_returns(article: Article) -> None:
    assert article.get('/')[:2] == (200, 'Wake up Neo.\n')


def test_a_worker_counts_for_coroutines_and_for_callbacks(article: Article) -> None:
    pages = [article.get(path) for path in ('/stat', '/stat2', '/stat')]
    assert [status for status, _, _ in pages] == [200] * 3
    pid, count = stat_in(pages[0])
    assert [stat_in(page) for page in pages] == [(pid, count), (pid, count + 1), (pid, count + 2)]
    # What the task has put into context.headers.
    assert re.fullmatch(r'[0-9a-f-]{36}', pages[1][2]['X-Worker'])


def test_many_requests_at_once_are_all_answered(article: Article) -> None:
    pages = [article.later('/') for _ in range(200)]
    assert {page.result(30)[:2] for page in pages} == {(200, 'Wake up Neo.\n')}


def test_parallel_calls_come_back_in_their_order(article: Article) -> None:
    page = article.get('/parallel')
    assert page[0] == 200
    assert page[1].startswith('Wake up Neo.\n') and stat_in(page)


@pytest.mark.parametrize('path', ['/publish', '/publish2'])
def test_everybody_who_polls_gets_what_is_posted_though_one_has_hung_up(article: Article, path: str) -> None:
    before = article.have_waited
    with socket.create_connection(('127.0.0.1', article.port)) as impatient:
        impatient.sendall(b'GET /subscribe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n')
        pages = [article.later('/subscribe') for _ in range(3)]
        article.await_waiting(before + 4)
    status, text, _ = article.post(path, 'Καλημέρα'.encode())
    assert (status, text.startswith('published by ')) == (200, True)
    assert [page.result(15)[:2] for page in pages] == [(200, 'Καλημέρα')] * 3
    assert 'Uncaught exception' not in article.master.text
    # Nobody gets what was posted before he came.
    late = article.later('/subscribe')
    article.await_waiting(before + 5)
    article.post(path, b'second')
    assert late.result(15)[1] == 'second'


def test_a_task_that_hangs_is_interrupted_and_the_next_one_runs(article: Article) -> None:
    pid, count = stat_in(article.get('/stat'))
    started = time.monotonic()
    assert article.get('/fast')[:2] == (504, 'Timeout\n')
    assert 2.5 < time.monotonic() - started < 15
    # By the same process: it has not been replaced.
    assert stat_in(article.get('/stat')) == (pid, count + 2)
    article.worker.await_log('interrupted: here a task may clean up')


def test_without_workers_a_call_expires_and_later_calls_find_the_new_one(article: Article) -> None:
    assert article.worker.terminate() == 0
    waiting = article.later('/')
    try:
        started = time.monotonic()
        assert article.get('/fast')[:2] == (503, 'All workers are gone\n')
        assert 2.5 < time.monotonic() - started < 15
    finally:
        article.start_worker()
    assert waiting.result(30)[1] == article.get('/')[1] == 'Wake up Neo.\n'


def test_a_script_waits_for_many_calls(article: Article) -> None:
    with Client(article.amqp_url) as client:
        tasks = [client.call('sleep', 0.01) for _ in range(30)]
        assert [task.wait(timeout=30) for task in tasks] == ['slept\n'] * 30


def test_run_serves_all_on_one_console_and_leaves_nothing(console: Process) -> None:
    port = console.await_log(r'listening on http://127\.0\.0\.1:(\d+)/', 60)[1]
    console.await_log(r'(?s)(taking requests from.*){2}', 30)
    assert fetch(f'http://127.0.0.1:{port}/')[1] == 'Wake up Neo.\n'
    all_of_them = psutil.Process(console.pid).children(recursive=True)
    assert len(children_of(console.pid)) >= 4  # worker, server, broker and what watches that
    console.signal(signal.SIGINT)
    assert console.wait(30) == 0, console.text
    wait_until(lambda: not any(process.is_running() for process in all_of_them), 15, 'the end of all')
    assert not list(console.log.parent.glob('crew-node-*'))
