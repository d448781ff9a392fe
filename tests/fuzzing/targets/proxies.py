"""What clients and proxies write into the fields of a request: only what a trusted proxy has written is believed."""

import ipaddress
import re

from crew_wsgi.forwarded import Origin, Proxies, is_forwarding, read_networks
from crew_wsgi.headers import HeaderPairs
from tests.fuzzing.bounds import quick
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

TRUSTED = read_networks('10.0.0.0/8,fd00::/8')
PEERS = ['10.0.0.1', '192.0.2.9', 'fd00::1', '::ffff:10.0.0.2', 'fd00::2%eth0', '', '2001:db8::1']

NAMES = ['Forwarded', 'X-Forwarded-For', 'X-Forwarded-Proto', 'X-Forwarded-Host', 'X-Forwarded-Port']
NAMES += ['X-Forwarded-Prefix', 'X-Real-IP', 'Host', 'forwarded', 'X-A']

#: What no host, prefix or address may bring into a URL, a header field or a log.
DANGEROUS = set(' \t\r\n\0"<>?#\\@')

# Pieces of what proxies write, so that a search need not spell them.
PIECES = ['for=', 'proto=', 'host=', 'by=', '"', '\\', ';', ',', ' ', '[', ']', ':', '.', '=', '10.0.0.9', '192.0.2.7']
PIECES += ['[2001:db8::7]', '2001:db8::7', ':80', 'unknown', '_hidden', 'https', 'http', 'a.example', '/p', '//', '..']
PIECES += ['for="[fd00::3]:1"', 'for=10.0.0.8', '\t', 'é', '65536', '%']


def check(data: bytes) -> None:
    """Let a chain of proxies say what the bytes choose, and a client before them anything."""
    choices = Choices(data)
    if choices.flag():
        _check_anything(choices)
    else:
        _check_chain(choices)


# Anything


def _check_anything(choices: Choices) -> None:
    proxies = _proxies(choices)
    peer = choices.pick(PEERS), choices.byte()
    headers = [(choices.pick(NAMES), _value(choices)) for _ in range(choices.below(5))]
    with quick():
        origin, passed = proxies.origin(peer, 'http', headers)
    _assert_sensible(origin, peer)
    trusted = proxies._trusts(peer[0] or 'unix')
    if not trusted:
        plain = Origin((_plain(peer[0]), peer[1]), 'http')
        assert origin == plain, 'a stranger was believed'
        dropped = proxies.others == 'drop'
        assert list(passed) == [pair for pair in headers if not (dropped and is_forwarding(pair[0]))]
        return
    assert sum(name.lower() == 'host' for name, _ in passed) <= max(1, sum(n.lower() == 'host' for n, _ in headers))
    # Nothing that came before hides what the last proxy adds.
    sent = [*headers, ('Forwarded' if proxies.fields == 'forwarded' else 'X-Forwarded-For', '192.0.2.7')]
    if proxies.fields == 'forwarded':
        sent[-1] = ('Forwarded', 'for=192.0.2.7')
    assert proxies.origin(peer, 'http', sent)[0].client == ('192.0.2.7', 0)


def _proxies(choices: Choices) -> Proxies:
    return Proxies(
        TRUSTED,
        local=choices.flag(),
        others='drop' if choices.flag() else 'pass',
        fields=choices.pick(['either', 'forwarded', 'x-forwarded']),
    )


def _value(choices: Choices) -> str:
    if choices.rarely():
        return choices.short().decode('latin-1')
    return ''.join(choices.pick(PIECES) for _ in range(choices.below(12)))


def _assert_sensible(origin: Origin, peer: tuple[str, int]) -> None:
    address, port = origin.client
    if origin.client != (_plain(peer[0]), peer[1]):
        assert str(ipaddress.ip_address(address)) == address and '%' not in address
    assert 0 <= port < 65536
    assert origin.scheme in ('http', 'https')
    assert not set(origin.host + origin.prefix) & DANGEROUS
    assert re.fullmatch(r'(/[^/]+)*', origin.prefix) and not {'.', '..'} & set(origin.prefix.split('/'))
    assert '/' not in origin.host


