"""``amqps://`` against real nodes: who is trusted, who is not, and what the one who set it up wrongly reads."""

import asyncio
import contextlib
import datetime
import gc
import logging
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from trustme import CA, LeafCert

from crew import topology
from crew.envelope import Envelope
from crew.exceptions import BrokerRefused, ConnectionError, ExpirationError
from crew.household import PORTS
from crew.installation import find_server, required_server
from crew.master.threaded_client import Client
from crew.private_node import PrivateNode
from crew.transports import tls
from crew.transports.addresses import check
from crew.transports.asyncio import dial, parameters
from crew.transports.base import Delivery
from crew.transports.session import Session
from tests.rpc import Rpc
from tests.stack import Stack
from tests.waiting import wait_until

PASSWORD = 's3cret'
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Files:
    """Certificates in PEM, made anew for each run."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, name: str, certificate: LeafCert) -> None:
        certificate.cert_chain_pems[0].write_to_path(self.path(f'{name}.pem'))
        certificate.private_key_pem.write_to_path(self.path(f'{name}.key'))


@dataclass(frozen=True)
class TlsNode:
    """A node, and its port for TLS."""

    node: PrivateNode
    port: int

    def url(self, host: str = 'localhost', scheme: str = 'amqps', port: int = 0, **query: str) -> str:
        return f'{scheme}://guest:guest@{host}:{port or self.port}/%2F?{urlencode(query)}'


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = Files(tmp_path_factory.mktemp('tls'))
    ca = CA()
    ca.cert_pem.write_to_path(files.path('ca.pem'))
    CA().cert_pem.write_to_path(files.path('other-ca.pem'))
    files.write('server', ca.issue_cert('localhost'))
    files.write('client', ca.issue_cert('client.example', common_name='crew-client'))
    files.write('stranger', CA().issue_cert('client.example'))
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    files.write('expired-client', ca.issue_cert('client.example', not_before=then, not_after=then + DAY))
    files.write('expired', ca.issue_cert('localhost', not_before=then, not_after=then + DAY))
    key = load_pem_private_key(Path(files.path('client.key')).read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode()))
    Path(files.path('locked.key')).write_bytes(locked)
    Path(files.path('noise.pem')).write_text('noise')
    return files


@contextmanager
def tls_node(files: Files, server: str, *config: str) -> Iterator[TlsNode]:
    if find_server() is None:
        pytest.skip('rabbitmq-server is not installed')
    port = random.SystemRandom().choice(PORTS)
    lines = [
        f'listeners.ssl.1 = 127.0.0.1:{port}',
        f'ssl_options.cacertfile = {files.path("ca.pem")}',
        f'ssl_options.certfile = {files.path(f"{server}.pem")}',
        f'ssl_options.keyfile = {files.path(f"{server}.key")}',
        *config,
    ]
    with PrivateNode(config=lines) as node:
        # It answers on its plain port first.
        wait_until(lambda: listens(port), 10, 'the listener for TLS')
        yield TlsNode(node, port)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


@pytest.fixture(scope='module')
def broker(files: Files) -> Iterator[TlsNode]:
    """A node that shows a certificate for ``localhost`` and asks clients for none."""
    with tls_node(files, 'server') as node:
        yield node


@pytest.fixture(scope='module', params=['tlsv1.2', 'tlsv1.3'])
def strict_broker(files: Files, request: pytest.FixtureRequest) -> Iterator[TlsNode]:
    """A node that wants a client certificate; in TLS 1.3 a client without one is turned down after the handshake."""
    must = ('ssl_options.verify = verify_peer', 'ssl_options.fail_if_no_peer_cert = true')
    names = ('ssl_cert_login_from = common_name', 'auth_mechanisms.1 = PLAIN', 'auth_mechanisms.2 = EXTERNAL')
    with tls_node(files, 'server', *must, *names, f'ssl_options.versions.1 = {request.param}') as node:
        yield node


def connect(url: str, timeout: float = 10.0) -> None:
    async def run() -> None:
        connection = await dial(url, timeout=timeout)
        await connection.close()

    asyncio.run(run())


def refusal(url: str, timeout: float = 10.0) -> str:
    """Connect, which must fail early enough, and return what is said of it."""
    began = time.monotonic()
    with pytest.raises(ConnectionError) as refused:
        connect(url, timeout)
    assert time.monotonic() - began < timeout + 1.5
    said = str(refused.value)
    assert 'guest:guest' not in said
    assert '\n' not in said
    return said


# What works


def test_a_message_of_500_kb_goes_round_with_the_ca_named(broker: TlsNode, files: Files) -> None:
    async def run() -> None:
        connection = await dial(broker.url(cacertfile=files.path('ca.pem'), heartbeat='20', connection_timeout='5000'))
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        channel = await connection.open_channel(confirm=True)
        queue = topology.reply_queue()
        await channel.declare(queue)
        await channel.consume(queue.name, arrived.put_nowait, no_ack=True)
        body = random.Random(1).randbytes(500_000)
        for _ in range(3):
            channel.publish(Envelope(body=body), queue.name)
        await channel.confirmed()
        for _ in range(3):
            assert (await arrived.get()).envelope.body == body
        await connection.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_session_over_tls_comes_back(broker: TlsNode, files: Files) -> None:
    async def run() -> None:
        connections: list[object] = []
        losses: list[Exception] = []

        async def prepare(connection: object) -> None:
            connections.append(connection)

        session = Session([broker.url(cacertfile=files.path('ca.pem'))], dial, prepare, losses.append)
        session.start()
        await session.wait_ready()
        await asyncio.to_thread(broker.node.ctl, 'close_all_connections', 'test')
        await asyncio.to_thread(wait_until, lambda: len(connections) == 2 and session.ready)
        assert len(losses) == 1
        await session.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_the_name_of_the_certificate_can_be_given(broker: TlsNode, files: Files) -> None:
    connect(broker.url('127.0.0.1', cacertfile=files.path('ca.pem'), server_name_indication='localhost'))


def test_unverified_works_and_warns_once(broker: TlsNode, caplog: pytest.LogCaptureFixture) -> None:
    url = broker.url('127.0.0.1', verify='verify_none')
    with caplog.at_level(logging.WARNING, logger='crew'):
        connect(url)
        connect(url)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == 'crew.transports.tls']
    assert 'is not verified' in warning
    assert 'guest:guest' not in warning


def test_wrong_credentials_are_told_from_tls(broker: TlsNode, files: Files) -> None:
    url = broker.url(cacertfile=files.path('ca.pem')).replace('guest:guest', f'guest:{PASSWORD}')
    with pytest.raises(BrokerRefused, match='user name or password') as refused:
        connect(url)
    assert PASSWORD not in str(refused.value)


def test_a_client_certificate_where_one_is_wanted(strict_broker: TlsNode, files: Files) -> None:
    own = {'certfile': files.path('client.pem'), 'keyfile': files.path('client.key')}
    connect(strict_broker.url(cacertfile=files.path('ca.pem'), **own))


def test_a_certificate_in_the_place_of_a_password(strict_broker: TlsNode, files: Files) -> None:
    own = {'certfile': files.path('client.pem'), 'keyfile': files.path('client.key')}
    url = strict_broker.url(cacertfile=files.path('ca.pem'), auth_mechanism='external', **own).replace(
        'guest:guest@', ''
    )
    with pytest.raises(BrokerRefused, match='refused to know us by our certificate: it needs rabbitmq_auth_mechanism'):
        connect(url)
    # As rabbitmq-plugins would enable it, in a node that runs.
    (plugin,) = Path(required_server()).resolve().parent.parent.glob('plugins/rabbitmq_auth_mechanism_ssl-*/ebin')
    strict_broker.node.ctl(
        'eval',
        f'true = code:add_pathz("{plugin}"), application:load(rabbitmq_auth_mechanism_ssl), '
        'rabbit_registry:register(auth_mechanism, <<"EXTERNAL">>, rabbit_auth_mechanism_ssl).',
    )
    with pytest.raises(BrokerRefused, match='and a user of the name in there'):
        connect(url)
    strict_broker.node.ctl('add_user', 'crew-client', 'nobody knows it')
    strict_broker.node.ctl('set_permissions', 'crew-client', '.*', '.*', '.*')
    connect(url)


# The commands


@pytest.fixture
def stacks(queue: str, tmp_path: Path) -> Iterator[Callable[[str], Stack]]:
    """Makes stacks at a URL."""
    made: list[Stack] = []

    def make(url: str) -> Stack:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Stack(url, queue, directory))
        return made[-1]

    yield make
    for stack in made:
        stack.close()


def test_front_worker_script_and_client_work_over_tls(
    strict_broker: TlsNode, files: Files, stacks: Callable[[str], Stack], queue: str, tmp_path: Path
) -> None:
    own = {'certfile': files.path('client.pem'), 'keyfile': files.path('client.key')}
    url = strict_broker.url(cacertfile=files.path('ca.pem'), **own)
    stack = stacks(url)
    front, worker = stack.front(), stack.worker('faults:app', '--processes', '2')
    rpc = Rpc(url, queue, tmp_path)
    try:
        script, client = rpc.script('several'), rpc.client('a')
        script.await_ready()
        front.await_ready()
        worker.await_ready(2)
        assert front.request('POST', '/', b'x' * 300_000).status == 200
        assert client.call(rpc.id('a'), {'name': 'n', 'for': 0}, expiration=10).wait(10) == script.children()[0]
        listed = strict_broker.node.ctl('list_connections', '--no-table-headers', 'ssl', 'peer_cert_subject', 'name')
        connections = [line.split('\t') for line in listed.splitlines()]
        assert len(connections) >= 5  # front, two workers, script, client; one of another test may just be ending
        assert all(ssl == 'true' and 'crew-client' in subject for ssl, subject, _ in connections), listed
        strict_broker.node.ctl('close_all_connections', 'test')
        for process in (front, worker, script):
            process.await_log('(?s)CONNECTION_FORCED.*connected to the broker')
        wait_until(lambda: front.get('/').status == 200, 20, 'the service to be back')
    finally:
        rpc.close()


#: What is wrong with the URL, and what is said of it.
UNTRUSTED = {
    'another CA': ({'cacertfile': 'other-ca.pem'}, 'localhost', 'is not trusted: .* its CA is not in cacertfile'),
    'another name': ({'cacertfile': 'ca.pem'}, '127.0.0.1', "is for another name: .* not valid for '127.0.0.1'"),
}


def assert_kept_out(url: str, said: str, stacks: Callable[[str], Stack]) -> None:
    """Assert that both commands say why, once for each attempt, live on and try again, and that clients hear 503."""
    stack = stacks(url)
    front, worker = stack.front(), stack.worker('basic:hello')
    for process in front, worker:
        process.await_log(f'(?s)WARNING [^\n]*{said}[^\n]*; trying again in.*WARNING [^\n]*{said}')
        assert 'Traceback' not in process.text
        assert 'connected to the broker' not in process.text
        assert 'guest:guest' not in process.text
    answer = front.await_listening().get('/')
    assert answer.status == 503 and answer.headers['Retry-After']
    client = Client(url)
    with pytest.raises(ExpirationError) as expired:
        client.call('x', expiration=1).wait(10)
    assert expired.value.reason == 'unconnected'
    client.close()
    for process in front, worker:
        assert process.terminate() == 0


@pytest.mark.parametrize('case', UNTRUSTED)
def test_a_broker_that_is_not_trusted_gets_nothing(
    broker: TlsNode, files: Files, stacks: Callable[[str], Stack], case: str
) -> None:
    query, host, said = UNTRUSTED[case]
    assert_kept_out(broker.url(host, **{name: files.path(value) for name, value in query.items()}), said, stacks)


def test_a_client_whose_certificate_has_expired_gets_nothing(
    strict_broker: TlsNode, files: Files, stacks: Callable[[str], Stack]
) -> None:
    own = {'certfile': files.path('expired-client.pem'), 'keyfile': files.path('expired-client.key')}
    url = strict_broker.url(cacertfile=files.path('ca.pem'), **own)
    assert_kept_out(url, 'does it trust the CA of certfile .*, and is that still valid', stacks)


def test_a_broker_whose_certificate_has_expired_gets_nothing(files: Files, stacks: Callable[[str], Stack]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.path('expired.pem'), files.path('expired.key'))
    with socket.create_server(('127.0.0.1', 0)) as server:
        got: list[bytes] = []

        def answer() -> None:
            # Until it is shut down.
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with contextlib.suppress(OSError), peer, context.wrap_socket(peer, server_side=True) as wrapped:
                        got.append(wrapped.recv(1))

        thread = threading.Thread(target=answer)
        thread.start()
        query = urlencode({'cacertfile': files.path('ca.pem')})
        url = f'amqps://guest:guest@localhost:{server.getsockname()[1]}/?{query}'
        assert_kept_out(url, 'is not valid now: certificate has expired', stacks)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert not any(got)


def test_what_is_put_right_needs_no_restart(
    broker: TlsNode, files: Files, stacks: Callable[[str], Stack], tmp_path: Path
) -> None:
    ca = tmp_path / 'ca.pem'
    ca.write_bytes(Path(files.path('other-ca.pem')).read_bytes())
    front = stacks(broker.url(cacertfile=str(ca))).front()
    front.await_log('is not trusted')
    ca.write_bytes(Path(files.path('ca.pem')).read_bytes())
    front.await_ready()


@pytest.mark.parametrize('module', ['crew_wsgi.front', 'crew_wsgi.worker', 'crew.declare'])
def test_what_cannot_be_used_at_all_ends_the_command(module: str) -> None:
    url = f'amqps://user:{PASSWORD}@localhost/?cacertfile=/nowhere/ca.pem'
    command = [sys.executable, '-m', module, *(['basic:hello'] if module.endswith('worker') else []), '--amqp-url', url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, '')
    assert "cacertfile '/nowhere/ca.pem' cannot be read" in done.stderr
    assert PASSWORD not in done.stderr and len(done.stderr.splitlines()) == 1


# Who is refused


def test_a_ca_that_the_system_does_not_know(broker: TlsNode) -> None:
    said = refusal(broker.url())
    assert f'the certificate of the broker at amqps://guest@localhost:{broker.port}/%2F is not trusted' in said
    assert said.endswith('name its CA with ?cacertfile=')


def test_another_ca_than_the_named_one(broker: TlsNode, files: Files) -> None:
    said = refusal(broker.url(cacertfile=files.path('other-ca.pem')))
    assert 'not trusted' in said
    assert files.path('other-ca.pem') in said


def test_a_certificate_for_another_name(broker: TlsNode, files: Files) -> None:
    said = refusal(broker.url('127.0.0.1', cacertfile=files.path('ca.pem')))
    assert "not valid for '127.0.0.1'" in said
    assert 'server_name_indication' in said
    said = refusal(broker.url(cacertfile=files.path('ca.pem'), server_name_indication='elsewhere.example'))
    assert "not valid for 'elsewhere.example'" in said


def test_no_client_certificate_where_one_is_wanted(strict_broker: TlsNode, files: Files) -> None:
    for _ in range(5):  # how TLS 1.3 tells is a race
        said = refusal(strict_broker.url(cacertfile=files.path('ca.pem')))
        assert 'name one with ?certfile= and &keyfile=' in said


def test_a_client_certificate_of_a_stranger(strict_broker: TlsNode, files: Files) -> None:
    own = {'certfile': files.path('stranger.pem'), 'keyfile': files.path('stranger.key')}
    for _ in range(5):
        said = refusal(strict_broker.url(cacertfile=files.path('ca.pem'), **own))
        assert f'does it trust the CA of certfile {own["certfile"]!r}' in said


def test_tls_to_the_plain_port(broker: TlsNode, files: Files) -> None:
    said = refusal(broker.url(port=broker.node.port, cacertfile=files.path('ca.pem')))
    assert 'does not speak TLS: use its TLS port' in said


def test_plain_to_the_tls_port(broker: TlsNode) -> None:
    assert 'speaks TLS on this port: write amqps://' in refusal(broker.url(scheme='amqp'))


@contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve one connection on a port."""
    with socket.create_server(('127.0.0.1', 0)) as server:

        def run() -> None:
            peer, _ = server.accept()
            with peer:
                answer(peer)

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def test_an_expired_certificate(files: Files) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.path('expired.pem'), files.path('expired.key'))

    def answer(peer: socket.socket) -> None:
        with pytest.raises(OSError), context.wrap_socket(peer, server_side=True) as wrapped:
            wrapped.recv(1)
            raise ConnectionResetError

    with served(answer) as port:
        query = urlencode({'cacertfile': files.path('ca.pem')})
        said = refusal(f'amqps://guest:guest@localhost:{port}/?{query}')
    assert 'is not valid now: certificate has expired; renew it' in said


