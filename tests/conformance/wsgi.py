"""PEP 3333: what a server owes an application, and its clients when the application breaks the rules."""

import hashlib

from tests.conformance.raw_http import get, in_chunks, post
from tests.conformance.site import Checks, Site, need, same
from tests.conformance.wire import Answer, Wire, ask

__all__ = ['checks']

checks = Checks('WSGI', 'probes')

MEBIBYTE = 1024 * 1024
LINES = 'one\ntwo\n\nthree'


# wsgi.input

WAYS = {
    'read': ('read()', [LINES]),
    'sized': ('read(n)', ['one', '\ntw', 'o\n\n', 'thr', 'ee']),
    'none': ('read(0), read(-1), and reads at the end', ['', LINES, '', '', '']),
    'readline': ('readline()', ['one\n', 'two\n', '\n', 'three']),
    'readlines': ('readlines()', ['one\n', 'two\n', '\n', 'three']),
    'hint': ('readlines(hint)', ['one\n', 'two\n', '\n', 'three']),
    'iteration': ('iteration', ['one\n', 'two\n', '\n', 'three']),
    'mixed': ('all of these together', ['on', 'e\n', 'two\n', '\nthree']),
}


def _reads(how: str, wanted: list[str]) -> None:
    @checks(f'wsgi.input: {WAYS[how][0]}')
    def _(site: Site) -> None:
        length = f'Content-Length: {len(LINES)}'
        chunks = in_chunks(f'5\r\n{LINES[:5]}\r\n', f'{len(LINES) - 5:x}\r\n{LINES[5:]}\r\n')
        for line, body in ((length, LINES), ('Transfer-Encoding: chunked', chunks)):
            answer, _ = ask(site.port, post(f'/body?how={how}', body, line, 'Connection: close'))
            same(f'what was read with {line.partition(":")[0]}', answer.json, wanted)


for _how, (_, _wanted) in WAYS.items():
    _reads(_how, _wanted)


@checks('wsgi.input is at its end when there is no body')
def _(site: Site) -> None:
    same('what was read', get(site, '/body?how=read')[0].json, [''])


@checks('wsgi.input_terminated is true')
def _(site: Site) -> None:
    need(get(site, '/echo')[0].json.get('wsgi.input_terminated'), 'it is not')


def _mebibytes(site: Site, *lines: str, chunked: bool) -> None:
    data = bytes(range(256)) * 4096 * 3
    head = post('/digest', '', *lines, 'Connection: close').encode()
    pieces = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
    with Wire(site.port) as wire:
        wire.send(head)
        for piece in pieces:
            wire.send(b'%x\r\n%b\r\n' % (len(piece), piece) if chunked else piece)
        wire.send(b'0\r\n\r\n' if chunked else b'')
        answer = wire.answer()
    same('the answer', (answer.status, answer.body.decode()), (200, hashlib.sha256(data).hexdigest()))


@checks('3 MiB of request body arrive as they were sent')
def _(site: Site) -> None:
    _mebibytes(site, f'Content-Length: {3 * MEBIBYTE}', chunked=False)


@checks('3 MiB of request body in chunks arrive as they were sent')
def _(site: Site) -> None:
    _mebibytes(site, 'Transfer-Encoding: chunked', chunked=True)


# The environ


@checks('the environ has all that PEP 3333 promises')
def _(site: Site) -> None:
    seen = get(site, '/echo/a%2Fb%20c/?x=%20+y')[0].json
    wanted = {'SCRIPT_NAME': '', 'PATH_INFO': '/echo/a/b c/', 'QUERY_STRING': 'x=%20+y', 'SERVER_PROTOCOL': 'HTTP/1.1'}
    wanted |= {'REMOTE_ADDR': '127.0.0.1', 'wsgi.url_scheme': 'http', 'HTTP_HOST': 'crew.test'}
    wanted |= {'wsgi.version': [1, 0], 'wsgi.run_once': False, 'wsgi.multiprocess': True}
    same('the environ', {name: seen.get(name) for name in wanted}, wanted)
    need({'SERVER_NAME', 'SERVER_PORT', 'wsgi.multithread'} <= set(seen), 'the address of the server is missing')


@checks('a path in UTF-8 is its bytes as latin-1')
def _(site: Site) -> None:
    path = get(site, '/echo/%E2%82%AC%ff')[0].json['PATH_INFO']
    same('PATH_INFO', path, b'/echo/\xe2\x82\xac\xff'.decode('latin-1'))


@checks('Content-Type and Content-Length have no HTTP_')
def _(site: Site) -> None:
    seen = ask(site.port, post('/echo', 'hello', 'Content-Length: 5', 'Content-Type: text/x', 'Connection: close'))[
        0
    ].json
    same('the variables', (seen.get('CONTENT_LENGTH'), seen.get('CONTENT_TYPE')), ('5', 'text/x'))
    need(not {'HTTP_CONTENT_LENGTH', 'HTTP_CONTENT_TYPE'} & set(seen), 'they have')


