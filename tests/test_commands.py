"""The two commands as a person meets them: what is wrong is said in one line, and they end when told to."""

import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pika
import pytest

from crew.private_node import PrivateNode
from crew_wsgi import front, worker
from tests.stack import APPS, Process, Stack
from tests.waiting import wait_until
from tests.wire import Wire

FRONT = ['crew_wsgi.front', '--port', '0']
WORKER = ['crew_wsgi.worker', 'basic:hello', '--app-dir', str(APPS)]


def run(module: str, *arguments: str) -> tuple[int, str]:
    """Run a command to its end; return its exit code and the one line that it said beside information."""
    done = subprocess.run([sys.executable, '-m', module, *arguments], capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if not re.match(r'[-\d]+ [\d:,]+ INFO ', line)]
    assert len(lines) == 1 and not done.stdout, f'{done.stdout}{done.stderr}'
    return done.returncode, lines[0]


# What is wrong with the application: found before the broker is asked


@pytest.mark.parametrize(
    ('app', 'said'),
    [
        ('nowhere:app', "there is no module 'nowhere'; looked in .*apps (--app-dir) and on sys.path"),
        ('nowhere.deeper:app', "there is no module 'nowhere.deeper'"),
        ('basic:nothing', "module 'basic' has no attribute 'nothing'"),
        ('basic', 'write MODULE:ATTRIBUTE, for example myapp:app'),
        ('basic:hello(', 'write MODULE:ATTRIBUTE or MODULE:FACTORY()'),
        ('basic:hello(environ)', 'only literals may be given to a factory'),
        ('wrong:number', 'number is a int, not callable'),
        ('wrong:number()', 'number in module wrong is not callable'),
        ('wrong:failing_factory()', 'RuntimeError: this factory is broken (.*wrong.py:'),
        ('broken:app', 'RuntimeError: this module is broken (.*broken.py:3)'),
        ('exiting:app', 'SystemExit: 0 (.*exiting.py:5)'),
        ('interrupted:app', 'KeyboardInterrupt'),
    ],
)
def test_a_worker_says_what_is_wrong_with_its_application(app: str, said: str) -> None:
    code, line = run('crew_wsgi.worker', app, '--app-dir', str(APPS))
    assert code == 2
    assert re.search('.*'.join(map(re.escape, said.split('.*'))), line), line


def test_a_worker_says_where_a_module_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / 'garbled.py').write_text('app = 1\ndef app(environ, start_response)\n')
    code, line = run('crew_wsgi.worker', 'garbled:app', '--app-dir', str(tmp_path))
    assert code == 2 and 'SyntaxError: ' in line and line.endswith(f'({tmp_path}/garbled.py:2)')


def test_a_worker_says_that_its_directory_does_not_exist(tmp_path: Path) -> None:
    code, line = run('crew_wsgi.worker', 'basic:hello', '--app-dir', str(tmp_path / 'nowhere'))
    assert code == 2 and line.endswith(f'--app-dir {tmp_path}/nowhere: there is no such directory')


