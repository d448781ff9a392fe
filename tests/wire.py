"""Raw bytes on a connection to a front: what a careful, a careless or a hostile client would send."""

import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType


@dataclass(frozen=True)
class RawAnswer:
    """A response as it came, its framing taken off."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        """The values of a header joined, or None."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ', '.join(values) if values else None


class Wire:
    """A connection: ``with Wire(front.port) as wire: wire.send(b'…'); wire.answer()``."""

    def __init__(self, port: int, timeout: float = 30, buffer: int | None = None) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(timeout)
        if buffer is not None:
            # Before it connects, or the window that it offers is larger already.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self._socket.connect(('127.0.0.1', port))
        self._reader = self._socket.makefile('rb')

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, method: str = 'GET') -> RawAnswer:
        """Read one response to its end; ``method`` is that of its request."""
        head = self.head()
        return replace(head, body=self._body(head, method))

    def head(self) -> RawAnswer:
        """Read the head of a response, and leave its body."""
        version, status, reason = self._line().split(' ', 2)
        headers = []
        while line := self._line():
            name, _, value = line.partition(':')
            headers.append((name, value.strip()))
        return RawAnswer(version, int(status), reason, headers, b'')

    def chunks(self) -> Iterator[bytes]:
        """Read a body in chunks, each as it comes, until the last, which is empty.

        Raises:
            ConnectionError: the connection ended before that.
        """
        while True:
            size = int(self._line(), 16)
            data = self.read(size + 2)
            if len(data) < size + 2:
                raise ConnectionError('the connection ended in the middle of a chunk')
            if not size:
                return
            yield data[:-2]

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or what comes until the end of the connection."""
        return self._reader.read(size)

    def is_quiet(self, seconds: float) -> bool:
        """Wait for so long; return whether nothing has come."""
        return not select.select([self._socket], [], [], seconds)[0]

    def ended(self) -> bool:
        """Wait until something comes; return whether it is the end of the connection."""
        try:
            return self._reader.read(1) == b''
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def __enter__(self) -> 'Wire':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        line = self._reader.readline()
        if not line.endswith(b'\n'):
            raise ConnectionError(f'the connection ended in the middle of a head, after {line!r}')
        return line.rstrip(b'\r\n').decode('latin-1')

    def _body(self, head: RawAnswer, method: str) -> bytes:
        if method == 'HEAD' or head.status in (204, 304) or head.status < 200:
            return b''
        if head['Transfer-Encoding'] == 'chunked':
            return b''.join(self.chunks())
        length = head['Content-Length']
        return self._reader.read() if length is None else self._reader.read(int(length))
