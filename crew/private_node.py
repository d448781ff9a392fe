"""A private RabbitMQ node: the installed ``rabbitmq-server``, run in a directory of its own on loopback ports.

It serves development (``crew-wsgi-dev``), tests and benchmarks, and stands beside the way of the data, not on it. It
shares nothing with a system-wide RabbitMQ or with other private nodes, unless they are a cluster (``private_cluster``).
Who ends it, also when its owner dies: ``household``. ``python -m crew.private_node`` runs one until Ctrl-C.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType

from crew.exceptions import NodeError
from crew.household import Household, PortTaken, is_free, pick_ports
from crew.installation import required_server

__all__ = ['PrivateNode', 'end_by_signal']

# RabbitMQ forbids the schedulers to busy-wait, for the sake of virtual machines that are billed by the cycle. Booting
# hands thousands of file operations to and fro between schedulers, and each then costs a futex sleep and wake-up: with
# the shortest wait a node is up in 2.6 s instead of 5.7 s, with less CPU in all, and an idle node still uses none.
FAST_BOOT_FLAGS = '+sbwt very_short +sbwtdio very_short'

LOOPBACK_ONLY = '-kernel inet_dist_use_interface {127,0,0,1}'

AMQP_HEADER = b'AMQP\x00\x00\x09\x01'
METHOD_FRAME_ON_CHANNEL_0 = b'\x01\x00\x00'
CONNECTION_START = b'\x00\x0a\x00\x0a'


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
        name: before the ``@`` of its Erlang name; no two nodes of a household may have the same.
        household: shared with the other nodes of a cluster (``private_cluster``), each of which has a directory of its
            own in there; ``directory`` does not count then, and :meth:`stop` leaves the household to who made it.

    Attributes:
        directory: where data and log live.
        erlang_name: as other nodes and ``rabbitmqctl`` know it.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        directory: Path | None = None,
        max_message_size: int = 16_777_216,
        heartbeat: int | None = None,
        config: Sequence[str] = (),
        name: str = 'crew',
        household: Household | None = None,
    ) -> None:
        self._household = household or Household(directory)
        self._owns_household = household is None
        self.directory = household.directory / name if household is not None else self._household.directory
        self.erlang_name = f'{name}@localhost'
        self._fixed_port = port is not None
        self._port = port
        self._config = [f'max_message_size = {max_message_size}']
        if heartbeat is not None:
            self._config.append(f'heartbeat = {heartbeat}')
        self._config.extend(config)
        self._server: subprocess.Popen[bytes] | None = None

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
        command = [str(required_server().with_name('rabbitmqctl')), '--quiet', '--node', self.erlang_name, *arguments]
        environ = self._household.environ() | self._environ()
        try:
            done = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
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
        self._end_server()
        server = required_server()
        deadline = time.monotonic() + timeout
        try:
            self._household.begin(deadline)
            self._prepare_directory()
            self._boot_on_free_ports(server, deadline, timeout)
        except BaseException:
            self.stop()
            raise

    def _boot_on_free_ports(self, server: Path, deadline: float, timeout: float) -> None:
        # Between our look at a port and the node's use of it, another process may take it.
        for attempts_left in (2, 1, 0):
            amqp_port, dist_port = pick_ports(2)
            if self._fixed_port:
                amqp_port = self.port
            self._port = amqp_port
            try:
                self._boot(server, dist_port, deadline, timeout)
            except PortTaken:
                self._end_server()
                if not attempts_left or (self._fixed_port and not is_free(amqp_port)):
                    raise
            else:
                self._fixed_port = True
                return

    def _boot(self, server: Path, dist_port: int, deadline: float, timeout: float) -> None:
        if not is_free(self.port):
            raise PortTaken(f'port {self.port} is taken by another process: stop that, or choose another port')
        log_before = len(self.log_text())
        environ = self._environ() | {'RABBITMQ_DIST_PORT': str(dist_port)}
        self._server = self._household.spawn([str(server)], environ, self.log_path)
        while not _answers_amqp(self.port):
            self._check_boot(self._server, log_before, deadline, timeout)

    def _check_boot(self, server: 'subprocess.Popen[bytes]', log_before: int, deadline: float, timeout: float) -> None:
        """Raise when the node has ended or its time is over, else wait a moment."""
        log = self.log_text()[log_before:]
        if server.poll() is not None:
            if 'in use' in log or 'eaddrinuse' in log:
                raise PortTaken('the private node could not start: another process took one of its ports', log=log)
            raise NodeError(f'the private node could not start, it wrote: {_last_words(log)}', log=log)
        if time.monotonic() > deadline:
            raise NodeError(f'the private node did not answer within {timeout:g} s: {_last_words(log)}', log=log)
        time.sleep(0.01)

    def _prepare_directory(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._write('rabbitmq.conf', '\n'.join([*self._config, '']))
        # Enabled plugins come from this file, and no setting of the installed system-wide node from that one.
        self._write('enabled_plugins', '[].\n')
        self._write('rabbitmq-env.conf', '')

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding='utf-8')

    def _environ(self) -> dict[str, str]:
        return {
            'RABBITMQ_NODENAME': self.erlang_name,
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
            # The script then becomes the Erlang machine (exec) instead of waiting beside it, as in the Docker image:
            # one process, whose id we know and whose end we see.
            'RUNNING_UNDER_SYSTEMD': 'true',
        }

    # Ending.

    def terminate(self, *, timeout: float = 10.0) -> None:
        """Shut the node down in good order: clients are told, the data stays, and :meth:`start` brings it back.

        Takes about a second, RabbitMQ's own pace; after ``timeout`` it is killed.
        """
        if self._server is not None and self._household.is_ours:
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout)
            self._end_server()

    def kill(self) -> None:
        """Kill the node with SIGKILL, as a crash would; the data stays, and :meth:`start` brings it back."""
        if self._household.is_ours:
            self._end_server()

    def freeze(self) -> None:
        """Stop the node with SIGSTOP: its connections stay open, and nobody answers, until :meth:`thaw`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a node that was stopped by :meth:`freeze` go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the node and remove its directory, unless that was given; may be called at any time and again.

        A node whose directory stays is shut down in good order; otherwise it is killed, which saves the second that
        RabbitMQ takes to put away what is then thrown away.
        """
        if not self._household.is_ours:
            return
        if not self._household.temporary:
            self.terminate()
        self._end_server()
        if self._owns_household:
            self._household.end()

    def wait(self) -> None:
        """Wait until the node ends by itself."""
        if self._server is not None:
            self._server.wait()

    def _end_server(self) -> None:
        if self._server is not None:
            self._household.end_process(self._server)
            self._server = None

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
    end_by_signal()
    try:
        with PrivateNode(port=options.port) as node:
            print(node.url, flush=True)
            node.wait()
            print(f'the private node ended by itself: {_last_words(node.log_text())}', file=sys.stderr)
    except NodeError as error:
        print(error, file=sys.stderr)
    return 1


def end_by_signal() -> None:
    """Let SIGINT and SIGTERM end this process, in good order: its nodes are ended first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the clean-up, which takes a moment only.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == '__main__':
    sys.exit(main())
