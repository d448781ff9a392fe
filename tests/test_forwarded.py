"""Whom to believe about where a request came from: chains of proxies, honest, broken and spoofed."""

import ipaddress
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew_wsgi.forwarded import Origin, Proxies, is_forwarding, read_networks

NETWORKS = read_networks('10.0.0.0/8, 2001:db8:ffff::/48, ::ffff:172.16.0.0/108')
TRUSTING = Proxies(NETWORKS, local=True, others='drop')
PROXY = '10.0.0.1'


def origin(*headers: tuple[str, str], peer: str = PROXY, proxies: Proxies = TRUSTING) -> Origin:
    return proxies.origin((peer, 4711), 'http', headers)[0]


def client(*headers: tuple[str, str], peer: str = PROXY) -> tuple[str, int]:
    return origin(*headers, peer=peer).client


def forwarded(text: str) -> Origin:
    return origin(('Forwarded', text))


# Who is trusted


@pytest.mark.parametrize(
    ('peer', 'trusted'),
    [
        ('10.0.0.1', True),
        ('10.255.255.255', True),
        ('11.0.0.1', False),
        ('::ffff:10.0.0.1', True),
        ('::FFFF:0a00:0001', True),
        ('::ffff:11.0.0.1', False),
        ('172.16.0.9', True),
        ('172.32.0.9', False),
        ('2001:db8:ffff::1', True),
        ('2001:db8:ffff::1%eth0', True),
        ('2001:db8:fffe::1', False),
        ('::10.0.0.1', False),
        ('', True),
        ('unix', True),
        ('nonsense', False),
    ],
)
def test_a_peer_is_believed_if_its_address_is_trusted(peer: str, trusted: bool) -> None:
    assert (client(('X-Forwarded-For', '192.0.2.7'), peer=peer)[0] == '192.0.2.7') == trusted


def test_a_unix_socket_is_believed_only_if_told_so() -> None:
    headers = [('X-Forwarded-For', '192.0.2.7')]
    assert Proxies(NETWORKS).origin(('', 0), 'http', headers)[0].client == ('', 0)


@pytest.mark.parametrize(('peer', 'shown'), [('::ffff:192.0.2.7', '192.0.2.7'), ('fe80::1%eth0', 'fe80::1'), ('', '')])
def test_an_address_is_shown_as_it_is_usually_written(peer: str, shown: str) -> None:
    assert Proxies().origin((peer, 9), 'http', [])[0] == Origin((shown, 9), 'http')


CLAIMS = [
    ('Forwarded', 'for=192.0.2.7;proto=https;host=evil.example'),
    ('X-Forwarded-For', '192.0.2.7'),
    ('X-Forwarded-Proto', 'https'),
    ('X-Forwarded-Host', 'evil.example'),
    ('X-Forwarded-Port', '1'),
    ('X-Forwarded-Prefix', '/evil'),
    ('X-Forwarded-Ssl', 'on'),
    ('X-Real-IP', '192.0.2.7'),
]


@pytest.mark.parametrize('others', ['drop', 'pass'])
def test_a_stranger_is_not_believed(others: Any) -> None:
    headers = [('Host', 'a.example'), *CLAIMS, ('X-Other', 'kept')]
    found, passed = Proxies(NETWORKS, others=others).origin(('192.0.2.1', 9), 'http', headers)
    assert found == Origin(('192.0.2.1', 9), 'http')
    assert list(passed) == ([('Host', 'a.example'), ('X-Other', 'kept')] if others == 'drop' else headers)


def test_a_proxy_is_not_believed_unless_it_is_named() -> None:
    assert Proxies().origin(('127.0.0.1', 9), 'http', CLAIMS) == (Origin(('127.0.0.1', 9), 'http'), CLAIMS)


@pytest.mark.parametrize('name', ['forwarded', 'FORWARDED', 'x-forwarded-anything', 'X-Real-Ip'])
def test_the_names_of_such_fields(name: str) -> None:
    assert is_forwarding(name)
    assert not is_forwarding('X-Forwarded') and not is_forwarding('Forwarded-For')


