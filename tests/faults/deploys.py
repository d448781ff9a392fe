"""New code under load: nothing is lost."""

import signal

from tests.faults.scenarios import scenario
from tests.faults.stage import Stage
from tests.waiting import wait_until


@scenario('deploy: three workers replaced one after the other', recovers=0.0, longest=3.0)
def replace(stage: Stage) -> None:
    """Each of three workers is ended by SIGTERM and another one started, of another version. Nobody notices."""
    version = Version(stage, '1')
    stage.front()
    for _ in range(3):
        stage.worker('--threads', '2', env=version.env)
    with stage.load():
        version.set('2')
        for old in stage.workers[:3]:
            with stage.fault():
                old.signal(signal.SIGTERM)
                stage.worker('--threads', '2', env=version.env)
                stage.check(old.wait(30) == 0, 'a worker has abandoned something')
        version.await_only('2')


@scenario('deploy: kill -HUP', recovers=0.0, longest=3.0)
def reload(stage: Stage) -> None:
    """The supervisor replaces its processes one by one by such that have loaded the new version. Nobody notices."""
    version = Version(stage, '1')
    stage.front()
    worker = stage.worker(processes=2, env=version.env)
    with stage.load(settle=0.3):
        version.set('2')
        with stage.fault():
            worker.signal(signal.SIGHUP)
            worker.await_log('reloaded', 30)
        version.await_only('2')


@scenario('deploy: kill -HUP, a version that does not start', recovers=0.0, longest=3.0)
def reload_broken(stage: Stage) -> None:
    """The new version raises as it is imported: the old one goes on, and the next SIGHUP brings one that starts."""
    version = Version(stage, '1')
    stage.front()
    worker = stage.worker('--threads', '2', processes=2, env=version.env)
    before = stage.processes()
    with stage.load():
        version.set('broken')
        with stage.fault():
            worker.signal(signal.SIGHUP)
            worker.await_log('the reload has stopped', 30)
        stage.sleep(1)
        version.await_only('1')
        stage.check(stage.processes() == before, 'a process of the old version was replaced')
        version.set('3')
        with stage.fault():
            worker.signal(signal.SIGHUP)
            worker.await_log('reloaded', 30)
        version.await_only('3')


@scenario('deploy: kill -HUP, --threads 4, --prefetch 10 and --gevent 10', recovers=0.0, longest=3.0)
def reload_kinds(stage: Stage) -> None:
    """The same with workers of all kinds, twice, and again while a reload is under way."""
    version = Version(stage, '1')
    stage.front()
    for kind in (('--threads', '4'), ('--prefetch', '10'), ('--gevent', '10')):
        stage.worker(*kind, env=version.env)
    with stage.load():
        for text in ('2', '3'):
            version.set(text)
            with stage.fault():
                for worker in stage.workers:
                    worker.signal(signal.SIGHUP)
                stage.sleep(0.3)
                for worker in stage.workers:
                    worker.signal(signal.SIGHUP)
                version.await_only(text, 60)


class Version:
    """The version of the code, in a file."""

    def __init__(self, stage: Stage, text: str) -> None:
        self._stage = stage
        self._file = stage.directory / 'version'
        self.env = {'VERSION_FILE': str(self._file)}
        self.set(text)

    def set(self, text: str) -> None:
        """Put another version there."""
        self._file.write_text(text)

    def await_only(self, text: str, timeout: float = 5.0) -> None:
        """Wait until the last runs were all of this version."""
        only = {text}
        wait_until(
            lambda: {line.split()[4] for line in self._stage.stack.runs[-30:]} == only, timeout, f'version {text}'
        )
