"""HTTP/1.1 and 1.0 as bytes on a connection (RFC 9110, RFC 9112): what a server owes clients of all kinds."""

from tests.conformance.site import Checks, Site, need, same
from tests.conformance.wire import Answer, Wire, ask

__all__ = ['checks']

checks = Checks('HTTP', 'probes')

#: How long something must not come that would come at once; for what is slow it is of no use.
SILENCE = 0.4


def get(site: Site, target: str, *lines: str, method: str = 'GET', version: str = '1.1') -> tuple[Answer, bytes]:
    """Make one request on a connection of its own; return the response and what came after it."""
    head = [f'{method} {target} HTTP/{version}', 'Host: crew.test', 'Connection: close', *lines]
    return ask(site.port, '\r\n'.join([*head, '', '']), method)


def refused(answer: Answer, *statuses: int) -> None:
    """Fail unless the request was refused so."""
    need(answer.status in (statuses or (400,)), f'answered with {answer.status}')


def in_chunks(*chunks: str) -> str:
    return ''.join([*chunks, '0\r\n\r\n'])


def post(target: str, body: str, *lines: str) -> str:
    return '\r\n'.join([f'POST {target} HTTP/1.1', 'Host: crew.test', *lines, '', body])


# Responses


@checks('HEAD brings the head of GET and no body')
def _(site: Site) -> None:
    answer, rest = get(site, '/text', method='HEAD')
    same('the status', answer.status, 200)
    same('Content-Length', answer.get('Content-Length'), '5')
    same('the body', rest, b'')


@checks('HEAD brings no body though the application gives one')
def _(site: Site) -> None:
    same('the body', get(site, '/careless', method='HEAD')[1], b'')


@checks('204 has neither body nor Content-Length')
def _(site: Site) -> None:
    answer, rest = get(site, '/bodiless?status=204+No+Content')
    same('the answer', (answer.status, rest), (204, b''))
    same('Content-Length', answer.get('Content-Length'), None)
    same('Transfer-Encoding', answer.get('Transfer-Encoding'), None)


@checks('304 has its ETag and no body')
def _(site: Site) -> None:
    answer, rest = get(site, '/bodiless?status=304+Not+Modified')
    same('the answer', (answer.status, answer.get('ETag'), rest), (304, '"1"', b''))
    same('Transfer-Encoding', answer.get('Transfer-Encoding'), None)


@checks('Date and Server are there, once')
def _(site: Site) -> None:
    answer, _ = get(site, '/text')
    same('the number of Date and Server', (len(answer.all('Date')), len(answer.all('Server'))), (1, 1))


@checks('Set-Cookie fields stay two')
def _(site: Site) -> None:
    same('Set-Cookie', get(site, '/cookies')[0].all('Set-Cookie'), ['a=1', 'b=2; Path=/'])


@checks('a body of unknown length comes in chunks, and ends')
def _(site: Site) -> None:
    answer, rest = get(site, '/pieces?count=100')
    same('the framing', (answer.framing, answer.whole, rest), ('chunked', True, b''))
    same('the body', answer.body, b''.join(b'piece %d\n' % each for each in range(100)))


# Connections


@checks('keep-alive: two requests on one connection')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        for _ in range(2):
            wire.send('GET /text HTTP/1.1\r\nHost: crew.test\r\n\r\n')
            same('the body', wire.answer().body, b'hello')


@checks('keep-alive after a body in chunks')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        for _ in range(2):
            wire.send('GET /pieces?count=3 HTTP/1.1\r\nHost: crew.test\r\n\r\n')
            same('the body', wire.answer().body, b'piece 0\npiece 1\npiece 2\n')


@checks('keep-alive after a request body that the application did not read')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(post('/unread', 'GET /', 'Content-Length: 5'))
        same('the status', wire.answer().status, 403)
        wire.send('GET /text HTTP/1.1\r\nHost: crew.test\r\n\r\n')
        same('the body', wire.answer().body, b'hello')


