"""Which transport an address names: ``amqp://`` and ``amqps://`` RabbitMQ, ``memory://`` a broker in this process."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from crew.transports.base import Connection

__all__ = [
    'DEFAULT_URL',
    'MEMORY',
    'Url',
    'check',
    'checked',
    'default_urls',
    'dial',
    'is_memory',
    'safe_url',
    'url_of',
]

MEMORY = 'memory'

# What is certainly a host, and no user's name.
_HOST_AND_PORT = re.compile(r'(?:[0-9.]+|\[[0-9A-Fa-f:.]+\]|localhost):[0-9]{1,5}(?:/|\Z)')


class Url(str):
    """An address that leaves out its password where it is shown as a value: in debuggers, tracebacks, error reports."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(safe_url(self))


DEFAULT_URL = Url('amqp://guest:guest@127.0.0.1:5672/%2F')


def default_urls() -> list[str]:
    """Return the brokers that ``CREW_AMQP_URL`` names, separated by blanks, or the one on this machine."""
    return [Url(url) for url in os.environ.get('CREW_AMQP_URL', '').split()] or [DEFAULT_URL]


def url_of(host: str, port: int = 5672, virtualhost: str = '/', user: str = '', password: str = '') -> str:
    """Return the AMQP URL of a broker; user and password are RabbitMQ's own for this machine unless given."""
    name = f'[{host}]' if ':' in host else host
    return (
        f'amqp://{quote(user or "guest", "")}:{quote(password or "guest", "")}@{name}:{port}/{quote(virtualhost, "")}'
    )


def checked(urls: str | Sequence[str]) -> list[str]:
    """Return one or several addresses as a list.

    Raises:
        ValueError: there is none, or one cannot be understood.
    """
    result = urls.split() if isinstance(urls, str) else list(urls)
    if not result:
        raise ValueError('there must be at least one URL')
    for url in result:
        check(url)
    return [Url(url) for url in result]


def is_memory(url: str) -> bool:
    """Return whether an address names a broker in this process."""
    return urlsplit(url).scheme == MEMORY


def check(url: str) -> None:
    """Look whether an address can be understood, without going there.

    Raises:
        ValueError: it cannot; the message says why and holds no password.
    """
    if not is_memory(url) and not _is_plain(url):
        from crew.transports.asyncio import parameters

        parameters(url)


def _is_plain(url: str) -> bool:
    """Return whether a broker's URL can be understood for certain, without pika, TLS and all that they load."""
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) and parts.port != 0 and (parts.username is None) == (parts.password is None)
        return whole and parts.scheme == 'amqp' and not parts.query
    except ValueError:
        return False


async def dial(url: str, *, name: str = 'crew', timeout: float = 10.0) -> 'Connection':
    """Connect to a broker on the running loop.

    Args:
        url: ``amqp://user:password@host:port/vhost``, ``amqps://…`` (see :mod:`crew.transports.tls`), ``memory://name``.
        name: what the broker's operator sees as the connection's name.
        timeout: how long all of it may take, in seconds.

    Raises:
        ValueError: the address cannot be read.
        BrokerRefused: wrong credentials, or no such virtual host.
        ConnectionError: the broker cannot be reached, or does not answer in time.
    """
    if is_memory(url):
        from crew.transports import memory

        return await memory.dial(url)
    # pika is loaded only where it is used.
    from crew.transports import asyncio as amqp

    return await amqp.dial(url, name=name, timeout=timeout)


def safe_url(url: str) -> str:
    """Return the URL without its password, for logs."""
    head, at, tail = url.partition('?')[0].rpartition('@')
    scheme, separator, credentials = (head or tail).rpartition('://')
    if not at and not _HOST_AND_PORT.match(credentials):
        # Perhaps the host was forgotten, and what looks like a port is the password.
        return f'{scheme}{separator}{credentials.partition(":")[0]}'
    if not at:
        return f'{scheme}{separator}{credentials}'
    return f'{scheme}{separator}{credentials.partition(":")[0]}@{tail}'
