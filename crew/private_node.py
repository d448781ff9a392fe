"""A private RabbitMQ node: the installed ``rabbitmq-server``, run in a directory of its own on loopback ports.

It serves development (``crew-wsgi-dev``), tests and benchmarks, and stands beside the way of the data, not on it. It
shares nothing with a system-wide RabbitMQ or with other private nodes: it has its own data, log, Erlang cookie and epmd
(the daemon through which Erlang nodes find each other). ``python -m crew.private_node`` runs one until Ctrl-C.

Who cleans up: :meth:`PrivateNode.stop`, and when its process dies without calling it, a watcher. The watcher is a shell
that reads a pipe whose write end only the owner holds, so it learns of any death, SIGKILL included, by end of file.
"""

import argparse
import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType

from crew.exceptions import NodeError
from crew.installation import find_epmd, required_server, search_path

__all__ = ['PrivateNode']

NODE_NAME = 'crew@localhost'

# Below the ports that Linux (from 32768) and the others (from 49152) give to outgoing connections. A client that keeps
# trying to reach a stopped broker on such a port will one day get that very port as its own, connect to itself, and so
# keep the broker from coming back.
PORTS = range(20_000, 32_000)

# RabbitMQ forbids the schedulers to busy-wait, for the sake of virtual machines that are billed by the cycle. Booting
# hands thousands of file operations to and fro between schedulers, and each then costs a futex sleep and wake-up: with
# the shortest wait a node is up in 2.6 s instead of 5.7 s, with less CPU in all, and an idle node still uses none.
FAST_BOOT_FLAGS = '+sbwt very_short +sbwtdio very_short'

LOOPBACK_ONLY = '-kernel inet_dist_use_interface {127,0,0,1}'

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
while read -r word; do
    if [ "$word" = forget ]; then groups=; else groups="$groups $word"; fi
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
[ -n "$1" ] || exit 0
for round in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" 2>/dev/null && exit 0; sleep 0.2; done
"""

AMQP_HEADER = b'AMQP\x00\x00\x09\x01'
METHOD_FRAME_ON_CHANNEL_0 = b'\x01\x00\x00'
CONNECTION_START = b'\x00\x0a\x00\x0a'


class PortTaken(NodeError):
    """Raised when something else listens on a port that was to be the node's."""


# Ports.


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Erlang does it: what is left of closed connections on this port is no hindrance, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError:
            return False
    return True


def _pick_ports(count: int) -> list[int]:
    # SystemRandom: test tools seed the common generator, and two test runs would then always pick the same ports.
    shuffled = random.SystemRandom().sample(PORTS, len(PORTS))
    free = (port for port in shuffled if _is_free(port))
    return [port for port, _ in zip(free, range(count), strict=False)]


def _answers_amqp(port: int) -> bool:
    """Whether a broker on this port answers AMQP's protocol header with ``Connection.Start``."""
    try:
        with socket.create_connection(('127.0.0.1', port), timeout=2) as connection:
            connection.sendall(AMQP_HEADER)
            with connection.makefile('rb') as reader:
                frame = reader.read(11)  # type, channel, size, then the method's class and number
    except OSError:
        return False
    return frame.startswith(METHOD_FRAME_ON_CHANNEL_0) and frame.endswith(CONNECTION_START)


# A forked child must neither hold its parent's pipe open nor use it.
_lifelines: set[int] = set()


def _drop_lifelines() -> None:
    for descriptor in _lifelines:
        os.close(descriptor)
    _lifelines.clear()


os.register_at_fork(after_in_child=_drop_lifelines)


