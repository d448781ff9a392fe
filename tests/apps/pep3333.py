"""WSGI applications that use or break each promise of PEP 3333; the header ``X-App`` of a request picks one."""

import hashlib
import json
import sys
from pathlib import Path
from urllib.parse import unquote
from wsgiref.validate import validator

MEBIBYTE = 1024 * 1024
TEXT = [('Content-Type', 'text/plain')]

closed = 0


class Closing:
    """An iterable that counts how often it was closed."""

    def __init__(self, pieces, error=None):
        self.pieces = iter(pieces)
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self.pieces, None)
        if piece is None and self.error is not None:
            raise self.error
        if piece is None:
            raise StopIteration
        return piece

    def close(self):
        global closed
        closed += 1


# What the gateway gives


@validator
def echo(environ, start_response):
    """Answer with all of the environ that JSON can say, and with the body's length and hash."""
    body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or -1))
    seen = {name: value for name, value in environ.items() if isinstance(value, (str, bool, tuple))}
    seen['body'] = {'length': len(body), 'sha256': hashlib.sha256(body).hexdigest()}
    start_response('200 OK', [('Content-Type', 'application/json')])
    return [json.dumps(seen).encode()]


def reads(environ, start_response):
    """Read the body in each of the four ways that a file can be read."""
    file = environ['wsgi.input']
    pieces = [file.read(2), file.readline(), file.readlines(1)[0], *file, file.read()]
    start_response('200 OK', TEXT)
    return [repr(pieces).encode()]


def errors(environ, start_response):
    environ['wsgi.errors'].write(f'said to wsgi.errors: {environ["QUERY_STRING"]}\n')
    environ['wsgi.errors'].flush()
    start_response('200 OK', TEXT)
    return []


# What the application may do


def cookies(environ, start_response):
    start_response('200 OK', [*TEXT, ('Set-Cookie', 'a=1'), ('X-Between', 'yes'), ('Set-Cookie', 'b=2; Path=/')])
    return [b'cookies']


def lazy(environ, start_response):
    """Call start_response only when the first piece is asked for, and give pieces of all sizes."""
    start_response('201 Made', TEXT)
    yield b''
    yield b'one, '
    yield b''
    yield b'two'


def writes(environ, start_response):
    write = start_response('200 OK', TEXT)
    write(b'written, ')
    write(b'twice, ')
    return [b'returned']


def second_thoughts(environ, start_response):
    """Say 200, fail before the first byte, and say 500 instead."""
    start_response('200 OK', [*TEXT, ('X-First', 'yes')])
    try:
        raise LookupError('no such thing')
    except LookupError:
        start_response('500 Second Thoughts', TEXT, sys.exc_info())
    return [b'sorry']


def too_late(environ, start_response):
    """Fail after bytes were given: start_response must raise the error again."""
    write = start_response('200 OK', TEXT)
    write(b'half of it')
    try:
        raise LookupError('lost the other half')
    except LookupError:
        start_response('500 Too Late', TEXT, sys.exc_info())
    return [b'never']


def status(environ, start_response):
    """Answer with the status in the query, and claim a length of five."""
    start_response(unquote(environ['QUERY_STRING']), [('Content-Length', '5'), ('ETag', '"x"')])
    return Closing([b'five!'])


def headers(environ, start_response):
    """Answer ``hello`` with the headers that the query gives as JSON."""
    given = json.loads(bytes.fromhex(environ['QUERY_STRING']))
    start_response('200 OK', [tuple(pair) for pair in given])
    return [b'hello']


def sized(environ, start_response):
    """Answer with as many bytes as the query says, by the mebibyte."""
    size = int(environ['QUERY_STRING'])
    start_response('200 OK', [('Content-Type', 'application/octet-stream')])
    return [b'x' * min(MEBIBYTE, size - at) for at in range(0, size, MEBIBYTE)]


def blocks(environ, start_response):
    """Answer when the fifo that ``X-Fifo`` names has been opened and closed by somebody who writes."""
    data = Path(environ['HTTP_X_FIFO']).read_bytes()
    start_response('200 OK', TEXT)
    return [b'read ', data]


# Closing


def closes(environ, start_response):
    start_response('200 OK', TEXT)
    return Closing([b'a', b'b'])


def closes_after_error(environ, start_response):
    start_response('200 OK', TEXT)
    return Closing([b'a'], ValueError('in the middle'))


def closes_unstarted(environ, start_response):
    return Closing([b'a'])


def close_count(environ, start_response):
    start_response('200 OK', TEXT)
    return [str(closed).encode()]


# What the application must not do


def raises(environ, start_response):
    raise ValueError('before its head')


def raises_after_head(environ, start_response):
    start_response('200 OK', TEXT)
    raise ValueError('after its head')


def raises_after_body(environ, start_response):
    start_response('200 OK', TEXT)
    yield b'half of it'
    raise ValueError('after half of its body')


def exits(environ, start_response):
    raise SystemExit(3)


def says_nothing(environ, start_response):
    return []


def starts_twice(environ, start_response):
    start_response('200 OK', TEXT)
    start_response('200 OK', TEXT)
    return []


def gives_text(environ, start_response):
    start_response('200 OK', TEXT)
    return ['text']


def writes_before_head(environ, start_response):
    yield b'no head yet'
    start_response('200 OK', TEXT)


def header_tuple(environ, start_response):
    start_response('200 OK', tuple(TEXT))
    return []


def header_number(environ, start_response):
    start_response('200 OK', [('X-Number', 5)])
    return []


def app(environ, start_response):
    """Run the application that the request picks."""
    return globals()[environ.get('HTTP_X_APP', 'echo')](environ, start_response)


def make_app(greeting, *, times=1):
    """Make an application, as a factory that is given arguments."""

    def greet(environ, start_response):
        start_response('200 OK', TEXT)
        flags = environ['wsgi.multithread'], environ['wsgi.multiprocess'], environ['wsgi.run_once']
        return [f'{greeting * times} {flags}'.encode()]

    return greet
