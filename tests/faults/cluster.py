"""A cluster of three nodes with a quorum queue, of which nodes die, freeze, come back, and are restarted."""

import asyncio
import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from crew import topology
from crew.exceptions import NodeError
from crew.private_cluster import PrivateCluster
from crew.private_node import PrivateNode
from crew.transports.addresses import dial
from tests.faults.scenarios import scenario
from tests.faults.stage import Stage

__all__ = ['CONFIG', 'use']

#: What RabbitMQ's own guide wants for three nodes; and how soon they give up one that says nothing: after a minute by
#: default, in which nobody can declare anything.
CONFIG = ('cluster_partition_handling = pause_minority', 'net_ticktime = 8')

_shared: list[PrivateCluster] = []


def use(cluster: PrivateCluster) -> None:
    """Let the scenarios play on this cluster, made with ``CONFIG``; else they make one, which ends with the process."""
    _shared[:] = [cluster]


class Ground:
    """A cluster for a stage: who leads the queue, and who is connected where.

    Args:
        stage: what plays on it.
        leader: the number of the node that shall lead the queue, from 0.
    """

    def __init__(self, stage: Stage, leader: int) -> None:
        if not _shared:
            _shared.append(PrivateCluster(config=CONFIG))
            atexit.register(_shared[0].stop)
        self.cluster = _shared[0]
        try:
            self.cluster.start(timeout=60)
        except NodeError:
            # A node that was frozen sometimes does not come back to the others.
            self.cluster.start()
        self.nodes = self.cluster.nodes
        self._stage = stage
        stage.broker = self.nodes[0]
        # A quorum queue is led by the node where it is declared first.
        asyncio.run(_declare(self.nodes[leader].url, stage.queue))

    @property
    def leader(self) -> PrivateNode:
        """The node that leads the queue now."""
        return self.cluster.leader_of(topology.task_queue_name(self._stage.queue))

    def front(self, at: int, *arguments: str) -> None:
        """Start a front that connects to this node first."""
        self._stage.front(*self._urls(at), *arguments)

    def worker(self, at: int, *arguments: str, processes: int = 3) -> None:
        """Start a worker that connects to this node first."""
        self._stage.worker(*self._urls(at), *arguments, processes=processes)

    def _urls(self, at: int) -> Sequence[str]:
        first, *others = [*self.cluster.urls[at:], *self.cluster.urls[:at]]
        self._stage.stack.amqp_url = first
        more = [argument for url in others for argument in ('--amqp-url', url)]
        return ['--queue-type', 'quorum', *more]


async def _declare(url: str, queue: str) -> None:
    connection = await dial(url)
    await connection.ensure(topology.DEAD_LETTERS, topology.task_queue(queue, 'quorum'))
    await connection.close()


@contextmanager
def _frozen(node: PrivateNode) -> Iterator[None]:
    node.freeze()
    try:
        yield
    finally:
        node.thaw()


def _kill(stage: Stage, node: PrivateNode) -> None:
    """Kill a node under load, and let it come back."""
    with stage.load(), stage.fault():
        node.kill()
        stage.sleep(4)
        node.start()


@scenario('cluster: kill -9 of the node that leads the queue', longest=8.0, recovers=0.0)
def kill_leader(stage: Stage) -> None:
    """Front and workers are connected to the other nodes, and notice nothing but a moment's silence."""
    ground = Ground(stage, leader=2)
    ground.front(at=0)
    ground.worker(at=1)
    stage.check(ground.leader is ground.nodes[2], 'the queue is led by another node')
    _kill(stage, ground.nodes[2])
    stage.check(ground.leader is not ground.nodes[2], 'the queue has no new leader')


@scenario('cluster: kill -9 of the node of the front', statuses={502})
def kill_front_node(stage: Stage) -> None:
    """What is in flight loses its reply queue: a GET or PUT is sent once more, a POST is 502. New requests wait."""
    ground = Ground(stage, leader=2)
    ground.front(at=1)
    ground.worker(at=0)
    _kill(stage, ground.nodes[1])


@scenario('cluster: kill -9 of the node of the workers', statuses={502})
def kill_worker_node(stage: Stage) -> None:
    """What they run is given to others, and their answers come on new connections: the first answer counts.

    When the node is back, RabbitMQ takes its dead consumers for living ones for a moment.
    """
    ground = Ground(stage, leader=2)
    ground.front(at=0)
    ground.worker(at=1)
    _kill(stage, ground.nodes[1])


@scenario('cluster: kill -9 of the node of all', statuses={502})
def kill_everything(stage: Stage) -> None:
    """The leader is there, the front, and all workers. A queue that does not take a call is asked again."""
    ground = Ground(stage, leader=1)
    ground.front(at=1)
    ground.worker(at=1)
    _kill(stage, ground.nodes[1])


@scenario('cluster: all nodes restarted, one after the other', statuses={502})
def restart_all(stage: Stage) -> None:
    """As for an upgrade. What is in flight when the front's node goes is as above; nothing else is noticed."""
    ground = Ground(stage, leader=0)
    ground.front(at=0)
    ground.worker(at=1)
    with stage.load(), stage.fault():
        for node in ground.nodes:
            node.terminate()
            node.start()
            stage.sleep(2)


@scenario('cluster: two of three die', statuses={502, 503, 504}, longest=35.0, recovers=8.0)
def lose_majority(stage: Stage) -> None:
    """The third one gives up by itself. Requests are 503, after three seconds at once, until two are there again."""
    ground = Ground(stage, leader=0)
    ground.front(at=0)
    ground.worker(at=1)
    with stage.load(), stage.fault():
        ground.nodes[1].kill()
        ground.nodes[2].kill()
        stage.sleep(8)
        ground.cluster.start()


@scenario('cluster: the node that leads the queue freezes', longest=12.0, recovers=0.0)
def freeze_leader(stage: Stage) -> None:
    """Another node leads as soon as the frozen one is missed."""
    ground = Ground(stage, leader=2)
    ground.front(at=0)
    ground.worker(at=1)
    with stage.load(), stage.fault(), _frozen(ground.nodes[2]):
        stage.sleep(15)


@scenario('cluster: the node of the front freezes', statuses={502, 503, 504}, longest=25.0)
def freeze_front_node(stage: Stage) -> None:
    """The front finds out in less than twenty seconds, and goes to the next node."""
    ground = Ground(stage, leader=2)
    ground.front(at=1)
    ground.worker(at=0)
    with stage.load(), stage.fault(), _frozen(ground.nodes[1]):
        stage.sleep(25)


@scenario('cluster: the node of the workers freezes', statuses={502, 503, 504}, longest=35.0)
def freeze_worker_node(stage: Stage) -> None:
    """So do workers. What they hold goes to others when the cluster has given up the node (``net_ticktime``)."""
    ground = Ground(stage, leader=2)
    ground.front(at=0)
    ground.worker(at=1)
    with stage.load(), stage.fault(), _frozen(ground.nodes[1]):
        stage.sleep(25)
