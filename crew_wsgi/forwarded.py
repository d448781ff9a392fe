"""What proxies say of a request that they have passed on: ``Forwarded`` (RFC 7239) and the ``X-Forwarded-*`` fields.

Anybody can write such fields, so only those are believed that a trusted proxy has written: the chain is read from its
end, and the first address that is no trusted proxy's is the client's. Where a proxy hides an address, or what it wrote
cannot be read, the chain ends: what stands before may be anybody's word.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

from crew.values import value_class
from crew_wsgi.headers import HeaderPairs, for_host

__all__ = ['Network', 'Origin', 'Proxies', 'Written', 'is_forwarding', 'read_networks']

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Which fields proxies write.
Written: TypeAlias = Literal['either', 'forwarded', 'x-forwarded']

# RFC 9110 §5.6.2, §5.6.4: token=value or token="value", where a backslash quotes the next character.
_PAIR = re.compile(r'[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^",; \t]*))[ \t]*(?=[;,]|\Z)')
_EMPTY = re.compile(r'[ \t]*(?=[;,]|\Z)')
_HOST = re.compile(r'([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?')
# RFC 7239 §6: a port may be hidden, too. An IPv6 address has brackets there, but not in X-Forwarded-For.
_NODE = re.compile(r'(?:\[([^\[\]]+)\]|([0-9.]+))(?::(?:([0-9]{1,5})|_[0-9A-Za-z._-]+))?')
# RFC 3986 §3.3, without empty segments: a path that begins with two slashes would lead to another host.
_PREFIX = re.compile(r"(?:/[0-9A-Za-z._~!$&'()*+;=:@%-]+)*")

#: A unix socket has no address; the proxy on this machine is meant.
LOCAL = 'unix'


@value_class(frozen=True, slots=True)
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
        fields: which fields the proxies write. The others are a client's own, which the proxies pass on, and dropped.
            With ``either``, ``Forwarded`` is read where there is no ``X-Forwarded-For``: most proxies write the latter.
    """

    networks: Sequence[Network] = ()
    local: bool = False
    others: Literal['drop', 'pass'] = 'pass'
    fields: Written = 'either'

    def origin(self, peer: tuple[str, int], scheme: str, headers: HeaderPairs) -> tuple[Origin, HeaderPairs]:
        """Return where a request came from, and the header fields that the application gets.

        Args:
            peer: address and port of who is connected to us; an empty address is a unix socket.
            scheme: of our own connection.
            headers: all fields, in order.
        """
        direct = Origin((_plain(peer[0]) or peer[0], peer[1]), scheme)
        if not self._trusts(peer[0] or LOCAL):
            if self.others == 'drop':
                headers = [pair for pair in headers if not is_forwarding(pair[0])]
            return direct, headers
        values: dict[str, list[str]] = {}
        for name, value in headers:
            values.setdefault(name.lower(), []).append(value)
        standard = self.fields == 'forwarded' or (self.fields == 'either' and 'x-forwarded-for' not in values)
        if standard and (self.fields == 'forwarded' or 'forwarded' in values):
            headers = [pair for pair in headers if not pair[0].lower().startswith('x-forwarded-')]
            elements = _forwarded(values.get('forwarded', []))
        else:
            headers = [pair for pair in headers if pair[0].lower() != 'forwarded']
            elements = _x_forwarded(values)
        origin = self._walk(direct, elements)
        if origin.host:
            # The application is to see what the proxy says.
            headers = for_host(origin.host, headers)
        return origin, headers

    def _trusts(self, address: str) -> bool:
        if address == LOCAL:
            return self.local
        plain = _plain(address) if self.networks else None
        if plain is None:
            return False
        parsed = ipaddress.ip_address(plain)
        return any(parsed in network for network in self.networks)

    def _walk(self, origin: Origin, elements: 'Sequence[_Element]') -> Origin:
        """Go back along the chain for as long as trusted proxies wrote it."""
        for element in reversed(elements):
            client = _node(element.client)
            origin = Origin(
                client=client or origin.client,
                scheme=element.scheme or origin.scheme,
                host=element.host or origin.host,
                prefix=element.prefix or origin.prefix,
            )
            if client is None or not self._trusts(client[0]):
                break
        return origin


