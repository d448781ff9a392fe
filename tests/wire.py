"""Raw bytes on a connection to a front: what a careful, a careless or a hostile client would send."""

import socket
from dataclasses import dataclass
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

    def __init__(self, port: int, timeout: float = 30) -> None:
        self._socket = socket.create_connection(('127.0.0.1', port), timeout=timeout)
        self._reader = self._socket.makefile('rb')

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, method: str = 'GET') -> RawAnswer:
        """Read one response to its end; ``method`` is that of its request."""
        version, status, reason = self._line().split(' ', 2)
        headers = []
        while line := self._line():
            name, _, value = line.partition(':')
            headers.append((name, value.strip()))
        head = RawAnswer(version, int(status), reason, headers, b'')
        return RawAnswer(version, int(status), reason, headers, self._body(head, method))

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
        if head['Transfer-Encoding'] is not None:
            raise AssertionError('the front knows the length of each body, so it must not send chunks')
        length = head['Content-Length']
        return self._reader.read() if length is None else self._reader.read(int(length))