# Forwarded


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('for=192.0.2.7', ('192.0.2.7', 0)),
        ('For="192.0.2.7:4711"', ('192.0.2.7', 4711)),
        ('for="[2001:db8::7]"', ('2001:db8::7', 0)),
        ('for="[2001:db8::7]:4711"', ('2001:db8::7', 4711)),
        ('for="[2001:DB8:0:0::7]:_hidden"', ('2001:db8::7', 0)),
        ('for="192.0.2.7:_hidden"', ('192.0.2.7', 0)),
        ('for="192.0.2.7:99999"', ('192.0.2.7', 0)),
        ('for="[::ffff:192.0.2.7]:1"', ('192.0.2.7', 1)),
        ('for="[fe80::1%25eth0]"', ('fe80::1', 0)),
        ('for="[fe80::1%<script>]"', ('fe80::1', 0)),
        ('proto=https;for=192.0.2.7;by=10.0.0.1', ('192.0.2.7', 0)),
        (' for=192.0.2.7 ; proto=https ', ('192.0.2.7', 0)),
        ('for="\\192.0.2.\\7"', ('192.0.2.7', 0)),
        ('for=192.0.2.7;x="a,b;for=1.1.1.1"', ('192.0.2.7', 0)),
        ('for=192.0.2.7;x="a\\",for=1.1.1.1"', ('192.0.2.7', 0)),
        # Empty elements and pairs are nothing (RFC 9110 §5.6.1, RFC 7239 §4).
        (',, for=192.0.2.7 ,,', ('192.0.2.7', 0)),
        (';;for=192.0.2.7;', ('192.0.2.7', 0)),
        ('for=6.6.6.6, for=192.0.2.7;', ('192.0.2.7', 0)),
        # The chain: from the end, through those we trust.
        ('for=6.6.6.6, for=192.0.2.7', ('192.0.2.7', 0)),
        ('for=192.0.2.7, for=10.0.0.9', ('192.0.2.7', 0)),
        ('for=6.6.6.6, for=192.0.2.7, for=10.0.0.9, for="[2001:db8:ffff::9]"', ('192.0.2.7', 0)),
        ('for=10.0.0.8, for=10.0.0.9', ('10.0.0.8', 0)),
        # A hidden one ends it: who stands before it has been vouched for by nobody that we know.
        ('for=6.6.6.6, for=unknown', (PROXY, 4711)),
        ('for=6.6.6.6, for=_hidden', (PROXY, 4711)),
        ('for=6.6.6.6, for=_hidden, for=10.0.0.9', ('10.0.0.9', 0)),
        ('for=6.6.6.6, proto=https', (PROXY, 4711)),
        # Nonsense ends it, too.
        ('for=6.6.6.6, for', (PROXY, 4711)),
        ('for=6.6.6.6, @, for=10.0.0.9', ('10.0.0.9', 0)),
        ('for=6.6.6.6, for=1.2.3, for=10.0.0.9', ('10.0.0.9', 0)),
        ('for=6.6.6.6 for=7.7.7.7', (PROXY, 4711)),
        ('for="6.6.6.6', (PROXY, 4711)),
        ('for="6.6.6.6\\"', (PROXY, 4711)),
        ('for="6.6.6.6"x', (PROXY, 4711)),
        ('for=6.6.6.6;for=7.7.7.7', (PROXY, 4711)),
        ('for=10.0.0.9;for=10.0.0.9', ('10.0.0.9', 0)),
        ('for=010.0.0.9', (PROXY, 4711)),
        ('for=[::1', (PROXY, 4711)),
        ('for="unix"', (PROXY, 4711)),
        ('', (PROXY, 4711)),
        # What a client sent must not swallow what the proxy adds.
        ('for="x, for=192.0.2.7', ('192.0.2.7', 0)),
        ('for=6.6.6.6;x=", for="[2001:db8::7]:4711"', ('2001:db8::7', 4711)),
        ('for=6.6.6.6;, for=192.0.2.7', ('192.0.2.7', 0)),
        ('for=6.6.6.6;x=\\, for=192.0.2.7', ('192.0.2.7', 0)),
    ],
)
def test_forwarded_names_the_client(text: str, expected: tuple[str, int]) -> None:
    assert forwarded(text).client == expected


