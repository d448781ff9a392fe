"""What proxies say of a request that they have passed on: ``Forwarded`` (RFC 7239) and the ``X-Forwarded-*`` fields.

Anybody can write such fields, so only those are believed that a trusted proxy has written: the chain is read from its
end, and the first address that is no trusted proxy's is the client's.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from crew_wsgi.headers import HeaderPairs

__all__ = ['FIELDS', 'Origin', 'Proxies', 'read_networks']

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The fields that are read, and dropped where they are not believed.
FIELDS = frozenset(
    {
        'forwarded',
        'x-forwarded-for',
        'x-forwarded-proto',
        'x-forwarded-host',
        'x-forwarded-port',
        'x-forwarded-prefix',
    }
)

# RFC 9110 §5.6.2, §5.6.4: token=value or token="value", where a backslash quotes the next character.
_PAIR = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;\s]*))\s*(;|,|$)')
_HOST = re.compile(r'[0-9A-Za-z.-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?')

#: A unix socket has no address; the proxy on this machine is meant.
LOCAL = 'unix'


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as far as it is known.

    Args:
        client: address and port; the port is 0 where it is not known.
        scheme: ``http`` or ``https``.
        host: what the client asked for, or empty to keep the ``Host`` field.
        prefix: the path under which the proxy serves us, without a slash at its end.
    """

    client: tuple[str, int]
    scheme: str
    host: str = ''
    prefix: str = ''


@dataclass(frozen=True, slots=True)
class Proxies:
    """Who is believed.

    Args:
        networks: the addresses of trusted proxies.
        local: whether who comes by a unix socket is one.
        others: what becomes of the fields from anybody else: ``drop`` them, or ``pass`` them on unread.
    """

    networks: Sequence[Network] = ()
    local: bool = False
    others: Literal['drop', 'pass'] = 'pass'

    def origin(self, peer: tuple[str, int], scheme: str, headers: HeaderPairs) -> tuple[Origin, HeaderPairs]:
        """Return where a request came from, and the header fields that the application gets.

        Args:
            peer: address and port of who is connected to us; an empty address is a unix socket.
            scheme: of our own connection.
            headers: all fields, in order.
        """
        direct = Origin(peer, scheme)
        if not self._trusts(peer[0] or LOCAL):
            if self.others == 'drop':
                headers = [pair for pair in headers if pair[0].lower() not in FIELDS]
            return direct, headers

        def values(name: str) -> list[str]:
            return [value for key, value in headers if key.lower() == name]

        elements = _forwarded(values('forwarded')) if values('forwarded') else _x_forwarded(values)
        return self._walk(direct, elements), headers

    def _trusts(self, address: str) -> bool:
        if address == LOCAL:
            return self.local
        try:
            parsed = ipaddress.ip_address(address.partition('%')[0])
        except ValueError:
            return False
        mapped = getattr(parsed, 'ipv4_mapped', None)
        return any((mapped or parsed) in network for network in self.networks)

    def _walk(self, origin: Origin, elements: 'Sequence[_Element]') -> Origin:
        """Go back along the chain for as long as trusted proxies wrote it."""
        for element in reversed(elements):
            client = _node(element.client) or origin.client
            origin = Origin(
                client=client,
                scheme=element.scheme or origin.scheme,
                host=element.host or origin.host,
                prefix=element.prefix or origin.prefix,
            )
            if not self._trusts(client[0]):
                break
        return origin


@dataclass(frozen=True, slots=True)
class _Element:
    """What one proxy has said."""

    client: str = ''
    scheme: str = ''
    host: str = ''
    prefix: str = ''


def _forwarded(values: Sequence[str]) -> list[_Element]:
    """Read ``Forwarded`` fields (RFC 7239 §4). What cannot be read ends the chain there."""
    text = ', '.join(values)
    elements: list[_Element] = []
    pairs: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None:
            # Whoever wrote this is not to be believed; what stands after it was written later, by the next proxy.
            elements.clear()
            pairs = {}
            comma = text.find(',', at)
            if comma < 0:
                return []
            at = comma + 1
            continue
        name, quoted, plain, end = match.groups()
        pairs[name.lower()] = re.sub(r'\\(.)', r'\1', quoted) if quoted is not None else plain
        at = match.end()
        if end != ';':
            elements.append(_element(pairs))
            pairs = {}
    return elements


def _element(pairs: dict[str, str]) -> _Element:
    return _Element(pairs.get('for', ''), _scheme(pairs.get('proto', '')), _host(pairs.get('host', '')))


def _x_forwarded(values: Callable[[str], list[str]]) -> list[_Element]:
    """Read the ``X-Forwarded-*`` fields. All but ``-For`` are the nearest proxy's word, so their last value counts."""
    clients = [client.strip() for value in values('x-forwarded-for') for client in value.split(',')]

    def last(name: str) -> str:
        return values(name)[-1].rpartition(',')[2].strip() if values(name) else ''

    host, port = _host(last('x-forwarded-host')), last('x-forwarded-port')
    if host and port.isascii() and port.isdigit() and not re.search(r':[0-9]+\Z', host):
        host = f'{host}:{port}'
    prefix = last('x-forwarded-prefix').rstrip('/')
    nearest = _Element(
        client=clients[-1] if clients else '',
        scheme=_scheme(last('x-forwarded-proto')),
        host=host,
        prefix=prefix if re.fullmatch(r'(/[\x21-\x3e\x40-\x7e]*)*', prefix) else '',
    )
    return [*(_Element(client) for client in clients[:-1]), nearest]


def _scheme(text: str) -> str:
    return text.lower() if text.lower() in ('http', 'https') else ''


def _host(text: str) -> str:
    return text if _HOST.fullmatch(text) else ''


def _node(text: str) -> tuple[str, int] | None:
    """Read an address, perhaps with a port (RFC 7239 §6); None for what is hidden or makes no sense."""
    match = re.fullmatch(r'\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?', text)
    if match is None and text.count(':') <= 1:
        match = re.fullmatch(r'([0-9.]+)(?::([0-9]{1,5}))?', text)
    address, port = match.groups() if match is not None else (text, None)
    try:
        return str(ipaddress.ip_address(address)), min(int(port or 0), 65535)
    except ValueError:
        return None


def read_networks(text: str) -> list[Network]:
    """Read networks such as ``10.0.0.0/8,::1``.

    Raises:
        ValueError: one of them is none.
    """
    return [ipaddress.ip_network(part.strip(), strict=False) for part in text.split(',') if part.strip()]