@dataclass(frozen=True, slots=True)
class _Element:
    """What one proxy has said."""

    client: str = ''
    scheme: str = ''
    host: str = ''
    prefix: str = ''


def is_forwarding(name: str) -> bool:
    """Return whether a field says where a request came from: what only a proxy may say."""
    return name.lower() in ('forwarded', 'x-real-ip') or name.lower().startswith('x-forwarded-')


def _forwarded(values: Sequence[str]) -> list[_Element]:
    """Read ``Forwarded`` fields (RFC 7239 §4). What cannot be read ends the chain there."""
    text = ','.join(values)
    elements: list[_Element] = []
    pairs: dict[str, str] = {}
    at = 0
    while at <= len(text):
        match = _PAIR.match(text, at)
        if match is not None:
            name, quoted, plain = match.groups()
            # RFC 7239 §4: a parameter must not occur twice; one of them may be somebody else's.
            known = pairs.get(name.lower())
            value = re.sub(r'\\(.)', r'\1', quoted) if quoted is not None else plain
            pairs[name.lower()] = value if known in (None, value) else ''
        else:
            match = _EMPTY.match(text, at)
        if match is None:
            # Whoever wrote this is not to be believed; what stands after it was written later, by the next proxy.
            elements, pairs = [_Element()], {}
            comma = text.find(',', at)
            if comma < 0:
                return elements
            at = comma + 1
            continue
        at = match.end() + 1
        if text[match.end() : at] != ';' and pairs:
            elements.append(_element(pairs))
            pairs = {}
    return elements


def _element(pairs: dict[str, str]) -> _Element:
    return _Element(pairs.get('for', ''), _scheme(pairs.get('proto', '')), _host(pairs.get('host', '')))


def _x_forwarded(values: Mapping[str, Sequence[str]]) -> list[_Element]:
    """Read the ``X-Forwarded-*`` fields.

    Where there are as many hosts or schemes as addresses, each proxy has added its own; else the last is the nearest
    proxy's word.
    """

    def items(name: str) -> list[str]:
        return [item.strip(' \t') for value in values.get(f'x-forwarded-{name}', ()) for item in value.split(',')]

    clients = items('for') or ['']

    def spread(name: str) -> list[str]:
        given = items(name)
        return given if len(given) == len(clients) else [''] * (len(clients) - 1) + (given or [''])[-1:]

    schemes = [_scheme(text) for text in spread('proto')]
    hosts = [_host(text) for text in spread('host')]
    with_port = _host(f'{hosts[-1]}:{(items("port") or [""])[-1]}')
    # The port that the scheme implies would stand in each URL that the application makes.
    if with_port and not with_port.endswith({'http': ':80', 'https': ':443'}.get(schemes[-1], ' ')):
        hosts[-1] = with_port
    prefix = (items('prefix') or [''])[-1].rstrip('/')
    bad = not _PREFIX.fullmatch(prefix) or not {'.', '..'}.isdisjoint(prefix.split('/'))
    elements = [_Element(*each) for each in zip(clients, schemes, hosts, strict=True)]
    return [*elements[:-1], replace(elements[-1], prefix='' if bad else prefix)]


def _scheme(text: str) -> str:
    return text.lower() if text.lower() in ('http', 'https') else ''


def _host(text: str) -> str:
    match = _HOST.fullmatch(text)
    return text if match is not None and int(match[2] or 0) < 65536 else ''


@lru_cache(maxsize=1024)
def _plain(address: str) -> str | None:
    """Return an address as it is usually written: no zone, and IPv4 where an IPv6 socket says ``::ffff:192.0.2.1``."""
    try:
        parsed = ipaddress.ip_address(address.partition('%')[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _node(text: str) -> tuple[str, int] | None:
    """Read an address, perhaps with a port (RFC 7239 §6); None for what is hidden or makes no sense."""
    match = _NODE.fullmatch(text)
    bracketed, plain, port = match.groups() if match is not None else (None, text, None)
    address = _plain(bracketed or plain or '')
    if address is None:
        return None
    number = int(port or 0)
    return address, number if number < 65536 else 0


def read_networks(text: str) -> list[Network]:
    """Read networks such as ``10.0.0.0/8,::1``.

    Raises:
        ValueError: one of them is none.
    """
    return [_network(part.strip()) for part in text.split(',') if part.strip()]


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network
