"""Where RabbitMQ's and Erlang's programs are on this machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from crew.exceptions import NodeError

__all__ = ['find_epmd', 'find_server', 'required_server', 'search_path']

INSTALL_HINT = (
    'rabbitmq-server is not installed: apt-get install rabbitmq-server | dnf install rabbitmq-server | '
    'brew install rabbitmq, or set CREW_RABBITMQ_SERVER to its path '
    '(or use another broker: docker run --rm -p 127.0.0.1:5672:5672 rabbitmq:4)'
)


def find_server() -> Path | None:
    """Find RabbitMQ's own ``rabbitmq-server`` script.

    ``$CREW_RABBITMQ_SERVER`` comes first, then where Debian, Red Hat and Homebrew put it, then ``PATH``. The wrapper
    that packages put into ``/usr/sbin`` is passed over, because it insists on the user ``rabbitmq``.

    Returns:
        The path, or None when RabbitMQ is not installed.
    """
    return next((path for path in _candidates() if _is_server(path)), None)


def _candidates() -> Iterator[Path]:
    chosen = os.environ.get('CREW_RABBITMQ_SERVER')
    if chosen:
        yield Path(chosen)
        return
    yield Path('/usr/lib/rabbitmq/bin/rabbitmq-server')
    yield from sorted(Path('/usr/lib/rabbitmq/lib').glob('*/sbin/rabbitmq-server'), reverse=True)
    yield Path('/opt/homebrew/sbin/rabbitmq-server')
    yield Path('/usr/local/sbin/rabbitmq-server')
    for directory in os.get_exec_path():
        yield Path(directory, 'rabbitmq-server')


def _is_server(path: Path) -> bool:
    # The real script reads rabbitmq-env beside it; the packages' wrapper is a link to a script of another name.
    real = path.resolve()
    return real.name == 'rabbitmq-server' and os.access(real, os.X_OK) and real.with_name('rabbitmq-env').exists()


def search_path() -> str:
    """Return a ``PATH`` that also has the places where Erlang's commands usually are."""
    # Cron jobs and IDEs often run without the places where Homebrew and others link Erlang's commands.
    return os.pathsep.join([*os.get_exec_path(), '/usr/local/bin', '/opt/homebrew/bin', '/usr/bin', '/bin'])


def find_epmd() -> Path:
    """Find Erlang's ``epmd``.

    Raises:
        NodeError: Erlang is not installed.
    """
    erl = shutil.which('erl', path=search_path())
    if erl is not None and (beside := Path(erl).resolve().with_name('epmd')).exists():
        return beside
    epmd = shutil.which('epmd', path=search_path())
    if epmd is None:
        raise NodeError('Erlang is not installed or not on PATH: rabbitmq-server needs its commands erl and epmd')
    return Path(epmd)


def required_server() -> Path:
    """Find RabbitMQ's own script, as :func:`find_server`.

    Raises:
        NodeError: RabbitMQ is not installed; the text says how to.
    """
    server = find_server()
    if server is None:
        raise NodeError(INSTALL_HINT)
    return server
