"""The servers that checks are run against, and the applications that they are given."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import TracebackType

from tests.conformance.site import Site
from tests.stack import APPS, Process, Stack

__all__ = ['APPLICATIONS', 'Crew', 'Gunicorn', 'Sites']


@dataclass(frozen=True)
class Application:
    """An application of ``tests/apps``, or one that is installed.

    Args:
        target: ``module:attribute``.
        module: what must be installed.
        program: a command that its checks need.
        processes: how many serve it; one where it keeps what it knows in memory.
        prepare: makes what it needs in its directory.
    """

    target: str
    module: str
    program: str = 'python3'
    processes: int = 2
    prepare: Callable[[Path], None] = lambda data: None

    @property
    def missing(self) -> list[str]:
        """What its checks need and is not installed."""
        module = [] if find_spec(self.module) else [self.module]
        return module if which(self.program) else [*module, self.program]


def _make_shop(data: Path) -> None:
    """Make the database of the Django project, and a user for its admin."""
    env = {
        **os.environ,
        'SITE_DATA': str(data),
        'DJANGO_SETTINGS_MODULE': 'shop.settings',
        'PYTHONPATH': os.pathsep.join([str(APPS), os.environ.get('PYTHONPATH', '')]),
        'DJANGO_SUPERUSER_USERNAME': 'ada',
        'DJANGO_SUPERUSER_PASSWORD': 'correct horse',
        'DJANGO_SUPERUSER_EMAIL': 'ada@example.org',
    }
    for command in (['migrate', '--run-syncdb'], ['createsuperuser', '--noinput']):
        whole = [sys.executable, '-m', 'django', *command, '--verbosity', '0']
        subprocess.run(whole, env=env, check=True, timeout=60)


APPLICATIONS = {
    'probes': Application('probes:app', 'crew_wsgi'),
    'django': Application('shop.wsgi:application', 'django', prepare=_make_shop),
    'git': Application('git_server:app', 'dulwich', program='git'),
    'httpbin': Application('httpbin:app', 'httpbin'),
    'dav': Application('dav:app', 'wsgidav', processes=1),
    'events': Application('events:app', 'crew_wsgi'),
}


class Sites:
    """Serves applications as they are asked for: ``with Crew(url, directory) as sites: sites['git']``.

    Args:
        directory: where everything is that a test or an application writes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sites: dict[str, Site] = {}
        self._failed: dict[str, BaseException] = {}

    def __getitem__(self, name: str) -> Site:
        if name in self._failed:
            raise RuntimeError(f'{name} could not be started') from self._failed[name]
        if name not in self._sites:
            data = self.directory / name
            data.mkdir(parents=True)
            try:
                APPLICATIONS[name].prepare(data)
                self._sites[name] = Site(self.start(name, APPLICATIONS[name], data), data)
            except BaseException as error:
                # Each of its checks would wait in vain for as long again.
                self._failed[name] = error
                raise
        return self._sites[name]

    def start(self, name: str, application: Application, data: Path) -> int:
        """Serve an application; return the port."""
        raise NotImplementedError

    def close(self) -> None:
        """End all that was started."""
        raise NotImplementedError

    def __enter__(self) -> 'Sites':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Crew(Sites):
    """A front and a worker for each application.

    Args:
        amqp_url: the broker.
        directory: see :class:`Sites`.
    """

    def __init__(self, amqp_url: str, directory: Path) -> None:
        super().__init__(directory)
        self._amqp_url = amqp_url
        self._stacks: list[Stack] = []

    def start(self, name: str, application: Application, data: Path) -> int:
        logs = self.directory / f'{name}-logs'
        logs.mkdir()
        stack = Stack(self._amqp_url, f'conformance-{name}', logs)
        self._stacks.append(stack)
        processes = application.processes
        worker = stack.worker(application.target, '--processes', str(processes), env={'SITE_DATA': str(data)})
        front = stack.front().await_ready()
        worker.await_ready(processes)
        return front.port

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()


class Gunicorn(Sites):
    """gunicorn with its usual workers, one for each process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._processes: list[Process] = []

    def start(self, name: str, application: Application, data: Path) -> int:
        processes = application.processes
        arguments = ['--bind', '127.0.0.1:0', '--workers', str(processes), '--no-control-socket']
        process = Process(
            'gunicorn',
            [*arguments, '--chdir', str(APPS), application.target],
            self.directory / f'{name}.log',
            {'SITE_DATA': str(data)},
        )
        self._processes.append(process)
        port = int(process.await_log(r'Listening at: http://127\.0\.0\.1:(\d+)')[1])
        process.await_log(r'(?s)' + r'Booting worker.*' * processes)
        return port

    def close(self) -> None:
        for process in self._processes:
            process.kill()
