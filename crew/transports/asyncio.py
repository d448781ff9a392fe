"""AMQP on an asyncio loop (Tornado's is one) through pika: :func:`dial` gives a connection of ``transports.base``.

This is the one module that knows pika's classes; foreign exceptions become ours here.
"""

import asyncio
import logging
import os
import re
import socket
import ssl
import struct
from collections.abc import Callable
from itertools import takewhile
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

import pika
from pika.adapters.asyncio_connection import AsyncioConnection as PikaConnection
from pika.channel import Channel as PikaChannel
from pika.credentials import ExternalCredentials
from pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    NoFreeChannels,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)
from pika.frame import Header
from pika.spec import Basic, BasicProperties

from crew.envelope import Envelope
from crew.exceptions import BrokerRefused, ConnectionError, CrewError
from crew.topology import Binding, Exchange, Queue
from crew.transports import tls
from crew.transports.acks import Acks
from crew.transports.addresses import safe_url
from crew.transports.base import Delivery, OnClosed, OnConfirm, OnDelivery, OnReturn
from crew.transports.frames import (
    Delivered,
    decode_delivery,
    encode_ack,
    encode_content,
    encode_publish,
    frame_size,
    is_awaited,
    undecodable_header,
)
from crew.transports.futures import look_at
from crew.transports.pulse import Pulse
from crew.transports.services import AsyncioServices
from crew.transports.unread import Unread

__all__ = ['AsyncioChannel', 'AsyncioConnection', 'dial', 'parameters']

log = logging.getLogger(__name__)

# It reports as errors, at each attempt, what crew reports in its own words. Who has set its level wants to see it.
if logging.getLogger('pika').level == logging.NOTSET:
    logging.getLogger('pika').setLevel(logging.CRITICAL)

T = TypeVar('T')

# AMQP 0-9-1 reply codes that say: you are set up wrongly; the same attempt later would fail the same way.
REFUSALS = {403, 406, 530, 540}
FORBIDDEN = 403
NOT_FOUND = 404

#: What RabbitMQ says in a 530 of a virtual host or a user that has all the connections it may have.
_LIMIT = re.compile(r'(user )?connection limit \(\d+\)')

#: What RabbitMQ says in a 403 of a channel. Newer versions have the permission before it.
_NO_ACCESS = re.compile(r"access to (queue|exchange) '")

# What is asked for → on what permission is missing → which one.
_PERMISSIONS = {
    'queue': {'queue': 'configure', 'exchange': 'write'},
    'exchange': {'exchange': 'configure'},
    'binding': {'queue': 'write', 'exchange': 'read'},
    'consumer': {'queue': 'read'},
    'message': {'exchange': 'write'},
}


def parameters(url: str, name: str = 'crew') -> pika.URLParameters:
    """Return pika's parameters for an AMQP URL.

    Args:
        url: ``amqp://user:password@host:port/vhost`` or ``amqps://…``, for whose parameters see
            :mod:`crew.transports.tls`.
        name: what the broker's operator sees as the connection's name.

    Raises:
        ValueError: it is not such a URL, or a file that it names cannot be used; the message says why and holds no
            password.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ('amqp', 'amqps') or not parts.hostname or parts.port == 0:
            raise ValueError('no AMQP URL')
        pika.URLParameters(parts._replace(query='').geturl())
    except Exception:  # pika raises whatever the part that it could not read made it raise
        hint = 'amqp://user:password@host:5672/%2F'
        # From nothing: what could not be read as a port, say, may be a part of the password.
        raise ValueError(f'bad AMQP URL {safe_url(url)!r}: it should look like {hint}') from None
    for_pika, options = tls.split_query(url)
    try:
        result = pika.URLParameters(for_pika)
    except Exception as error:
        names = ', '.join(name for name, _ in parse_qsl(parts.query))
        raise ValueError(f'bad AMQP URL {safe_url(url)!r}: a value among those of {names} cannot be used') from error
    if parts.scheme == 'amqps':
        result.ssl_options = pika.SSLOptions(*tls.client_context(options, parts.hostname))
    if options.get('auth_mechanism') == 'external':
        result.credentials = ExternalCredentials()
    result.connection_attempts = 1
    result.retry_delay = 0
    result.client_properties = {
        'product': 'crew',
        'connection_name': f'{name} {socket.gethostname()}:{os.getpid()}',
    }
    return result


async def dial(url: str, *, name: str = 'crew', timeout: float = 10.0) -> 'AsyncioConnection':
    """Connect to a broker on the running loop.

    Args:
        url: see :func:`parameters`.
        name: what the broker's operator sees as the connection's name.
        timeout: how long all of it may take, in seconds.

    Raises:
        ValueError: the URL, or a file that it names, cannot be read.
        BrokerRefused: wrong credentials, or no such virtual host.
        ConnectionError: the broker cannot be reached, does not answer in time, or one side does not trust the other.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[_Dialled] = loop.create_future()
    services = AsyncioServices(loop)

    def on_done(result: Any) -> None:
        if isinstance(result, BaseException):
            _fail(opened, _open_error(services.failure or result, url))
        else:
            _settle(opened, result)

    to = parameters(url, name)
    if to.ssl_options is not None and to.ssl_options.context.verify_mode is ssl.CERT_NONE:
        tls.warn_unverified(url)
    workflow = _Dialled.start(to, services, on_done)
    try:
        await asyncio.wait({opened}, timeout=timeout)
    finally:
        given_up = not opened.done()
        if given_up:
            # pika's own abort fails once it has a stream; without one it is the only way. Either comes to its end, and
            # closes the socket, within the next turns of the loop.
            if services.connected:
                services.abort()
            else:
                workflow.abort()
            await asyncio.wait({opened}, timeout=1.0)
            if not opened.cancel():
                opened.exception()  # seen, so the loop does not complain that nobody looked
    if given_up:
        raise ConnectionError(f'no answer from the broker at {safe_url(url)} within {timeout:g} s')
    return AsyncioConnection(opened.result(), services, url)


