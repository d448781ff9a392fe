"""Where the front listens: each way to say it, what is in the way, and what is left at the end."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from crew_wsgi.front import main
from crew_wsgi.sockets import describe, inherited_sockets, open_sockets
from tests.stack import Stack
from tests.waiting import wait_until


@pytest.fixture
def at_end() -> Iterator[ExitStack]:
    with ExitStack() as at_end:
        yield at_end


def opened(bind: str, at_end: ExitStack) -> socket.socket:
    """Open the one socket that is meant; it is closed with the test."""
    (listening,) = open_sockets(bind, at_end)
    at_end.callback(listening.close)
    return listening


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def stale_socket(path: Path) -> None:
    """Leave what a process that died has left."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


# Addresses


@pytest.mark.parametrize(
    ('bind', 'family', 'host'),
    [
        ('127.0.0.1:0', socket.AF_INET, '127.0.0.1'),
        ('[::1]:0', socket.AF_INET6, '::1'),
    ],
)
def test_an_address_is_listened_on(bind: str, family: int, host: str, at_end: ExitStack) -> None:
    listening = opened(bind, at_end)
    assert (listening.family, listening.getsockname()[0]) == (family, host)
    port = listening.getsockname()[1]
    shown = f'[{host}]' if ':' in host else host
    assert describe(listening, tls=False) == f'http://{shown}:{port}/'
    assert describe(listening, tls=True) == f'https://{shown}:{port}/'
    socket.create_connection((host, port), 10).close()


@pytest.mark.parametrize(
    'bind',
    [
        '',
        '8000',
        'localhost',
        'localhost:',
        'localhost:http',
        'localhost:65536',
        'localhost:-1',
        'localhost:+1',
        'localhost:٨٠',
        '::1:8000',
        '[::1]',
        '[::1:8000',
        '::1]:8000',
        '[127.0.0.1]:8000',
        'unix:',
        'fd:',
        'fd:x',
        'fd:-1',
        'fd:٣',
        'fd:99999999999999999999',
    ],
)
def test_what_is_no_address_is_refused(bind: str, at_end: ExitStack) -> None:
    with pytest.raises(ValueError, match='should be HOST:PORT'):
        open_sockets(bind, at_end)


# Unix sockets


def test_a_unix_socket_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / 'front.sock'
    with ExitStack() as at_end:
        listening = opened(f'unix:{path}', at_end)
        assert connects(path) and stat.S_IMODE(path.stat().st_mode) == 0o666
        assert describe(listening, tls=False) == f'unix:{path}'
    assert not path.exists()


def test_one_that_nobody_listens_on_is_replaced(tmp_path: Path, at_end: ExitStack) -> None:
    path = tmp_path / 'front.sock'
    stale_socket(path)
    opened(f'unix:{path}', at_end)
    assert connects(path)


def test_one_that_is_in_use_is_left_alone(tmp_path: Path, at_end: ExitStack) -> None:
    path = tmp_path / 'front.sock'
    opened(f'unix:{path}', at_end)
    with ExitStack() as second, pytest.raises(OSError, match='in use'):
        open_sockets(f'unix:{path}', second)
    assert connects(path)


def test_one_that_has_no_room_for_more_clients_is_in_use(tmp_path: Path, at_end: ExitStack) -> None:
    path = tmp_path / 'busy.sock'
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(10):
            client = at_end.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(OSError, match='in use'):
            open_sockets(f'unix:{path}', at_end)


@pytest.mark.parametrize('kind', ['file', 'directory', 'link to nothing'])
def test_what_is_no_socket_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / 'front.sock'
    if kind == 'file':
        path.write_text('precious')
    elif kind == 'directory':
        path.mkdir()
    else:
        path.symlink_to(tmp_path / 'nothing')
    with ExitStack() as at_end, pytest.raises(OSError, match='in use'):
        open_sockets(f'unix:{path}', at_end)
    assert path.is_symlink() or path.exists()


def test_one_that_somebody_else_has_put_there_meanwhile_is_left_alone(tmp_path: Path, at_end: ExitStack) -> None:
    path = tmp_path / 'front.sock'
    with ExitStack() as ours:
        opened(f'unix:{path}', ours)
        path.rename(tmp_path / 'old.sock')
        opened(f'unix:{path}', at_end)
    assert connects(path)


@pytest.mark.parametrize('path', ['/nowhere/front.sock', f'/{"x" * 200}'])
def test_a_path_that_cannot_be_had_is_an_error_of_the_system(path: str, at_end: ExitStack) -> None:
    with pytest.raises(OSError):
        open_sockets(f'unix:{path}', at_end)


# Sockets of a parent


def test_a_socket_of_the_parent_is_used(at_end: ExitStack) -> None:
    with socket.create_server(('127.0.0.1', 0)) as parents:
        listening = opened(f'fd:{os.dup(parents.fileno())}', at_end)
        assert listening.getsockname() == parents.getsockname() and not listening.getblocking()


def test_what_does_not_listen_is_refused_and_left_open(at_end: ExitStack) -> None:
    connected, other = socket.socketpair()
    with connected, other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.socket() as idle:
        for each in connected, datagrams, idle:
            with pytest.raises(OSError, match='not a listening socket'):
                open_sockets(f'fd:{each.fileno()}', at_end)
            os.fstat(each.fileno())
    with Path(__file__).open() as file, pytest.raises(OSError, match='non-socket'):
        open_sockets(f'fd:{file.fileno()}', at_end)
    with pytest.raises(OSError, match='Bad file descriptor'):
        open_sockets('fd:987654', at_end)


