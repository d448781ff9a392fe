"""Where the front listens: addresses, unix sockets, and sockets that systemd or another parent has opened."""

import contextlib
import os
import re
import socket
import stat
from pathlib import Path

from tornado import netutil

__all__ = ['BACKLOG', 'describe', 'inherited_sockets', 'open_sockets']

BACKLOG = 2048

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
