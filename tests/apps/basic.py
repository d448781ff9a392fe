"""Tiny WSGI applications that the tests serve."""

import os


def hello(environ, start_response):
    """Answer with the id of the process."""
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [f'{os.getpid()}\n'.encode()]