# What is wrong with the options


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--amqp-url', 'http://127.0.0.1'], 'should look like amqp://user:password@host:5672/%2F'),
        (['--amqp-url', 'amqp://u:secret@127.0.0.1:port/'], "bad AMQP URL 'amqp://u@127.0.0.1:port/'"),
        (['--amqp-url', ''], 'bad AMQP URL'),
        (['--queue', ''], 'a queue id must have 1 to 244 bytes'),
        (['--queue', 'q' * 245], 'a queue id must have 1 to 244 bytes'),
        (['--queue-type', 'stream'], "invalid choice: 'stream'"),
        (['--timeout', '0'], "'0' is not between 0 and 30 days"),
        (['--timeout', 'nan'], "'nan' is not between 0 and 30 days"),
        (['--timeout', 'soon'], "'soon' is not a number of seconds"),
        (['--graceful-timeout', '-1'], "'-1' is not between 0 and 30 days"),
        (['--log-format', 'xml'], "invalid choice: 'xml'"),
        (['--no-such-option'], 'unrecognized arguments: --no-such-option'),
    ],
)
@pytest.mark.parametrize('command', [front, worker], ids=['front', 'worker'])
def test_both_commands_say_which_option_is_wrong(
    capsys: pytest.CaptureFixture[str], command: object, arguments: list[str], said: str
) -> None:
    app = ['basic:hello'] if command is worker else []
    assert_option_error(capsys, [*app, *arguments], said, command.main)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], 'the following arguments are required: MODULE:APP'),
        (['basic:hello', '--threads', '0'], "'0' is not a positive whole number"),
        (['basic:hello', '--processes', 'two'], "'two' is not a positive whole number"),
        (['basic:hello', '--threads', '2', '--gevent', '2'], 'not allowed with argument'),
        (['basic:hello', '--threads', '4', '--prefetch', '3'], '--prefetch 3 would leave some of 4 threads'),
        (['basic:hello', '--kill-after', '1e9'], "'1e9' is not between 0 and 30 days"),
    ],
)
def test_the_worker_says_which_option_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert_option_error(capsys, arguments, said, worker.main)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--port', '65536'], "'65536' is not a port number"),
        (['--port', '-1'], "'-1' is not a port number"),
        (['--port', '\u0663'], "'\u0663' is not a port number"),
        (['--max-inflight', '0'], "'0' is not a positive whole number"),
        (['--max-body', '0'], "'0' is not a positive whole number"),
        (['--body-timeout', 'inf'], "'inf' is not between 0 and 30 days"),
    ],
)
def test_the_front_says_which_option_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert_option_error(capsys, arguments, said, front.main)


def assert_option_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, main: Callable[[list[str]], int]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2 and not captured.out
    assert said in captured.err and captured.err.count('\n') == 1 and captured.err.endswith(' --help)\n')
    assert 'secret' not in captured.err


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = run('crew_wsgi.front', '--port', port)
    said = 'Address already in use; choose another --host or --port'
    assert (code, line) == (2, f'crew-wsgi-front: cannot listen on 127.0.0.1:{port}: {said}')


@pytest.mark.parametrize('name', ['crew-wsgi-front', 'crew-wsgi-worker'])
def test_the_installed_commands_tell_how_they_are_used(name: str) -> None:
    command = str(Path(sys.executable).with_name(name))
    usage = subprocess.run([command, '--help'], capture_output=True, text=True, timeout=60, check=True)
    assert usage.stdout.startswith(f'usage: {name} ') and '--amqp-url URL' in usage.stdout and not usage.stderr
    version = subprocess.run([command, '--version'], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r'crew \d+\.\d+\S*\n', version.stdout)


# What the broker refuses


@pytest.mark.parametrize('command', [FRONT, WORKER], ids=['front', 'worker'])
def test_refused_credentials_are_said(broker: PrivateNode, command: list[str]) -> None:
    code, line = run(*command, '--amqp-url', broker.url.replace('guest:guest', 'guest:secret'))
    assert code == 2 and 'refused the user name or password' in line and 'secret' not in line


@pytest.mark.parametrize('command', [FRONT, WORKER], ids=['front', 'worker'])
def test_an_unknown_virtual_host_is_said(broker: PrivateNode, command: list[str]) -> None:
    code, line = run(*command, '--amqp-url', broker.url.replace('%2F', 'nowhere'))
    assert code == 2 and '/nowhere has no such virtual host' in line


@pytest.mark.parametrize('command', [FRONT, WORKER], ids=['front', 'worker'])
def test_a_queue_with_other_arguments_is_said(broker: PrivateNode, queue: str, command: list[str]) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        arguments = {'x-queue-type': 'classic', 'x-dead-letter-exchange': 'crew.DLX', 'x-max-priority': 3}
        connection.channel().queue_declare(f'crew.tasks.{queue}', durable=True, arguments=arguments)
    code, line = run(*command, '--amqp-url', broker.url, '--queue', queue)
    assert code == 2
    assert f"inequivalent arg 'x-max-priority' for queue 'crew.tasks.{queue}'" in line
    assert line.endswith('; delete it or use another name')


