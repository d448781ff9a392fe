"""A cluster: its nodes come and go, and what is in a quorum queue outlives them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from crew import codec, topology
from crew.exceptions import CrewError, NodeError, WorkerLost
from crew.master.engine import Engine
from crew.messages import Accept, Call, Chunk, Credit, Reply
from crew.private_cluster import PrivateCluster
from crew.private_node import PrivateNode
from crew.transports.addresses import dial
from crew.transports.base import Delivery
from tests.faults import cluster as scenarios
from tests.faults.proxy import Proxy
from tests.faults.scenarios import all_scenarios
from tests.faults.stage import play
from tests.stack import Stack
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
        wait_until(lambda: len([*tmp_path.glob('*/crew?/node.log')]) == 3, 60, 'the last of the nodes')
        (directory,) = tmp_path.iterdir()
        owner.send_signal(number)
    assert_nothing_left(directory)


def test_the_node_of_the_leader_the_front_and_the_workers_is_killed_under_load(cluster: PrivateCluster) -> None:
    scenarios.use(cluster)
    (scenario,) = [one for one in all_scenarios() if one.name == 'cluster: kill -9 of the node of all']
    row = play(scenario, '1', lambda: cluster.nodes[0])
    assert not row.complaints, '\n'.join((*row.complaints[:20], *row.notes))
    assert row.answered > 20


# What a cluster needs, with a single node and a way to it that is cut


@pytest.fixture
def proxy(broker: PrivateNode) -> Iterator[Proxy]:
    """A way to the broker that a test may cut."""
    proxy = Proxy(broker.url, Random(1))
    yield proxy
    proxy.close()


def test_a_lost_connection_costs_a_front_only_what_may_not_run_twice(
    stack: Stack, broker: PrivateNode, proxy: Proxy, tmp_path: Path
) -> None:
    stack.amqp_url = proxy.url
    front = stack.front('--amqp-url', broker.url).await_ready()
    stack.amqp_url = broker.url
    stack.worker('faults:app', '--threads', '4').await_ready()
    end = tmp_path / 'end'
    get, post = front.later('GET', f'/wait?file={end}'), front.later('POST', f'/wait?file={end}')
    wait_until(lambda: len(stack.runs) == 2, what='two runs')
    proxy.reset()
    assert post.result(5).status == 502
    # New ones wait for the next connection.
    assert front.get('/').status == 200
    wait_until(lambda: len([run for run in stack.runs if '/wait' in run]) == 3, what='the second run')
    end.touch()
    assert get.result(5).status == 200


def test_requests_wait_for_the_next_connection_only_for_a_moment(stack: Stack, proxy: Proxy, tmp_path: Path) -> None:
    stack.amqp_url = proxy.url
    front = stack.front('--amqp-url', proxy.url).await_ready()
    worker = stack.worker('faults:app').await_ready()
    get = front.later('GET', f'/wait?file={tmp_path / "end"}')
    wait_until(lambda: len(stack.runs) == 1, what='the run')
    proxy.refuse()
    front.await_log('trying again')
    new = front.later('GET', '/')
    # It may have run; the other cannot have.
    assert get.result(6).status == 502
    assert new.result(6).status == 503
    assert front.get('/').status == 503
    proxy.admit()
    (tmp_path / 'end').touch()
    wait_until(lambda: front.get('/').status == 200, 15, f'a 200:\n{front.text}{worker.text}')


def test_the_answer_of_a_worker_that_has_lost_its_connection_comes_by_its_next(
    stack: Stack, broker: PrivateNode, proxy: Proxy, tmp_path: Path
) -> None:
    front = stack.front().await_ready()
    stack.amqp_url = proxy.url
    worker = stack.worker('faults:app').await_ready()
    end = tmp_path / 'end'
    post = front.later('POST', f'/wait?file={end}')
    wait_until(lambda: len(stack.runs) == 1, what='the run')
    proxy.refuse()
    worker.await_log('1 running calls cannot be answered')
    end.touch()
    proxy.admit()
    assert post.result(15).status == 200
    assert len(stack.runs) == 1


def test_a_request_that_a_quorum_queue_has_had_back_too_often_is_published_again(
    own_stack: Stack, fresh_broker: PrivateNode
) -> None:
    fresh_broker.ctl('set_policy', 'limit', '.*', '{"delivery-limit": 1}', '--apply-to', 'queues')
    front = own_stack.front('--queue-type', 'quorum').await_ready()
    front.later('POST', '/')

    async def put_back() -> None:
        connection = await dial(fresh_broker.url)
        channel = await connection.open_channel(prefetch=1)
        deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.consume(topology.task_queue_name(own_stack.queue), deliveries.put_nowait)
        # The third is the first delivery of what the front has published again.
        for redelivered in (False, True, False):
            delivery = await deliveries.get()
            assert delivery.redelivered == redelivered
            channel.nack(delivery.tag)
        await connection.close()

    asyncio.run(asyncio.wait_for(put_back(), 20))


def test_a_request_that_a_quorum_queue_does_not_take_is_published_until_it_does(
    own_stack: Stack, fresh_broker: PrivateNode
) -> None:
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    fresh_broker.ctl('set_policy', 'full', '.*', policy, '--apply-to', 'queues')
    front = own_stack.front('--queue-type', 'quorum').await_ready()
    requests = []
    while 'did not take call' not in front.text:
        # How many get in before the queue is full, it decides itself.
        requests.append(front.later('POST', '/'))
        time.sleep(0.2)
        assert len(requests) < 20
    own_stack.worker('faults:app', '--queue-type', 'quorum').await_ready()
    assert {request.result(15).status for request in requests} == {200}
    assert len(own_stack.runs) == len(requests)


# The caller's patience, without a network


@pytest.mark.parametrize('answered', [True, False])
def test_a_call_that_another_worker_asks_about_is_lost_unless_the_first_one_answers_soon(answered: bool) -> None:
    async def run() -> Reply | Chunk | Credit | CrewError:
        url, name = f'memory://{uuid4().hex}', topology.task_queue_name('task')
        engine = Engine(asyncio.get_running_loop(), [url], [topology.task_queue('task')])
        engine.start()
        await engine.wait_ready()
        worker = await dial(url)
        channel = await worker.open_channel()
        asked: asyncio.Queue[Delivery] = asyncio.Queue()
        inbox = topology.inbox()
        await channel.declare(inbox)
        await channel.consume(inbox.name, asked.put_nowait, no_ack=True)
        settled: asyncio.Queue[Reply | Chunk | Credit | CrewError] = asyncio.Queue()
        call = Call(correlation_id='1', expiration=30.0, timeout=30.0)
        engine.caller.send(call, name, settled.put_nowait)
        question = Accept(correlation_id='1', inbox=inbox.name, ask=True, redelivered=True, timeout=30.0)
        channel.publish(codec.encode(question), engine.caller.reply_to)
        if answered:
            channel.publish(codec.encode(Reply(correlation_id='1', body=b'late')), engine.caller.reply_to)
        outcome = await settled.get()
        # Either way, the other one hears that it must not run it.
        assert (await asked.get()).envelope.type == 'stop'
        await engine.close()
        await worker.close()
        return outcome

    outcome = asyncio.run(asyncio.wait_for(run(), 10))
    assert isinstance(outcome, Reply if answered else WorkerLost)
