"""An application whose bodies are long or slow, as its path says; what it does is noted in the file ``$RUNS`` names."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

KIBIBYTE = 1024
PIECE = 64 * KIBIBYTE

Environ = dict[str, Any]
Query = dict[str, str]


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Do what the path says; whatever ``length`` says is the Content-Length."""
    query = {name: values[0] for name, values in parse_qs(environ['QUERY_STRING']).items()}
    path = environ['PATH_INFO']
    note(f'{environ["REQUEST_METHOD"]} {path} {os.getpid()}')
    time.sleep(float(query.get('first', '0')))
    headers = [('Content-Type', 'application/octet-stream')]
    if 'length' in query:
        headers.append(('Content-Length', query['length']))
    if path == '/writes':
        return writes(start_response('200 OK', headers))
    if path != '/late':
        start_response('200 OK', headers)
    return BEHAVIOURS[path](environ, query)


def note(line: str) -> None:
    """Write a line that survives the process."""
    with Path(os.environ['RUNS']).open('a') as runs:
        runs.write(f'{line}\n')


def block(number: int) -> bytes:
    """Return 64 KiB that are not those of another number."""
    return number.to_bytes(8, 'big') * (PIECE // 8)


def hello(environ: Environ, query: Query) -> Iterable[bytes]:
    """Say who runs it, and read nothing."""
    return [str(os.getpid()).encode()]


def read_body(environ: Environ, query: Query) -> Iterator[bytes]:
    """Yield the body; an error is noted."""
    pause = float(query.get('pause', '0'))
    try:
        while piece := environ['wsgi.input'].read(int(query.get('at_once', str(PIECE)))):
            yield piece
            time.sleep(pause)
    except OSError as error:
        note(f'OSError {error}')
        raise


def sink(environ: Environ, query: Query) -> Iterable[bytes]:
    """Read the body and say what it was."""
    length, digest = 0, hashlib.sha256()
    for piece in read_body(environ, query):
        length += len(piece)
        digest.update(piece)
    return [json.dumps({'length': length, 'sha256': digest.hexdigest(), 'pid': os.getpid()}).encode()]


def source(environ: Environ, query: Query) -> Iterator[bytes]:
    """Yield so many blocks of 64 KiB."""
    for number in range(int(query['blocks'])):
        yield block(number)


def whole(environ: Environ, query: Query) -> Iterable[bytes]:
    """Return so many blocks in one piece."""
    return [b''.join(source(environ, query))]


def events(environ: Environ, query: Query) -> Iterator[bytes]:
    """Yield each event when the file of its number is there."""
    for number in range(int(query['n'])):
        while not (Path(query['gates']) / str(number)).exists():
            time.sleep(0.01)
        yield f'data: {number}\n\n'.encode()


class Ticks:
    """Something every now and then, for ever; its end is noted, and whether it knew why."""

    def __init__(self, environ: Environ, query: Query) -> None:
        self.environ, self.every, self.size = environ, float(query.get('every', '0.1')), int(query.get('size', '5'))

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b'x' * self.size
            time.sleep(self.every)

    def close(self) -> None:
        note(f'closed {self.environ["crew.disconnected"]()}')


def hang(environ: Environ, query: Query) -> Iterator[bytes]:
    """Yield some, then nothing for a long time; the interrupt is noted."""
    for number in range(int(query['blocks'])):
        yield block(number)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
    except SystemExit:
        note('SystemExit')
        raise


def steps(environ: Environ, query: Query) -> Iterator[bytes]:
    """Yield every half second for so many seconds."""
    for _ in range(2 * int(query['seconds'])):
        time.sleep(0.5)
        yield b'step'


def fail(environ: Environ, query: Query) -> Iterator[bytes]:
    """Yield some blocks, then raise."""
    yield from source(environ, query)
    raise LookupError(query.get('why', 'on purpose'))


def writes(write: Callable[[bytes], object]) -> Iterable[bytes]:
    """Write for ever; the error that ends it is noted."""
    try:
        while True:
            write(b'x' * PIECE)
    except OSError as error:
        note(f'OSError {error}')
        raise


def stubborn(environ: Environ, query: Query) -> Iterator[bytes]:
    """Go on whatever happens until the client is gone, then note it and hang."""
    try:
        environ['wsgi.input'].read()
    except OSError:
        note('OSError')
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
    yield b''


def late(environ: Environ, query: Query) -> Iterator[bytes]:
    """Wait until nobody waits for the answer any more."""
    end = time.monotonic() + 30
    while time.monotonic() < end and not environ['crew.disconnected']():
        time.sleep(0.01)
    note(f'disconnected {environ["crew.disconnected"]()}')
    yield b''


BEHAVIOURS: dict[str, Callable[[Environ, Query], Iterable[bytes]]] = {
    '/': hello,
    '/sink': sink,
    '/echo': read_body,
    '/source': source,
    '/whole': whole,
    '/events': events,
    '/ticks': Ticks,
    '/hang': hang,
    '/steps': steps,
    '/fail': fail,
    '/stubborn': stubborn,
    '/late': late,
}