def test_fields_are_read_as_one_list() -> None:
    fields = [('Forwarded', 'for=6.6.6.6'), ('forwarded', ''), ('FORWARDED', 'for=192.0.2.7, for=10.0.0.2')]
    assert client(*fields) == ('192.0.2.7', 0)


@pytest.mark.parametrize(
    ('text', 'scheme', 'host'),
    [
        ('for=192.0.2.7;proto=https;host=a.example', 'https', 'a.example'),
        ('for=192.0.2.7;proto=HTTPS;host="a.example:8443"', 'https', 'a.example:8443'),
        ('for=192.0.2.7;host="[2001:db8::1]:8443"', 'http', '[2001:db8::1]:8443'),
        ('for=192.0.2.7;host=under_score', 'http', 'under_score'),
        ('for=192.0.2.7;proto=javascript;host="a b"', 'http', ''),
        ('for=192.0.2.7;host="a.example/x"', 'http', ''),
        ('for=192.0.2.7;host="a@b"', 'http', ''),
        ('for=192.0.2.7;host="a:99999"', 'http', ''),
        ('for=192.0.2.7;host=""', 'http', ''),
        # The proxy that the client reached knows best, if we trust it.
        ('for=192.0.2.7;proto=https;host=a.example, for=10.0.0.9;proto=http;host=inner', 'https', 'a.example'),
        ('for=6.6.6.6;proto=https;host=evil.example, for=192.0.2.7;proto=http;host=a.example', 'http', 'a.example'),
        ('for=192.0.2.7, for=10.0.0.9;proto=https;host=a.example', 'https', 'a.example'),
        ('proto=https', 'https', ''),
    ],
)
def test_forwarded_names_scheme_and_host(text: str, scheme: str, host: str) -> None:
    found = forwarded(text)
    assert (found.scheme, found.host) == (scheme, host)


# X-Forwarded-*


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('192.0.2.7', '192.0.2.7'),
        ('192.0.2.7:4711', '192.0.2.7'),
        ('2001:db8::7', '2001:db8::7'),
        ('[2001:db8::7]:4711', '2001:db8::7'),
        ('::ffff:192.0.2.7', '192.0.2.7'),
        ('fe80::1%"><script>', 'fe80::1'),
        ('6.6.6.6, 192.0.2.7', '192.0.2.7'),
        ('6.6.6.6,192.0.2.7,10.0.0.2\t, 10.0.0.3', '192.0.2.7'),
        ('6.6.6.6, unknown', PROXY),
        ('6.6.6.6, unknown, 10.0.0.2', '10.0.0.2'),
        ('6.6.6.6, , 10.0.0.2', '10.0.0.2'),
        ('6.6.6.6, localhost', PROXY),
        ('6.6.6.6, ', PROXY),
        ('192.0.2.7\xa0', PROXY),
        ('', PROXY),
    ],
)
def test_x_forwarded_for_names_the_client(text: str, expected: str) -> None:
    assert client(('X-Forwarded-For', text))[0] == expected