class _Dialled(PikaConnection):  # type: ignore[misc]
    """pika's connection on our streams; made by pika's own steps of connecting, which can be aborted."""

    _frame_buffer: bytes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._acks: dict[int, Acks] = {}
        super().__init__(*args, **kwargs)

    def _on_data_available(self, data_in: Unread) -> None:
        """Read frames: whole deliveries at once (``frames``), all others one by one, as pika does.

        A delivery of which more is to come is waited for: pika makes objects of what there is of it, to no end. Pika's
        state is left as if it had read all that is taken, for it may have to read the next one.
        """
        data, offset, end = data_in.data, data_in.begin, data_in.end
        # Now, and not when it is whole: by this pika knows that the broker is alive.
        self.bytes_received = data_in.total
        while offset < end:
            delivered = decode_delivery(data, offset, end)
            consumer = None if delivered is None else self._consumer_of(delivered)
            if delivered is None or consumer is None:
                size = frame_size(data, offset, end, self.params.frame_max)
                if not size or (delivered is None and is_awaited(data, offset, end)):
                    break
                self._frame_buffer = data_in.copy(offset, offset + size)
                offset += size
                _, frame = self._read_frame()
                self._frame_buffer = b''
                self._process_frame(frame)
            else:
                self.frames_received += delivered.frames
                offset = delivered.end
                consumer.take(delivered.envelope, delivered.tag, delivered.redelivered)
        data_in.understand(offset)

    def _consumer_of(self, delivered: Delivered) -> '_Consumer | None':
        """Return who gets a delivery; None where pika has to decide, or has begun to read a message on that channel."""
        channel = self._channels.get(delivered.channel)
        if channel is None or delivered.consumer_tag in channel._cancelled:
            return None
        begun = channel._content_assembler
        if begun._method_frame is not None or begun._header_frame is not None:
            return None
        consumer = channel._consumers.get(delivered.consumer_tag)
        return consumer if isinstance(consumer, _Consumer) else None

    def _read_frame(self) -> tuple[int, Any]:
        """Read a frame; one whose properties pika cannot decode counts as a message of an unknown type.

        Anyone who may publish can send a time stamp out of range or a table nested a thousand deep. pika would raise,
        the connection would be lost, and the message would come back at once, for ever.
        """
        try:
            return cast(tuple[int, Any], super()._read_frame())
        except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError, struct.error, AMQPError):
            undecodable = undecodable_header(self._frame_buffer)
            if undecodable is None:
                raise
            log.warning('a message has properties that cannot be decoded')
            number, body_size, end = undecodable
            return end, Header(number, body_size, BasicProperties(type='undecodable'))

    def publish(self, number: int, envelope: Envelope, exchange: str, routing_key: str, mandatory: bool) -> None:
        """Send a message on an open channel; see ``frames``."""
        method = encode_publish(number, exchange, routing_key, mandatory)
        content = encode_content(number, envelope, self._body_max_length)
        self.bytes_sent += len(method) + sum(map(len, content))
        self.frames_sent += 1 + len(content) // 3
        self._transport.write_pieces(method, content)

    def ack(self, number: int, acks: Acks, tag: int) -> None:
        """Acknowledge a delivery of an open channel when this turn of the loop ends, together with others."""
        if acks.ack(tag):
            self._acks[number] = acks
            self._transport.flush_later(self._send_acks)

    def _send_acks(self) -> None:
        for number in list(self._acks):
            self._send_acks_of(number)

    def _send_acks_of(self, number: int) -> None:
        acks = self._acks.pop(number)
        self._output_marshaled_frames([encode_ack(number, tag, multiple) for tag, multiple in acks.collect()])

    def forget_acks(self, number: int) -> None:
        """Send no acks on a channel that is closed."""
        self._acks.pop(number, None)

    def _send_method(self, channel_number: int, method: Any, content: Any = None) -> None:
        """Send a method, but not before the acks that were given before."""
        if channel_number in self._acks:
            self._send_acks_of(channel_number)
        super()._send_method(channel_number, method, content)

    @classmethod
    def start(cls, to: pika.URLParameters, services: AsyncioServices, on_done: Callable[[Any], None]) -> Any:
        """Begin to connect; ``on_done`` gets the open connection or an exception. Return what can be aborted."""

        def make(to: pika.URLParameters) -> '_Dialled':
            return cls(to, custom_ioloop=services, internal_connection_workflow=False)

        return cls._start_connection_workflow([to], make, services, None, on_done)


