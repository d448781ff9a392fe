"""An application that keeps accounts: each run is a line in the file ``$RUNS`` names, whatever becomes of it then."""

import ctypes
import fcntl
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

#: Which code this is, for deploys; as read when it was loaded.
VERSION = Path(os.environ['VERSION_FILE']).read_text() if 'VERSION_FILE' in os.environ else '1'
if 'HANDLES_SIGNALS' in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    signal.set_wakeup_fd(-1)
if VERSION == 'broken':
    raise ImportError('this version cannot be loaded')

# High, so that closing what is not ours does not close this.
_log = fcntl.fcntl(os.open(os.environ['RUNS'], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), fcntl.F_DUPFD, 200)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Note the run, read the body, take as long as the query's ``for`` says, do what ``do`` says; then answer."""
    query = {name: values[0] for name, values in parse_qs(environ['QUERY_STRING']).items()}
    note(f'{query["id"]} {environ["REQUEST_METHOD"]}')
    try:
        body = environ['wsgi.input'].read()
    except OSError:
        note(f'{query["id"]} BROKEN')
        raise
    rest(float(query.get('for', 0)))
    BEHAVIOURS[query.get('do', 'answer')]()
    if length := int(query.get('stream', 0)):
        start_response('200 OK', [('Content-Type', 'application/octet-stream')])
        return Stream(query['id'], length, float(query.get('pace', 0.01)))
    answer = f'{query["id"]} {hashlib.sha1(body).hexdigest()} {VERSION} {os.getpid()}'.encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(answer)))])
    return [answer]


def note(text: str) -> None:
    """Write a line into the log, with the process, the time and the version."""
    # One write: lines of several processes never mix, and what is written survives a kill.
    os.write(_log, f'{text} {os.getpid()} {time.monotonic():.4f} {VERSION}\n'.encode())


def rest(seconds: float) -> None:
    """Sleep in pieces that an exception can get between."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))


class Stream:
    """So many pieces, one each ``pace`` seconds; its end is noted, whichever it is."""

    def __init__(self, request: str, pieces: int, pace: float) -> None:
        self._request = request
        self._pieces = pieces
        self._pace = pace

    def __iter__(self) -> Iterator[bytes]:
        for number in range(self._pieces):
            yield f'{self._request} {number}\n'.encode().ljust(10_000, b'.')
            time.sleep(self._pace)

    def close(self) -> None:
        note(f'{self._request} CLOSED')


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
    _lock_forever(ctypes.PyDLL(None))


def block() -> None:
    """Hang in a system call."""
    # Not time.sleep, which gevent makes its own.
    _lock_forever(ctypes.CDLL(None))


def _lock_forever(libc: ctypes.CDLL) -> None:
    # A signal ends sleep(3), but not this.
    mutex = ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def devour() -> None:
    """Take more memory than there is, in pieces so small that nobody else in the process gets any."""
    limit = int(os.environ['MEMORY'])
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    taken = []
    while True:
        taken.append(bytearray(1000))


def leave_by_exception() -> None:
    """Raise what ends a process."""
    sys.exit(3)


def interrupt() -> None:
    """Raise what a terminal raises."""
    raise KeyboardInterrupt


def exhaust() -> None:
    """Raise what the interpreter raises when there is no memory."""
    raise MemoryError


def recurse() -> None:
    """Call itself until the interpreter has enough."""
    recurse()


def flood() -> None:
    """Write much, and nothing of use, to standard error."""
    for _ in range(300):
        sys.stderr.write('nothing of use\n' * 1000)


def close_all() -> None:
    """Close what belongs to others, as a careless library that makes daemons does."""
    os.closerange(3, 200)


def fork() -> None:
    """Leave a process behind that has everything this one has, as a pool of processes does."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)


def meddle() -> None:
    """Change what belongs to the whole process: its signals, its directory, the mask of its new files."""
    # Not signal.signal, which only the main thread may call; C libraries ask nobody.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        ctypes.CDLL(None).signal(number, ctypes.c_void_p(1))
    os.umask(0o777)
    os.chdir('/')


BEHAVIOURS = {
    'answer': lambda: None,
    'kill': kill,
    'segfault': segfault,
    'leave': leave,
    'hang': hang,
    'block': block,
    'devour': devour,
    'exit': leave_by_exception,
    'interrupt': interrupt,
    'exhaust': exhaust,
    'recurse': recurse,
    'flood': flood,
    'close': close_all,
    'fork': fork,
    'meddle': meddle,
}
