"""What private RabbitMQ nodes of one owner share: a directory, Erlang's cookie and epmd, and who ends them all.

epmd is the daemon through which Erlang nodes find each other's ports, so the nodes of a cluster need the same one. Who
cleans up: :meth:`Household.end`, and when its process dies without calling it, a watcher. The watcher is a shell that
reads a pipe whose write end only the owner holds, so it learns of any death, SIGKILL included, by end of file.
"""

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from crew.exceptions import NodeError
from crew.installation import find_epmd, search_path

__all__ = ['PORTS', 'Household', 'PortTaken', 'is_free', 'pick_ports']

# Below the ports that Linux (from 32768) and the others (from 49152) give to outgoing connections. A client that keeps
# trying to reach a stopped broker on such a port will one day get that very port as its own, connect to itself, and so
# keep the broker from coming back.
PORTS = range(20_000, 32_000)

# Runs a command whose process id the watcher knows before the command exists: until the id is written, this process
# itself holds the pipe open, so an owner that is killed at that very moment leaves nothing behind either.
# RabbitMQ's sockets need more descriptors than the usual 1024 (macOS: 256), but Erlang reserves memory for each one
# it could have and closes them one by one in its child, which takes minutes where containers allow a thousand million.
REPORT_AND_EXEC = """
echo $$ >&0
ulimit -S -n 65536 2>/dev/null || ulimit -S -n "$(ulimit -H -n)"
exec "$@" </dev/null
"""

# The groups rather than the processes: the number of a group is free for reuse only when nothing of it is left. The
# directory in several rounds: a process that was just killed may finish writing one more file into it.
WATCH = """
while read -r word number; do
    if [ "$word" = forget ]; then
        left=
        for group in $groups; do [ "$group" = "$number" ] || left="$left $group"; done
        groups=$left
    else
        groups="$groups $word"
    fi
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
[ -n "$1" ] || exit 0
for round in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" 2>/dev/null && exit 0; sleep 0.2; done
"""

# https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html#epmd-protocol: length, and n for NAMES_REQ. The answer
# begins with epmd's own port.
EPMD_NAMES_REQUEST = b'\x00\x01n'


class PortTaken(NodeError):
    """Raised when something else listens on a port that was to be ours."""


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        # As Erlang does it: what is left of closed connections on this port is no hindrance, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError:
            return False
    return True


def pick_ports(count: int) -> list[int]:
    """Return so many ports on which nobody listens now."""
    # SystemRandom: test tools seed the common generator, and two test runs would then always pick the same ports.
    shuffled = random.SystemRandom().sample(PORTS, len(PORTS))
    free = (port for port in shuffled if is_free(port))
    return [port for port, _ in zip(free, range(count), strict=False)]


def _is_epmd(port: int) -> bool:
    """Return whether who listens there answers as epmd does when it is asked for names."""
    try:
        with socket.create_connection(('127.0.0.1', port), timeout=1) as connection:
            connection.sendall(EPMD_NAMES_REQUEST)
            return connection.recv(4) == port.to_bytes(4, 'big')
    except OSError:
        return False


# A forked child must neither hold its parent's pipe open nor use it.
_lifelines: set[int] = set()


def _drop_lifelines() -> None:
    for descriptor in _lifelines:
        os.close(descriptor)
    _lifelines.clear()


os.register_at_fork(after_in_child=_drop_lifelines)


