"""The real stack as processes: fronts and workers as a person starts them, their logs, and their ends."""

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeVar

from tests.waiting import wait_until

APPS = Path(__file__).parent / 'apps'


class Process:
    """One command of ours, its log in a file."""

    def __init__(
        self, module: str, arguments: list[str], log: Path, env: dict[str, str], files: Sequence[int] = ()
    ) -> None:
        self.log = log
        with log.open('wb') as output:
            self._popen = subprocess.Popen(
                [sys.executable, '-m', module, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
                pass_fds=files,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors='replace')

    def await_log(self, pattern: str, timeout: float = 15) -> re.Match[str]:
        """Wait until its log matches; return the match."""
        found: list[re.Match[str]] = []

        def matches() -> bool:
            match = re.search(pattern, self.text)
            if match is None and self._popen.poll() is not None:
                raise AssertionError(f'ended with {self._popen.returncode} without {pattern!r}:\n{self.text}')
            found.extend([match] if match else [])
            return bool(found)

        wait_until(matches, timeout, f'{pattern!r} in the log:\n{self.text}')
        return found[0]

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, timeout: float = 15) -> int:
        """Wait for its end; return the exit code."""
        return self._popen.wait(timeout)

    def terminate(self) -> int:
        """Send SIGTERM and wait; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it whatever it does; a worker's processes are told by their lifeline, or killed with their session."""
        if self._popen.poll() is None:
            for child in children_of(self.pid):
                os.kill(child, signal.SIGKILL)
            self._popen.kill()
        self._popen.wait(10)


P = TypeVar('P', bound=Process)


class Worker(Process):
    """A ``crew-wsgi-worker``."""

    def children(self) -> list[int]:
        """The ids of its worker processes."""
        return children_of(self.pid)

    def await_ready(self, processes: int = 1) -> 'Worker':
        """Wait until its processes take requests."""
        wait_until(lambda: self.text.count('taking requests from') >= processes, 15, f'{processes} ready:\n{self.text}')
        return self


class Front(Process):
    """A ``crew-wsgi-front``."""

    port: int = 0

    def await_listening(self) -> 'Front':
        """Wait until it listens, and find its port."""
        self.port = int(self.await_log(r'listening on http://[^:]+:(\d+)/')[1])
        return self

    def await_ready(self) -> 'Front':
        """Wait until it has a connection to the broker."""
        self.await_listening()
        self.await_log('connected to the broker')
        return self

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.port}'

    @contextmanager
    def connection(self, timeout: float = 30) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=timeout)
        try:
            yield connection
        finally:
            connection.close()

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> 'Answer':
        """Make one request on a connection of its own."""
        with self.connection() as connection:
            connection.request(method, target, body=body, headers=headers or {})
            return Answer(connection.getresponse())

    def get(self, target: str, headers: dict[str, str] | None = None) -> 'Answer':
        return self.request('GET', target, headers=headers)

    def later(self, method: str, target: str) -> 'Future[Answer]':
        """Make one request in a thread of its own."""
        future: Future[Answer] = Future()

        def run() -> None:
            try:
                future.set_result(self.request(method, target))
            except BaseException as error:
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return future


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


class Stack:
    """Fronts and workers on one queue of one broker; all end with the test."""

    def __init__(self, amqp_url: str, queue: str, directory: Path) -> None:
        self.amqp_url = amqp_url
        self.queue = queue
        self._directory = directory
        self._processes: list[Process] = []

    def front(self, *arguments: str, files: Sequence[int] = ()) -> Front:
        """Start a front on a free port; wait until it is ready with :meth:`Front.await_ready`.

        Args:
            arguments: more of its command line.
            files: open files that it gets from us.
        """
        command = ['--port', '0', *self._queue_arguments(), *arguments]
        return self._start(Front, 'crew_wsgi.front', command, files=files)

    def worker(self, app: str, *arguments: str, env: dict[str, str] | None = None) -> Worker:
        """Start a worker with an application of ``tests/apps``, as ``module:attribute``."""
        command = [app, '--app-dir', str(APPS), *self._queue_arguments(), *arguments]
        return self._start(Worker, 'crew_wsgi.worker', command, env)

    @property
    def runs(self) -> list[str]:
        """The runs that applications noted: method, path and process id of each."""
        notes = self._directory / 'runs'
        return notes.read_text().splitlines() if notes.exists() else []

    def close(self) -> None:
        """End all that still runs."""
        for process in reversed(self._processes):
            process.kill()

    def _queue_arguments(self) -> list[str]:
        return ['--amqp-url', self.amqp_url, '--queue', self.queue]

    def _start(
        self,
        kind: type[P],
        module: str,
        arguments: list[str],
        env: dict[str, str] | None = None,
        files: Sequence[int] = (),
    ) -> P:
        log = self._directory / f'{module}-{len(self._processes)}.log'
        process = kind(module, arguments, log, {'RUNS': str(self._directory / 'runs'), **(env or {})}, files)
        self._processes.append(process)
        return process


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
