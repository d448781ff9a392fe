"""Fixtures of the whole suite: a RabbitMQ of our own, never one that happens to run on the machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from crew.installation import find_server
from crew.private_cluster import PrivateCluster
from crew.private_node import PrivateNode
from tests.stack import Stack


def _need_rabbitmq() -> None:
    if find_server() is None and not os.environ.get('CI'):
        pytest.skip('rabbitmq-server is not installed')


def _started_node() -> Iterator[PrivateNode]:
    _need_rabbitmq()
    with PrivateNode() as node:
        yield node


@pytest.fixture(scope='session')
def broker() -> Iterator[PrivateNode]:
    """A running node for the whole session; a test must not stop it (see ``fresh_broker``)."""
    yield from _started_node()


@pytest.fixture
def fresh_broker() -> Iterator[PrivateNode]:
    """A running node for this test alone, which it may stop and start again."""
    yield from _started_node()


@pytest.fixture(scope='session')
def _session_cluster() -> Iterator[PrivateCluster]:
    _need_rabbitmq()
    with PrivateCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(_session_cluster: PrivateCluster) -> PrivateCluster:
    """A cluster of three running nodes, which a test may stop; the next test finds them started again."""
    _session_cluster.start()
    return _session_cluster


@pytest.fixture
def amqp_url(broker: PrivateNode) -> str:
    """The address of the session's broker."""
    return broker.url


@pytest.fixture
def queue() -> str:
    """A queue id that no other test uses."""
    return f't-{uuid4().hex[:12]}'


@pytest.fixture
def stack(amqp_url: str, queue: str, tmp_path: Path) -> Iterator[Stack]:
    """Fronts and workers on a queue of this test's own."""
    stack = Stack(amqp_url, queue, tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def own_stack(fresh_broker: PrivateNode, queue: str, tmp_path: Path) -> Iterator[Stack]:
    """Fronts and workers on a broker of their own, which the test may break or search."""
    stack = Stack(fresh_broker.url, queue, tmp_path)
    yield stack
    stack.close()
