"""WSGI applications that do one thing each, well or badly; the path picks one. ``tests/conformance`` asks them."""

import hashlib
import json
import time
from urllib.parse import parse_qsl

import told

TEXT = ('Content-Type', 'text/plain')
FIVE = ('Content-Length', '5')
PIECE = b'x' * 64 * 1024


class Noting:
    """An iterable that notes when it is closed."""

    def __init__(self, pieces, name):
        self.pieces = iter(pieces)
        self.name = name

    def __iter__(self):
        return self.pieces

    def close(self):
        told.note(self.name)


# What the server gives


def echo(environ, start_response, query):
    """Answer with the environ and the body."""
    body = environ['wsgi.input'].read()
    seen = {name: value for name, value in environ.items() if isinstance(value, (str, bool, tuple))}
    seen['body'] = {'length': len(body), 'sha256': hashlib.sha256(body).hexdigest(), 'text': body[:1000].decode()}
    answer = json.dumps(seen).encode()
    start_response('200 OK', [('Content-Type', 'application/json'), ('Content-Length', str(len(answer)))])
    return [answer]


def digest(environ, start_response, query):
    """Hash the body as it comes."""
    digest = hashlib.sha256()
    for piece in iter(lambda: environ['wsgi.input'].read(100_000), b''):
        digest.update(piece)
    start_response('200 OK', [TEXT, ('Content-Length', '64')])
    return [digest.hexdigest().encode()]


def body(environ, start_response, query):
    """Read the body in the way that the query names."""
    file = environ['wsgi.input']
    ways = {
        'read': lambda: [file.read()],
        'sized': lambda: list(iter(lambda: file.read(3), b'')),
        'none': lambda: [file.read(0), file.read(-1), file.read(), file.read(5), file.readline()],
        'readline': lambda: list(iter(file.readline, b'')),
        'readlines': lambda: file.readlines(),
        'hint': lambda: [*file.readlines(1), *file.readlines()],
        'iteration': lambda: list(file),
        'mixed': lambda: [file.read(2), file.readline(), next(iter(file)), file.read()],
    }
    start_response('200 OK', [TEXT])
    return [json.dumps([piece.decode() for piece in ways[query['how']]()]).encode()]


def read_later(environ, start_response, query):
    """Read the body when told to."""
    told.note(f'{query["key"]}.entered')
    told.await_go(f'{query["key"]}.go')
    body = environ['wsgi.input'].read()
    start_response('200 OK', [TEXT, ('Content-Length', str(len(body)))])
    return [body]


def unread(environ, start_response, query):
    """Refuse without a look at the body."""
    start_response('403 Forbidden', [TEXT, FIVE])
    return [b'never']


# What the application may do


def text(environ, start_response, query):
    """Give five bytes and say so; not to HEAD, as frameworks do it."""
    start_response('200 OK', [TEXT, FIVE])
    return [] if environ['REQUEST_METHOD'] == 'HEAD' else [b'hello']


def careless(environ, start_response, query):
    """Give a body whatever the method is."""
    start_response('200 OK', [TEXT, FIVE])
    return [b'hello']


def bodiless(environ, start_response, query):
    """Answer with a status that has no body."""
    start_response(query['status'], [('ETag', '"1"')])
    return []


def pieces(environ, start_response, query):
    """Give a body in pieces, of a length that nobody knows before."""
    start_response('200 OK', [TEXT])
    for each in range(int(query['count'])):
        yield f'piece {each}\n'.encode()


def gated(environ, start_response, query):
    """Give a piece, and each of the others when told to."""
    start_response('200 OK', [TEXT])
    for each in range(3):
        told.await_go(f'{query["key"]}.{each}')
        yield f'piece {each}\n'.encode()


def written(environ, start_response, query):
    """Write some of the body, and return the rest."""
    write = start_response('200 OK', [TEXT])
    write(b'written, ')
    write(b'')
    write(b'twice, ')
    return [b'returned']


def file(environ, start_response, query):
    """Give a file by the wrapper of the server."""
    path = told.DATA / query['name']
    start_response('200 OK', [('Content-Type', 'application/octet-stream')])
    return environ['wsgi.file_wrapper'](path.open('rb'), 8192)


def cookies(environ, start_response, query):
    """Set two cookies, in two fields."""
    start_response('200 OK', [TEXT, FIVE, ('Set-Cookie', 'a=1'), ('Set-Cookie', 'b=2; Path=/')])
    return [b'hello']


def second_thoughts(environ, start_response, query):
    """Say 200, and then 404 before the first byte."""
    start_response('200 OK', [TEXT, ('X-First', 'yes')])
    try:
        raise LookupError('no such thing')
    except LookupError as error:
        start_response('404 Not Found', [TEXT, FIVE], (type(error), error, error.__traceback__))
    return [b'sorry']


def closing(environ, start_response, query):
    start_response('200 OK', [TEXT])
    return Noting([b'a', b'b'], query['key'])


def endless(environ, start_response, query):
    """Give pieces for as long as somebody takes them."""

    def forever():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            yield PIECE
            time.sleep(0.01)

    start_response('200 OK', [TEXT])
    return Noting(forever(), query['key'])


# What the application must not do


def injects(environ, start_response, query):
    """Give a header with what the query says in it."""
    start_response('200 OK', [TEXT, FIVE, (f'X-Field{query.get("name", "")}', f'a{query.get("value", "")}')])
    return [b'hello']


def injects_status(environ, start_response, query):
    start_response('200 OK\r\nX-Evil: yes', [TEXT, FIVE])
    return [b'hello']


def hop_by_hop(environ, start_response, query):
    """Give headers that are the connection's."""
    start_response('200 OK', [TEXT, FIVE, ('Connection', 'X-Custom'), ('Keep-Alive', 'timeout=99'), ('TE', 'gzip')])
    return [b'hello']


def fails(environ, start_response, query):
    raise ValueError('before its head')


def fails_after_head(environ, start_response, query):
    start_response('200 OK', [TEXT])
    raise ValueError('after its head')


def fails_in_body(environ, start_response, query):
    """Fail after enough of the body that it must have been sent."""
    headers = [('Content-Length', str(10 * len(PIECE)))] if 'sized' in query else []

    def pieces():
        yield PIECE
        yield PIECE
        raise ValueError('in the middle of its body')

    start_response('200 OK', [TEXT, *headers])
    return Noting(pieces(), query['key'])


def short(environ, start_response, query):
    """Give less than the length says."""
    start_response('200 OK', [TEXT, ('Content-Length', '20')])
    return [b'five!', b'more!'] if 'pieces' in query else [b'five!']


def long(environ, start_response, query):
    """Give more than the length says."""
    start_response('200 OK', [TEXT, FIVE])
    return [b'fiv', b'e!HTTP/1.1 200 OK\r\n', b'\r\n'] if 'pieces' in query else [b'five!HTTP/1.1 200 OK\r\n\r\n']


def app(environ, start_response):
    """Run the application that the path names."""
    name = environ['PATH_INFO'].partition('?')[0].split('/')[1] or 'text'
    return globals()[name](environ, start_response, dict(parse_qsl(environ['QUERY_STRING'], keep_blank_values=True)))