@checks('pipelining: five requests at once are answered in their order')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(''.join(f'GET /pieces?count={each} HTTP/1.1\r\nHost: crew.test\r\n\r\n' for each in range(1, 6)))
        same('the numbers of pieces', [wire.answer().body.count(b'piece') for _ in range(5)], [1, 2, 3, 4, 5])


@checks('pipelining: a request behind a body is found')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(post('/echo', 'hello', 'Content-Length: 5') + 'GET /text HTTP/1.1\r\nHost: crew.test\r\n\r\n')
        same('the first body', wire.answer().json['body']['text'], 'hello')
        same('the second answer', wire.answer().body, b'hello')


@checks('Connection: close is obeyed')
def _(site: Site) -> None:
    answer, rest = get(site, '/text')
    same('the answer', (answer.status, answer.body, rest), (200, b'hello', b''))


@checks('HTTP/1.0: the connection is closed after the response')
def _(site: Site) -> None:
    answer, rest = ask(site.port, 'GET /text HTTP/1.0\r\n\r\n')
    same('the answer', (answer.status, answer.body, rest), (200, b'hello', b''))


@checks('HTTP/1.0: a body of unknown length has no chunks')
def _(site: Site) -> None:
    answer, rest = ask(site.port, 'GET /pieces?count=3 HTTP/1.0\r\n\r\n')
    same('Transfer-Encoding', answer.get('Transfer-Encoding'), None)
    same('the answer', (answer.status, answer.body, rest), (200, b'piece 0\npiece 1\npiece 2\n', b''))


@checks('HTTP/1.0 with keep-alive: two requests on one connection')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        for _ in range(2):
            wire.send('GET /text HTTP/1.0\r\nConnection: keep-alive\r\n\r\n')
            answer = wire.answer()
            same('the body', answer.body, b'hello')
            same('Connection', (answer.get('Connection') or '').lower(), 'keep-alive')


# Targets, methods and header fields


@checks('absolute-form target: the path arrives')
def _(site: Site) -> None:
    seen = get(site, 'http://named.test:81/echo?q')[0].json
    same('path and query', (seen['PATH_INFO'], seen['QUERY_STRING']), ('/echo', 'q'))


@checks('absolute-form target: its host replaces the Host field')
def _(site: Site) -> None:
    same('HTTP_HOST', get(site, 'http://named.test:81/echo')[0].json['HTTP_HOST'], 'named.test:81')


@checks('any method is passed on')
def _(site: Site) -> None:
    for method in ('PATCH', 'DELETE', 'OPTIONS', 'PROPFIND', 'BREW'):
        same('REQUEST_METHOD', get(site, '/echo', method=method)[0].json['REQUEST_METHOD'], method)


@checks('a target of 8,000 bytes')
def _(site: Site) -> None:
    answer, _ = get(site, f'/echo?{"q" * 7900}')
    same('the status', answer.status, 200)
    same('the length of the query', len(answer.json['QUERY_STRING']), 7900)


@checks('a head of nearly 64 KiB in one field')
def _(site: Site) -> None:
    answer, _ = get(site, '/echo', f'X-Long: {"a" * 64_000}')
    same('the status', answer.status, 200)
    same('the length of the field', len(answer.json['HTTP_X_LONG']), 64_000)


@checks('1,000 header fields')
def _(site: Site) -> None:
    answer, _ = get(site, '/echo', *(f'X-Field-{each}: value {each}' for each in range(1000)))
    same('the status', answer.status, 200)
    same('the fields', sum(name.startswith('HTTP_X_FIELD_') for name in answer.json), 1000)


@checks('a head of 200 KiB is refused, and one of a mebibyte')
def _(site: Site) -> None:
    for kibibytes in (200, 1024):
        answer, _ = get(site, '/echo', *(f'X-Field-{each}: {"a" * 1010}' for each in range(kibibytes)))
        refused(answer, 400, 431)


@checks('names with underscores do not forge others')
def _(site: Site) -> None:
    seen = get(site, '/echo', 'X-Forwarded-For: true', 'X_Forwarded_For: forged')[0].json
    same('HTTP_X_FORWARDED_FOR', seen['HTTP_X_FORWARDED_FOR'], 'true')


