"""An application that keeps accounts: each run is a line in the file ``$RUNS`` names, whatever becomes of it then."""

import ctypes
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

#: Which code this is, for deploys.
VERSION = os.environ.get('VERSION', '1')

_log = os.open(os.environ['RUNS'], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Note the run, read the body, take as long as the query's ``for`` says, do what ``do`` says; then answer."""
    query = {name: values[0] for name, values in parse_qs(environ['QUERY_STRING']).items()}
    # One write: lines of several processes never mix, and what is written survives a kill.
    os.write(_log, f'{query["id"]} {environ["REQUEST_METHOD"]} {os.getpid()} {time.monotonic():.4f}\n'.encode())
    body = environ['wsgi.input'].read()
    rest(float(query.get('for', 0)))
    BEHAVIOURS[query.get('do', 'answer')]()
    if length := int(query.get('stream', 0)):
        start_response('200 OK', [('Content-Type', 'application/octet-stream')])
        return stream(query['id'], length)
    answer = f'{query["id"]} {hashlib.sha1(body).hexdigest()} {VERSION} {os.getpid()}'.encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(answer)))])
    return [answer]


def rest(seconds: float) -> None:
    """Sleep in pieces that an exception can get between."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))


def stream(request: str, pieces: int) -> Iterable[bytes]:
    """Yield so many pieces, one each 10 ms; note the end, whichever it is."""
    try:
        for number in range(pieces):
            yield f'{request} {number}\n'.encode().ljust(10_000, b'.')
            time.sleep(0.01)
    finally:
        os.write(_log, f'{request} CLOSED {os.getpid()} {time.monotonic():.4f}\n'.encode())


def kill() -> None:
    """End as the kernel ends what has taken too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    """Crash in C code."""
    ctypes.string_at(1)


def leave() -> None:
    """End the process without a word."""
    os._exit(3)


def hang() -> None:
    """Hang in C code that holds the interpreter."""
    ctypes.PyDLL(None).sleep(1000)


def block() -> None:
    """Hang in a system call."""
    time.sleep(1000)


def devour() -> None:
    """Take more memory than there is."""
    taken = []
    while True:
        taken.append(bytearray(16 * 1024 * 1024))


BEHAVIOURS = {
    'answer': lambda: None,
    'kill': kill,
    'segfault': segfault,
    'leave': leave,
    'hang': hang,
    'block': block,
    'devour': devour,
}
