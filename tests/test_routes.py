"""Routes as text and as a table: which application a request is for, and what is no route at all."""

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crew_wsgi.environ import build_environ, split_target, unquoted
from crew_wsgi.messages import Request
from crew_wsgi.routes import Route, Routes, read_route, read_table


def routes(*texts: str) -> Routes:
    return Routes([read_route(text) for text in texts])


def queue(table: Routes, host: str, target: str) -> str | None:
    route = table.find(host, unquoted(split_target(target)[0]))
    return None if route is None else route.queue


TABLE = routes(
    '=default',
    '/api=api',
    '/api/v2=api-v2',
    'shop.example=shop',
    'shop.example/api=shop-api',
    '[2001:db8::1]=six',
    '/caf%C3%A9=coffee',
    '/über=over',
    'under_score.example=underscore',
)


@pytest.mark.parametrize(
    ('host', 'target', 'expected'),
    [
        ('a.example', '/', 'default'),
        ('a.example', '/other', 'default'),
        ('a.example', '/api', 'api'),
        ('a.example', '/api/', 'api'),
        ('a.example', '/api/x', 'api'),
        ('a.example', '/api?x', 'api'),
        ('a.example', '/apix', 'default'),
        ('a.example', '/API', 'default'),
        ('a.example', '/x/api', 'default'),
        ('a.example', '/api/v2', 'api-v2'),
        ('a.example', '/api/v2/x', 'api-v2'),
        ('a.example', '/api/v22', 'api'),
        ('a.example', '//api', 'default'),
        ('a.example', '/api//v2', 'api'),
        # The host's routes come before the longer prefix of any host.
        ('shop.example', '/', 'shop'),
        ('shop.example', '/api/v2', 'shop-api'),
        ('shop.example:8443', '/', 'shop'),
        ('shop.example:', '/', 'shop'),
        ('SHOP.Example', '/', 'shop'),
        ('shop.example.', '/', 'shop'),
        ('shop.example.:80', '/', 'shop'),
        ('shop.example..', '/', 'default'),
        ('www.shop.example', '/', 'default'),
        ('shop.example.evil.example', '/', 'default'),
        ('under_score.example', '/', 'underscore'),
        ('[2001:db8::1]', '/', 'six'),
        ('[2001:DB8::1]:80', '/', 'six'),
        ('[2001:db8::2]:80', '/', 'default'),
        ('', '/api', 'api'),
        # The target in absolute-form: its path; its host is for the caller to give.
        ('a.example', 'http://whatever.example/api/x', 'api'),
        ('a.example', 'http://whatever.example', 'default'),
        # Compared as the application will see it.
        ('a.example', '/%61pi/x', 'api'),
        ('a.example', '/api%2Fv2', 'api-v2'),
        ('a.example', '/api%2fx', 'api'),
        ('a.example', '/api%3Fx', 'default'),
        ('a.example', '/api%00', 'default'),
        ('a.example', '/%2561pi', 'default'),
        ('a.example', '/caf%c3%a9', 'coffee'),
        ('a.example', '/caf\xc3\xa9/x', 'coffee'),
        ('a.example', '/caf\xe9', 'default'),
        ('a.example', '/%C3%BCber', 'over'),
        # Dot segments are parts like any other: nobody resolves them, here or in the application.
        ('a.example', '/api/../x', 'api'),
        ('a.example', '/x/../api', 'default'),
        ('a.example', '/./api', 'default'),
        ('a.example', '/api/..', 'api'),
        ('a.example', '/api..', 'default'),
        # OPTIONS * is for the server as a whole.
        ('a.example', '*', 'default'),
        ('shop.example', '*', 'shop'),
    ],
)
def test_a_request_is_for(host: str, target: str, expected: str) -> None:
    assert queue(TABLE, host, target) == expected


@pytest.mark.parametrize('target', ['/', '/apix', '*', '/%2Fapi'])
def test_what_no_route_takes_has_none(target: str) -> None:
    assert queue(routes('/api=api', 'b.example=b'), 'a.example', target) is None


def test_the_order_of_routes_does_not_matter() -> None:
    texts = ['=a', '/x=b', '/x/y=c', 'h.example=d', 'h.example/x=e']
    for table in routes(*texts), routes(*reversed(texts)):
        assert [queue(table, 'h.example', path) for path in ('/', '/x/y')] == ['d', 'e']
        assert [queue(table, 'g.example', path) for path in ('/', '/x', '/x/y/z')] == ['a', 'b', 'c']


def test_a_queue_is_declared_once() -> None:
    assert sorted(routes('/a=one', '/b=one', '/c=two').queues) == ['one', 'two']


paths = st.text(st.sampled_from('ab/.%1é\0'), max_size=12).map(lambda path: f'/{path}')


