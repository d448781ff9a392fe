"""Raw bytes on a connection to any server, and its responses as they come."""

import json
import select
import socket
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ['Answer', 'Wire', 'ask']


@dataclass
class Answer:
    """A response, its framing taken off.

    Attributes:
        interim: the statuses of the 1xx responses before it.
        whole: whether the body ended where its framing said.
        framing: ``length``, ``chunked``, ``close`` or ``none``.
    """

    version: str
    status: int
    headers: list[tuple[str, str]]
    interim: list[int]
    body: bytes = b''
    whole: bool = True
    framing: str = 'none'

    def all(self, name: str) -> list[str]:
        """Return the values of a header's fields."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """Return the values of a header joined, or None."""
        return ', '.join(self.all(name)) or None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection."""

    def __init__(self, port: int, timeout: float = 20) -> None:
        self._socket = socket.create_connection(('127.0.0.1', port), timeout=timeout)
        self._reader = self._socket.makefile('rb')

    def send(self, data: str | bytes) -> None:
        """Send bytes; a server may have closed the connection after it said why."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data.encode('latin-1') if isinstance(data, str) else data)

    def answer(self, method: str = 'GET') -> Answer:
        """Read one response to its end; ``method`` is that of its request."""
        interim: list[int] = []
        while True:
            answer = self._head(interim)
            if answer.status >= 200:
                break
            interim.append(answer.status)
        self._read_body(answer, method)
        return answer

    def head(self) -> Answer:
        """Read the head of one response."""
        return self._head([])

    def rest(self) -> bytes:
        """Read all to the end of the connection."""
        data = b''
        try:
            while piece := self._reader.read1(64 * 1024):
                data += piece
        except ConnectionResetError:
            pass
        return data

    def read(self, size: int) -> bytes:
        """Read so many bytes, or less at the end."""
        try:
            return self._reader.read(size)
        except ConnectionResetError:
            return b''

    def silent(self, seconds: float) -> bool:
        """Return whether nothing comes for so long."""
        return not select.select([self._socket], [], [], seconds)[0]

    def line(self) -> str:
        """Read a line.

        Raises:
            ConnectionError: the connection ended before.
        """
        line = self._reader.readline()
        if not line.endswith(b'\n'):
            raise ConnectionError('the connection was closed without a response')
        return line.rstrip(b'\r\n').decode('latin-1')

    def shut(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def __enter__(self) -> 'Wire':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _head(self, interim: list[int]) -> Answer:
        version, status, _ = [*self.line().split(' ', 2), '', ''][:3]
        headers = []
        while line := self.line():
            name, _, value = line.partition(':')
            headers.append((name, value.strip()))
        return Answer(version, int(status), headers, interim)

    def _read_body(self, answer: Answer, method: str) -> None:
        if method == 'HEAD' or answer.status in (204, 304):
            return
        if answer.get('Transfer-Encoding') is not None:
            answer.framing = 'chunked'
            self._read_chunks(answer)
        elif (length := answer.get('Content-Length')) is not None:
            answer.framing = 'length'
            answer.body = self.read(int(length))
            answer.whole = len(answer.body) == int(length)
        else:
            answer.framing = 'close'
            answer.body = self.rest()

    def _read_chunks(self, answer: Answer) -> None:
        try:
            while size := int(self.line().partition(';')[0], 16):
                answer.body += self.read(size)
                self.line()
            while self.line():
                pass
        except (ConnectionError, ValueError):
            answer.whole = False


def ask(port: int, request: str | bytes, method: str = 'GET') -> tuple[Answer, bytes]:
    """Send a request that says it is the connection's last; return the response and all that came after it."""
    with Wire(port) as wire:
        wire.send(request)
        return wire.answer(method), wire.rest()
