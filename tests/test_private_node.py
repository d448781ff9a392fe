"""The private node: it comes up alone, comes back after a crash, and leaves nothing behind however its owner ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from crew import household, private_node
from crew.exceptions import NodeError
from crew.private_node import PrivateNode
from tests.waiting import wait_until


def processes_of(directory: Path) -> list[str]:
    """All that runs for the node in this directory: its name is in their arguments or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            traces = [*process.cmdline(), *process.environ().values()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(directory) in trace for trace in traces):
                found.append(process.name())
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def assert_nothing_left(directory: Path) -> None:
    wait_until(lambda: not processes_of(directory), what=f'the end of the processes of {directory}')
    wait_until(lambda: not directory.exists(), what=f'the removal of {directory}')


def test_two_nodes_run_side_by_side_and_leave_nothing(broker: PrivateNode) -> None:
    with PrivateNode(max_message_size=1000, heartbeat=7) as node:
        child = os.fork()
        if child == 0:
            node.stop()  # does nothing: the child is not the owner
            signal.pause()
        assert node.alive() and broker.alive()
        assert node.url == f'amqp://guest:guest@127.0.0.1:{node.port}/%2F' != broker.url
        settings = '[element(2, application:get_env(rabbit, X)) || X <- [max_message_size, heartbeat]].'
        assert node.ctl('eval', settings) == '[1000,7]\n'
        assert 'started TCP listener' in node.log_text()
        with pytest.raises(NodeError, match='not found'):
            node.ctl('no_such_command')
    assert_nothing_left(node.directory)  # although the child, which could hold the watcher's pipe open, still runs
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    node.stop()
    with pytest.raises(NodeError, match='start'):
        node.ctl('status')
    assert broker.alive()


def test_a_node_comes_back_on_its_port_with_its_data(fresh_broker: PrivateNode) -> None:
    port, first = fresh_broker.port, fresh_broker.pid
    fresh_broker.ctl('add_vhost', 'kept')
    with socket.create_connection(('127.0.0.1', port)):  # a client that is there when it happens
        fresh_broker.kill()
        assert not fresh_broker.alive()
        fresh_broker.start()
    assert fresh_broker.port == port and fresh_broker.pid != first
    fresh_broker.terminate()
    fresh_broker.start()
    assert fresh_broker.port == port and 'kept' in fresh_broker.ctl('list_vhosts')

    os.kill(fresh_broker.pid, signal.SIGKILL)  # not by us: it crashed
    wait_until(lambda: not fresh_broker.alive(), what='the crash')
    fresh_broker.stop()
    assert_nothing_left(fresh_broker.directory)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_owner_ends(broker: PrivateNode, tmp_path: Path, number: int) -> None:
    command = [sys.executable, '-m', 'crew.private_node']
    environ = os.environ | {'TMPDIR': str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith('amqp://guest:guest@127.0.0.1:')
        (directory,) = tmp_path.iterdir()
        assert 'epmd' in processes_of(directory)
        owner.send_signal(number)
        assert owner.wait(10) == (-number if number == signal.SIGKILL else 0)
    assert_nothing_left(directory)


def test_nothing_is_left_when_the_owner_is_killed_while_it_starts(broker: PrivateNode, tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'crew.private_node']
    environ = os.environ | {'TMPDIR': str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as owner:
        wait_until(lambda: any(tmp_path.glob('*/node.log')), what='the first of the node')
        (directory,) = tmp_path.iterdir()
        owner.kill()
    assert_nothing_left(directory)


def test_another_port_is_taken_when_a_port_is_lost_to_somebody_else(
    broker: PrivateNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pick_ports = household.pick_ports
    with socket.create_server(('127.0.0.1', 0)) as somebody:
        taken = somebody.getsockname()[1]
        for_epmd, for_node = iter([[taken]]), iter([[*pick_ports(1), taken]])
        monkeypatch.setattr(household, 'pick_ports', lambda count: next(for_epmd, None) or pick_ports(count))
        monkeypatch.setattr(private_node, 'pick_ports', lambda count: next(for_node, None) or pick_ports(count))
        with PrivateNode() as node:
            assert node.alive() and node.port != taken
        assert not [*for_epmd, *for_node]
        with pytest.raises(NodeError, match=f'port {taken} is taken'):
            PrivateNode(port=taken).start()


def test_a_missing_server_and_a_failed_start_say_what_to_do(
    broker: PrivateNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = PrivateNode(config=['no_such_setting = 1'], directory=tmp_path)
    with pytest.raises(NodeError, match='no_such_setting') as raised:
        node.start()
    assert 'BOOT FAILED' in raised.value.log and tmp_path.exists()
    wait_until(lambda: not processes_of(tmp_path), what='the end of the node that failed')
    monkeypatch.setenv('CREW_RABBITMQ_SERVER', '/nowhere/rabbitmq-server')
    with pytest.raises(NodeError, match='apt-get install rabbitmq-server'):
        PrivateNode().start()