def test_a_server_that_says_nothing_costs_the_timeout_and_leaves_no_socket() -> None:
    closed = threading.Event()

    def answer(peer: socket.socket) -> None:
        peer.settimeout(5)
        while peer.recv(10_000):
            pass
        closed.set()

    async def run(url: str) -> None:
        with pytest.raises(ConnectionError, match=r'no answer from the broker at .* within 0\.5 s'):
            await dial(url, timeout=0.5)
        # While the loop still runs: its end would close anything.
        assert await asyncio.to_thread(closed.wait, 2)

    with served(answer) as port:
        asyncio.run(run(f'amqps://guest:guest@127.0.0.1:{port}/'))


def test_a_client_that_is_closed_while_tls_is_agreed_on_leaves_no_socket() -> None:
    begun, closed = threading.Event(), threading.Event()

    def answer(peer: socket.socket) -> None:
        peer.settimeout(5)
        while peer.recv(10_000):
            begun.set()
        closed.set()

    with served(answer) as port:
        client = Client(f'amqps://guest:guest@127.0.0.1:{port}/')
        client.call('x', expiration=5)
        assert begun.wait(5)
        client.close()
        assert closed.wait(2)
        # What was left open would be complained of now.
        gc.collect()


def test_a_server_that_hangs_up_at_once() -> None:
    for scheme, hint in (('amqps', 'is this its TLS port?'), ('amqp', 'then write amqps://')):
        with served(lambda peer: None) as port:
            assert hint in refusal(f'{scheme}://guest:guest@127.0.0.1:{port}/')


