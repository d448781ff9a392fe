"""Where the front listens: addresses, unix sockets, and sockets that systemd or another parent has opened."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado import netutil

__all__ = ['Acceptor', 'answer_at_once', 'describe', 'inherited_sockets', 'open_sockets', 'room_for']

log = logging.getLogger(__name__)

#: How many may wait to be accepted; the kernel's own limit (``net.core.somaxconn``) may be lower.
BACKLOG = 4096

#: How many connections are accepted before others have their turn. In a flood of clients the broker must not wait for
#: its own: workers ask us about calls.
TURN = 8

#: How long nobody is accepted when the system has no room for another connection, in seconds.
PAUSE = 0.2

#: How often that is logged at most, in seconds.
LOG_EVERY = 10.0

#: accept(2): the process or the system has no more of something.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: How many files are kept for others when clients have taken all: the broker may have to be connected to again.
SPARE = 8

#: Files that are no connections of clients: logs, the loop, the broker, what is opened for a moment.
OTHER_FILES = 64

#: sd_listen_fds(3): the first file descriptor that systemd hands over.
FIRST_INHERITED = 3

_ADDRESS = re.compile(r'(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})')


def open_sockets(bind: str, at_end: contextlib.ExitStack) -> list[socket.socket]:
    """Listen.

    Args:
        bind: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH`` or ``fd:NUMBER``.
        at_end: removes what this leaves in the file system.

    Raises:
        ValueError: it is none of these.
        OSError: it cannot be had.
    """
    kind, _, rest = bind.partition(':')
    if kind == 'unix' and rest:
        return [_unix_socket(Path(rest), at_end)]
    if kind == 'fd' and re.fullmatch('[0-9]{1,9}', rest):
        return [_inherited(int(rest))]
    match = _ADDRESS.fullmatch(bind)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f'{bind!r} should be HOST:PORT, [IPV6]:PORT, unix:PATH or fd:NUMBER')
    return netutil.bind_sockets(int(match[3]), match[1] or match[2] or None, backlog=BACKLOG)


def inherited_sockets() -> list[socket.socket]:
    """Return the sockets that systemd has opened for this process (sd_listen_fds(3)); none if it did not.

    Raises:
        ValueError: the environment makes no sense.
        OSError: what it names are no listening sockets.
    """
    if os.environ.get('LISTEN_PID') != str(os.getpid()):
        return []
    count = os.environ.get('LISTEN_FDS', '')
    if not re.fullmatch('[0-9]{1,4}', count):
        raise ValueError(f'LISTEN_FDS={count!r} is no number')
    return [_inherited(number) for number in range(FIRST_INHERITED, FIRST_INHERITED + int(count))]


def describe(listening: socket.socket, *, tls: bool) -> str:
    """Return the address of a socket, for the log."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f'unix:{name.decode() if isinstance(name, bytes) else name}'
    host, port = name[:2]
    return f'{"https" if tls else "http"}://{f"[{host}]" if ":" in host else host}:{port}/'


def room_for(connections: int) -> int:
    """Raise the limit of open files as far as it is needed and allowed; return how many connections there is room for.

    Args:
        connections: how many there should be room for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if resource.RLIM_INFINITY != soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    room = max(1, soft - OTHER_FILES)
    log.warning(
        'there is room for %d connections, not %d: the limit of open files is %d; raise it (ulimit -Hn, LimitNOFILE=), '
        'or lower --max-connections',
        room,
        connections,
        hard,
    )
    return room


class Acceptor:
    """Accepts connections, for as long as the system has room for them.

    Args:
        on_accepted: called with each connection, and the address of its other end.
        make_room: called when there is no room for another; returns whether something was closed.
    """

    def __init__(self, on_accepted: Callable[[socket.socket, Any], None], make_room: Callable[[], bool]) -> None:
        self._on_accepted = on_accepted
        self._make_room = make_room
        self._listening: list[socket.socket] = []
        self._paused: asyncio.TimerHandle | None = None
        self._log_again = 0.0
        self._spare: list[int] = []

    def add(self, listening: socket.socket) -> None:
        """Accept connections at this socket."""
        self._keep_spare()
        self._listening.append(listening)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept no more, and close the sockets."""
        loop = asyncio.get_running_loop()
        if self._paused is not None:
            self._paused.cancel()
        for listening in self._listening:
            loop.remove_reader(listening)
            listening.close()
        self._listening.clear()
        self._give_spare()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(TURN):
            try:
                connected, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED and not self._make_room():
                    self._pause(error)
                    return
                # Anything else is an error of the connection that was to be accepted (accept(2)).
                continue
            connected.setblocking(False)
            self._on_accepted(connected, address)

    def _pause(self, error: OSError) -> None:
        # Whoever waits to be accepted keeps the sockets readable: this would be called over and over.
        loop = asyncio.get_running_loop()
        if loop.time() >= self._log_again:
            self._log_again = loop.time() + LOG_EVERY
            log.error('cannot accept connections now: %s; clients wait', error.strerror)
        for listening in self._listening:
            loop.remove_reader(listening)
        self._give_spare()
        self._paused = loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        try:
            self._keep_spare()
        except OSError as error:
            self._pause(error)
            return
        for listening in self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _keep_spare(self) -> None:
        while len(self._spare) < SPARE:
            self._spare.append(os.open(os.devnull, os.O_RDONLY))

    def _give_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())


def answer_at_once(connected: socket.socket, answer: bytes) -> None:
    """Answer a client without a place for it, and hang up; its request is read if it is there already."""
    # Closed with something unread, the connection would be reset, and the client might not see the answer.
    with connected, contextlib.suppress(OSError):
        connected.send(answer)
        connected.shutdown(socket.SHUT_WR)
        connected.recv(64 * 1024)


def _unix_socket(path: Path, at_end: contextlib.ExitStack) -> socket.socket:
    # One that nobody listens on is what is left of a process that died.
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _is_served(path):
            path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.setblocking(False)
        listening.bind(str(path))
        at_end.callback(_remove, path, path.lstat())
        # Who may connect is for the directory's permissions to say.
        path.chmod(0o666)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove(path: Path, ours: os.stat_result) -> None:
    # Somebody may have moved our file away and put another in its place.
    with contextlib.suppress(OSError):
        if os.path.samestat(path.lstat(), ours):
            path.unlink()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        # Where many wait to be accepted, this would wait, too.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
        return True


def _inherited(number: int) -> socket.socket:
    listening = socket.socket(fileno=number)
    if listening.type != socket.SOCK_STREAM or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listening.detach()
        raise OSError(f'file descriptor {number} is not a listening socket')
    listening.setblocking(False)
    os.set_inheritable(number, False)
    return listening