class PrivateNode:
    """A RabbitMQ node of one's own: ``with PrivateNode() as node: connect(node.url)``.

    The process that makes the node owns it; in a forked child, :meth:`stop` and :meth:`kill` do nothing. It runs as any
    user, in a session of its own, so that Ctrl-C on the terminal does not reach it. No plugins are enabled.

    Arguments:
        port: the AMQP port; by default a free one, chosen by :meth:`start` and kept from then on.
        directory: where data and log live; it is kept. By default a new temporary one that :meth:`stop` removes.
        max_message_size: in bytes; the default is that of RabbitMQ 4 also where an older server would allow more.
        heartbeat: what the broker proposes, in seconds; by default its own 60.
        config: more lines for ``rabbitmq.conf``.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        directory: Path | None = None,
        max_message_size: int = 16_777_216,
        heartbeat: int | None = None,
        config: Sequence[str] = (),
    ) -> None:
        self._temporary = directory is None
        if directory is None:
            # Only a name here: start() makes it, when the watcher that will remove it is there.
            directory = Path(tempfile.gettempdir(), f'crew-node-{secrets.token_hex(6)}')
        self.directory = directory.absolute()
        self._fixed_port = port is not None
        self._port = port
        self._epmd_port = 0
        self._config = [f'max_message_size = {max_message_size}']
        if heartbeat is not None:
            self._config.append(f'heartbeat = {heartbeat}')
        self._config.extend(config)
        self._owner = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    # What a client of the node wants to know.

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1; raises :class:`NodeError` before the first start when none was given."""
        if self._port is None:
            raise NodeError('the private node has no port yet: call start() first')
        return self._port

    @property
    def url(self) -> str:
        """The address for AMQP clients."""
        return f'amqp://guest:guest@127.0.0.1:{self.port}/%2F'

    @property
    def pid(self) -> int:
        """The process id of the Erlang machine; raises :class:`NodeError` when the node does not run."""
        if self._server is None:
            raise NodeError('the private node does not run: call start() first')
        return self._server.pid

    def alive(self) -> bool:
        """Whether the node's process runs."""
        return self._server is not None and self._server.poll() is None

    @property
    def log_path(self) -> Path:
        """The file with all that the node wrote, over all of its starts."""
        return self.directory / 'node.log'

    def log_text(self) -> str:
        """What the node wrote so far; empty when there is no log."""
        try:
            return self.log_path.read_text(encoding='utf-8', errors='replace')
        except FileNotFoundError:
            return ''

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl`` against this node, for example ``ctl('list_queues', 'name')``.

        Each run starts an Erlang machine, so it takes about a second.

        Returns:
            Its standard output.

        Raises:
            NodeError: the node does not run, or the command failed or ran out of time.
        """
        # rabbitmqctl would start an epmd where none runs, and leave it behind.
        if not self.alive():
            raise NodeError('the private node does not run: call start() first')
        command = [str(required_server().with_name('rabbitmqctl')), '--quiet', '--node', NODE_NAME, *arguments]
        try:
            done = subprocess.run(
                command, env=self._environ(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise NodeError(f'rabbitmqctl {" ".join(arguments)}: no end within {timeout:g} s') from error
        if done.returncode != 0:
            # Behind the reason often comes the whole list of its commands.
            reason = textwrap.shorten(done.stderr or done.stdout, 300)
            raise NodeError(f'rabbitmqctl {" ".join(arguments)}: {reason}')
        return done.stdout

    # Starting.

    def start(self, *, timeout: float = 60.0) -> None:
        """Start the node and wait until it answers AMQP; does nothing when it runs.

        After :meth:`kill` or :meth:`terminate` it comes back on the same port with the same data.

        Raises:
            NodeError: RabbitMQ is not installed, the port is taken, or the node did not come up; then nothing is left.
        """
        if self.alive():
            return
        # Of one that died by itself, its epmd is left.
        self._end_processes()
        server, epmd = required_server(), find_epmd()
        try:
            self._watch()
            self._prepare_directory()
            self._boot_on_free_ports(server, epmd, timeout)
        except BaseException:
            self.stop()
            raise

    def _boot_on_free_ports(self, server: Path, epmd: Path, timeout: float) -> None:
        # Between our look at a port and the node's use of it, another process may take it.
        for attempts_left in (2, 1, 0):
            amqp_port, dist_port, self._epmd_port = _pick_ports(3)
            if self._fixed_port:
                amqp_port = self.port
            self._port = amqp_port
            try:
                self._boot(server, epmd, dist_port, timeout)
            except PortTaken:
                self._end_processes()
                if not attempts_left or (self._fixed_port and not _is_free(amqp_port)):
                    raise
            else:
                self._fixed_port = True
                return

    def _boot(self, server: Path, epmd: Path, dist_port: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if not _is_free(self.port):
            raise PortTaken(f'port {self.port} is taken by another process: stop that, or choose another port')
        log_before = len(self.log_text())

        # An epmd that is there first, as our own child: otherwise Erlang starts one as a daemon, which nobody ends.
        address = ['-address', '127.0.0.1', '-port', str(self._epmd_port)]
        self._epmd = self._spawn([str(epmd), *address], {})
        while _is_free(self._epmd_port):
            self._check_boot(log_before, deadline, timeout)
        self._server = self._spawn([str(server)], {'RABBITMQ_DIST_PORT': str(dist_port)})
        while not _answers_amqp(self.port):
            self._check_boot(log_before, deadline, timeout)

    def _check_boot(self, log_before: int, deadline: float, timeout: float) -> None:
        """Raise when a process of the boot has ended or its time is over, else wait a moment."""
        log = self.log_text()[log_before:]
        epmd_ended = self._epmd is not None and self._epmd.poll() is not None
        server_ended = self._server is not None and self._server.poll() is not None
        # epmd does not say why it ends; when it has just been started, nothing but its port can be the reason.
        if epmd_ended or (server_ended and ('in use' in log or 'eaddrinuse' in log)):
            raise PortTaken('the private node could not start: another process took one of its ports', log=log)
        if server_ended:
            raise NodeError(f'the private node could not start, it wrote: {_last_words(log)}', log=log)
        if time.monotonic() > deadline:
            raise NodeError(f'the private node did not answer within {timeout:g} s: {_last_words(log)}', log=log)
        time.sleep(0.01)

    def _spawn(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log_path.open('ab') as log:
            return subprocess.Popen(
                ['/bin/sh', '-c', REPORT_AND_EXEC, 'sh', *command],
                stdin=self._lifeline,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self._environ() | environ,
                start_new_session=True,
            )

    def _prepare_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write('rabbitmq.conf', '\n'.join([*self._config, '']))
        # Enabled plugins come from this file, and no setting of the installed system-wide node from that one.
        self._write('enabled_plugins', '[].\n')
        self._write('rabbitmq-env.conf', '')
        # localhost needs no DNS and no /etc/hosts, and Erlang no inet_gethost processes to ask them.
        self._write('inetrc', '{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n')
        cookie = self.directory / '.erlang.cookie'
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20), encoding='ascii')
            cookie.chmod(0o400)

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding='utf-8')

    def _environ(self) -> dict[str, str]:
        # Not the owner's environment: its RABBITMQ_*, ERL_* and NOTIFY_SOCKET may speak of another node.
        kept = {name: value for name, value in os.environ.items() if name in ('TMPDIR', 'LD_LIBRARY_PATH')}
        return kept | {
            'PATH': search_path(),
            'LC_ALL': 'en_US.UTF-8' if sys.platform == 'darwin' else 'C.UTF-8',
            'HOME': str(self.directory),
            'RABBITMQ_NODENAME': NODE_NAME,
            'RABBITMQ_NODE_IP_ADDRESS': '127.0.0.1',
            'RABBITMQ_NODE_PORT': str(self.port),
            'RABBITMQ_MNESIA_BASE': str(self.directory / 'data'),
            'RABBITMQ_LOG_BASE': str(self.directory),
            'RABBITMQ_LOGS': '-',
            'RABBITMQ_CONFIG_FILE': str(self.directory / 'rabbitmq.conf'),
            'RABBITMQ_CONF_ENV_FILE': str(self.directory / 'rabbitmq-env.conf'),
            'RABBITMQ_ENABLED_PLUGINS_FILE': str(self.directory / 'enabled_plugins'),
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': f'{LOOPBACK_ONLY} {FAST_BOOT_FLAGS}',
            'RABBITMQ_CTL_ERL_ARGS': LOOPBACK_ONLY,
            'ERL_EPMD_PORT': str(self._epmd_port),
            'ERL_EPMD_ADDRESS': '127.0.0.1',
            'ERL_INETRC': str(self.directory / 'inetrc'),
            'ERL_CRASH_DUMP_SECONDS': '0',
            # The script then becomes the Erlang machine (exec) instead of waiting beside it, as in the Docker image:
            # one process, whose id we know and whose end we see.
            'RUNNING_UNDER_SYSTEMD': 'true',
        }

    # Ending.

    def terminate(self, *, timeout: float = 10.0) -> None:
        """Shut the node down in good order: clients are told, the data stays, and :meth:`start` brings it back.

        Takes about a second, RabbitMQ's own pace; after ``timeout`` it is killed.
        """
        if self._server is not None and self._is_owner():
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout)
            self._end_processes()

    def kill(self) -> None:
        """Kill the node with SIGKILL, as a crash would; the data stays, and :meth:`start` brings it back."""
        if self._is_owner():
            self._end_processes()

    def stop(self) -> None:
        """End the node and remove its directory, unless that was given; may be called at any time and again.

        A node whose directory stays is shut down in good order; otherwise it is killed, which saves the second that
        RabbitMQ takes to put away what is then thrown away.
        """
        if not self._is_owner():
            return
        if not self._temporary:
            self.terminate()
        self._end_processes()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._dismiss_watcher()

    def wait(self) -> None:
        """Wait until the node ends by itself."""
        if self._server is not None:
            self._server.wait()

    def _is_owner(self) -> bool:
        return os.getpid() == self._owner

    def _end_processes(self) -> None:
        # The server first: an epmd that goes away while it runs would be started again, as a daemon.
        for process in (self._server, self._epmd):
            if process is not None and process.poll() is None:
                # The group, because the script that becomes the server runs commands first. (PermissionError is what
                # macOS says of a group that has only an unreaped process left.)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._server = self._epmd = None
        if self._lifeline is not None:
            # The numbers are free for other processes now. (A broken pipe: somebody killed the watcher.)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, b'forget\n')

    # The watcher.

    def _watch(self) -> None:
        if self._watcher is not None:
            return
        read_end, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        try:
            self._watcher = subprocess.Popen(
                ['/bin/sh', '-c', WATCH, 'crew-node-watcher', str(self.directory) if self._temporary else ''],
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

    def __enter__(self) -> 'PrivateNode':
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _last_words(log: str) -> str:
    # RabbitMQ says what is wrong, then BOOT FAILED, then fifty lines about which of its processes that ended.
    said = log.partition('BOOT FAILED')[0]
    lines = [re.sub(r'^.*\[\w+\] <[\d.]+> *', '', line).strip() for line in said.splitlines()]
    return next((line for line in reversed(lines) if line), '(nothing)')


# The command.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a private node until SIGINT or SIGTERM; its URL is the only line on standard output."""
    parser = argparse.ArgumentParser(prog='python -m crew.private_node', description=main.__doc__)
    parser.add_argument('--port', type=int, help='the AMQP port (default: a free one)')
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        with PrivateNode(port=options.port) as node:
            print(node.url, flush=True)
            node.wait()
            print(f'the private node ended by itself: {_last_words(node.log_text())}', file=sys.stderr)
    except NodeError as error:
        print(error, file=sys.stderr)
    return 1


def _leave(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the clean-up, which takes a moment only.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == '__main__':
    sys.exit(main())