def _plain(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition('%')[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


# What is well-formed, read as RFC 7239 means it


def _check_chain(choices: Choices) -> None:
    """Compare what was read with what was written."""
    peer = (choices.pick(['10.0.0.1', 'fd00::1']), 1)
    elements = [_element(choices) for _ in range(1 + choices.below(5))]
    fields: list[str] = []
    for element in elements:
        text = choices.pick(JUNK) if element is NONSENSE else _written(element, choices)
        if fields and choices.flag():
            fields[-1] += choices.pick([',', ', ', ' ,', ',,', ' , , ']) + text
        else:
            fields.append(text)
    proxies = Proxies(TRUSTED, fields=choices.pick(['either', 'forwarded']))
    headers: HeaderPairs = [('Forwarded', text) for text in fields]
    found, passed = proxies.origin(peer, 'http', headers)
    assert found == _meant(peer, elements), f'{headers}'
    assert [pair for pair in passed if pair[0] != 'Host'] == list(headers)
    assert not found.host or passed[0] == ('Host', found.host)


#: What nobody can read: it ends the chain, for what stands before may be anybody's word.
JUNK = ['for', 'for=10.0.0.1 x', '=x', 'a b', 'for="', 'for=10.0.0.1"', 'proto=https;;;for', '{}']
NONSENSE: dict[str, tuple[str, object]] = {}

#: For each parameter what is written, and what it means.
NODES = [
    ('10.0.0.7', '10.0.0.7'),
    ('192.0.2.7', '192.0.2.7'),
    ('[2001:db8::7]', '2001:db8::7'),
    ('[fd00::9]', 'fd00::9'),
]
NODES += [('unknown', ''), ('_hidden', ''), ('[::ffff:192.0.2.8]', '192.0.2.8')]
PORTS = [('', 0), (':80', 80), (':65535', 65535), (':_x', 0)]
SCHEMES = ['http', 'https', 'HTTPS', '']
HOSTS = ['a.example', 'a.example:8080', '[2001:db8::1]:1', '']


def _element(choices: Choices) -> dict[str, tuple[str, object]]:
    """Choose the parameters of one proxy: name, what is written, what is meant."""
    if choices.rarely():
        return NONSENSE
    element: dict[str, tuple[str, object]] = {}
    if choices.byte() % 8:
        (node, address), (suffix, port) = choices.pick(NODES), choices.pick(PORTS)
        if not address:
            suffix = ''
        element['for'] = (node + suffix, (address, port) if address else None)
    if scheme := choices.pick(SCHEMES):
        element['proto'] = (scheme, scheme.lower())
    if host := choices.pick(HOSTS):
        element['host'] = (host, host)
    if not element or choices.rarely():
        element['by'] = ('_us', None)
    if choices.rarely():
        # RFC 7239 §4: a parameter must not occur twice; what it says then nobody can know.
        name = choices.pick(list(element))
        element[name] = f'{element[name][0]}', None
        element[f'{name} again'] = ('_other', None)
    return element


def _written(element: dict[str, tuple[str, object]], choices: Choices) -> str:
    pairs = []
    for key, (text, _) in element.items():
        name = key.removesuffix(' again')
        name = name.upper() if choices.rarely() else name
        if set(text) & set('[]:') or choices.flag():
            text = '"' + ''.join('\\' + each if choices.rarely() else each for each in text) + '"'
        pairs.append(f'{name}={text}')
    return choices.pick([';', '; ', ' ;', ';;']).join(pairs)


def _meant(peer: tuple[str, int], elements: list[dict[str, tuple[str, object]]]) -> Origin:
    client, scheme, host = peer, 'http', ''
    for element in reversed(elements):
        scheme = str(element.get('proto', ('', None))[1] or scheme)
        host = str(element.get('host', ('', None))[1] or host)
        meant = element.get('for', ('', None))[1]
        if not isinstance(meant, tuple):
            break
        client = meant
        if not any(ipaddress.ip_address(meant[0]) in network for network in TRUSTED):
            break
    return Origin(client, scheme, host)


def seeds() -> list[bytes]:
    """Return one of either kind."""
    return [bytes([1, 0, 0, 0, 0, 9, 2, 0, 0, 3, 0, 14, 10]), bytes([0, 0, 2, 1, 1, 1, 1, 1, 2, 0, 0, 0])]
