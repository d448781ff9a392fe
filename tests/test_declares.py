"""What front and worker really send to the broker: nothing that RabbitMQ 4.3 refuses and Debian's 3.10 lets pass."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import TypeVar

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker
from pika.frame import Method, decode_frame
from pika.spec import Basic, Exchange, Queue

from crew.private_node import PrivateNode
from tests.stack import Front, Stack
from tests.waiting import wait_until

T = TypeVar('T')


class RecordingProxy:
    """Passes bytes between clients and a broker, keeps what the clients sent, and can cut all connections."""

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._listening = socket.create_server(('127.0.0.1', 0))
        self.port = self._listening.getsockname()[1]
        self._sent: list[bytearray] = []
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def methods(self, kind: type[T]) -> list[T]:
        """Return what of this AMQP method the clients have sent, over all connections."""
        return [method for sent in self._sent for method in decode(bytes(sent)) if isinstance(method, kind)]

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return len(self._sent)

    def cut(self) -> None:
        """End every connection at once."""
        for each in list(self._open):
            shut_down(each)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        wait_until(lambda: not self._open, what='the end of all connections')

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            broker = socket.create_connection(('127.0.0.1', self._broker_port))
            self._sent.append(bytearray())
            self._open.update((client, broker))
            threading.Thread(target=self._serve, args=(client, broker, self._sent[-1]), daemon=True).start()

    def _serve(self, client: socket.socket, broker: socket.socket, sent: bytearray) -> None:
        back = threading.Thread(target=pump, args=(broker, client, bytearray()), daemon=True)
        back.start()
        pump(client, broker, sent)
        back.join()
        for each in client, broker:
            self._open.discard(each)
            each.close()


def pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    """Pass on what comes until either end is gone; then end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            sink.sendall(data)
    for each in source, sink:
        shut_down(each)


def shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end, or the other thread, was first
        connection.shutdown(socket.SHUT_RDWR)


def decode(sent: bytes) -> Iterator[object]:
    """Decode what one client sent; what is not whole yet is left out."""
    while sent:
        consumed, frame = decode_frame(sent)
        if not consumed:
            return
        sent = sent[consumed:]
        if isinstance(frame, Method):
            yield frame.method


@pytest.fixture(scope='module')
def proxy(broker: PrivateNode) -> Iterator[RecordingProxy]:
    """A proxy that has seen front and worker connect, serve, lose their connections, connect again and serve again."""
    proxy = RecordingProxy(broker.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope='module', autouse=True)
def served(proxy: RecordingProxy, broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    url = broker.url.replace(str(broker.port), str(proxy.port))
    stack = Stack(url, 'declares', tmp_path_factory.mktemp('declares'))
    try:
        worker = stack.worker('basic:hello', '--threads', '2', '--prefetch', '5')
        front = stack.front().await_ready()
        worker.await_ready()
        assert_serves(front)
        proxy.cut()
        for process in front, worker:
            wait_until(lambda process=process: process.text.count('connected to the broker') == 2, 30)  # type: ignore[misc]
        assert_serves(front)
        yield
    finally:
        stack.close()


def assert_serves(front: Front) -> None:
    assert front.get('/').status == 200


def test_each_queue_is_durable_or_exclusive_but_not_both(proxy: RecordingProxy) -> None:
    declared = proxy.methods(Queue.Declare)
    assert len(declared) == 8  # front: tasks, replies; worker: tasks, inbox; each at two connections
    assert all(each.durable != each.exclusive and not each.auto_delete for each in declared)
    assert {each.queue for each in declared if each.durable} == {'crew.tasks.declares'}


def test_the_arguments_of_queues_are_few_and_always_the_same(proxy: RecordingProxy) -> None:
    shared = {'x-queue-type': 'classic', 'x-dead-letter-exchange': 'crew.DLX', 'x-max-priority': 8}
    for each in proxy.methods(Queue.Declare):
        assert each.arguments == (shared if each.durable else {'x-queue-type': 'classic'})


def test_a_private_queue_has_a_new_name_at_each_connection(proxy: RecordingProxy) -> None:
    names = [each.queue for each in proxy.methods(Queue.Declare) if each.exclusive]
    assert len(names) == len(set(names)) == 4
    assert sorted(name.rpartition('.')[0] for name in names) == ['crew.master'] * 2 + ['crew.worker'] * 2


def test_each_exchange_is_durable(proxy: RecordingProxy) -> None:
    declared = proxy.methods(Exchange.Declare)
    assert declared
    assert {(each.exchange, each.type) for each in declared} == {('crew.DLX', 'headers')}
    assert all(each.durable and not (each.auto_delete or each.internal or each.arguments) for each in declared)


def test_bindings_have_keys_that_the_broker_heeds(proxy: RecordingProxy) -> None:
    bindings = proxy.methods(Queue.Bind)
    assert len(bindings) == 2  # the front's, at each of its connections
    for each in bindings:
        keys = {key for key in each.arguments if not key.startswith('x-')}
        assert keys and set(each.arguments) - keys == {'x-match'} and each.arguments['x-match'] == 'all'


def test_prefetch_is_never_global(proxy: RecordingProxy) -> None:
    asked = proxy.methods(Basic.Qos)
    assert sorted(each.prefetch_count for each in asked) == [2, 2, 3, 3]  # threads, and what is held ahead of them
    assert not [each for each in asked if each.global_qos or each.prefetch_size]


def test_only_shared_queues_are_consumed_with_acks(proxy: RecordingProxy) -> None:
    consumed = proxy.methods(Basic.Consume)
    assert {(each.queue.rpartition('.')[0], each.no_ack) for each in consumed} == {
        ('crew.tasks', False),
        ('crew.master', True),
        ('crew.worker', True),
    }
    assert not [each for each in consumed if each.exclusive or each.arguments]


def test_the_broker_of_the_tests_refuses_what_rabbitmq_4_refuses(broker: PrivateNode, queue: str) -> None:
    limit = 16_777_216
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, exclusive=True)
        channel.basic_publish('', queue, bytes(limit))
        with pytest.raises(ChannelClosedByBroker, match=f'message size {limit + 1} is larger than .* {limit}'):
            channel.basic_publish('', queue, bytes(limit + 1))
