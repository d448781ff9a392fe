"""An application whose requests misbehave as their path says; each run is noted in the file ``$RUNS`` names."""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

KEPT = [None]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Do what the path says, then answer with the id of the process."""
    query = {name: values[0] for name, values in parse_qs(environ['QUERY_STRING']).items()}
    note(environ['PATH_INFO'], environ['REQUEST_METHOD'])
    BEHAVIOURS[environ['PATH_INFO']](query)
    body = f'{os.getpid()}'.encode()
    length = [('Content-Length', f'{len(body)}')] if 'length' in query else []
    start_response('200 OK', [('Content-Type', 'text/plain'), *length])
    return CleaningUp([body], float(query['close'])) if 'close' in query else [body]


class CleaningUp:
    """A body whose ``close`` takes some seconds, in pieces that an exception can get between."""

    def __init__(self, pieces: list[bytes], seconds: float) -> None:
        self.pieces = pieces
        self.seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.pieces)

    def close(self) -> None:
        """Clean up."""
        sleep({'for': f'{self.seconds}'})
        note('/closed', '-')


def note(path: str, method: str) -> None:
    """Write a line that survives the process."""
    if 'RUNS' in os.environ:
        with Path(os.environ['RUNS']).open('a') as runs:
            runs.write(f'{method} {path} {os.getpid()}\n')


def sleep(query: dict[str, str]) -> None:
    """Sleep in pieces that an exception can get between."""
    end = time.monotonic() + float(query['for'])
    while time.monotonic() < end:
        time.sleep(0.01)


def wait(query: dict[str, str]) -> None:
    """Sleep until there is a file."""
    while not Path(query['file']).exists():
        time.sleep(0.01)


def spin(query: dict[str, str]) -> None:
    """Compute for ever."""
    while True:
        pass


def compute(query: dict[str, str]) -> None:
    """Compute without a pause."""
    end = time.monotonic() + float(query['for'])
    while time.monotonic() < end:
        pass


def clean(query: dict[str, str]) -> None:
    """Compute for ever, but clean up when told to end."""
    try:
        while True:
            pass
    finally:
        note('/cleaned', 'FINALLY')


def swallow(query: dict[str, str]) -> None:
    """Refuse to end."""
    while True:
        try:
            while True:
                time.sleep(0.01)
        except SystemExit:
            pass


def syscall(query: dict[str, str]) -> None:
    """Hang in a system call."""
    time.sleep(1000)


def hold_gil(query: dict[str, str]) -> None:
    """Hang in C code that holds the interpreter lock."""
    ctypes.PyDLL(None).sleep(1000)


def die(query: dict[str, str]) -> None:
    """Kill the process, as the kernel does when memory is out."""
    os.kill(os.getpid(), signal.SIGKILL)


def leave(query: dict[str, str]) -> None:
    """End the process without a word."""
    os._exit(int(query['code']))


def crash(query: dict[str, str]) -> None:
    """Crash in C code."""
    ctypes.string_at(0)


def exhaust(query: dict[str, str]) -> None:
    """Take all the memory that the process may have, to the last bit if told to, and keep it if told to."""
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 1024 * 1024, -1))
    pieces: Any = None
    for size in map(int, query['sizes'].split(',')):
        try:
            while True:
                # Not a list, which must be moved as it grows.
                pieces = (pieces, bytes(size))
        except MemoryError:
            if 'keep' in query:
                KEPT[0] = pieces
    raise MemoryError


def fork(query: dict[str, str]) -> None:
    """Start processes and end them, as applications do."""
    for _ in range(2):
        process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,))
        process.start()
        process.terminate()
        process.join()


def stray(query: dict[str, str]) -> None:
    """Fork, and let the child come back as if it were the parent, or end as a program does."""
    child = os.fork()
    if child == 0 and 'code' in query:
        sys.exit(int(query['code']))
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == int(query.get('code', 0))


def speak(query: dict[str, str]) -> None:
    """Write to standard output."""
    print('spoken')


BEHAVIOURS = {
    '/': lambda query: None,
    '/sleep': sleep,
    '/wait': wait,
    '/spin': spin,
    '/compute': compute,
    '/clean': clean,
    '/swallow': swallow,
    '/syscall': syscall,
    '/gil': hold_gil,
    '/die': die,
    '/leave': leave,
    '/crash': crash,
    '/exhaust': exhaust,
    '/fork': fork,
    '/stray': stray,
    '/print': speak,
}