# The answer


@checks('write() comes before what is returned')
def _(site: Site) -> None:
    same('the body', get(site, '/written')[0].body, b'written, twice, returned')


@checks('each piece leaves before the next is asked for')
def _(site: Site) -> None:
    key = site.key()
    with Wire(site.port) as wire:
        wire.send(f'GET /gated?key={key} HTTP/1.1\r\nHost: crew.test\r\nConnection: close\r\n\r\n')
        for each in range(3):
            site.go(f'{key}.{each}')
            piece = f'piece {each}'
            while piece not in wire.line():
                pass


@checks('wsgi.file_wrapper gives all of a file')
def _(site: Site) -> None:
    data = bytes(range(256)) * 1000
    (site.data / 'file').write_bytes(data)
    answer, _ = get(site, '/file?name=file')
    same('the length', len(answer.body), len(data))
    need(answer.body == data, 'other bytes came')


@checks('start_response with exc_info replaces the head')
def _(site: Site) -> None:
    answer, _ = get(site, '/second_thoughts')
    same('the answer', (answer.status, answer.get('X-First'), answer.body), (404, None, b'sorry'))


@checks('close() is called at the end')
def _(site: Site) -> None:
    key = site.key()
    same('the body', get(site, f'/closing?key={key}')[0].body, b'ab')
    site.await_note(key)


@checks('close() is called after an error in the body')
def _(site: Site) -> None:
    key = site.key()
    get(site, f'/fails_in_body?key={key}')
    site.await_note(key)


@checks('close() is called when the client hangs up')
def _(site: Site) -> None:
    key = site.key()
    with Wire(site.port) as wire:
        wire.send(f'GET /endless?key={key} HTTP/1.1\r\nHost: crew.test\r\n\r\n')
        same('the length of the beginning', len(wire.read(200_000)), 200_000)
    site.await_note(key)


# What the application must not do


def _failed(answer: Answer) -> None:
    same('the status', answer.status, 500)


@checks('an error before the response is a 500')
def _(site: Site) -> None:
    _failed(get(site, '/fails')[0])


@checks('an error before the body is a 500')
def _(site: Site) -> None:
    _failed(get(site, '/fails_after_head')[0])


@checks('an error in the body cuts it rather than ends it, in chunks')
def _(site: Site) -> None:
    answer, _ = get(site, f'/fails_in_body?key={site.key()}')
    same('the status, and whether the body is whole', (answer.status, answer.whole), (200, False))


@checks('an error in the body cuts it, with a length')
def _(site: Site) -> None:
    answer, _ = get(site, f'/fails_in_body?sized&key={site.key()}')
    same('the status, and whether the body is whole', (answer.status, answer.whole), (200, False))


def _cut_short(site: Site, target: str) -> None:
    with Wire(site.port) as wire:
        wire.send(f'GET {target} HTTP/1.1\r\nHost: crew.test\r\n\r\n')
        answer = wire.answer()
    need(answer.status == 500 or not answer.whole, f'a body of {len(answer.body)} bytes came as if it were whole')


@checks('less body than Content-Length is cut or a 500')
def _(site: Site) -> None:
    _cut_short(site, '/short')


@checks('less body than Content-Length is cut or a 500, in pieces')
def _(site: Site) -> None:
    _cut_short(site, '/short?pieces')


def _cut_long(site: Site, target: str) -> None:
    answer, rest = get(site, target)
    same('the body and what follows', (answer.body, rest), (b'five!', b''))


@checks('more body than Content-Length is cut to it')
def _(site: Site) -> None:
    _cut_long(site, '/long')


@checks('more body than Content-Length is cut to it, in pieces')
def _(site: Site) -> None:
    _cut_long(site, '/long?pieces')


@checks('a line end in a header of the application is a 500')
def _(site: Site) -> None:
    for query in ('value=%0d%0aX-Evil:+yes', 'value=%0aX-Evil:+yes', 'value=%0d', 'value=%00', 'name=:+a%0d%0aX-Evil'):
        answer, _ = get(site, f'/injects?{query}')
        same('the status, and what was injected', (answer.status, answer.get('X-Evil')), (500, None))


@checks('a line end in the status of the application is a 500')
def _(site: Site) -> None:
    answer, _ = get(site, '/injects_status')
    same('the status, and what was injected', (answer.status, answer.get('X-Evil')), (500, None))


@checks('hop-by-hop headers of the application are not passed')
def _(site: Site) -> None:
    answer, _ = get(site, '/hop_by_hop')
    same('the headers', [answer.get(name) for name in ('Keep-Alive', 'TE')], [None, None])
    need('x-custom' not in (answer.get('Connection') or '').lower(), 'Connection was passed')
