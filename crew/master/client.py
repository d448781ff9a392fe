"""What every client can do, whatever its framework: call, publish, subscribe, consume.

A face derives from :class:`BaseClient` and adds its framework's way to wait (a future, a result, a deferred), to call
back, and to reach the loop on which the connection lives. Everything else is here, once.
"""

import contextlib
import itertools
import logging
import math
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

from crew import codec, topology
from crew.deadlines import bounded, time_left
from crew.envelope import Envelope
from crew.exceptions import (
    ConnectionError,
    CrewError,
    DuplicateTaskId,
    ExpirationError,
    PayloadError,
    ProtocolError,
    TimeoutError,
    WorkerLost,
)
from crew.ids import unique_id
from crew.master.caller import Counters
from crew.master.engine import Engine
from crew.master.parallel import Parallel
from crew.messages import MAX_EXPIRATION, Call, Chunk, Credit, HeaderValue, Publication, Reply
from crew.payloads import Payload, pack, unpack
from crew.serializers import CONTENT_TYPES, Serializer, accepted
from crew.topology import QueueType
from crew.transports import addresses

__all__ = ['DAY', 'BaseClient', 'Credentials', 'Outgoing', 'Pending']

log = logging.getLogger(__name__)

F = TypeVar('F')
F_co = TypeVar('F_co', covariant=True)

Headers = dict[str, HeaderValue]

DAY = 86400.0

#: How long a publication waits for a connection, in seconds.
PUBLISH_TIMEOUT = 30.0

#: How long a call may be said to run at most, in seconds.
MAX_TIMEOUT = 2**32 - 1

#: How many ids of calls that were given up are remembered.
MAX_ABANDONED = 10_000


class Credentials(Protocol):
    """A user name and password, as ``pika.PlainCredentials`` has them."""

    username: str
    password: str


class Pending(Protocol[F_co]):
    """What somebody waits for; told its outcome once, on the loop of the connection."""

    @property
    def future(self) -> F_co:
        """What the one who waits holds."""

    def resolve(self, value: Any, headers: Headers) -> None:
        """Give the value, and the headers that came with it."""

    def reject(self, error: BaseException) -> None:
        """Give the error that took its place."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call, ready to be sent, and where; ``id`` is what its caller calls it."""

    id: str
    call: Call
    routing_key: str
    exchange: str