class _Consumer:
    """What gets a consumer's deliveries, from :class:`_Dialled` or from pika.

    Args:
        channel: where they come in.
        on_delivery: who wants them.
        no_ack: whether the broker expects no ack for them.
    """

    __slots__ = ('_channel', '_no_ack', '_on_delivery')

    def __init__(self, channel: 'AsyncioChannel', on_delivery: OnDelivery, no_ack: bool) -> None:
        self._channel = channel
        self._on_delivery = on_delivery
        self._no_ack = no_ack

    def __call__(self, _: PikaChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        """Take what pika has read."""
        self.take(_envelope(properties, body), method.delivery_tag, method.redelivered)

    def take(self, envelope: Envelope, tag: int, redelivered: bool) -> None:
        """Take a delivery."""
        channel = self._channel
        channel.arrived(tag, self._no_ack)
        try:
            self._on_delivery(Delivery(envelope, tag, redelivered, channel))
        except Exception:  # one message must not cost the connection, nor come back for ever
            log.exception('a message was dropped: %s %r', envelope.type, envelope.correlation_id)
            if not self._no_ack:
                channel.ack(tag)


class AsyncioConnection:
    """A pika connection behind the port of ``transports.base``; made by :func:`dial`."""

    def __init__(self, connection: _Dialled, services: AsyncioServices, url: str) -> None:
        self.on_close: Callable[[Exception], None] = lambda reason: None
        self.on_blocked: Callable[[bool], None] = lambda blocked: None
        self._closed = asyncio.Event()
        self._url = url
        self._channels: dict[AsyncioChannel, None] = {}  # a set in order
        self._pika = connection
        self._services = services
        self._blocked = False
        loop = asyncio.get_running_loop()
        self._pulse = Pulse(loop, lambda: services.heard, self._ask_for_life, self._silent)
        connection.add_on_close_callback(lambda _, error: self._lost(error))
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))

    async def open_channel(
        self,
        *,
        prefetch: int = 0,
        confirm: bool = False,
        on_confirm: OnConfirm | None = None,
        on_return: OnReturn | None = None,
        on_closed: OnClosed | None = None,
    ) -> 'AsyncioChannel':
        """Open a channel; see the port."""
        channel = AsyncioChannel(self._on_channel_closed, on_confirm, on_return, on_closed)
        self._channels[channel] = None
        try:
            await channel.open(self._pika, prefetch, confirm or on_confirm is not None)
        except CrewError:
            self._channels.pop(channel, None)
            raise
        return channel

    async def ensure(self, *shared: Queue | Exchange) -> None:
        """See that shared queues and exchanges are there; see the port."""
        channel = await self._open_expendable()
        for what in shared:
            try:
                await channel.declare(what)
            except BrokerRefused as refusal:
                if _code(refusal) != FORBIDDEN:
                    raise
                await self._find(what, refusal)
                channel = await self._open_expendable()
        await channel.close()

    async def _find(self, what: Queue | Exchange, refusal: BrokerRefused) -> None:
        """Look for what we may not declare."""
        if await self._is_there(what):
            log.debug('not declared here, but it is there: %s', what.name)
            return
        kind = 'queue' if isinstance(what, Queue) else 'exchange'
        raise BrokerRefused(
            f'there is no {kind} {what.name} at the broker, and this user may not declare it: run crew-declare as one '
            f'who may (docs/security.md); {_words(refusal.__cause__ or refusal)}'
        ) from refusal

    async def exists(self, queue: str) -> bool:
        """Return whether there is a queue of this name; see the port."""
        return await self._is_there(Queue(queue))

    async def _is_there(self, what: Queue | Exchange) -> bool:
        channel = await self._open_expendable()
        try:
            await channel.look_up(what)
        except CrewError as error:
            if _code(error) == NOT_FOUND:
                return False
            raise
        await channel.close()
        return True

    async def _open_expendable(self) -> 'AsyncioChannel':
        # The broker's way to say no is to close the channel.
        return await self.open_channel(on_closed=lambda reason: None)

    async def close(self) -> None:
        """Send what is still to be sent, and close; see the port."""
        if self._pika.is_open:
            self._pika.close()
        elif not self._pika.is_closing:
            return
        try:
            await asyncio.wait_for(self._closed.wait(), 5)
        except asyncio.TimeoutError:
            # A broker that does not answer, not even this.
            self._services.abort()

    # Whether it is alive

    def _ask_for_life(self) -> bool:
        # While the broker has an alarm, it does not read.
        asked = None if self._blocked else next((channel for channel in self._channels if channel.is_open), None)
        if asked is not None:
            asked.ask_for_life()
        return asked is not None

    def _silent(self, seconds: float) -> None:
        if not self._blocked:
            self._services.abort(f'the broker was asked, and said nothing for {seconds:.0f} s')

    # From pika

    def _set_blocked(self, blocked: bool) -> None:
        self._blocked = blocked
        self.on_blocked(blocked)

    def _lost(self, error: BaseException) -> None:
        self._closed.set()
        self._pulse.stop()
        reason = ConnectionError(f'the connection to the broker at {safe_url(self._url)} was lost: {_words(error)}')
        reason.__cause__ = error
        channels, self._channels = self._channels, {}
        for channel in channels:
            channel.lost(reason)
        self.on_close(reason)

    def _on_channel_closed(self, channel: 'AsyncioChannel', reason: Exception, unexpected: bool, heard: bool) -> None:
        self._channels.pop(channel, None)
        if not unexpected or not self._pika.is_open:
            return
        if channel.on_closed is not None:
            channel.on_closed(reason)
        else:
            # A channel that the broker closed took its consumers and its acks with it: start from nothing.
            level = logging.DEBUG if heard else logging.WARNING  # whoever waited for the channel reports the reason
            log.log(level, 'the broker closed a channel, so the connection is made anew: %s', reason)
            self._pika.close()


