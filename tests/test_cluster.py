"""A cluster: its nodes come and go, and what is in a quorum queue outlives them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crew.exceptions import NodeError
from crew.private_cluster import PrivateCluster
from tests.test_private_node import assert_nothing_left
from tests.waiting import wait_until


def test_a_cluster_comes_up_and_its_nodes_come_and_go(cluster: PrivateCluster) -> None:
    assert len(set(cluster.urls)) == 3
    first, second, third = cluster.nodes
    second.ctl('add_vhost', 'shared')
    third.kill()
    assert 'shared' in first.ctl('list_vhosts')
    third.start()
    assert 'shared' in third.ctl('list_vhosts')
    with pytest.raises(NodeError, match='leads a queue'):
        cluster.leader_of('nowhere')


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_cluster_when_its_owner_ends_while_it_starts(
    cluster: PrivateCluster, tmp_path: Path, number: int
) -> None:
    command = [sys.executable, '-m', 'crew.private_cluster']
    environ = os.environ | {'TMPDIR': str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as owner:
        wait_until(lambda: len([*tmp_path.glob('*/crew?/node.log')]) == 3, what='the first of the nodes')
        (directory,) = tmp_path.iterdir()
        owner.send_signal(number)
    assert_nothing_left(directory)