class BaseClient(ABC, Generic[F]):
    """A client of crew. ``F`` is what its framework waits on.

    It connects by itself when it is first used, and again whenever the connection is lost.

    What happens on reconnect:
        calls in flight: fail at once with :class:`crew.ConnectionError`, its ``published`` true: they may have run.
        calls waiting: what was not sent yet is sent with the new connection. When ``expiration`` is over before there
            is one, the call fails with :class:`crew.ExpirationError`, its ``reason`` ``unconnected``.
        subscriptions: come back by themselves. What is published meanwhile is missed.
        consumers: come back by themselves. Messages that were not acknowledged go back into the queue, so a callback
            may be given one a second time.
        publications: wait for the new connection, as long as their ``timeout``, and are dropped then. One that the
            broker had not confirmed when the connection was lost fails with :class:`crew.ConnectionError` and is not
            sent again; it may have arrived.
        refusals: :class:`crew.BrokerRefused` is final at the first connection only; later ones are tried for ever.

    Args:
        host: the broker's host, or an AMQP URL. Without any address, ``CREW_AMQP_URL`` of the environment counts, then
            this machine.
        port: the broker's port.
        virtualhost: the virtual host.
        credentials: a pair of user name and password, or ``pika.PlainCredentials``.
        url: an AMQP URL instead of the four before, or several, for a cluster: tried in turn. ``amqps://`` is TLS
            (:mod:`crew.transports.tls`), ``memory://`` a broker inside this process.
        user: the user name, instead of ``credentials``.
        password: the password, instead of ``credentials``.
        vhost: the virtual host, instead of ``virtualhost``.
        accept: serializers that may be read beside ``json``, ``text`` and ``bytes``: ``{'pickle'}``, if you trust
            everybody who can publish on this broker.
        tasks: ids of tasks whose queues this client declares itself. Calls of these wait even if no worker has ever
            been there; calls of others are :class:`crew.Unroutable` then.
        queue_type: of these queues: ``classic``, or ``quorum`` for a cluster.
        name: what the broker's operator sees as the connection's name.

    Raises:
        ValueError: an address cannot be understood, or another argument makes no sense.

    Attributes:
        counters: what happened to messages that nobody is told of otherwise (:class:`crew.master.caller.Counters`).
    """

    #: How long methods that wait for a connection do so, in seconds; None leaves it to who waits.
    _patience: float | None = None

    def __init__(
        self,
        host: str | None = None,
        port: int = 5672,
        virtualhost: str = '/',
        credentials: Credentials | tuple[str, str] | None = None,
        *,
        url: str | Sequence[str] | None = None,
        user: str | None = None,
        password: str | None = None,
        vhost: str | None = None,
        accept: Collection[str] = (),
        tasks: Collection[str] = (),
        queue_type: QueueType = 'classic',
        name: str = 'crew-client',
    ) -> None:
        if url is None and host is not None and '://' in host:
            url = host
        if url is not None:
            self._urls = addresses.checked(url)
        elif host is None and (port, virtualhost, credentials, user, password, vhost) == (5672, '/', *[None] * 4):
            self._urls = addresses.checked(addresses.default_urls())
        else:
            user, password = _login(credentials, user, password)
            address = addresses.url_of(host or '127.0.0.1', port, vhost or virtualhost, user, password)
            self._urls = addresses.checked(address)
        self.counters = Counters()
        self._accept = accepted(accept)
        ids = [tasks] if isinstance(tasks, str) else tasks
        self._queues = [topology.task_queue(task, queue_type) for task in ids]
        self._name = name
        self._ids: dict[str, Call] = {}
        self._abandoned: dict[str, None] = {}
        self._subscribers: dict[str, list[Callable[[Any], Any]]] = {}
        # Taken for moments only, never while anything is waited for; a signal's handler may come in between.
        self._lock = threading.RLock()
        _clients.add(self)

    # Calling

    @overload
    def call(
        self,
        channel: str,
        data: Any = None,
        callback: None = None,
        serializer: Serializer | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        persistent: bool = True,
        priority: int = 0,
        expiration: float = DAY,
        gzip: bool | None = None,
        gzip_level: int = 6,
        set_cid: object = None,
        routing_key: str | None = None,
        exchange: str = '',
        *,
        timeout: float | None = None,
    ) -> F: ...

    @overload
    def call(
        self,
        channel: str,
        data: Any,
        callback: Callable[[Any, Headers], Any],
        serializer: Serializer | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        persistent: bool = True,
        priority: int = 0,
        expiration: float = DAY,
        gzip: bool | None = None,
        gzip_level: int = 6,
        set_cid: object = None,
        routing_key: str | None = None,
        exchange: str = '',
        *,
        timeout: float | None = None,
    ) -> str: ...

    @overload
    def call(
        self,
        channel: str,
        data: Any = None,
        *,
        callback: Callable[[Any, Headers], Any],
        serializer: Serializer | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        persistent: bool = True,
        priority: int = 0,
        expiration: float = DAY,
        gzip: bool | None = None,
        gzip_level: int = 6,
        set_cid: object = None,
        routing_key: str | None = None,
        exchange: str = '',
        timeout: float | None = None,
    ) -> str: ...

    def call(
        self,
        channel: str,
        data: Any = None,
        callback: Callable[[Any, Headers], Any] | None = None,
        serializer: Serializer | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        persistent: bool = True,
        priority: int = 0,
        expiration: float = DAY,
        gzip: bool | None = None,
        gzip_level: int = 6,
        set_cid: object = None,
        routing_key: str | None = None,
        exchange: str = '',
        *,
        timeout: float | None = None,
    ) -> F | str:
        """Have a task run by a worker. Returns at once.

        Args:
            channel: the task's id.
            data: its argument.
            callback: called with the value and its headers (or with the error in the value's place, and no headers)
                instead of giving something to wait on.
            serializer: ``json``, ``text``, ``bytes`` or ``pickle``; None is ``bytes`` for bytes, ``json`` for all else.
            headers: strings, 64-bit integers and booleans beside the argument; the task finds them in
                ``context.request_headers``.
            persistent: whether the call survives a restart of the broker, while it waits.
            priority: 0–255; higher is taken first. It has the effect of its number of binary digits, so 1, 2, 4 … 128
                differ, 64 and 100 do not.
            expiration: how long it may wait for a worker, in seconds.
            gzip: whether to compress the argument; None compresses what is longer than 32 KiB.
            gzip_level: 0–9.
            set_cid: the call's own id; it must be no other's in flight.
            routing_key: what ``exchange`` routes by; the task's queue by default.
            exchange: an exchange of your own to send it through. There must be one of this name.
            timeout: how long it may run, in seconds; None is what is left of ``expiration``. Both are cut to what is
                left of the task that makes the call, if one does.

        Returns:
            What the framework waits on; the call's id if there is a ``callback``.

        Raises:
            DuplicateTaskId: a call with the id ``set_cid`` is in flight.
            PayloadError: the serializer cannot carry the argument.
            TimeoutError: the task that makes this call has no time left.
            ValueError: another argument makes no sense.

        What is waited on brings the value, or

        * :class:`crew.RemoteError`: the task raised, or its worker did not understand the call;
        * :class:`crew.TimeoutError`: it started and ran past its time;
        * :class:`crew.ExpirationError`: no worker took it in time; :class:`crew.Unroutable`, at once, if there is no
          such queue;
        * :class:`crew.WorkerLost`: its worker died, and it may not run again;
        * :class:`crew.ConnectionError`: the connection was lost after it was sent, so it may have run;
          :class:`crew.Blocked`: the broker takes no messages now;
        * :class:`crew.BrokerRefused`: the broker refused this client;
        * :class:`crew.PayloadError`: the value came in a form that is not accepted here.
        """
        outgoing = self._outgoing(
            channel,
            data,
            serializer=serializer,
            headers=headers,
            persistent=persistent,
            priority=priority,
            expiration=expiration,
            gzip=gzip,
            gzip_level=gzip_level,
            set_cid=set_cid,
            routing_key=routing_key,
            exchange=exchange,
            timeout=timeout,
        )
        id = outgoing.id
        try:
            if callback is not None:
                self._expect_callbacks()
                self._send(outgoing, _CalledBack(self, callback))
                return id
            pending = self._pending(lambda: self.cancel(id))
            self._send(outgoing, pending)
        except BaseException:
            # It is not in flight, so its id is free.
            self._release(outgoing)
            raise
        return pending.future

    def _release(self, outgoing: Outgoing, *, abandoned: bool = False) -> None:
        """Let a call's id be another's, unless it is by now."""
        if self._ids:
            with self._lock:
                if self._ids.get(outgoing.id) is outgoing.call:
                    del self._ids[outgoing.id]
                    if abandoned:
                        self._abandon(outgoing.id)

    def _abandon(self, id: str) -> None:
        """Remember an id that a worker may still know, and answer to."""
        self._abandoned[id] = None
        if len(self._abandoned) > MAX_ABANDONED:
            self._abandoned.pop(next(iter(self._abandoned)))

    def cancel(self, correlation_id: str) -> None:
        """Forget a call: nobody is told its outcome. A worker that runs it stops it, as when its time is over.

        Args:
            correlation_id: its id. That of a call which is over is fine.
        """
        with self._lock:
            call = self._ids.pop(correlation_id, None)
            if call is not None:
                self._abandon(correlation_id)
        sent_as = correlation_id if call is None else call.correlation_id
        self._post_if_open(lambda engine: engine.caller.cancel(sent_as))

    def parallel(self) -> Parallel:
        """Make several calls at once with a :class:`Parallel`, and get their results in the order of the calls.

        Returns:
            What makes the calls.
        """
        return Parallel(self)

    def _outgoing(
        self,
        channel: str,
        data: Any,
        *,
        serializer: Serializer | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        persistent: bool = True,
        priority: int = 0,
        expiration: float = DAY,
        gzip: bool | None = None,
        gzip_level: int = 6,
        set_cid: object = None,
        routing_key: str | None = None,
        exchange: str = '',
        timeout: float | None = None,
    ) -> Outgoing:
        _check_seconds('expiration', expiration, MAX_EXPIRATION)
        if timeout is not None:
            _check_seconds('timeout', timeout, MAX_TIMEOUT)
        if headers is not None and not isinstance(headers, Mapping):
            raise ValueError(f'headers must be a mapping, not {type(headers).__name__}')
        payload = pack(data, serializer, gzip=gzip, gzip_level=gzip_level)
        if timeout is None and time_left() is not None:
            timeout = math.inf
        id = sent_as = unique_id() if set_cid is None else str(set_cid)
        if id in self._abandoned:
            # What a worker still has to say of the other call must not be taken for this one's.
            sent_as = f'{id}.{unique_id()[:8]}'
        call = Call(
            correlation_id=sent_as,
            body=payload.body,
            content_type=payload.content_type,
            content_encoding=payload.content_encoding,
            expiration=bounded(expiration),
            timeout=None if timeout is None else bounded(timeout),
            priority=priority,
            persistent=persistent,
            sent=time.time(),
            headers=codec.checked_headers(headers) if headers else {},
        )
        key = topology.task_queue_name(channel) if routing_key is None else routing_key
        if len(key.encode()) > topology.MAX_NAME or len(exchange.encode()) > topology.MAX_NAME:
            raise ValueError(f'routing_key and exchange have at most {topology.MAX_NAME} bytes of UTF-8')
        if set_cid is not None:
            with self._lock:
                if id in self._ids:
                    raise DuplicateTaskId(f'a call with the id {id!r} is in flight already')
                self._ids[id] = call
        return Outgoing(id, call, key, exchange)

    def _send(self, outgoing: Outgoing, pending: Pending[Any]) -> None:
        call = outgoing.call

        def settled(outcome: Reply | Chunk | Credit | CrewError) -> None:
            if not isinstance(outcome, CrewError) and (not isinstance(outcome, Reply) or outcome.more):
                # Workers of tasks do not send in parts.
                self.cancel(outgoing.id)
                outcome = ProtocolError('the answer comes in parts, which is not understood here')
            self._release(outgoing, abandoned=isinstance(outcome, (TimeoutError, ExpirationError, WorkerLost)))
            if isinstance(outcome, CrewError):
                pending.reject(outcome)
                return
            try:
                value = unpack(Payload(outcome.body, outcome.content_type, outcome.content_encoding), self._accept)
            except PayloadError as error:
                pending.reject(error)
            else:
                pending.resolve(value, dict(outcome.headers))

        def send(engine: Engine) -> None:
            try:
                engine.caller.submit(call, outgoing.routing_key, settled, exchange=outgoing.exchange)
            except CrewError as error:
                settled(error)

        try:
            self._post(send)
        except ConnectionError as error:
            settled(error)

    # Publishing and subscribing

    def publish(
        self,
        channel: str,
        message: Any,
        serializer: Serializer | None = None,
        *,
        gzip: bool | None = None,
        gzip_level: int = 6,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> F:
        """Give a value to everybody who has subscribed to a channel now. No worker takes part.

        Args:
            channel: the channel's name.
            message: the value.
            serializer: as for :meth:`call`.
            gzip: as for :meth:`call`.
            gzip_level: as for :meth:`call`.
            timeout: how long to wait for a connection, in seconds.

        Returns:
            What the framework waits on, until the broker has it; nobody needs to.

        Raises:
            PayloadError: the serializer cannot carry the value.
            ValueError: the channel has no name, or one that is too long.

        What is waited on brings None, or :class:`crew.ConnectionError`, :class:`crew.BrokerRefused`. If nobody waits,
        the log says that the publication was dropped.
        """
        payload = pack(message, serializer, gzip=gzip, gzip_level=gzip_level)
        publication = Publication(
            channel=channel,
            body=payload.body,
            content_type=payload.content_type,
            content_encoding=payload.content_encoding,
        )

        async def publish(engine: Engine) -> None:
            try:
                await engine.publish(publication, timeout)
            except CrewError as error:
                self.counters.dropped += 1
                log.warning('a publication on %r was dropped: %s', channel, error)
                raise

        return self._do(publish)

    def subscribe(self, channel: str, callback: Callable[[Any], Any]) -> F:
        """Be given what is published on a channel, by any process, from now on and after every reconnect.

        What is published while there is no connection is missed. Callbacks are begun in the order in which the values
        came.

        Args:
            channel: the channel's name.
            callback: called with each value.

        Returns:
            What the framework waits on, until the subscription is in place; nobody needs to.

        Raises:
            ValueError: the channel has no name, or one that is too long.
        """
        Publication(channel=channel)  # checks the name
        self._expect_callbacks()
        with self._lock:
            self._subscribers.setdefault(channel, []).append(callback)
        return self._do(lambda engine: engine.subscribe(channel, self._patience))

    def unsubscribe(self, channel: str, callback: Callable[[Any], Any] | None = None) -> F:
        """Be given nothing more from a channel.

        Args:
            channel: the channel's name. One that is not subscribed to is fine.
            callback: the one that is called no more; None for all of this client's.

        Returns:
            What the framework waits on, until nothing more comes; nobody needs to.
        """
        with self._lock:
            callbacks = self._subscribers.get(channel, [])
            left = [] if callback is None else [other for other in callbacks if other != callback]
            self._subscribers[channel] = left
            if not left:
                del self._subscribers[channel]

        async def unsubscribe(engine: Engine) -> None:
            if not left:
                await engine.subscriptions.remove(channel)

        return self._do(unsubscribe)

    def _published(self, publication: Publication, done: Callable[[], None]) -> None:
        """Take a publication, on the loop of the connection."""
        callbacks = tuple(self._subscribers.get(publication.channel, ()))
        if not callbacks:
            done()
            return
        payload = Payload(publication.body, publication.content_type, publication.content_encoding)
        value = unpack(payload, self._accept)
        left = itertools.count(len(callbacks) - 1, -1)

        def one_done() -> None:
            if next(left) == 0:
                self._post_if_open(lambda engine: done())

        for callback in callbacks:
            self._invoke(callback, (value,), one_done)

    # Consuming

    def consume(self, queue: str, callback: Callable[[Any, Headers], Any], *, prefetch: int = 1) -> F:
        """Be given the messages of a queue, whoever puts them there, from now on and after every reconnect.

        Args:
            queue: the queue's name at the broker; it is declared (durable, classic) if there is none.
            callback: called with each message's value and headers. When it returns (or what it returned has been
                awaited) the message is acknowledged, whether it raised or not; if the process dies before, the message
                goes back into the queue.
            prefetch: how many messages may be here at once that are not acknowledged.

        Returns:
            What the framework waits on, until messages are on their way; nobody needs to.

        Raises:
            ValueError: the name or ``prefetch`` makes no sense.

        What is waited on brings None, or :class:`crew.BrokerRefused`, :class:`crew.ConnectionError` (somebody else has
        the queue for himself), :class:`ValueError` (it is consumed by this client already).
        """
        if not 0 < len(queue.encode()) <= topology.MAX_NAME:
            raise ValueError(f'a queue name has 1 to {topology.MAX_NAME} bytes of UTF-8: {queue!r}')
        if not 0 < prefetch < 2**16:
            raise ValueError(f'prefetch must be 1 to 65535, not {prefetch}')

        def on_message(envelope: Envelope, ack: Callable[[], None]) -> None:
            try:
                value, headers = self._read(envelope)
            except PayloadError as error:
                self.counters.refused += 1
                log.warning('dropped a message from %s: %s', queue, error)
                ack()
            else:
                self._invoke(callback, (value, headers), lambda: self._post_if_open(lambda engine: ack()))

        self._expect_callbacks()
        return self._do(lambda engine: engine.consume(queue, prefetch, on_message, self._patience))

    def cancel_consume(self, queue: str) -> F:
        """Consume a queue no more. What was not acknowledged goes back into it.

        Args:
            queue: its name. One that is not consumed is fine.

        Returns:
            What the framework waits on, until it is done; nobody needs to.
        """
        return self._do(lambda engine: engine.consumers.cancel(queue))

    def _read(self, envelope: Envelope) -> tuple[Any, Headers]:
        # What others publish often says nothing of its type.
        content_type = envelope.content_type or CONTENT_TYPES['bytes']
        value = unpack(Payload(envelope.body, content_type, envelope.content_encoding), self._accept)
        return value, codec.user_headers(envelope.headers)

    # The connection

    def connect(self, timeout: float | None = None) -> F:
        """Wait for the connection. Nobody needs to: what is done before waits for it.

        Args:
            timeout: for how many seconds, or None for as long as it takes (30 seconds where waiting is blocking).

        Returns:
            What the framework waits on.

        What is waited on brings None, :class:`crew.BrokerRefused` if trying again would not help, or
        :class:`crew.ConnectionError` if there was none in time.
        """
        patience = self._patience if timeout is None else timeout
        return self._do(lambda engine: engine.wait_ready(patience))

    @abstractmethod
    def close(self) -> Any:
        """Fail what is in flight, send what is still to be sent, and close the connection. May be called again.

        Returns:
            What the framework waits on, until it is closed. What is called from then on fails with
            :class:`crew.ConnectionError`.
        """

    # What the frameworks do in different ways

    @abstractmethod
    def _post(self, action: Callable[[Engine], None]) -> None:
        """Do something on the loop of the connection, in order; from any thread that the framework allows.

        Raises:
            ConnectionError: the client is closed.
        """

    def _post_if_open(self, action: Callable[[Engine], None]) -> None:
        """Do something on the loop of the connection that means nothing any more when the client is closed."""
        with contextlib.suppress(ConnectionError):
            self._post(action)

    @abstractmethod
    def _do(self, action: Callable[[Engine], Awaitable[None]]) -> F:
        """Do something on the loop of the connection that takes a while; return what waits for it."""

    @abstractmethod
    def _pending(self, on_cancel: Callable[[], None]) -> Pending[F]:
        """Make what somebody waits on; ``on_cancel`` is called if he gives up."""

    @abstractmethod
    def _finish(self, pending: Pending[F], timeout: float | None) -> Any:
        """Return what the methods of this face return for something to wait on: itself, or what it brings."""

    @abstractmethod
    def _invoke(self, callback: Callable[..., Any], args: tuple[Any, ...], done: Callable[[], None]) -> None:
        """Call back where the framework does such things, and ``done`` when it has been dealt with.

        Called on the loop of the connection. What the callback raises is logged.
        """

    def _expect_callbacks(self) -> None:
        """Take note that callbacks may come from now on, whatever else the program waits for."""

    def _engine(self, loop: Any) -> Engine:
        """Make the connection's end on a loop."""
        self_ref = weakref.ref(self)

        def on_publication(publication: Publication, done: Callable[[], None]) -> None:
            client = self_ref()
            if client is not None:
                client._published(publication, done)

        engine = Engine(
            loop,
            self._urls,
            self._queues,
            on_publication=on_publication,
            # Nobody need wait for connect(), and then nobody would be told.
            on_refused=lambda error: log.error('%s', error),
            counters=self.counters,
            name=self._name,
        )
        # A copy: other threads may subscribe meanwhile.
        for channel in list(self._subscribers):
            engine.subscriptions.add(channel)
        return engine

    def _forget_parent(self) -> None:
        """Begin anew in a child process: the connection is the parent's, with all that is done there."""
        self._ids.clear()
        self._subscribers.clear()
        # Another thread of the parent may have held it.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        urls = ', '.join(map(addresses.safe_url, self._urls))
        return f'<{type(self).__module__}.{type(self).__name__} {urls}>'


_clients: 'weakref.WeakSet[BaseClient[Any]]' = weakref.WeakSet()


def _forget_parent() -> None:
    for client in list(_clients):
        client._forget_parent()


os.register_at_fork(after_in_child=_forget_parent)


class _CalledBack:
    """Tells a callback the outcome of a call."""

    future = None

    def __init__(self, client: BaseClient[Any], callback: Callable[[Any, Headers], Any]) -> None:
        self._client = client
        self._callback = callback

    def resolve(self, value: Any, headers: Headers) -> None:
        self._client._invoke(self._callback, (value, headers), _nothing)

    def reject(self, error: BaseException) -> None:
        self._client._invoke(self._callback, (error, {}), _nothing)


def _nothing() -> None:
    pass


def _check_seconds(name: str, value: object, most: int) -> None:
    if not (isinstance(value, (int, float)) and 0 < value <= most):
        raise ValueError(f'{name} must be a positive number of seconds, at most {most}, not {value!r}')


def _login(
    credentials: Credentials | tuple[str, str] | None, user: str | None, password: str | None
) -> tuple[str, str]:
    if credentials is None:
        return user or 'guest', password or 'guest'
    if isinstance(credentials, tuple):
        return credentials
    return credentials.username, credentials.password