class AsyncioChannel:
    """A pika channel behind the port of ``transports.base``; made by :meth:`AsyncioConnection.open_channel`."""

    def __init__(
        self,
        report: Callable[['AsyncioChannel', Exception, bool, bool], None],
        on_confirm: OnConfirm | None,
        on_return: OnReturn | None,
        on_closed: OnClosed | None,
    ) -> None:
        self.on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._on_return = on_return
        self._on_confirm = on_confirm
        self._outstanding: dict[int, tuple[Envelope, str]] = {}
        self._waiting: set[asyncio.Future[Any]] = set()
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        self._published = 0
        self._confirm = False
        self._prefetch = 0
        self._error: Exception | None = None
        self._closing = False
        self._asked = 'message'
        self._acks = Acks()
        self._number = 0
        self._connection: _Dialled
        self._pika: PikaChannel

    async def open(self, connection: '_Dialled', prefetch: int, confirm: bool) -> None:
        """Open it on a connection; see :meth:`AsyncioConnection.open_channel`."""
        opened = self._future()
        try:
            self._pika = connection.channel(on_open_callback=lambda _: _settle(opened, None))
        except NoFreeChannels as error:
            most = connection.params.channel_max
            raise ConnectionError(
                f'no channel is free: the connection has {most}, and all are taken; a call through an exchange '
                'takes one until the broker has it, so it must wait for others'
            ) from error
        except AMQPError as error:
            raise ConnectionError(f'the connection to the broker is gone: {_words(error)}') from error
        self._pika.add_on_close_callback(lambda _, error: self._closed_by(error))
        self._pika.add_on_cancel_callback(self._consumer_lost)
        if self._on_return is not None:
            self._pika.add_on_return_callback(self._returned)
        self._connection, self._number = connection, self._pika.channel_number
        await opened
        await self._limit(prefetch)
        if confirm:
            self._confirm = True
            await self._ask(lambda done: self._pika.confirm_delivery(self._confirmation, callback=done))

    async def _limit(self, prefetch: int) -> None:
        """Set how much the consumers that follow may hold unacknowledged."""
        if prefetch != self._prefetch:
            self._prefetch = prefetch
            await self._ask(lambda done: self._pika.basic_qos(prefetch_count=prefetch, callback=done))

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._error is None and not self._closing and self._pika.is_open

    def ask_for_life(self) -> None:
        """Ask the broker for something that means nothing, only to hear from it."""
        # AMQP 0-9-1, channel.flow: to send what it sends already.
        self._pika.flow(True, callback=lambda active: None)

    # Declaring and consuming

    async def declare(self, what: Queue | Exchange | Binding) -> None:
        """Declare it; see the port."""
        if isinstance(what, Queue):
            await self._ask(
                lambda done: self._pika.queue_declare(
                    what.name,
                    durable=what.durable,
                    exclusive=what.exclusive,
                    arguments=dict(what.arguments),
                    callback=done,
                ),
                'queue',
            )
        elif isinstance(what, Exchange):
            await self._ask(
                lambda done: self._pika.exchange_declare(what.name, what.type, durable=True, callback=done), 'exchange'
            )
        else:
            await self._ask(
                lambda done: self._pika.queue_bind(
                    what.queue, what.exchange, arguments=dict(what.arguments), callback=done
                ),
                'binding',
            )

    async def unbind(self, binding: Binding) -> None:
        """Take a binding away; see the port."""
        await self._ask(
            lambda done: self._pika.queue_unbind(
                binding.queue, binding.exchange, arguments=dict(binding.arguments), callback=done
            ),
            'binding',
        )

    async def look_up(self, what: Queue | Exchange) -> None:
        """Ask for a queue or an exchange by its name, which closes the channel when there is none."""
        declare = self._pika.queue_declare if isinstance(what, Queue) else self._pika.exchange_declare
        await self._ask(lambda done: declare(what.name, passive=True, callback=done))

    async def consume(
        self,
        queue: str,
        on_delivery: OnDelivery,
        *,
        no_ack: bool = False,
        prefetch: int | None = None,
        priority: int = 0,
    ) -> str:
        """Start to consume; see the port."""
        consumer = _Consumer(self, on_delivery, no_ack)
        arguments = {'x-priority': priority} if priority else None
        tag = ''

        def start(done: Callable[[Any], None]) -> None:
            nonlocal tag
            tag = self._pika.basic_consume(queue, consumer, auto_ack=no_ack, arguments=arguments, callback=done)

        if prefetch is not None:
            await self._limit(prefetch)
        await self._ask(start, 'consumer')
        return tag

    async def cancel(self, consumer_tag: str) -> None:
        """Stop to consume; see the port."""

        def cancel(done: Callable[[Any], None]) -> None:
            self._pika.basic_cancel(consumer_tag, callback=done)
            # pika would put back by itself what arrives before the broker's answer, and nobody would have told the
            # caller that it was not started.
            self._pika._cancelled.discard(consumer_tag)

        await self._ask(cancel)

    def arrived(self, tag: int, no_ack: bool) -> None:
        """Take note of a delivery; each is seen here before anybody may acknowledge it."""
        self._acks.arrived(tag, no_ack=no_ack)

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery; see the port."""
        if self._pika.is_open:
            self._connection.ack(self._number, self._acks, tag)

    def nack(self, tag: int) -> None:
        """Put a delivery back; see the port."""
        if self._pika.is_open:
            self._acks.nack(tag)
            self._pika.basic_nack(tag, requeue=True)

    # Publishing

    def publish(self, envelope: Envelope, routing_key: str, *, exchange: str = '', mandatory: bool = False) -> None:
        """Send a message; see the port."""
        if not self._pika.is_open:
            log.debug('dropped a %s message for %s: the channel is closed', envelope.type, routing_key)
            self._error = self._error or ConnectionError('the channel is closed')
            return
        self._connection.publish(self._number, envelope, exchange, routing_key, mandatory)
        if self._confirm:
            self._published += 1
            if self._on_confirm is not None:
                self._outstanding[self._published] = envelope, routing_key
            else:
                self._unconfirmed[self._published] = self._future()

    async def confirmed(self) -> None:
        """Wait for the broker's confirms; see the port."""
        if self._error is not None:
            raise self._error
        if self._unconfirmed:
            # Not gather(): one who gives up would take the confirms from all the others.
            done, _ = await asyncio.wait([*self._unconfirmed.values()], return_when=asyncio.FIRST_EXCEPTION)
            for confirm in done:
                confirm.result()

    async def last_confirmed(self) -> None:
        """Wait for the broker's confirm of what has just been published; see the port."""
        if self._error is not None:
            raise self._error
        confirm = self._unconfirmed.get(self._published)
        if confirm is not None:
            # Others may wait for all that is not confirmed, and one who gives up must not take it from them.
            await asyncio.shield(confirm)

    def _confirmation(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            # Both are in order.
            kept = self._unconfirmed if self._on_confirm is None else self._outstanding
            tags = [*takewhile(lambda tag: tag <= method.delivery_tag, kept)]
        for tag in tags:
            sent = self._outstanding.pop(tag, None)
            if sent is not None and self._on_confirm is not None:
                self._on_confirm(*sent, not isinstance(method, Basic.Nack))
                continue
            future = self._unconfirmed.pop(tag, None)
            if future is None:
                continue
            if isinstance(method, Basic.Nack):
                _fail(future, ConnectionError('the broker refused a message'))
            else:
                _settle(future, None)

    def _returned(self, _: PikaChannel, method: Basic.Return, properties: BasicProperties, body: bytes) -> None:
        if self._on_return is not None:
            self._on_return(_envelope(properties, body), method.routing_key)

    # Closing

    async def close(self) -> None:
        """Close the channel; see the port."""
        if self._pika.is_open:
            self._closing = True
            closed = self._future()
            self._pika.add_on_close_callback(lambda *_: _settle(closed, None))
            self._pika.close()
            await closed

    def lost(self, reason: Exception) -> bool:
        """Fail whoever waits on this channel, for it is gone; return whether anybody did."""
        self._error = self._error or reason
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            _fail(future, self._error)
        self._unconfirmed.clear()
        self._outstanding.clear()
        return bool(waiting)

    def _closed_by(self, error: BaseException) -> None:
        reason: Exception
        if isinstance(error, ChannelClosedByBroker) and error.reply_code in REFUSALS:
            reason = BrokerRefused(f'{_words(error)}{_hint(error.reply_text, self._asked)}')
        else:
            reason = ConnectionError(f'the channel was closed: {_words(error)}')
        reason.__cause__ = error
        self._connection.forget_acks(self._number)
        heard = not self._closing and self.lost(reason)
        self._report(self, reason, isinstance(error, ChannelClosedByBroker), heard)

    def _consumer_lost(self, _: Any) -> None:
        # The queue was deleted, or its node died. Closing the channel makes everything anew, the queue included.
        reason = ConnectionError('the broker cancelled a consumer: its queue was deleted or has moved')
        heard = self.lost(reason)
        if self.on_closed is not None and self._pika.is_open:
            self._closing = True
            self._pika.close()
        self._report(self, reason, True, heard)

    # Asking the broker

    async def _ask(self, request: Callable[[Callable[[Any], None]], Any], what: str = 'message') -> None:
        if self._error is not None:
            raise self._error
        answer = self._future()
        self._asked = what
        try:
            request(lambda frame: _settle(answer, None))
        except AMQPError as error:
            self._waiting.discard(answer)
            raise ConnectionError(f'the channel is closed: {_words(error)}') from error
        await answer
        self._asked = 'message'

    def _future(self) -> 'asyncio.Future[Any]':
        future = self._loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        # Whoever waits gets the exception; when nobody does, the loss of the connection has been reported anyway.
        future.add_done_callback(look_at)
        return future


# Between pika's values and ours


def _envelope(properties: BasicProperties, body: bytes) -> Envelope:
    return Envelope(
        body=body,
        type=_string(properties.type),
        correlation_id=_string(properties.correlation_id),
        reply_to=_string(properties.reply_to),
        content_type=_string(properties.content_type),
        content_encoding=_string(properties.content_encoding),
        headers=properties.headers or {},
        expiration=_integer(properties.expiration),
        priority=properties.priority or 0,
        persistent=properties.delivery_mode == 2,
        timestamp=properties.timestamp,
    )


def _string(value: str | bytes | None) -> str:
    # pika gives bytes where a short string is not UTF-8. One byte stays one: a longer string could not be sent back.
    if isinstance(value, bytes):
        return value.decode('ascii', 'replace').replace('\ufffd', '?')
    return value or ''


def _integer(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _settle(future: 'asyncio.Future[T]', value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: 'asyncio.Future[Any]', error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _open_error(error: BaseException, url: str) -> Exception:
    where = safe_url(url)
    error = _innermost(error)
    result: Exception
    # This is how pika names every end before the broker's first answer.
    unanswered = isinstance(error, IncompatibleProtocolError)
    tls_line = tls.explain(ConnectionResetError() if unanswered else error, url)
    if tls_line is not None:
        result = ConnectionError(tls_line)
    elif isinstance(error, (ProbableAuthenticationError, AuthenticationError)):
        result = BrokerRefused(f'the broker at {where} refused {_login(url)}')
    elif isinstance(error, ProbableAccessDeniedError) and (limit := _LIMIT.search(str(error))):
        # 530 like the next, but somebody may leave, or the operator allow more.
        result = ConnectionError(f'the broker at {where} takes no more connections: {limit[0]} is reached')
    elif isinstance(error, ProbableAccessDeniedError) or (
        isinstance(error, ConnectionClosedByBroker) and error.reply_code in REFUSALS
    ):
        hint = 'make it with rabbitmqctl add_vhost and set_permissions, or put another into the URL'
        result = BrokerRefused(f'the broker at {where} has no such virtual host, or the user may not use it: {hint}')
    elif unanswered:
        hint = 'is this a TLS port? then write amqps://'
        result = ConnectionError(f'the broker at {where} closed the connection and answered no AMQP 0-9-1: {hint}')
    else:
        result = ConnectionError(f'cannot reach the broker at {where}: {_words(error)}')
    result.__cause__ = error
    return result


def _login(url: str) -> str:
    """Say by what we have told who we are, and what to do if it was not believed."""
    if tls.split_query(url)[1].get('auth_mechanism') == 'external':
        return 'to know us by our certificate: it needs rabbitmq_auth_mechanism_ssl, and a user of the name in there'
    return 'the user name or password: put others into the URL'


def _innermost(error: BaseException) -> BaseException:
    """Return what pika wrapped in its own exceptions."""
    wrapped = [*getattr(error, 'args', ()), getattr(error, 'exception', None), *getattr(error, 'exceptions', ())]
    inner = next((each for each in reversed(wrapped) if isinstance(each, BaseException)), None)
    return error if inner is None else _innermost(inner)


def _code(error: BaseException) -> int | None:
    """Return the reply code with which the broker closed a channel, if it did."""
    cause = error.__cause__
    return cause.reply_code if isinstance(cause, ChannelClosedByBroker) else None


def _hint(refusal: str, asked: str) -> str:
    """Return what to do about a refusal, by the broker's words for it and what it was asked for."""
    if missing := _NO_ACCESS.search(refusal):
        permission = _PERMISSIONS[asked].get(missing[1], 'access')
        return f'; give this user {permission} there with rabbitmqctl set_permissions (docs/security.md)'
    # A queue or exchange is declared anew with another argument, type or durability.
    if 'inequivalent arg' in refusal:
        return '; delete it or use another name'
    if 'delivery acknowledgement' in refusal:
        return '; a worker must know of a consumer_timeout that is not the default, by --consumer-timeout'
    return ''


def _words(error: BaseException) -> str:
    """Say in one line what happened."""
    error = _innermost(error)
    if isinstance(error, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return f'{error.reply_code} {error.reply_text}'
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