@pytest.mark.parametrize(
    ('headers', 'expected'),
    [
        ({'Proto': 'https'}, Origin((PROXY, 4711), 'https')),
        ({'Proto': 'http, https'}, Origin((PROXY, 4711), 'https')),
        ({'Proto': 'ftp'}, Origin((PROXY, 4711), 'http')),
        ({'For': '192.0.2.7', 'Proto': 'https', 'Host': 'a.example'}, Origin(('192.0.2.7', 0), 'https', 'a.example')),
        ({'Host': 'evil.example, a.example'}, Origin((PROXY, 4711), 'http', 'a.example')),
        ({'Host': 'a.example', 'Port': '8080'}, Origin((PROXY, 4711), 'http', 'a.example:8080')),
        ({'Host': 'a.example:1', 'Port': '8080'}, Origin((PROXY, 4711), 'http', 'a.example:1')),
        ({'Host': '[::1]', 'Port': '8080'}, Origin((PROXY, 4711), 'http', '[::1]:8080')),
        ({'Host': 'a.example', 'Port': '443', 'Proto': 'https'}, Origin((PROXY, 4711), 'https', 'a.example')),
        ({'Host': 'a.example', 'Port': '80', 'Proto': 'https'}, Origin((PROXY, 4711), 'https', 'a.example:80')),
        ({'Host': 'a.example', 'Port': '99999'}, Origin((PROXY, 4711), 'http', 'a.example')),
        ({'Host': 'a.example', 'Port': '1' * 5000}, Origin((PROXY, 4711), 'http', 'a.example')),
        ({'Host': 'a.example', 'Port': '80@evil'}, Origin((PROXY, 4711), 'http', 'a.example')),
        ({'Host': 'a.example', 'Port': '٨٠'}, Origin((PROXY, 4711), 'http', 'a.example')),
        ({'Port': '8080'}, Origin((PROXY, 4711), 'http')),
        ({'Prefix': '/shop'}, Origin((PROXY, 4711), 'http', '', '/shop')),
        ({'Prefix': '/shop/'}, Origin((PROXY, 4711), 'http', '', '/shop')),
        ({'Prefix': '/evil, /a/b%20c'}, Origin((PROXY, 4711), 'http', '', '/a/b%20c')),
        ({'Prefix': '/'}, Origin((PROXY, 4711), 'http')),
        # As many as addresses: each proxy has added its own, and the client's claim does not count.
        (
            {'For': '6.6.6.6, 192.0.2.7, 10.0.0.2', 'Proto': 'http, https, http', 'Host': 'evil.example, a.example, b'},
            Origin(('192.0.2.7', 0), 'https', 'a.example'),
        ),
        ({'For': '192.0.2.7, 10.0.0.2', 'Proto': 'https'}, Origin(('192.0.2.7', 0), 'https')),
    ],
)
def test_the_other_x_forwarded_fields(headers: dict[str, str], expected: Origin) -> None:
    assert origin(*((f'X-Forwarded-{name}', value) for name, value in headers.items())) == expected


@pytest.mark.parametrize(
    'text', ['a b', 'a"b', "a'b", '<a>', 'a/b', 'a\\b', 'user@a', 'a?b', 'a#b', 'a:b', 'a:', '', 'é', 'a\x00', 'a%2f']
)
def test_what_is_no_host_is_not_believed(text: str) -> None:
    assert origin(('X-Forwarded-Host', text)).host == ''


@pytest.mark.parametrize(
    'text', ['//evil.example', 'shop', '/a b', '/a?b', '/a#b', '/<a>', '/a//b', '/..', '/a/../b', '/./a', '/é', '/a\\b']
)
def test_what_is_no_prefix_is_not_believed(text: str) -> None:
    assert origin(('X-Forwarded-Prefix', text)).prefix == ''


# Both


SPOOFED = [('Forwarded', 'for=6.6.6.6;proto=https;host=evil.example'), ('X-Forwarded-For', '192.0.2.7')]


def test_a_client_cannot_speak_in_the_fields_that_its_proxy_does_not_write() -> None:
    found, passed = TRUSTING.origin((PROXY, 9), 'http', [('Host', 'a.example'), *SPOOFED])
    assert found == Origin(('192.0.2.7', 0), 'http')
    assert list(passed) == [('Host', 'a.example'), SPOOFED[1]]


