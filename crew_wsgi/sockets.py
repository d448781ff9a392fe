"""Where the front listens: addresses, unix sockets, and sockets that systemd or another parent has opened."""

import contextlib
import os
import socket
import stat
from pathlib import Path

from tornado import netutil

__all__ = ['describe', 'inherited_sockets', 'open_sockets', 'remove']

BACKLOG = 2048

#: sd_listen_fds(3): the first file descriptor that systemd hands over.
FIRST_INHERITED = 3


def open_sockets(bind: str) -> list[socket.socket]:
    """Listen.

    Args:
        bind: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH`` or ``fd:NUMBER``.

    Raises:
        ValueError: it is none of these.
        OSError: it cannot be had.
    """
    kind, separator, rest = bind.partition(':')
    if kind == 'unix' and rest:
        return [_unix_socket(Path(rest))]
    if kind == 'fd' and rest.isdigit():
        return [_inherited(int(rest))]
    host, separator, port = bind.rpartition(':')
    if not separator or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f'{bind!r} should be HOST:PORT, [IPV6]:PORT, unix:PATH or fd:NUMBER')
    return netutil.bind_sockets(int(port), host.strip('[]') or None, backlog=BACKLOG)


def remove(bind: str) -> None:
    """Remove what :func:`open_sockets` has left in the file system."""
    if bind.startswith('unix:'):
        with contextlib.suppress(OSError):
            Path(bind.removeprefix('unix:')).unlink()


def inherited_sockets() -> list[socket.socket]:
    """Return the sockets that systemd has opened for this process (sd_listen_fds(3)); none if it did not."""
    if os.environ.get('LISTEN_PID') != str(os.getpid()):
        return []
    count = int(os.environ.get('LISTEN_FDS', '0'))
    return [_inherited(number) for number in range(FIRST_INHERITED, FIRST_INHERITED + count)]


def describe(listening: socket.socket, *, tls: bool) -> str:
    """Return the address of a socket, for the log."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f'unix:{name.decode() if isinstance(name, bytes) else name}'
    host, port = name[:2]
    return f'{"https" if tls else "http"}://{f"[{host}]" if ":" in host else host}:{port}/'


def _unix_socket(path: Path) -> socket.socket:
    # One that nobody listens on is what is left of a process that died.
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.setblocking(False)
        listening.bind(str(path))
        # Who may connect is for the directory's permissions to say.
        path.chmod(0o666)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
        return True


def _inherited(number: int) -> socket.socket:
    listening = socket.socket(fileno=number)
    listening.setblocking(False)
    os.set_inheritable(number, False)
    return listening
