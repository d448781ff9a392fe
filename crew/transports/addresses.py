"""Which transport an address names: ``amqp://`` and ``amqps://`` RabbitMQ, ``memory://`` a broker in this process."""

from urllib.parse import urlsplit

from crew.transports.base import Connection

__all__ = ['MEMORY', 'check', 'dial', 'is_memory', 'safe_url']

MEMORY = 'memory'


def is_memory(url: str) -> bool:
    """Return whether an address names a broker in this process."""
    return urlsplit(url).scheme == MEMORY


def check(url: str) -> None:
    """Look whether an address can be understood, without going there.

    Raises:
        ValueError: it cannot; the message says why and holds no password.
    """
    if not is_memory(url):
        from crew.transports.asyncio import parameters

        parameters(url)


async def dial(url: str, *, name: str = 'crew', timeout: float = 10.0) -> Connection:
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
    if not at:
        # Perhaps the host was forgotten, and what looks like a port is the password.
        return f'{scheme}{separator}{credentials.partition(":")[0]}'
    return f'{scheme}{separator}{credentials.partition(":")[0]}@{tail}'
