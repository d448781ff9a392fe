"""One front for several applications, behind proxies, on TLS, unix sockets and IPv6: real processes from end to end."""

import http.client
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pytest
from trustme import CA

from crew.private_node import PrivateNode
from tests.stack import Answer, Front, Stack
from tests.waiting import wait_until


class Applications:
    """A broker with applications on queues of their own, and fronts before them."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._directory = directory
        self._stacks: list[Stack] = []

    def stack(self, queue: str) -> Stack:
        directory = self._directory / f'{queue}-{len(self._stacks)}'
        directory.mkdir()
        stack = Stack(self.url, queue, directory)
        self._stacks.append(stack)
        return stack

    def worker(self, queue: str) -> None:
        """Start a worker of the application that says which one it is."""
        self.stack(queue).worker('witness:app', '--threads', '2', env={'APP': queue}).await_ready()

    def front(self, *arguments: str) -> Front:
        return self.stack('one').front(*arguments)

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()


@pytest.fixture(scope='module')
def applications(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applications]:
    applications = Applications(broker.url, tmp_path_factory.mktemp('routing'))
    try:
        applications.worker('one')
        applications.worker('two')
        yield applications
    finally:
        applications.close()


def seen(front: Front, target: str, **headers: str) -> dict[str, Any]:
    """Return what the application that answers was given."""
    answer = front.get(target, {name.replace('_', '-'): value for name, value in headers.items()})
    assert answer.status == 200, answer.body
    result: dict[str, Any] = json.loads(answer.body)
    return result


def picked(environ: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(environ[name] for name in names)


WHERE = ('app', 'SCRIPT_NAME', 'PATH_INFO')


# Routes


@pytest.fixture(scope='module')
def routing_front(applications: Applications, tmp_path_factory: pytest.TempPathFactory) -> Front:
    table = tmp_path_factory.mktemp('table') / 'routes.toml'
    table.write_text('[[route]]\nmatch = "two.example"\nqueue = "two"\n\n[[route]]\nmatch = "/two"\nqueue = "two"\n')
    return applications.front('--route', '/one=one', '--routes', str(table)).await_ready()


@pytest.mark.parametrize(
    ('target', 'host', 'expected'),
    [
        ('/one', 'a.example', ('one', '/one', '')),
        ('/one/', 'a.example', ('one', '/one', '/')),
        ('/one/a%20b?c=/two', 'a.example', ('one', '/one', '/a b')),
        ('/two/one', 'a.example', ('two', '/two', '/one')),
        ('/%6Fne/x', 'a.example', ('one', '/one', '/x')),
        ('/one/../two', 'a.example', ('one', '/one', '/../two')),
        ('/one', 'two.example', ('two', '', '/one')),
        ('/', 'TWO.example.:8080', ('two', '', '/')),
        ('http://two.example/x', 'a.example', ('two', '', '/x')),
    ],
)
def test_each_request_reaches_its_application(
    routing_front: Front, target: str, host: str, expected: tuple[str, str, str]
) -> None:
    environ = seen(routing_front, target, Host=host)
    assert picked(environ, *WHERE) == expected
    assert environ['REQUEST_URI'] == target


@pytest.mark.parametrize('target', ['/', '/onex', '/x/one', '/three', '/One'])
def test_what_no_application_is_for_is_said_by_the_front(routing_front: Front, target: str) -> None:
    answer = routing_front.get(target)
    assert answer.status == 404
    assert answer.headers['Proxy-Status'].startswith('crew; error=destination_not_found; details="')
    assert answer.headers['X-Request-ID']
    assert routing_front.get('/one').status == 200


def test_without_routes_all_is_for_one(applications: Applications) -> None:
    front = applications.front().await_ready()
    assert picked(seen(front, '/two/x', Host='two.example'), *WHERE) == ('one', '', '/two/x')


def test_each_route_has_its_own_limits(applications: Applications) -> None:
    routes = ['--route', '/quick=one;timeout=1', '--route', '/slow=one', '--route', '/nobody=none;queue-timeout=0.5']
    front = applications.front(*routes).await_ready()
    late = front.get('/quick?sleep=20')
    assert late.status == 504 and late.headers['Proxy-Status'].startswith('crew; error=http_response_timeout')
    assert front.get('/slow?sleep=1.5').status == 200
    unheard = front.get('/nobody')
    assert unheard.status == 503 and unheard.headers['Retry-After']
    assert unheard.headers['Proxy-Status'].startswith('crew; error=destination_unavailable')


def test_the_higher_lane_is_served_first(applications: Applications, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'fifo')
    stack = applications.stack('lanes')
    front = stack.front('--route', '/low=lanes', '--route', '/high=lanes;priority=200').await_ready()
    stack.worker('witness:app').await_ready()
    blocking = front.later('GET', f'/low/first?fifo={tmp_path}/fifo')
    wait_until(lambda: len(stack.runs) == 1, 15, 'the first request to run')
    answers = [front.later('GET', f'/low/{number}') for number in range(5)]
    # How many wait is for the broker to say; the lower ones have all arrived when the higher ones come.
    wait_until(lambda: waiting(applications, 'lanes') == 5, 15, 'the lower ones to wait')
    answers += [front.later('GET', f'/high/{number}') for number in range(5)]
    wait_until(lambda: waiting(applications, 'lanes') == 10, 15, 'all of them to wait')
    (tmp_path / 'fifo').write_bytes(b'go on')
    assert {answer.result(60).status for answer in [blocking, *answers]} == {200}
    lanes = [run.split('/')[1] for run in stack.runs]
    assert lanes == ['low'] + ['high'] * 5 + ['low'] * 5


def waiting(applications: Applications, queue: str) -> int:
    """Return how many requests wait at the broker."""
    with closing(pika.BlockingConnection(pika.URLParameters(applications.url))) as connection:
        declared = connection.channel().queue_declare(f'crew.tasks.{queue}', passive=True)
        count: int = declared.method.message_count
        return count


# Proxies and the root path


FROM = ('REMOTE_ADDR', 'wsgi.url_scheme', 'HTTP_HOST', 'SCRIPT_NAME', 'PATH_INFO')


@pytest.fixture(scope='module')
def proxied_front(applications: Applications) -> Front:
    routes = ['--route', '=one', '--route', '/two=two', '--route', 'two.example=two']
    return applications.front(
        *routes, '--root-path', '/root/', '--trusted-proxies', '127.0.0.1,10.0.0.0/8'
    ).await_ready()


@pytest.mark.parametrize(
    ('target', 'headers', 'expected'),
    [
        ('/x', {}, ('127.0.0.1', 'http', 'in', '/root', '/x')),
        ('/root/x', {}, ('127.0.0.1', 'http', 'in', '/root', '/x')),
        ('/root', {}, ('127.0.0.1', 'http', 'in', '/root', '')),
        ('/rootx', {}, ('127.0.0.1', 'http', 'in', '/root', '/rootx')),
        ('/%72oot/x%2541', {}, ('127.0.0.1', 'http', 'in', '/root', '/x%41')),
        ('/%72oot/tw%6f/x', {}, ('127.0.0.1', 'http', 'in', '/root/two', '/x')),
        ('/two/x', {}, ('127.0.0.1', 'http', 'in', '/root/two', '/x')),
        ('/root/two/x', {}, ('127.0.0.1', 'http', 'in', '/root/two', '/x')),
        (
            '/two/x',
            {
                'X-Forwarded-For': '6.6.6.6, 192.0.2.7, 10.0.0.3',
                'X-Forwarded-Proto': 'https',
                'X-Forwarded-Host': 'out',
            },
            ('192.0.2.7', 'https', 'out', '/root/two', '/x'),
        ),
        ('/x', {'X-Forwarded-Prefix': '/outer/'}, ('127.0.0.1', 'http', 'in', '/outer/root', '/x')),
        (
            '/x',
            {'Forwarded': 'for=6.6.6.6, for="[2001:db8::7]:1";proto=https;host="out:8443", for=10.0.0.3'},
            ('2001:db8::7', 'https', 'out:8443', '/root', '/x'),
        ),
        ('/x', {'Forwarded': 'for=6.6.6.6, for=unknown;proto=https'}, ('127.0.0.1', 'https', 'in', '/root', '/x')),
        (
            '/x',
            {'Forwarded': 'for=6.6.6.6', 'X-Forwarded-For': '192.0.2.7'},
            ('192.0.2.7', 'http', 'in', '/root', '/x'),
        ),
        ('/x', {'X-Forwarded-Host': 'evil"'}, ('127.0.0.1', 'http', 'in', '/root', '/x')),
        ('http://named:81/x', {}, ('127.0.0.1', 'http', 'named:81', '/root', '/x')),
        ('http://evil/x', {'X-Forwarded-Host': 'out'}, ('127.0.0.1', 'http', 'out', '/root', '/x')),
        ('http://evil/x', {'Forwarded': 'for=192.0.2.7;host=out'}, ('192.0.2.7', 'http', 'out', '/root', '/x')),
    ],
)
def test_the_application_knows_where_it_is(
    proxied_front: Front, target: str, headers: dict[str, str], expected: tuple[str, ...]
) -> None:
    answer = proxied_front.get(target, {'Host': 'in', **headers})
    assert picked(json.loads(answer.body), *FROM) == expected


@pytest.mark.parametrize('root_path', ['/my büro/日本/', '/my%20b%c3%bcro/日本'])
def test_a_root_path_is_compared_as_the_application_sees_it(applications: Applications, root_path: str) -> None:
    front = applications.front('--root-path', root_path).await_ready()
    root = quote('/my büro/日本')
    decoded = '/my büro/日本'.encode().decode('latin-1')
    for target in (f'{root}/x', root.lower().replace('my', '%6Dy') + '/x', '/x'):
        assert picked(seen(front, target), 'SCRIPT_NAME', 'PATH_INFO') == (decoded, '/x')


def test_the_host_that_a_proxy_says_decides_which_application(proxied_front: Front) -> None:
    assert seen(proxied_front, '/', Host='in')['app'] == 'one'
    assert seen(proxied_front, '/', Host='in', X_Forwarded_Host='two.example')['app'] == 'two'


@pytest.mark.parametrize(
    'head', [b'GET / HTTP/1.0\r\nX-Forwarded-Host: out.example\r\n\r\n', b'GET http://out.example HTTP/1.0\r\n\r\n']
)
def test_the_host_that_proxy_or_target_says_is_there_without_a_host_too(proxied_front: Front, head: bytes) -> None:
    with socket.create_connection(('127.0.0.1', proxied_front.port), 30) as client:
        client.sendall(head)
        answer = b''.join(iter(lambda: client.recv(65536), b''))
    assert json.loads(answer.partition(b'\r\n\r\n')[2])['HTTP_HOST'] == 'out.example'


CLAIMS = {'X-Forwarded-For': '6.6.6.6', 'X-Forwarded-Proto': 'https', 'X-Forwarded-Host': 'evil', 'Forwarded': 'for=_x'}


@pytest.mark.parametrize(
    ('arguments', 'passed'),
    [
        (['--trusted-proxies', '10.0.0.0/8'], []),
        (['--forwarded', 'drop'], []),
        ([], ['FORWARDED', 'X_FORWARDED_FOR', 'X_FORWARDED_HOST', 'X_FORWARDED_PROTO']),
        (
            ['--trusted-proxies', '10.0.0.0/8', '--forwarded', 'pass'],
            ['FORWARDED', 'X_FORWARDED_FOR', 'X_FORWARDED_HOST', 'X_FORWARDED_PROTO'],
        ),
    ],
)
def test_a_stranger_is_not_believed(applications: Applications, arguments: list[str], passed: list[str]) -> None:
    front = applications.front(*arguments).await_ready()
    environ = json.loads(front.get('/x', {'Host': 'in', **CLAIMS}).body)
    assert picked(environ, *FROM) == ('127.0.0.1', 'http', 'in', '', '/x')
    assert sorted(name.removeprefix('HTTP_') for name in environ if 'FORWARDED' in name) == passed


# Where it listens


class UnixConnection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__('localhost', timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def environ_of(connection: http.client.HTTPConnection, **headers: str) -> dict[str, Any]:
    with closing(connection):
        connection.request('GET', '/x', headers={name.replace('_', '-'): value for name, value in headers.items()})
        result: dict[str, Any] = json.loads(Answer(connection.getresponse()).body)
        return result


def test_a_front_listens_on_several_sockets(applications: Applications, tmp_path: Path) -> None:
    path = tmp_path / 'front.sock'
    binds = ['--bind', f'unix:{path}', '--bind', '[::1]:0', '--bind', '127.0.0.1:0']
    front = applications.front(*binds, '--trusted-proxies', '10.0.0.1').await_ready()
    six = int(front.await_log(r'listening on http://\[::1\]:(\d+)/')[1])
    found = environ_of(UnixConnection(path))
    assert picked(found, 'REMOTE_ADDR', 'SERVER_NAME', 'wsgi.url_scheme') == ('', 'localhost', 'http')
    # Whoever comes by the socket is a proxy; whoever comes by TCP from elsewhere is not.
    assert environ_of(UnixConnection(path), X_Forwarded_For='192.0.2.7')['REMOTE_ADDR'] == '192.0.2.7'
    found = environ_of(http.client.HTTPConnection('::1', six, timeout=30), X_Forwarded_For='192.0.2.7')
    assert picked(found, 'REMOTE_ADDR', 'SERVER_NAME', 'SERVER_PORT') == ('::1', '::1', str(six))
    assert seen(front, '/x')['REMOTE_ADDR'] == '127.0.0.1'
    front.await_log('unix "GET /x HTTP/1.1" 200')
    assert front.terminate() == 0 and not path.exists()


class TlsFront:
    """A front with a certificate, and who trusts it."""

    def __init__(self, applications: Applications, directory: Path) -> None:
        self.ca = directory / 'ca.pem'
        ca = CA()
        ca.cert_pem.write_to_path(str(self.ca))
        leaf = ca.issue_cert('localhost', '127.0.0.1')
        leaf.cert_chain_pems[0].write_to_path(str(directory / 'cert.pem'))
        leaf.private_key_pem.write_to_path(str(directory / 'key.pem'))
        files = ['--certfile', str(directory / 'cert.pem'), '--keyfile', str(directory / 'key.pem')]
        self.front = applications.front(*files)
        self.port = int(self.front.await_log(r'listening on https://127\.0\.0\.1:(\d+)/')[1])
        self.front.await_log('connected to the broker')

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


@pytest.fixture(scope='module')
def tls(applications: Applications, tmp_path_factory: pytest.TempPathFactory) -> TlsFront:
    return TlsFront(applications, tmp_path_factory.mktemp('tls'))


def test_https_is_served(tls: TlsFront) -> None:
    connection = http.client.HTTPSConnection('localhost', tls.port, timeout=30, context=tls.context)
    assert environ_of(connection)['wsgi.url_scheme'] == 'https'


def test_curl_is_content_with_it(tls: TlsFront) -> None:
    body = 'b' * 300_000
    command = ['curl', '-sS', '--fail', '--cacert', str(tls.ca), '--data-binary', '@-', '--max-time', '30']
    url = f'https://localhost:{tls.port}/x'
    said = subprocess.run([*command, url, url], input=body, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(said.stdout)
    assert (first['body'], first['wsgi.url_scheme']) == (body, 'https')
    assert decoder.raw_decode(said.stdout[end:])[0]['PATH_INFO'] == '/x'


def test_a_malformed_request_is_answered_under_tls_too(tls: TlsFront) -> None:
    with (
        socket.create_connection(('127.0.0.1', tls.port), 30) as plain,
        tls.context.wrap_socket(plain, server_hostname='localhost') as client,
    ):
        client.sendall(b'GET / HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n')
        assert client.recv(65536).startswith(b'HTTP/1.1 400 ')


@pytest.mark.parametrize('sent', [b'GET / HTTP/1.1\r\nHost: a\r\n\r\n', b'', b'\x16\x03\x01'])
def test_who_does_not_speak_tls_disturbs_nobody(tls: TlsFront, sent: bytes) -> None:
    with socket.create_connection(('127.0.0.1', tls.port), 30) as client:
        client.sendall(sent)
        with suppress(OSError):  # it may have been cut off already
            client.shutdown(socket.SHUT_WR)
            while client.recv(1000):
                pass
    connection = http.client.HTTPSConnection('localhost', tls.port, timeout=30, context=tls.context)
    assert environ_of(connection)['app'] == 'one'


def test_an_old_tls_is_not_spoken(tls: TlsFront) -> None:
    old = tls.context
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection(('127.0.0.1', tls.port), 30) as plain, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(plain, server_hostname='localhost')
