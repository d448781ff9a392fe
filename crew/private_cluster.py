"""A private RabbitMQ cluster: several private nodes on this machine, for trying out what happens when one of them dies.

``python -m crew.private_cluster`` runs one until Ctrl-C.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from crew.exceptions import NodeError
from crew.household import Household
from crew.private_node import PrivateNode, end_by_signal

__all__ = ['PrivateCluster']


class PrivateCluster:
    """Several nodes that are one broker: ``with PrivateCluster() as cluster: connect(cluster.urls)``.

    Each of :attr:`nodes` can be killed, frozen, terminated and started again, and keeps its port and its data. Nothing
    of it is left when the cluster is stopped, or its owner dies.

    Args:
        size: how many nodes; three is the smallest number that outlives the loss of one.
        heartbeat: what the nodes propose to clients, in seconds; by default their own 60.
        config: more lines for each ``rabbitmq.conf``.

    Attributes:
        nodes: its nodes.
    """

    def __init__(self, size: int = 3, *, heartbeat: int | None = None, config: Sequence[str] = ()) -> None:
        self._household = Household()
        self._formed = False
        self.nodes = [
            PrivateNode(
                name=f'crew{number}',
                household=self._household,
                heartbeat=heartbeat,
                config=[*config, *(_joining(number) if number > 1 else ())],
            )
            for number in range(1, size + 1)
        ]

    @property
    def urls(self) -> list[str]:
        """The addresses of all nodes for AMQP clients."""
        return [node.url for node in self.nodes]

    def start(self, *, timeout: float = 120.0) -> None:
        """Start the nodes that do not run, and wait until they are a cluster and answer AMQP.

        Raises:
            NodeError: RabbitMQ is not installed, or a node did not come up; then nothing is left.
        """
        deadline = time.monotonic() + timeout
        try:
            # Before the threads, so that only one of them would not have to wait for what it fails to make.
            self._household.begin(deadline)
            if not self._formed:
                # Of two that join at once, one may be sent away: so each but the first two waits for those before it.
                for joined in range(2, len(self.nodes)):
                    self._start_nodes(self.nodes[:joined], timeout)
            self._start_nodes(self.nodes, timeout)
            self._formed = True
            # A node that was cut off from the others needs some seconds to come back to them.
            while len(running := self._running()) < len(self.nodes):
                if time.monotonic() > deadline:
                    raise NodeError(f'the private nodes are no cluster: crew1 knows {", ".join(running) or "nobody"}')
        except BaseException:
            self.stop()
            raise

    def _start_nodes(self, nodes: Sequence[PrivateNode], timeout: float) -> None:
        with ThreadPoolExecutor(len(nodes)) as pool:
            starting = [pool.submit(node.start, timeout=timeout) for node in nodes]
            try:
                for each in starting:
                    each.result()
            except BaseException:
                # The pool waits for all of its threads, and these for their nodes.
                for node in self.nodes:
                    node.stop()
                raise

    def _running(self) -> list[str]:
        try:
            status = json.loads(self.nodes[0].ctl('cluster_status', '--formatter', 'json'))
        except NodeError:  # it has paused, for it sees none of the others
            return []
        return [str(name) for name in status['running_nodes']]

    def stop(self) -> None:
        """Kill all nodes and remove what they wrote; may be called at any time and again."""
        self._formed = False
        if self._household.is_ours:
            for node in self.nodes:
                node.stop()
            self._household.end()

    def leader_of(self, queue: str) -> PrivateNode:
        """Return the node that leads a quorum queue, or that has a classic one. Takes about a second.

        Args:
            queue: its name.

        Raises:
            NodeError: there is no such queue, or it has no leader now.
        """
        asked = next((node for node in self.nodes if node.alive()), self.nodes[0])
        for line in asked.ctl('list_queues', 'name', 'pid', '--no-table-headers').splitlines():
            name, _, pid = line.partition('\t')
            if name == queue:
                # <crew1@localhost.1764052800.512.0>, or {crew.tasks.wsgi,crew1@localhost}
                for node in self.nodes:
                    if node.erlang_name in pid:
                        return node
        raise NodeError(f'no node of the cluster leads a queue {queue!r} now')

    def __enter__(self) -> 'PrivateCluster':
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _joining(number: int) -> list[str]:
    # All join the first, which joins nobody: if each looked for all others, they would wait for each other's locks, in
    # pauses of many seconds. A joining node must be in its own list.
    return [
        'cluster_formation.peer_discovery_backend = classic_config',
        'cluster_formation.classic_config.nodes.1 = crew1@localhost',
        f'cluster_formation.classic_config.nodes.2 = crew{number}@localhost',
        'cluster_formation.discovery_retry_limit = 600',
        'cluster_formation.discovery_retry_interval = 100',
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a private cluster until SIGINT or SIGTERM; its URLs, as CREW_AMQP_URL wants them, are the only line."""
    parser = argparse.ArgumentParser(prog='python -m crew.private_cluster', description=main.__doc__)
    parser.add_argument('--nodes', type=int, default=3, metavar='N', help='how many (default: %(default)d)')
    options = parser.parse_args(arguments)
    end_by_signal()
    try:
        with PrivateCluster(options.nodes) as cluster:
            print(*cluster.urls, flush=True)
            while True:
                signal.pause()
    except NodeError as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
