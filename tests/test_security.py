"""docs/security.md beside the permissions: where passwords must not be, what is refused before anything is queued, and
what a stranger who may publish cannot do."""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import UUID, uuid4

import pika
import pytest

from crew import codec, topology
from crew.argv import without_passwords
from crew.exceptions import BrokerRefused, ConnectionError
from crew.master import asyncio as for_asyncio
from crew.master import gevent as for_gevent
from crew.master import threaded_client as for_threads
from crew.master import tornado as for_tornado
from crew.master import twisted as for_twisted
from crew.messages import Accept, Cancel, Chunk, Failure, Message, Reply, Reset, Returned, Stop
from crew.options import add_urls, password
from crew.private_node import PrivateNode
from crew.transports.addresses import checked, default_urls, dial
from crew.transports.asyncio import parameters
from crew.worker.consumer import Settings
from tests.rpc import Script
from tests.stack import APPS, Front, Process, Stack, Worker, children_of
from tests.test_declares import RecordingProxy
from tests.waiting import wait_until
from tests.wire import Wire

#: No other process, file or test has this in its password.
MARK = uuid4().hex
PASSWORD = f'p@:{MARK}/?#%'
ENCODED = quote(PASSWORD, safe='')


def marked(broker: PrivateNode, user: str = 'marked') -> str:
    """Return the broker's URL for a user with the marked password."""
    return f'amqp://{user}:{ENCODED}@127.0.0.1:{broker.port}/%2F'


@pytest.fixture(scope='module')
def url(broker: PrivateNode) -> str:
    """The broker's URL for a user whose password is marked."""
    broker.ctl('add_user', 'marked', PASSWORD)
    broker.ctl('set_permissions', 'marked', '.*', '.*', '.*')
    return marked(broker)


def shown_by_the_kernel() -> list[str]:
    """Return every command line on this machine that shows the mark."""
    found = []
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            text = file.read_bytes().decode('utf-8', 'replace').replace('\0', ' ')
            found += [text] if MARK in text else []
    return found


# Passwords


def test_no_output_and_no_process_shows_the_password(url: str, broker: PrivateNode, queue: str, tmp_path: Path) -> None:
    """From connecting to a crash, as loud as it gets, with the password on the command line."""
    stack = Stack(url, queue, tmp_path)
    bodies: list[bytes] = []
    try:
        # In debug mode asyncio shows what it calls, and with what.
        worker = stack.worker('faults:app', '-vv', '--processes', '2', env={'PYTHONASYNCIODEBUG': '1'})
        fronts = [stack.front('-vv').await_ready(), stack.front('-vv', '--log-format', 'json').await_ready()]
        worker.await_ready(2)
        assert shown_by_the_kernel() == []
        for front in fronts:
            for path in ('/', '/nowhere', '/die', '/crash', '/leave?code=3'):
                bodies += all_of(front, path)
        broker.ctl('close_all_connections', 'test')
        for process in (*fronts, worker):
            process.await_log('(?s)CONNECTION_FORCED.*connected to the broker')
        bodies += all_of(fronts[0], '/')
        worker.signal(signal.SIGQUIT)
        worker.await_log('Thread 0x')
        worker.signal(signal.SIGHUP)
        worker.await_log('is ready; telling')
        wait_until(lambda: not shown_by_the_kernel(), 20, 'the processes of the reload to hide it')
        assert all_of(fronts[1], '/')
        for process in (*fronts, worker):
            process.terminate()
    finally:
        stack.close()
    logs = {process: process.text for process in (*fronts, worker)}
    assert [MARK in text for text in logs.values()] == [False] * 3
    # They said a lot, the libraries and the crashed application included.
    assert all('pika.connection' in text and 'asyncio' in text for text in logs.values())
    assert 'KeyError' in worker.text and 'Segmentation fault' in worker.text
    assert not [body for body in bodies if MARK.encode() in body]


