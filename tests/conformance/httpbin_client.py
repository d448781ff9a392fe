"""httpbin, asked by requests: what clients of HTTP are tested with."""

import io
import time
from urllib.parse import unquote

import requests
from requests.auth import HTTPDigestAuth

from tests.conformance.raw_http import post
from tests.conformance.site import Checks, Site, need, same
from tests.conformance.wire import ask

__all__ = ['checks']

checks = Checks('httpbin', 'httpbin')

TIMEOUT = 30


def call(site: Site, method: str, path: str, **options: object) -> requests.Response:
    """Make one request."""
    return requests.request(method, site.url + path, timeout=TIMEOUT, **options)  # type: ignore[arg-type]


def get(site: Site, path: str, **options: object) -> requests.Response:
    """Make one GET request that must succeed."""
    answer = call(site, 'GET', path, **options)
    same('the status', answer.status_code, 200)
    return answer


@checks('/get with a query')
def _(site: Site) -> None:
    seen = get(site, '/get', params={'a': ['1', '2'], 'ü': 'ä ö&=?'}).json()
    same('the arguments', seen['args'], {'a': ['1', '2'], 'ü': 'ä ö&=?'})
    same('the client', seen['origin'], '127.0.0.1')
    need(seen['url'].startswith(f'{site.url}/get?'), 'the URL is another')


@checks('/post of JSON, of a form, of files, of bytes')
def _(site: Site) -> None:
    same('the JSON', call(site, 'POST', '/post', json={'a': ['ä', 1.5, None]}).json()['json'], {'a': ['ä', 1.5, None]})
    same(
        'the form',
        call(site, 'POST', '/post', data={'a': 'ä ö', 'b': ['1', '2']}).json()['form'],
        {'a': 'ä ö', 'b': ['1', '2']},
    )
    seen = call(site, 'POST', '/post', files={'f': ('f.txt', io.BytesIO(b'content'))}, data={'a': 'b'}).json()
    same('the files', (seen['files'], seen['form']), ({'f': 'content'}, {'a': 'b'}))
    same('the bytes', call(site, 'POST', '/post', data=b'some bytes').json()['data'], 'some bytes')
    same('nothing', call(site, 'POST', '/post').json()['data'], '')


@checks('/post in chunks')
def _(site: Site) -> None:
    for count in (3, 3000):
        pieces = [b'piece of a body that is sent as it is made\n'] * count
        seen = call(site, 'POST', '/post', data=iter(pieces)).json()
        need(
            seen['data'] == b''.join(pieces).decode(), f'{len(seen["data"])} of {len(b"".join(pieces))} characters came'
        )


@checks('/anything with PATCH, PUT, DELETE')
def _(site: Site) -> None:
    for method in ('PATCH', 'PUT', 'DELETE', 'POST', 'GET'):
        seen = call(site, method, '/anything/a/b', data='body').json()
        same('method and data', (seen['method'], seen['data']), (method, 'body'))


@checks('HEAD and OPTIONS')
def _(site: Site) -> None:
    answer = call(site, 'HEAD', '/get')
    same('HEAD', (answer.status_code, answer.content), (200, b''))
    same('Content-Length', answer.headers['Content-Length'], str(len(get(site, '/get').content)))
    answer = call(site, 'OPTIONS', '/get')
    same(
        'OPTIONS',
        (answer.status_code, {'GET', 'HEAD', 'OPTIONS'} <= set(answer.headers['Allow'].split(', '))),
        (200, True),
    )


@checks('/status of all kinds')
def _(site: Site) -> None:
    for status in (
        200,
        201,
        202,
        204,
        205,
        206,
        301,
        304,
        400,
        401,
        402,
        404,
        405,
        406,
        409,
        410,
        418,
        422,
        429,
        500,
        503,
    ):
        answer = call(site, 'GET', f'/status/{status}', allow_redirects=False)
        same('the status', answer.status_code, status)


@checks('redirects, relative and absolute')
def _(site: Site) -> None:
    for path in ('/redirect/3', '/relative-redirect/3', '/absolute-redirect/3'):
        answer = get(site, path)
        same('the number of redirects', (len(answer.history), answer.url), (3, f'{site.url}/get'))
    answer = call(site, 'POST', '/redirect-to', params={'url': '/post', 'status_code': 307}, data='again')
    same('the body after a 307', answer.json()['data'], 'again')


@checks('cookies are set and deleted')
def _(site: Site) -> None:
    with requests.Session() as session:
        session.get(f'{site.url}/cookies/set', params={'a': '1', 'b': 'two'}, timeout=TIMEOUT)
        same(
            'the cookies', session.get(f'{site.url}/cookies', timeout=TIMEOUT).json()['cookies'], {'a': '1', 'b': 'two'}
        )
        session.get(f'{site.url}/cookies/delete?a', timeout=TIMEOUT)
        same('the cookies', session.get(f'{site.url}/cookies', timeout=TIMEOUT).json()['cookies'], {'b': 'two'})