class Household:
    """Processes that end with their owner, and what they share. Nothing is made before :meth:`begin`.

    Args:
        directory: where all of it lives; it is kept. By default a new temporary one that :meth:`end` removes.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.temporary = directory is None
        if directory is None:
            # Only a name here: begin() makes it, when the watcher that will remove it is there.
            directory = Path(tempfile.gettempdir(), f'crew-node-{secrets.token_hex(6)}')
        self.directory = directory.absolute()
        self._owner = os.getpid()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_port = 0
        self._watcher: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        # Nodes of a cluster are started at once, by several threads.
        self._lock = Lock()

    @property
    def is_ours(self) -> bool:
        """Whether this process is the owner; a forked child is not."""
        return os.getpid() == self._owner

    def begin(self, deadline: float) -> None:
        """Make the directory, and start the watcher and epmd; does nothing where they are.

        Args:
            deadline: until when epmd must listen, on ``time.monotonic``.

        Raises:
            NodeError: Erlang is not installed, or epmd does not listen in time.
        """
        with self._lock:
            self._watch()
            self._prepare_directory()
            if self._epmd is None or self._epmd.poll() is not None:
                self._start_epmd(deadline)

    def environ(self) -> dict[str, str]:
        """Return what Erlang's programs need to know."""
        # Not the owner's environment: its RABBITMQ_*, ERL_* and NOTIFY_SOCKET may speak of another node.
        kept = {name: value for name, value in os.environ.items() if name in ('TMPDIR', 'LD_LIBRARY_PATH')}
        return kept | {
            'PATH': search_path(),
            'LC_ALL': 'en_US.UTF-8' if sys.platform == 'darwin' else 'C.UTF-8',
            'HOME': str(self.directory),
            'ERL_EPMD_PORT': str(self._epmd_port),
            'ERL_EPMD_ADDRESS': '127.0.0.1',
            'ERL_INETRC': str(self.directory / 'inetrc'),
            'ERL_CRASH_DUMP_SECONDS': '0',
        }

    def _prepare_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # localhost needs no DNS and no /etc/hosts, and Erlang no inet_gethost processes to ask them.
        (self.directory / 'inetrc').write_text('{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n')
        cookie = self.directory / '.erlang.cookie'
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20), encoding='ascii')
            cookie.chmod(0o400)

    def _start_epmd(self, deadline: float) -> None:
        # As our own child: otherwise Erlang starts one as a daemon, which nobody ends.
        epmd, log = find_epmd(), self.directory / 'epmd.log'
        for attempts_left in (2, 1, 0):
            # Of one that died, nodes know the port.
            if not (self._epmd_port and is_free(self._epmd_port)):
                (self._epmd_port,) = pick_ports(1)
            process = self.spawn([str(epmd), '-address', '127.0.0.1', '-port', str(self._epmd_port)], {}, log)
            # It does not say why it ends; as it has just been started, nothing but its port can be the reason.
            while process.poll() is None and time.monotonic() < deadline:
                if _is_epmd(self._epmd_port):
                    self._epmd = process
                    return
                time.sleep(0.01)
            self.end_process(process)
            if not attempts_left or time.monotonic() > deadline:
                raise NodeError(f'epmd does not listen on its port {self._epmd_port}: is it taken by another process?')

    # Processes

    def spawn(self, command: list[str], environ: Mapping[str, str], log: Path) -> 'subprocess.Popen[bytes]':
        """Start a program in a session of its own, so that Ctrl-C on the terminal does not reach it.

        Args:
            command: what to run.
            environ: its environment beside :meth:`environ`.
            log: where what it writes is added.
        """
        with log.open('ab') as output:
            return subprocess.Popen(
                ['/bin/sh', '-c', REPORT_AND_EXEC, 'sh', *command],
                stdin=self._lifeline,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**self.environ(), **environ},
                start_new_session=True,
            )

    def end_process(self, process: 'subprocess.Popen[bytes]') -> None:
        """Kill a program and all that it has started, and see it end."""
        # The group, because the script that becomes the server runs commands first. (PermissionError is what macOS says
        # of a group that has only an unreaped process left.)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._lifeline is not None:
            # The number is free for other processes now. (A broken pipe: somebody killed the watcher.)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, f'forget {process.pid}\n'.encode())

    def end(self) -> None:
        """End epmd, remove the directory unless it was given, and let the watcher go. The nodes have ended before."""
        with self._lock:
            # Last of the processes: an epmd that goes away while a node runs would be started again, as a daemon.
            if self._epmd is not None:
                self.end_process(self._epmd)
                self._epmd = None
            if self.temporary:
                shutil.rmtree(self.directory, ignore_errors=True)
            self._dismiss_watcher()

    # The watcher

    def _watch(self) -> None:
        if self._watcher is not None:
            return
        read_end, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        try:
            self._watcher = subprocess.Popen(
                ['/bin/sh', '-c', WATCH, 'crew-node-watcher', str(self.directory) if self.temporary else ''],
                stdin=read_end,
                # Not the owner's: whoever reads its output would wait for the watcher's end as well.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd='/',
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def _dismiss_watcher(self) -> None:
        if self._lifeline is not None:
            _lifelines.discard(self._lifeline)
            os.close(self._lifeline)
            self._lifeline = None
        if self._watcher is not None:
            self._watcher.wait()
            self._watcher = None