# What cannot be read


@pytest.mark.parametrize(
    ('query', 'said'),
    [
        (
            'cacert=x',
            "unknown parameter 'cacert': known are auth_mechanism, blocked_connection_timeout, cacertfile, certfile,",
        ),
        ('ssl_options=None', "unknown parameter 'ssl_options'"),
        ('heartbeat', "'heartbeat' without a value"),
        ('heartbeat=1&heartbeat=2', "'heartbeat' twice"),
        ('heartbeat=soon', 'values? .*heartbeat'),
        ('connection_timeout=soon', "connection_timeout 'soon'"),
        ('auth_mechanism=magic', "auth_mechanism 'magic' is neither plain nor external"),
        ('auth_mechanism=external', 'says who we are by our certificate: name that with certfile'),
        ('verify=maybe', "verify 'maybe' is neither verify_peer nor verify_none"),
        ('server_name_indication=.x', "server_name_indication '.x'"),
        ('cacertfile=/nowhere/ca.pem', r"cacertfile '/nowhere/ca.pem' cannot be read \(No such file or directory\)"),
        ('cacertfile={}', r"cacertfile '.*' cannot be read \(Is a directory\)"),
        ('cacertfile=%00', 'cacertfile .* cannot be read'),
        ('cacertfile={}/noise.pem', r"cacertfile '.*/noise\.pem' does not hold certificates"),
        ('certfile={}/client.pem', r"certfile '.*/client\.pem' does not hold a private key, and no keyfile is named"),
        ('keyfile={}/client.key', r"keyfile '.*/client\.key' is without its certificate: name that with certfile"),
        ('certfile=/nowhere/c.pem&keyfile={}/client.key', "certfile '/nowhere/c.pem' cannot be read"),
        ('certfile={}/client.pem&keyfile=/nowhere/c.key', "keyfile '/nowhere/c.key' cannot be read"),
        ('certfile={}/client.pem&keyfile={}/server.key', r"keyfile '.*/server\.key' is not the key of certfile"),
        ('certfile={}/client.pem&keyfile={}/locked.key', r"keyfile '.*/locked\.key' is encrypted: decrypt it"),
        ('certfile={}/client.pem&keyfile={}/noise.pem', r"keyfile '.*/noise\.pem' does not hold a private key"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(files: Files, query: str, said: str) -> None:
    url = f'amqps://user:{PASSWORD}@host/?{query.replace("{}", str(files.directory))}'
    with pytest.raises(ValueError, match=said) as refused:
        check(url)
    assert PASSWORD not in str(refused.value)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('parameter', tls.TLS_PARAMETERS)
def test_a_plain_url_with_a_parameter_of_tls_is_not_mistaken_for_safe(parameter: str) -> None:
    with pytest.raises(ValueError, match=f"'{parameter}', which is for TLS: write amqps://"):
        check(f'amqp://guest:{PASSWORD}@host/?{parameter}=x')


def test_a_password_with_a_question_mark_is_not_shown_as_a_parameter() -> None:
    with pytest.raises(ValueError, match='%3F') as refused:
        check('amqp://user:12?s3cret@host:5672/')
    assert PASSWORD not in str(refused.value)


def test_defaults() -> None:
    to = parameters('amqps://user:s3cret@broker.example/v%2Fh?heartbeat=7&connection_timeout=1500')
    assert (to.host, to.port, to.virtual_host, to.heartbeat, to.socket_timeout) == (
        'broker.example',
        5671,
        'v/h',
        7,
        1.5,
    )
    assert to.ssl_options.server_hostname == 'broker.example'
    context = to.ssl_options.context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert parameters('amqp://broker.example').ssl_options is None