@checks('/gzip and /deflate')
def _(site: Site) -> None:
    same('gzip', get(site, '/gzip').json()['gzipped'], True)
    same('deflate', get(site, '/deflate').json()['deflated'], True)


@checks('/stream/20 and /stream-bytes')
def _(site: Site) -> None:
    same('the lines', len(get(site, '/stream/20').text.splitlines()), 20)
    same('the bytes', len(get(site, '/stream-bytes/100000?chunk_size=7000').content), 100_000)


@checks('/bytes, /base64, /image/png, /encoding/utf8')
def _(site: Site) -> None:
    same('the bytes', len(get(site, '/bytes/100000').content), 100_000)
    same('base64', get(site, '/base64/aMOpbGxv').text, 'héllo')
    image = get(site, '/image/png')
    same('the image', (image.headers['Content-Type'], image.content[:8]), ('image/png', b'\x89PNG\r\n\x1a\n'))
    need('∮' in get(site, '/encoding/utf8').content.decode(), 'the page of UTF-8 is another')


@checks('/range')
def _(site: Site) -> None:
    answer = call(site, 'GET', '/range/100', headers={'Range': 'bytes=10-19'})
    got = (answer.status_code, answer.headers['Content-Range'], answer.text)
    same('the range', got, (206, 'bytes 10-19/100', 'klmnopqrst'))
    same('the whole', len(get(site, '/range/100').content), 100)


@checks('/drip and /delay')
def _(site: Site) -> None:
    same('the drops', len(get(site, '/drip?duration=0.5&numbytes=10&delay=0').content), 10)
    began = time.monotonic()
    get(site, '/delay/1')
    need(time.monotonic() - began >= 1, 'it was not delayed')


@checks('/basic-auth, /digest-auth, /bearer')
def _(site: Site) -> None:
    answer = call(site, 'GET', '/basic-auth/user/pass')
    same('the challenge', (answer.status_code, answer.headers['WWW-Authenticate'].split()[0]), (401, 'Basic'))
    need(
        get(site, '/basic-auth/user/pass', auth=('user', 'pass')).json()['authenticated'], 'basic: nobody is logged in'
    )
    for algorithm in ('MD5', 'SHA-256'):
        path = f'/digest-auth/auth/user/pass/{algorithm}'
        need(
            get(site, path, auth=HTTPDigestAuth('user', 'pass')).json()['authenticated'], 'digest: nobody is logged in'
        )
    same('the token', get(site, '/bearer', headers={'Authorization': 'Bearer abc'}).json()['token'], 'abc')


@checks('/headers')
def _(site: Site) -> None:
    sent = {'X-Own': 'a  b', 'Accept-Language': 'de, en;q=0.5', 'If-None-Match': '"x"', 'Referer': 'http://a.test/?b'}
    seen = get(site, '/headers', headers=sent).json()['headers']
    same('the headers', {name: seen.get(name) for name in sent}, sent)
    same('Host', seen['Host'], f'127.0.0.1:{site.port}')


@checks('/response-headers, /etag and /cache')
def _(site: Site) -> None:
    answer = get(site, '/response-headers', params={'X-A': ['1', '2']})
    same('the header', answer.headers['X-A'], '1, 2')
    same('the status', call(site, 'GET', '/etag/e', headers={'If-None-Match': 'e'}).status_code, 304)
    same('the status', call(site, 'GET', '/etag/e', headers={'If-Match': 'f'}).status_code, 412)
    same('the status', call(site, 'GET', '/cache', headers={'If-Modified-Since': 'x'}).status_code, 304)


@checks('paths with umlauts, slashes and question marks in them')
def _(site: Site) -> None:
    seen = get(site, '/anything/ä ö/%2F%3F%25/€').json()
    same('the path', unquote(seen['url']).removeprefix(site.url), '/anything/ä ö//?%/€')


@checks('a connection of one client is used again and again')
def _(site: Site) -> None:
    with requests.Session() as session:
        for each in range(20):
            seen = session.post(f'{site.url}/anything/{each}', data=str(each) * 1000, timeout=TIMEOUT).json()
            same('the data', seen['data'], str(each) * 1000)


@checks('a body in gzip arrives as it is')
def _(site: Site) -> None:
    head = post('/post', '', 'Content-Encoding: gzip', 'Content-Length: 4', 'Connection: close')
    answer, _ = ask(site.port, head.encode() + b'\x1f\x8b\x08\x00')
    same('the data', answer.json['data'], 'data:application/octet-stream;base64,H4sIAA==')