@given(path=paths, prefixes=st.lists(st.text(st.sampled_from('ab/é'), max_size=4), max_size=4))
def test_what_a_route_takes_off_is_put_on_again(path: str, prefixes: list[str]) -> None:
    target = quote(path, safe='/%')
    texts = {f'/{prefix}'.rstrip('/') for prefix in prefixes}
    table = Routes([read_route(f'{text}={index}') for index, text in enumerate(sorted(texts))])
    whole = unquoted(target)
    route = table.find('a.example', whole)
    taken = {text.encode().decode('latin-1') for text in texts}
    fitting = [text for text in taken if not text or whole == text or whole.startswith(f'{text}/')]
    assert (route is None) == (not fitting)
    if route is not None:
        request = Request(method='GET', target=target, mount=route.prefix)
        environ = build_environ(request, multithread=False, multiprocess=False)
        assert environ['SCRIPT_NAME'] == max(fitting, key=len)
        assert environ['SCRIPT_NAME'] + environ['PATH_INFO'] == whole
        assert environ['PATH_INFO'].startswith('/') or not environ['PATH_INFO']


# As text


@pytest.mark.parametrize(
    ('text', 'route'),
    [
        ('/=q', Route('q')),
        ('=q', Route('q')),
        (' a.example/x/ = q ', Route('q', host='a.example', prefix='/x')),
        ('A.Example.=q', Route('q', host='a.example')),
        ('/x=q;timeout=5', Route('q', prefix='/x', timeout=5.0)),
        ('/x=q; timeout = 0.5 ; priority=9', Route('q', prefix='/x', timeout=0.5, priority=9)),
        ('/x=q;queue-timeout=1;priority=255', Route('q', prefix='/x', queue_timeout=1.0, priority=255)),
        ('/é x=q', Route('q', prefix='/%C3%A9%20x')),
        ('/a?b=q', Route('q', prefix='/a%3Fb')),
    ],
)
def test_a_route_is_read(text: str, route: Route) -> None:
    assert read_route(text) == route


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('', 'should look like'),
        ('/api', 'should look like'),
        ('/api=', 'queue id'),
        (f'/api={"q" * 256}', 'queue id'),
        ('a.example:80/api=q', 'not a host'),
        ('a b=q', 'not a host'),
        ('http://a.example=q', 'not a host'),
        ('bücher.example=q', 'punycode'),
        ('a..example=q', 'not a host'),
        ('*.example=q', 'not a host'),
        ('user@a.example=q', 'not a host'),
        ('/x=q;', 'no such option'),
        ('/x=q;speed=1', 'no such option of a route: speed'),
        ('/x=q;timeout', 'no number'),
        ('/x=q;timeout=soon', 'no number'),
        ('/x=q;timeout=0', 'between 0 and'),
        ('/x=q;timeout=-1', 'between 0 and'),
        ('/x=q;timeout=nan', 'between 0 and'),
        ('/x=q;timeout=inf', 'between 0 and'),
        ('/x=q;queue-timeout=1e9', 'between 0 and'),
        ('/x=q;timeout=1;timeout=2', 'there twice'),
        ('/x=q;priority=256', '0 to 255'),
        ('/x=q;priority=-1', '0 to 255'),
        ('/x=q;priority=1.5', 'no number'),
    ],
)
def test_a_text_that_is_no_route_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_route(text)


@pytest.mark.parametrize('texts', [('=a', '/=b'), ('/x=a', '/x/=b'), ('H.example/x=a', 'h.example./%78=b')])
def test_two_routes_for_the_same_are_refused(texts: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match='two routes are for'):
        routes(*texts)


@given(st.text(max_size=30))
def test_any_text_is_a_route_or_refused(text: str) -> None:
    try:
        route = read_route(text)
    except ValueError:
        return
    assert route.queue and not route.prefix.endswith('/')


# As a table


def test_a_table_is_read() -> None:
    document = {
        'route': [
            {'match': 'a.example/x', 'queue': 'q', 'timeout': 5, 'queue-timeout': 0.5, 'priority': 3},
            {'match': '/', 'queue': 'r'},
        ]
    }
    first = Route('q', host='a.example', prefix='/x', timeout=5.0, queue_timeout=0.5, priority=3)
    assert read_table(document) == [first, Route('r')]


@pytest.mark.parametrize(
    ('document', 'why'),
    [
        ({}, 'nothing else'),
        ({'route': []}, 'nothing else'),
        ({'routes': [{'match': '/', 'queue': 'q'}]}, 'nothing else'),
        ({'route': {'match': '/', 'queue': 'q'}}, 'nothing else'),
        ({'route': 5}, 'nothing else'),
        ({'route': [5]}, 'needs match'),
        ({'route': [{'queue': 'q'}]}, 'needs match'),
        ({'route': [{'match': '/'}]}, 'needs match'),
        ({'route': [{'match': '/', 'queue': 5}]}, 'needs match'),
        ({'route': [{'match': '/', 'queue': ''}]}, 'queue id'),
        ({'route': [{'match': '/', 'queue': 'q', 'prioritiy': 5}]}, 'no such option of a route: prioritiy'),
        ({'route': [{'match': '/', 'queue': 'q', 'priority': True}]}, 'no number'),
        ({'route': [{'match': '/', 'queue': 'q', 'priority': 1.9}]}, 'no number'),
        ({'route': [{'match': '/', 'queue': 'q', 'timeout': [1]}]}, 'no number'),
        ({'route': [{'match': 'a:1/', 'queue': 'q'}]}, 'not a host'),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(document: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_table(document)