@checks('a name that has only underscores is dropped')
def _(site: Site) -> None:
    same('its variable', get(site, '/echo', 'X_Forged: forged')[0].json.get('HTTP_X_FORGED'), None)


@checks('fields of one name are joined')
def _(site: Site) -> None:
    value = get(site, '/echo', 'X-Several: a', 'X-Several: b')[0].json['HTTP_X_SEVERAL']
    same('the value', value.replace(' ', ''), 'a,b')


@checks('obs-fold is refused or unfolded')
def _(site: Site) -> None:
    answer, _ = get(site, '/echo', 'X-Folded: a', ' b')
    if answer.status != 400:
        same('the value', answer.json.get('HTTP_X_FOLDED', '').split(), ['a', 'b'])


@checks('a CR alone in a field is refused or a blank')
def _(site: Site) -> None:
    answer, _ = get(site, '/echo', 'X-Field: a\rX-Forged: b')
    if answer.status != 400:
        same('the value', answer.json.get('HTTP_X_FIELD'), 'a X-Forged: b')


@checks('an LF alone is refused, or ends its line')
def _(site: Site) -> None:
    answer, _ = get(site, '/echo', 'X-Field: a\nX-Other: b')
    if answer.status != 400:
        same('the fields', (answer.json.get('HTTP_X_FIELD'), answer.json.get('HTTP_X_OTHER')), ('a', 'b'))


@checks('NUL in a field is refused')
def _(site: Site) -> None:
    refused(get(site, '/echo', 'X-Field: a\0b')[0])


@checks('a blank before the colon is refused')
def _(site: Site) -> None:
    refused(get(site, '/echo', 'X-Field : a')[0])


@checks('a name that is no token is refused')
def _(site: Site) -> None:
    refused(get(site, '/echo', 'X(Field): a')[0])


@checks('HTTP/1.1 without Host is refused')
def _(site: Site) -> None:
    refused(ask(site.port, 'GET /text HTTP/1.1\r\nConnection: close\r\n\r\n')[0])


@checks('two Host fields are refused')
def _(site: Site) -> None:
    refused(get(site, '/text', 'Host: other.test')[0])


@checks('a request line of nonsense is refused')
def _(site: Site) -> None:
    refused(ask(site.port, 'NONSENSE\r\n\r\n')[0])


@checks('an empty line before a request is skipped')
def _(site: Site) -> None:
    answer, _ = ask(site.port, '\r\nGET /text HTTP/1.1\r\nHost: crew.test\r\nConnection: close\r\n\r\n')
    same('the status', answer.status, 200)


@checks('a request that comes byte by byte')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        for byte in post('/echo', 'hello', 'Content-Length: 5', 'Connection: close'):
            wire.send(byte)
        same('the body', wire.answer().json['body']['text'], 'hello')


# Request bodies


@checks('Expect: 100-continue is answered before the body')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(post('/echo', '', 'Content-Length: 5', 'Expect: 100-continue'))
        same('the interim status', wire.head().status, 100)
        wire.send('hello')
        same('the body', wire.answer().json['body']['text'], 'hello')


@checks('100 Continue is sent only when the application reads')
def _(site: Site) -> None:
    key = site.key()
    with Wire(site.port) as wire:
        wire.send(post(f'/read_later?key={key}', '', 'Content-Length: 5', 'Expect: 100-continue'))
        site.await_note(f'{key}.entered')
        silent = wire.silent(SILENCE)
        site.go(f'{key}.go')
        need(silent, '100 came before the application read')
        same('the interim status', wire.head().status, 100)
        wire.send('hello')
        same('the body', wire.answer().body, b'hello')


@checks('an application that does not read is heard without 100 Continue')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(post('/unread', '', 'Content-Length: 100000', 'Expect: 100-continue'))
        answer = wire.answer()
        same('the statuses', [*answer.interim, answer.status], [403])


@checks('a client that still sends 3 MiB hears that it is refused')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(post('/unread', '', f'Content-Length: {3 * 1024 * 1024}'))
        for _ in range(3 * 16):
            wire.send(b'x' * 64 * 1024)
        same('the status', wire.answer().status, 403)