def all_of(front: Front, path: str) -> list[bytes]:
    """Return all that a client gets to see of an answer, in each form."""
    forms = ('text/html', 'application/json', 'text/plain')
    answers = [front.get(path, {'Accept': form}) for form in forms]
    return [answer.body + str(answer.headers).encode() for answer in answers]


@pytest.mark.parametrize('role', ['front', 'worker'])
def test_failing_to_get_in_shows_no_password(broker: PrivateNode, queue: str, tmp_path: Path, role: str) -> None:
    stack = Stack(marked(broker, 'nobody'), queue, tmp_path)
    try:
        process: Process = stack.front('-vv') if role == 'front' else stack.worker('basic:hello', '-vv')
        assert process.wait() == 2
    finally:
        stack.close()
    assert 'refused the user name or password' in process.text
    assert 'pika.connection' in process.text
    assert MARK not in process.text


@pytest.mark.parametrize(
    'arguments',
    [
        ['--amqp-url', f'amqp://u:{ENCODED}@127.0.0.1:port/'],
        ['--amqp-url', f'amqp://u:{MARK}'],
        ['--amqp-url', f'amqp://u:{MARK}?x@127.0.0.1/'],
        ['--amqp-url', f'amqp://u:{MARK}#x@127.0.0.1/'],
        ['--amqp-url', f'http://u:{ENCODED}@127.0.0.1/'],
        ['--amqp-url', f'amqp://u:{ENCODED}@127.0.0.1/?cacert=x'],
    ],
)
def test_an_address_that_cannot_be_read_is_not_repeated_with_its_password(arguments: list[str]) -> None:
    for module, *more in (['crew_wsgi.front'], ['crew_wsgi.worker', 'basic:hello'], ['crew.declare']):
        command = [sys.executable, '-m', module, *more, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert MARK not in done.stdout + done.stderr


def test_a_worker_script_with_a_password_of_its_own_hides_it(url: str, broker: PrivateNode, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(
        'import logging\nfrom crew.worker import Task, context, on_start, run\n\n\n'
        '@on_start\ndef show(settings):\n    logging.warning("settings %r", settings)\n\n\n'
        "@Task('hidden')\ndef hidden(req):\n    pass\n\n\nrun()\n"
    )
    arguments = ['-P', str(broker.port), '--username', 'marked', '--pass', PASSWORD, '-vv', '--forks', '2']
    worker = Script(script, arguments, tmp_path / 'log', {'CREW_AMQP_URL': ''})
    try:
        worker.await_ready(2)
        assert shown_by_the_kernel() == []
        assert "password='***'" in worker.text
        assert MARK not in worker.text
    finally:
        worker.kill()


def test_dev_passes_the_password_on_where_others_cannot_read_it(url: str, queue: str, tmp_path: Path) -> None:
    arguments = ['basic:hello', '--app-dir', str(APPS), '--port', '0', '--queue', queue, '-vv', '--amqp-url', url]
    dev = Process('crew_wsgi.dev', arguments, tmp_path / 'log', {})
    try:
        dev.await_log('listening on')
        dev.await_log('taking requests from')
        assert len(children_of(dev.pid)) == 2
        assert shown_by_the_kernel() == []
        assert MARK not in dev.text
        dev.terminate()
    finally:
        dev.kill()


def test_an_application_may_forget_the_address_and_be_reloaded(url: str, queue: str, tmp_path: Path) -> None:
    (tmp_path / 'forgetful.py').write_text(
        'import os\n\nos.environ.pop("CREW_AMQP_URL")\n\n\ndef app(environ, start_response):\n'
        '    start_response("200 OK", [])\n    return [repr([dict(os.environ), environ]).encode()]\n'
    )
    stack = Stack(url, queue, tmp_path)
    command = ['forgetful:app', '--app-dir', str(tmp_path), '--queue', queue]
    worker = Worker('crew_wsgi.worker', command, tmp_path / 'worker.log', {'CREW_AMQP_URL': url})
    try:
        front = stack.front().await_ready()
        worker.await_ready()
        before = worker.children()
        assert MARK.encode() not in front.get('/').body
        worker.signal(signal.SIGHUP)
        worker.await_ready(2)
        wait_until(lambda: not set(before) & set(worker.children()), 15, 'the old process to be replaced')
        assert MARK.encode() not in front.get('/').body
    finally:
        worker.kill()
        stack.close()


@pytest.mark.parametrize(
    ('arguments', 'shown'),
    [
        (['--amqp-url', 'amqp://u:secret@h/'], ['--amqp-url', 'amqp://u:******@h/']),
        (['--amqp-url=amqps://u:secret@h/?a=b'], ['--amqp-url=amqps://u:******@h/?a=b']),
        (['amqp://u:se@cr@et@h'], ['amqp://u:********@h']),
        (['AMQP://:secret@h'], ['AMQP://:******@h']),
        (['--password', 'secret', 'x'], ['--password', '******', 'x']),
        (['--password=secret=', 'x'], ['--password=*******', 'x']),
        (['--passw', 'secret'], ['--passw', '******']),
        (['--password', '--password', 'x'], ['--password', '**********', 'x']),
        (['--password'], ['--password']),
        (['--password', 'amqp://u:secret@h'], ['--password', '*' * 17]),
        (['--port', '80', '-P', '80', '--prefetch', '4'], ['--port', '80', '-P', '80', '--prefetch', '4']),
        (['amqp://h:5672/', 'amqp://u@h:5672/', 'myapp:app'], ['amqp://h:5672/', 'amqp://u@h:5672/', 'myapp:app']),
        (['http://h/a:b', 'me@example.org'], ['http://h/a:b', 'me@example.org']),
    ],
)
def test_what_is_taken_out_of_a_command_line(arguments: list[str], shown: list[str]) -> None:
    before = [argument.encode() for argument in arguments]
    after = without_passwords(before)
    assert [argument.decode() for argument in after] == shown
    assert list(map(len, after)) == list(map(len, before))


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='there is no /proc')
def test_a_command_line_that_cannot_be_changed_is_left_alone(tmp_path: Path) -> None:
    code = (
        'import sys, pathlib, crew.argv\n'
        'def fail(*_, **__): raise PermissionError\n'
        'pathlib.Path.open = fail\n'
        'crew.argv.conceal_passwords()\n'
        'print(sys.argv[1])'
    )
    done = subprocess.run([sys.executable, '-c', code, 'amqp://u:secret@h'], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ('amqp://u:secret@h\n', '')


def test_no_repr_shows_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f'amqp://u:{ENCODED}@127.0.0.1:5/'
    monkeypatch.setenv('CREW_AMQP_URL', url)
    parser = argparse.ArgumentParser()
    add_urls(parser, 'x')
    options = parser.parse_args(['--amqp-url', url])
    shown = [
        checked(url),
        default_urls(),
        options,
        parser.parse_args([]),
        argparse.Namespace(password=password(PASSWORD)),
        parameters(url),
        Settings(urls=options.amqp_urls, queues=[]),
        *(face.Client(url) for face in (for_asyncio, for_gevent, for_threads, for_tornado)),
        for_twisted.Client(url),
    ]
    assert [value for value in shown if MARK in repr(value) or PASSWORD in repr(value)] == []
    assert 'amqp://u@127.0.0.1:5/' in repr(options)
    assert str(options.amqp_urls[0]) == url


@pytest.mark.parametrize('case', ['refused', 'unreachable'])
def test_no_traceback_shows_the_password_not_even_with_the_values_of_all_names(broker: PrivateNode, case: str) -> None:
    port = {'refused': broker.port, 'unreachable': 5}[case]
    (url,) = checked(f'amqp://nobody:{ENCODED}@127.0.0.1:{port}/')
    with pytest.raises((BrokerRefused, ConnectionError)) as failed:
        asyncio.run(dial(url))
    report = traceback.TracebackException.from_exception(failed.value, capture_locals=True)
    text = ''.join(report.format())
    assert 'services = ' in text
    assert MARK not in text


def test_no_traceback_of_an_address_that_cannot_be_read_shows_the_password() -> None:
    # As pika and urllib read it, the password is the port.
    with pytest.raises(ValueError, match='bad AMQP URL') as failed:
        checked(f'amqp://nobody:{MARK}/@127.0.0.1/')
    assert MARK not in ''.join(traceback.format_exception(failed.value))


# Before anything is queued


HOST = b'Host: crew.test\r\n'
POST = b'POST / HTTP/1.1\r\n' + HOST

REFUSED = {
    'a head that is too long': (b'GET / HTTP/1.1\r\n' + HOST + b'X: ' + b'x' * 5000 + b'\r\n\r\n', 431),
    'a target that is too long': (b'GET /' + b'x' * 5000 + b' HTTP/1.1\r\n' + HOST + b'\r\n', 431),
    'a body that says it is too long': (POST + b'Content-Length: 1001\r\n\r\n', 413),
    'one that would wait for leave': (POST + b'Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n', 413),
    'one that says it is absurdly long': (POST + b'Content-Length: ' + b'9' * 100 + b'\r\n\r\n', 413),
    'chunks that become too long': (POST + b'Transfer-Encoding: chunked\r\n\r\n3e9\r\n' + b'x' * 1001, 413),
    'both framings': (POST + b'Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n', 400),
    'two lengths': (POST + b'Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd', 400),
    'another transfer coding': (POST + b'Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n', 501),
    'a chunk that is none': (POST + b'Transfer-Encoding: chunked\r\n\r\nx\r\n', 400),
    'no host': (b'GET / HTTP/1.1\r\n\r\n', 400),
    'two hosts': (b'GET / HTTP/1.1\r\n' + HOST + HOST + b'\r\n', 400),
    'CONNECT': (b'CONNECT crew.test:80 HTTP/1.1\r\n' + HOST + b'\r\n', 501),
    'no path': (b'GET nowhere HTTP/1.1\r\n' + HOST + b'\r\n', 400),
    'a method that is none': (b'G(T / HTTP/1.1\r\n' + HOST + b'\r\n', 400),
}


@pytest.fixture(scope='module')
def unserved(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, str]]:
    """A front with short limits on a queue that nobody takes from, so that what was published stays to be seen."""
    stack = Stack(broker.url, 'unserved', tmp_path_factory.mktemp('unserved'))
    try:
        limits = ('--max-head', '4000', '--max-body', '1000', '--head-timeout', '0.3', '--queue-timeout', '60')
        yield stack.front(*limits).await_ready(), f'{topology.TASKS}unserved'
    finally:
        stack.close()


def queued(broker: PrivateNode, queue: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)


def test_what_is_refused_has_not_been_published(unserved: tuple[Front, str], broker: PrivateNode) -> None:
    front, queue = unserved
    heard = {}
    for case, (request, _) in REFUSED.items():
        with Wire(front.port) as wire:
            wire.send(request)
            heard[case] = wire.answer().status
    assert heard == {case: status for case, (_, status) in REFUSED.items()}
    with Wire(front.port) as wire:
        wire.send(b'GET / HTTP/1.1\r\nHost: cre')
        assert wire.answer().status == 408
    with Wire(front.port) as wire:
        # Who hangs up in the middle of a body has not asked either.
        wire.send(POST + b'Content-Length: 500\r\n\r\n' + b'x' * 100)
    assert queued(broker, queue) == 0
    # The measure measures: one that is good is there.
    waiting = front.later('POST', '/')
    wait_until(lambda: queued(broker, queue) == 1, 10, 'the request to be in the queue')
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        properties, body = channel.basic_get(queue, auto_ack=True)[1:]
        assert body.startswith(b'\xc7')
        # And what its id and its reply queue are called nobody can guess.
        assert UUID(properties.correlation_id).version == 4
        assert UUID(properties.reply_to.removeprefix('crew.master.')).version == 4
        forged = codec.encode(Failure(correlation_id=properties.correlation_id, kind='timeout'))
        headers = pika.BasicProperties(type='error', correlation_id=forged.correlation_id, headers=dict(forged.headers))
        channel.basic_publish('', properties.reply_to, forged.body, headers)
    assert waiting.result(10).status == 504


# Strangers


@pytest.fixture
def stranger(broker: PrivateNode, queue: str, tmp_path: Path) -> Iterator[Stack]:
    """Fronts and workers in a virtual host of their own, whose queues can be told from others."""
    broker.ctl('add_vhost', 'strange')
    broker.ctl('set_permissions', '-p', 'strange', 'guest', '.*', '.*', '.*')
    stack = Stack(broker.url.replace('%2F', 'strange'), queue, tmp_path)
    yield stack
    stack.close()


def test_no_name_and_no_id_can_be_guessed() -> None:
    for make in (topology.reply_queue, topology.inbox, topology.subscriber_queue):
        assert UUID(make().name.rpartition('.')[2]).version == 4


def test_who_knows_a_reply_queue_and_no_id_changes_nothing(stranger: Stack, broker: PrivateNode) -> None:
    front = stranger.front('-v').await_ready()
    worker = stranger.worker('faults:app', '-v').await_ready()
    names = broker.ctl('list_queues', '-p', 'strange', '--no-table-headers', 'name').split()
    replies = next(name for name in names if name.startswith('crew.master.'))
    inbox = next(name for name in names if name.startswith('crew.worker.'))
    slow = front.later('POST', '/sleep?for=1.5')
    wait_until(lambda: stranger.runs, 10, 'the run to begin')
    unknown = {'correlation_id': uuid4().hex}
    to_front: list[Message] = [
        Reply(**unknown, body=b'forged', content_type='application/x-crew-http'),
        Failure(**unknown, kind='raised', type='Forged'),
        Reset(**unknown, reason='forged'),
        Chunk(**unknown, offset=0, body=b'forged', last=True),
        Accept(**unknown, inbox=inbox, ask=True, redelivered=True, timeout=0.1),
        Accept(**unknown, inbox=inbox, ask=False, redelivered=False, timeout=0.1),
        Returned(correlation_ids=(unknown['correlation_id'],)),
    ]
    to_worker: list[Message] = [
        Stop(**unknown, reply_to=replies),
        Cancel(**unknown, reply_to=replies, reason='forged'),
        Chunk(**unknown, reply_to=replies, offset=0, body=b'forged'),
    ]

    async def send() -> None:
        connection = await dial(stranger.amqp_url)
        channel = await connection.open_channel(confirm=True)
        for queue, messages in ((replies, to_front), (inbox, to_worker)):
            for message in messages:
                channel.publish(codec.encode(message), queue)
        await channel.confirmed()
        await connection.close()

    asyncio.run(send())
    answer = slow.result(20)
    assert (answer.status, answer.body) == (200, str(worker.children()[0]).encode())
    assert front.get('/').status == 200
    assert not [line for process in (front, worker) for line in process.text.splitlines() if 'lost' in line]


def test_an_answer_says_nothing_of_the_broker(broker: PrivateNode, queue: str, tmp_path: Path) -> None:
    way = RecordingProxy(broker.port)
    stack = Stack(broker.url.replace(str(broker.port), str(way.port)), queue, tmp_path)
    try:
        front = stack.front().await_ready()
        stack.worker('faults:app').await_ready()
        running = front.later('POST', '/sleep?for=30')
        wait_until(lambda: stack.runs, 10, 'the run to begin')
        way.close()
        answers = [running.result(20), front.get('/')]
        assert [answer.status for answer in answers] == [502, 503]
        for answer in answers:
            text = answer.body.decode() + str(answer.headers)
            assert not re.search(r'amqp|guest|127\.0\.0\.1|rabbit|crew\.(tasks|master)', text, re.IGNORECASE), text
    finally:
        stack.close()


def test_the_environment_is_the_users_own() -> None:
    """What the document says of CREW_AMQP_URL: the kernel lets others not read it."""
    assert oct(Path(f'/proc/{os.getpid()}/environ').stat().st_mode & 0o777) == '0o400'
