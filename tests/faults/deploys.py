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

    def await_only(self, text: str) -> None:
        """Wait until the last runs were all of this version."""
        wait_until(lambda: {line.split()[4] for line in self._stage.stack.runs[-30:]} == {text}, 5, f'version {text}')