@pytest.mark.parametrize(('pid', 'count'), [(None, '1'), ('1', '1'), ('', '1'), ('nonsense', '1'), ('ours', '0')])
def test_without_sockets_of_systemd_there_are_none(
    pid: str | None, count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('LISTEN_PID', raising=False)
    if pid is not None:
        monkeypatch.setenv('LISTEN_PID', str(os.getpid()) if pid == 'ours' else pid)
    monkeypatch.setenv('LISTEN_FDS', count)
    assert inherited_sockets() == []


@pytest.mark.parametrize('count', ['', 'x', '-1', '99999', '5'])
def test_sockets_of_systemd_that_are_none_are_said(count: str) -> None:
    # The shell's process becomes the front's.
    script = 'LISTEN_PID=$$ LISTEN_FDS=$1 exec "$2" -m crew_wsgi.front'
    ended = subprocess.run(
        ['sh', '-c', script, 'sh', count, sys.executable], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert 'cannot use the sockets of LISTEN_FDS' in ended.stderr and ended.stderr.count('\n') == 1


# The command


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--bind', 'nowhere'], '--bind:'),
        (['--bind', 'unix:/nowhere/front.sock'], 'cannot listen on unix:/nowhere/front.sock: No such file'),
        (['--bind', 'fd:987654'], 'cannot listen on fd:987654: Bad file descriptor'),
        (['--bind', '192.0.2.1:0'], 'cannot listen on 192.0.2.1:0'),
        (['--keyfile', 'key.pem'], '--keyfile needs --certfile'),
        (['--certfile', '/nowhere.pem'], '--certfile /nowhere.pem:'),
        (['--certfile', __file__], f'--certfile {__file__}:'),
        (['--route', '/a=b', '--route', '/a/=c'], 'two routes are for /a'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, '-m', 'crew_wsgi.front', *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--trusted-proxies', 'localhost'], 'does not appear to be an IPv4 or IPv6 network'),
        (['--root-path', 'app'], 'does not begin with a slash'),
        (['--root-path', '/\udcff'], "can't encode"),
        (['--route', '/a'], 'should look like HOST/PREFIX=QUEUE'),
        (['--routes', '/nowhere.toml'], 'No such file'),
        (['--routes', __file__], 'Expected'),
        (['--forwarded', 'believe'], 'invalid choice'),
    ],
)
def test_a_usage_error_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('[[route]\n', 'Expected'),
        ('[[routes]]\nmatch = "/"\nqueue = "a"\n', 'nothing else'),
        ('[[route]]\nmatch = "/"\nqueue = "a"\nspeed = 1\n', 'no such option of a route: speed'),
        ('', 'nothing else'),
    ],
)
def test_a_bad_file_of_routes_is_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'routes.toml').write_text(text)
    with pytest.raises(SystemExit):
        main(['--routes', str(tmp_path / 'routes.toml')])
    err = capsys.readouterr().err
    assert f'{tmp_path}/routes.toml: ' in err and said in err


#: What systemd does: the sockets become 3, 4, … and the environment names the process that they are for.
LAUNCHER = """
    import os, socket, sys

    sockets = [socket.create_server(('127.0.0.1', 0)), socket.create_server(('::1', 0), family=socket.AF_INET6)]
    print(*(each.getsockname()[1] for each in sockets), flush=True)
    copies = [os.dup2(each.fileno(), 100 + number) for number, each in enumerate(sockets)]
    for number, copy in enumerate(copies):
        os.dup2(copy, 3 + number)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
    os.execv(sys.executable, [sys.executable, '-m', 'crew_wsgi.front', *sys.argv[1:]])
"""


def test_sockets_of_systemd_are_served(stack: Stack) -> None:
    command = [sys.executable, '-c', textwrap.dedent(LAUNCHER), '--amqp-url', stack.amqp_url, '--queue', stack.queue]
    front = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert front.stdout is not None and front.stderr is not None
        ports = [int(port) for port in front.stdout.readline().split()]
        for host, port in zip(('127.0.0.1', '::1'), ports, strict=True):
            with socket.create_connection((host, port), 15) as client:
                # It has accepted us: nobody else would answer.
                client.sendall(b'GET / HTTP/1.1\r\n\r\n')
                assert client.recv(100).startswith(b'HTTP/1.1 400 ')
        front.terminate()
        log = front.stderr.read()
        assert front.wait(15) == 0
    finally:
        front.kill()
        front.wait(10)
        for pipe in front.stdout, front.stderr:
            assert pipe is not None
            pipe.close()
    # Its own port is not opened as well.
    assert [f':{port}/' in log for port in ports] == [True, True] and ':8888/' not in log


def test_the_file_is_gone_when_the_front_has_ended_and_replaced_when_it_was_killed(
    stack: Stack, tmp_path: Path
) -> None:
    path = tmp_path / 'front.sock'
    front = stack.front('--bind', f'unix:{path}')
    front.await_log(f'listening on unix:{path}')
    front.kill()
    assert path.exists() and not connects(path)
    front = stack.front('--bind', f'unix:{path}')
    front.await_log(f'listening on unix:{path}')
    wait_until(lambda: connects(path), 15, 'the new front to listen')
    second = stack.front('--bind', f'unix:{path}')
    assert second.wait() == 2 and 'cannot listen on unix:' in second.text and connects(path)
    assert front.terminate() == 0
    assert not path.exists()