@checks('HTTP/1.0: a request body arrives, and 100 Continue is not sent')
def _(site: Site) -> None:
    head = 'POST /echo HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n'
    answer, _ = ask(site.port, head + 'hello')
    same('the interim statuses, and the body', (answer.interim, answer.json['body']['text']), ([], 'hello'))


@checks('chunks arrive as one body')
def _(site: Site) -> None:
    chunks = in_chunks('5\r\nhello\r\n', '00a\r\n, chunked \r\n', 'B\r\nworld again\r\n')
    answer, _ = ask(site.port, post('/echo', chunks, 'Transfer-Encoding: chunked', 'Connection: close'))
    same('the body', answer.json['body']['text'], 'hello, chunked world again')


@checks('1,000 chunks of one byte arrive as one body')
def _(site: Site) -> None:
    chunks = in_chunks(*['1\r\nx\r\n'] * 1000)
    answer, _ = ask(site.port, post('/echo', chunks, 'Transfer-Encoding: chunked', 'Connection: close'))
    same('the length', answer.json['body']['length'], 1000)


@checks('chunk extensions are ignored')
def _(site: Site) -> None:
    chunks = '5;name=value;other="quoted; text"\r\nhello\r\n0;last\r\n\r\n'
    answer, _ = ask(site.port, post('/echo', chunks, 'Transfer-Encoding: chunked', 'Connection: close'))
    same('the status', answer.status, 200)
    same('the body', answer.json['body']['text'], 'hello')


@checks('trailers are no header fields')
def _(site: Site) -> None:
    chunks = '5\r\nhello\r\n0\r\nX-Trailer: forged\r\nX-Other: too\r\n\r\n'
    with Wire(site.port) as wire:
        wire.send(post('/echo', chunks, 'Transfer-Encoding: chunked', 'Trailer: X-Trailer', 'Connection: close'))
        answer = wire.answer()
    same('the status', answer.status, 200)
    same('the body', answer.json['body']['text'], 'hello')
    same('HTTP_X_TRAILER', answer.json.get('HTTP_X_TRAILER'), None)


@checks('a chunk size that is none is refused')
def _(site: Site) -> None:
    for size in ('-5', '0x5', '5_0', '+5', ''):
        answer, _ = ask(site.port, post('/echo', f'{size}\r\nhello\r\n0\r\n\r\n', 'Transfer-Encoding: chunked'))
        refused(answer)


@checks('Content-Length beside Transfer-Encoding smuggles nothing')
def _(site: Site) -> None:
    smuggled = 'GET /text HTTP/1.1\r\nHost: crew.test\r\n\r\n'
    lines = ('Content-Length: 5', 'Transfer-Encoding: chunked')
    answer, rest = ask(site.port, post('/echo', in_chunks('5\r\nhello\r\n') + smuggled, *lines))
    if answer.status != 400:
        same('the body', answer.json['body']['text'], 'hello')
    # RFC 9112 §6.1: the connection must be closed after such a request.
    same('what came after the answer', rest, b'')


@checks('two Content-Lengths that differ are refused')
def _(site: Site) -> None:
    refused(ask(site.port, post('/echo', 'hello!', 'Content-Length: 5', 'Content-Length: 6'))[0])


@checks('a Content-Length that is no number is refused')
def _(site: Site) -> None:
    for length in ('-5', '+5', '5_0', '0x5', '5 5'):
        refused(ask(site.port, post('/echo', 'hello', f'Content-Length: {length}'))[0])


@checks('an unknown Transfer-Encoding is refused')
def _(site: Site) -> None:
    for coding in ('gzip', 'chunked, identity', 'xchunked'):
        refused(ask(site.port, post('/echo', in_chunks('5\r\nhello\r\n'), f'Transfer-Encoding: {coding}'))[0], 400, 501)


@checks('a body that ends too soon is not taken for a whole one')
def _(site: Site) -> None:
    with Wire(site.port) as wire:
        wire.send(post('/echo', 'hel', 'Content-Length: 5', 'Connection: close'))
        wire.shut()
        rest = wire.rest()
    need(not rest.startswith(b'HTTP/1.1 200'), 'it was answered with 200')