# A broker that is not there yet


def pauses(process: Process) -> list[float]:
    return [float(pause) for pause in re.findall(r'trying again in about ([\d.]+) s', process.text)]


def test_both_commands_wait_for_the_broker_and_serve_when_it_comes(tmp_path: Path, queue: str) -> None:
    port = free_port()
    node = PrivateNode(port=port)
    stack = Stack(node.url, queue, tmp_path)
    try:
        front, worker = stack.front().await_listening(), stack.worker('basic:hello')
        answer = front.get('/')
        assert (answer.status, answer.headers['Retry-After']) == (503, '5')
        assert answer.headers['Proxy-Status'].startswith('crew; error=destination_unavailable; ')
        for process in front, worker:
            wait_until(lambda process=process: len(pauses(process)) >= 3, 30, process.text)  # type: ignore[misc]
            assert pauses(process)[:3] == [0.5, 1, 2]
            assert f'cannot reach the broker at amqp://guest@127.0.0.1:{port}/%2F: ' in process.text
            assert 'Traceback' not in process.text
        node.start()
        front.await_log('connected to the broker', 60)
        worker.await_log('taking requests from', 60)
        assert front.get('/').status == 200
    finally:
        stack.close()
        node.stop()


def free_port() -> int:
    """Return a port from below those of private nodes and of outgoing connections."""
    for port in random.SystemRandom().sample(range(15_000, 20_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)) != 0:
                return port
    raise AssertionError('no port is free')


# What they are started with


def test_both_commands_serve_without_standard_error(amqp_url: str, queue: str) -> None:
    port = free_port()
    commands = [
        ['crew_wsgi.front', '--port', str(port)],
        ['crew_wsgi.worker', 'pep3333:errors', '--app-dir', str(APPS)],
    ]
    without = ['sh', '-c', 'exec "$@" 2>&-', 'sh', sys.executable, '-m']
    broker = ['--amqp-url', amqp_url, '--queue', queue]
    processes = [subprocess.Popen([*without, *command, *broker], stdin=subprocess.DEVNULL) for command in commands]
    try:
        wait_until(lambda: serves(port), 30, 'an answer')
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(15) for process in processes]
    assert codes == [0, 0]


def serves(port: int) -> bool:
    """Whether there is a front at a port, with a worker behind it."""
    with socket.socket() as probe:
        if probe.connect_ex(('127.0.0.1', port)) != 0:
            return False
    with Wire(port) as wire:
        wire.send(b'GET /?heard HTTP/1.1\r\nHost: crew.test\r\n\r\n')
        return wire.answer().status == 200


# Ends


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_idle_commands_end_when_told_to(stack: Stack, number: signal.Signals) -> None:
    front, worker = stack.front(), stack.worker('basic:hello', '--processes', '2')
    front.await_ready()
    worker.await_ready(2)
    children = worker.children()
    with Wire(front.port) as idle:
        for process in front, worker:
            process.signal(number)
        assert (front.wait(), worker.wait()) == (0, 0)
        assert idle.ended()
    assert not [child for child in children if Path(f'/proc/{child}').exists()]
    assert 'Traceback' not in front.text + worker.text


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_commands_that_wait_for_a_broker_end_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    stack = Stack(f'amqp://127.0.0.1:{free_port()}', 'nowhere', tmp_path)
    try:
        processes = [stack.front(), stack.worker('basic:hello')]
        for process in processes:
            process.await_log('trying again')
            process.signal(number)
        assert [process.wait() for process in processes] == [0, 0]
        assert 'Traceback' not in ''.join(process.text for process in processes)
    finally:
        stack.close()
