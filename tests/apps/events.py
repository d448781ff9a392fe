"""Server-sent events, each sent when the test says so."""

import time
from urllib.parse import parse_qs

import told


def app(environ, start_response):
    """Send five events, each with the time at which it left."""
    key = parse_qs(environ['QUERY_STRING'])['key'][0]
    start_response('200 OK', [('Content-Type', 'text/event-stream'), ('Cache-Control', 'no-store')])
    yield b': welcome\n\n'
    for number in range(5):
        told.await_go(f'{key}.{number}')
        yield f'id: {number}\ndata: {time.time()}\n\n'.encode()