@pytest.mark.parametrize(
    ('fields', 'expected', 'left'),
    [('forwarded', '6.6.6.6', 'Forwarded'), ('x-forwarded', '192.0.2.7', 'X-Forwarded-For')],
)
def test_which_fields_the_proxies_write_can_be_told(fields: Any, expected: str, left: str) -> None:
    proxies = Proxies(NETWORKS, fields=fields)
    found, passed = proxies.origin((PROXY, 9), 'http', SPOOFED)
    assert found.client[0] == expected
    assert [name for name, _ in passed if name != 'Host'] == [left]
    # The other kind is not read even where it is alone.
    other = [pair for pair in SPOOFED if pair[0] != left]
    assert proxies.origin((PROXY, 9), 'http', other) == (Origin((PROXY, 9), 'http'), [])


@pytest.mark.parametrize('hosts', [[], [('Host', 'inner')]])
def test_the_host_that_the_proxy_says_is_the_only_one(hosts: list[tuple[str, str]]) -> None:
    headers = [*hosts, ('X-Forwarded-Host', 'a.example')]
    _, passed = TRUSTING.origin((PROXY, 9), 'http', headers)
    assert [value for name, value in passed if name == 'Host'] == ['a.example']


# Whatever comes


@given(st.lists(st.tuples(st.sampled_from([name for name, _ in CLAIMS]), st.text(max_size=40)), max_size=6))
def test_whatever_a_proxy_says_makes_sense_in_the_end(headers: list[tuple[str, str]]) -> None:
    found = origin(*headers)
    ipaddress.ip_address(found.client[0])
    assert 0 <= found.client[1] < 65536 and found.scheme in ('http', 'https')
    assert not found.prefix or (found.prefix.startswith('/') and not found.prefix.startswith('//'))
    assert not set(found.host + found.prefix) & set(' \t\r\n\0"<>?#\\')


@given(st.text(st.sampled_from('for=;,"\\ [:]16.'), max_size=40))
def test_nothing_that_a_client_sends_hides_what_its_proxy_adds(sent: str) -> None:
    assert forwarded(f'{sent}, for=192.0.2.7').client == ('192.0.2.7', 0)
    assert forwarded(f'{sent}, for="[2001:db8::7]:1"').client == ('2001:db8::7', 1)
    assert client(('X-Forwarded-For', f'{sent}, 192.0.2.7')) == ('192.0.2.7', 0)


HUGE = 50_000


@pytest.mark.parametrize(
    'value',
    [
        '/' * HUGE + ' ',
        '/a' * HUGE + ' ',
        'a' * HUGE,
        ' ' * HUGE + 'a',
        'a=' + ' ' * HUGE + 'x',
        'a="' + '\\"' * HUGE,
        'a="\\",b=' * HUGE,
        'a="' * HUGE,
        'a=",' * HUGE,
        ',' * HUGE,
        ';' * HUGE,
        'for=10.0.0.9,' * HUGE,
        '10.0.0.9,' * HUGE,
        ':' * HUGE,
        '[' * HUGE,
        '1.' * HUGE,
        'a.' * HUGE + '/',
    ],
)
@pytest.mark.parametrize('name', ['Forwarded', 'X-Forwarded-For', 'X-Forwarded-Host', 'X-Forwarded-Prefix'])
def test_huge_values_are_read_in_linear_time(name: str, value: str) -> None:
    began = time.process_time()
    origin((name, value))
    assert time.process_time() - began < 10


# Networks


@pytest.mark.parametrize('text', ['10.0.0.0/33', 'localhost', '10.0.0', '::1/129', '10.0.0.0/8;::1', '*'])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='does not appear'):
        read_networks(text)


def test_networks_are_read() -> None:
    assert [str(network) for network in read_networks('10.1.2.3/8,::1 , ,192.0.2.1,::ffff:10.0.0.0/104')] == [
        '10.0.0.0/8',
        '::1/128',
        '192.0.2.1/32',
        '10.0.0.0/8',
    ]
