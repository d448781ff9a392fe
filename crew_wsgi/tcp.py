"""What the kernel knows of a client's connection, and who only reads and writes does not (tcp(7), TCP_INFO)."""

import contextlib
import socket
import struct

from tornado.iostream import IOStream

__all__ = ['bytes_acked', 'is_gone', 'is_reset', 'reset']

#: States of a connection in Linux's ``tcp_states.h``: it was reset, and the other end sends no more.
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8

# Linux's struct tcp_info: eight bytes, 24 numbers of 32 bits, two of 64 bits, and then ``tcpi_bytes_acked``.
_BYTES_ACKED = struct.Struct('=120xQ')


def is_reset(connection: socket.socket) -> bool:
    """Return whether a connection was reset, whatever of it is still to be read."""
    return _state(connection) == TCP_CLOSE


def is_gone(connection: socket.socket) -> bool:
    """Return whether the client sends no more, whatever of it is still to be read."""
    return _state(connection) in (TCP_CLOSE, TCP_CLOSE_WAIT)


def bytes_acked(connection: socket.socket) -> int | None:
    """Return how many bytes the client's kernel has taken; None if the connection does not tell, as that of a proxy
    on this machine by a unix socket.
    """
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        return int(_BYTES_ACKED.unpack(info)[0])
    except (OSError, struct.error):
        return None


def reset(stream: IOStream) -> None:
    """Close a connection in a way that nobody takes for a good end, and that keeps nothing for a client to read."""
    if not stream.closed():
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        stream.close()


def _state(connection: socket.socket) -> int:
    """Return the state of a connection; 0 if it is not one of TCP."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return 0
