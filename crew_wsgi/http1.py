"""HTTP/1.1 as bytes: requests are read as RFC 9112 says and no more leniently, and answers are framed.

Sans-IO: bytes come in, heads and bodies come out, and the other way. Whoever stands in front of us may read ambiguous
bytes in another way, and a request could hide in the difference. So what is malformed is refused, and nothing that
comes behind it is read. Tornado's own parser would accept some of this, and refuse the rest with a bare 400.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

from tornado import httputil

from crew.values import value_class
from crew_wsgi.fields import Fields
from crew_wsgi.headers import COUNTABLE, HeaderPairs, check_headers, is_token
from crew_wsgi.problems import bad_request

__all__ = ['END', 'Answer', 'End', 'Event', 'Head', 'Malformed', 'Reader', 'Section', 'parse_head']

#: Pieces of a body are put together up to this.
PIECE = 64 * 1024

#: RFC 9112 §7.1.1: a server ought to limit what it reads of chunk extensions, which carry nothing for it.
MAX_CHUNK_LINE = 1024
MAX_EXTENSIONS = 16 * 1024

#: So many chunks that are there already are taken before others have their turn.
CHUNKS_PER_TURN = 256

#: The longest header section, and the longest line of a field, that are remembered, in bytes.
USUAL_SECTION = 1024
USUAL_LINE = 128

_END = re.compile(rb'\n\r?\n')
_CONTROL = re.compile(rb'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]')
_REQUEST_LINE = re.compile(rb'([^ ]+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])')
_DIGITS = re.compile(r'[0-9]+')
_CHUNK = re.compile(rb'0*([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?')
# RFC 3986 §3.2.2, without what only a URI's userinfo may have.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


class Malformed(Exception):
    """Raised for a request that must not be understood.

    Args:
        detail: why, in one sentence for the client.
        status: the HTTP status.
    """

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.problem = bad_request(detail, status)


@value_class(frozen=True, slots=True)
class Section:
    """The header section of a request.

    Args:
        fields: in their order; ``Content-Length`` is there once at most.
        closes: whether the client wants the connection closed behind the answer.
        chunked: whether the body is.
        length: of the body in bytes, if it is not.
    """

    fields: Fields
    closes: bool
    chunked: bool
    length: int


@value_class(frozen=True, slots=True)
class Head:
    """The beginning of a request.

    Args:
        start_line: the request line.
        section: what follows it.
    """

    start_line: httputil.RequestStartLine
    section: Section


class End:
    """The end of a request; :data:`END` is the only one."""


END: Final = End()

Event: TypeAlias = Head | bytes | End


class Reader:
    """Reads the requests of one connection, one after the other.

    Args:
        max_head: the longest request line and header section together, in bytes.
    """

    __slots__ = ('_buffer', '_extensions', '_left', '_max_head', '_piece', '_seen', '_state', '_total', '_within')

    def __init__(self, max_head: int) -> None:
        self._max_head = max_head
        self._buffer = bytearray()
        # What comes before the buffer: a part of a body that needs no look at.
        self._piece = b''
        self._seen = 0
        self._state: Callable[[], Event | None] = self._read_head
        self._left = 0
        self._total = self._extensions = 0
        # Whether a chunk's line end is still to come.
        self._within = False

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self._left and not self._buffer and not self._piece and self._state == self._read_length:
            self._piece, data = data[: self._left], data[self._left :]
        self._buffer += data

    @property
    def size(self) -> int:
        """How many bytes have come and are not read yet."""
        return len(self._piece) + len(self._buffer)

    @property
    def begun(self) -> bool:
        """Whether anything of the next request has come; half of an empty line is no beginning."""
        self._skip_empty_lines()
        return bool(self._buffer) and self._buffer != b'\r'

    def read(self) -> Event | None:
        """Return what comes next of the request; ``None``: more bytes are needed.

        Small chunks are put together. After :data:`END`, the next request is read.

        Raises:
            Malformed: nothing that comes now can be understood.
        """
        return self._state()

    def clear(self) -> None:
        """Forget what has come: nothing of it is read any more."""
        self._piece = b''
        self._buffer.clear()

    def guess(self) -> httputil.RequestStartLine:
        """Return what a head that cannot be read seems to begin with."""
        return _guessed(self._buffer)

    # Heads

    def _skip_empty_lines(self) -> None:
        # RFC 9112 §2.2: some clients send one behind a body.
        while self._buffer.startswith(b'\r\n'):
            del self._buffer[:2]

    def _read_head(self) -> Head | None:
        buffer = self._buffer
        if not self.begun:
            return None
        end = _END.search(buffer, max(self._seen - 2, 0))
        if end is None and len(buffer) <= self._max_head:
            self._seen = len(buffer)
            return None
        if end is None or end.end() > self._max_head:
            raise Malformed(f'The head of the request is longer than {self._max_head} bytes.', 431)
        head = parse_head(bytes(buffer[: end.end()]))
        del buffer[: end.end()]
        self._seen = self._total = self._extensions = 0
        self._left = head.section.length
        self._state = self._read_chunks if head.section.chunked else self._read_length
        return head

    def _ended(self) -> End:
        self._state = self._read_head
        return END

    # Bodies with a length

    def _read_length(self) -> bytes | End | None:
        if not self._left:
            return self._ended()
        if not self._piece:
            return self._some() or None
        piece, self._piece = self._piece, b''
        self._left -= len(piece)
        return piece

    def _some(self) -> bytes:
        """Return what is there of what is left."""
        # Of a view: a slice would be one copy more.
        with memoryview(self._buffer) as view:
            data = bytes(view[: self._left])
        del self._buffer[: self._left]
        self._left -= len(data)
        return data

    # Bodies in chunks (RFC 9112 §7.1); their extensions and trailers are checked and dropped

    def _read_chunks(self) -> bytes | End | None:
        # Where chunks begin and end means nothing; small ones are put together, for as long as nobody waits for them.
        piece = bytearray()
        for _ in range(CHUNKS_PER_TURN):
            if self._left:
                piece += self._some()
                if self._left:
                    break
                self._within = True
            if self._within:
                if len(self._buffer) < 2:
                    break
                if not self._buffer.startswith(b'\r\n'):
                    raise Malformed('A chunk is longer than its size.')
                del self._buffer[:2]
                self._within = False
                if len(piece) >= PIECE:
                    break
            size = self._chunk_size()
            if size is None:
                break
            if not size:
                self._left = self._max_head
                self._state = self._read_trailers
                return bytes(piece) or self._read_trailers()
            self._left = size
        return bytes(piece) or None

    def _chunk_size(self) -> int | None:
        """Return the size of the chunk that begins here."""
        line = self._line(MAX_CHUNK_LINE, 'The beginning of a chunk')
        if line is None:
            return None
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise Malformed('A chunk does not begin with its size.')
        size = int(match[1], 16)
        self._total += size
        self._extensions += len(line) - len(match[1])
        if self._extensions > MAX_EXTENSIONS + self._total:
            raise Malformed('There is more of chunk extensions than of the body.')
        return size

    def _read_trailers(self) -> End | None:
        while line := self._line(self._left, 'The trailer section'):
            self._left -= len(line) + 2
            if _CONTROL.search(line):
                raise Malformed('A header has control characters.')
            _field(line)
        return None if line is None else self._ended()

    def _line(self, limit: int, what: str) -> bytes | None:
        """Return the next line, without its end."""
        end = self._buffer.find(b'\n', self._seen)
        if end < 0 and len(self._buffer) <= limit:
            self._seen = len(self._buffer)
            return None
        self._seen = 0
        if not 0 <= end <= limit:
            raise Malformed(f'{what} is too long.')
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        if not line.endswith(b'\r\n') or line.count(b'\r') > 1:
            raise Malformed(f'{what} has a line that does not end with CR LF.')
        return line[:-2]


class Answer:
    """Frames the answer to one request (RFC 9112 §6).

    Args:
        request: the request line that is answered.
        closes: whether the client wants the connection closed behind it.

    Attributes:
        closes: whether the connection is to be closed behind it.
    """

    __slots__ = ('_bodiless', '_chunked', '_old', '_remaining', 'closes')

    def __init__(self, request: httputil.RequestStartLine, *, closes: bool) -> None:
        self.closes = closes
        self._old = request.version == 'HTTP/1.0'
        self._bodiless = request.method == 'HEAD'
        self._chunked = False
        self._remaining: int | None = None

    def head(self, code: int, reason: str, headers: HeaderPairs, chunk: bytes = b'', added: str = '') -> bytes:
        """Return the head, and the beginning of the body.

        Args:
            code: the status code.
            reason: its phrase.
            headers: without ``Transfer-Encoding`` and ``Connection``, which are this side's.
            chunk: the beginning of the body.
            added: more fields, each as a line with its end.

        Raises:
            ValueError: a header cannot stand in a line.
            httputil.HTTPOutputError: ``chunk`` is longer than ``Content-Length``.
        """
        if not isinstance(headers, Fields):
            check_headers(headers)
            headers = Fields(headers)
        bodiless = self._bodiless or code in (204, 304)
        length = headers.values.get('content-length')
        self._chunked = not self._old and not bodiless and length is None
        if bodiless:
            self._remaining = 0
        elif length is not None:
            self._remaining = int(length)
        ours = 'Transfer-Encoding: chunked\r\n' if self._chunked else ''
        # What the other version would do is said.
        if self.closes != self._old:
            ours += 'Connection: close\r\n' if self.closes else 'Connection: Keep-Alive\r\n'
        # Other characters are nobody's business; RFC 9112 §4 lets a client ignore the phrase anyway.
        phrase = reason if reason.isascii() and reason.isprintable() else ''
        head = f'HTTP/1.1 {code} {phrase}\r\n{headers.lines}{added}{ours}\r\n'
        return b''.join((head.encode('latin-1'), self.piece(chunk)))

    def piece(self, chunk: bytes | memoryview) -> bytes | memoryview:
        """Return more of the body.

        Raises:
            httputil.HTTPOutputError: it is longer than ``Content-Length``.
        """
        if self._remaining is not None:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                raise httputil.HTTPOutputError('more bytes than Content-Length were written')
        return b''.join((b'%x\r\n' % len(chunk), chunk, b'\r\n')) if self._chunked and chunk else chunk

    def end(self) -> bytes:
        """Return what ends the body.

        Raises:
            httputil.HTTPOutputError: it is shorter than ``Content-Length``.
        """
        if self._remaining:
            raise httputil.HTTPOutputError(f'{self._remaining} bytes less than Content-Length were written')
        return b'0\r\n\r\n' if self._chunked else b''


# Heads


def parse_head(head: bytes) -> Head:
    """Return what a head says that ends with an empty line.

    Raises:
        Malformed: it is not what RFC 9112 says.
    """
    line, _, rest = head.partition(b'\r\n')
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        _check_lines(head)
        raise Malformed('The request line is malformed.')
    if match[3] != b'1':
        raise Malformed('Only HTTP/1.1 and HTTP/1.0 are spoken here.')
    method, target = match[1].decode('latin-1'), match[2].decode('latin-1')
    if not is_token(method):
        raise Malformed('The method is not a token.')
    _check_target(target)
    # RFC 9110 §2.5: a later minor version is understood as the latest that we know.
    version = 'HTTP/1.0' if match[4] == b'0' else 'HTTP/1.1'
    section = _usual_section(rest, version) if len(rest) <= USUAL_SECTION else _read_section(rest, version)
    return Head(httputil.RequestStartLine(method, target, version), section)


def _check_target(target: str) -> None:
    if '#' in target:
        raise Malformed('The request target has a fragment.')
    scheme, separator, rest = target.partition('://')
    if separator and scheme.lower() in ('http', 'https'):
        host = re.split('[/?]', rest, maxsplit=1)[0].rpartition('@')[2]
        if not host or host.startswith(':') or not _HOST.fullmatch(host):
            raise Malformed('The request target does not name a host.')


def _read_section(section: bytes, version: str) -> Section:
    """Return what is said between the request line and the body (RFC 9112 §5, §6.3, §9.3)."""
    _check_lines(section)
    lines = section.removesuffix(b'\r\n\r\n').split(b'\r\n') if len(section) > len(b'\r\n') else []
    fields = Fields([_field(line) for line in lines])
    if not all(_HOST.fullmatch(host) for host in fields.get_list('host')):
        raise Malformed('The Host header is not a host.')
    tokens = {token.strip().lower() for token in fields.get('connection').split(',')}
    closes = 'close' in tokens or (version == 'HTTP/1.0' and 'keep-alive' not in tokens)
    chunked = _is_chunked(fields, version)
    length = None if chunked else _length(fields)
    if length is not None:
        fields = fields.replaced('Content-Length', str(length))
    return Section(fields, closes, chunked, length or 0)


#: Most clients send the same fields with each request of a connection.
_usual_section = lru_cache(maxsize=256)(_read_section)


def _check_lines(text: bytes) -> None:
    ends = text.count(b'\r\n')
    if text.count(b'\n') != ends or text.count(b'\r') != ends:
        raise Malformed('The head of the request has a line that does not end with CR LF.')
    if _CONTROL.search(text):
        raise Malformed('The head of the request has control characters.')


def _field(line: bytes) -> tuple[str, str]:
    """Return name and value of a header field without control characters (RFC 9112 §5)."""
    return _usual_field(line) if len(line) <= USUAL_LINE else _read_field(line)


def _read_field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.decode('latin-1').partition(':')
    if line.startswith((b' ', b'\t')):
        raise Malformed('A header is folded.')
    if not colon or not is_token(name):
        raise Malformed('A header has no name, or one that is not a token.')
    return name, value.strip(' \t')


#: Of those that differ, most fields stood in one before.
_usual_field = lru_cache(maxsize=512)(_read_field)


def _is_chunked(fields: Fields, version: str) -> bool:
    """Return whether the body comes in chunks (RFC 9112 §6.1)."""
    if 'transfer-encoding' not in fields.values:
        return False
    if 'content-length' in fields.values:
        raise Malformed('There are both Content-Length and Transfer-Encoding.')
    if version == 'HTTP/1.0':
        raise Malformed('There is no Transfer-Encoding in HTTP/1.0.')
    codings = [coding.strip(' \t').lower() for coding in fields.get('transfer-encoding').split(',')]
    if codings[-1] != 'chunked' or 'chunked' in codings[:-1] or '' in codings:
        raise Malformed('The Transfer-Encoding does not end with chunked, once.')
    if len(codings) > 1:
        raise Malformed('No Transfer-Encoding but chunked is understood here.', 501)
    return True


def _length(fields: Fields) -> int | None:
    """Return what ``Content-Length`` says, perhaps several times (RFC 9112 §6.3)."""
    if 'content-length' not in fields.values:
        return None
    lengths = {length.strip(' \t') for length in fields.get('content-length').split(',')}
    length = lengths.pop()
    if lengths or not _DIGITS.fullmatch(length):
        raise Malformed('The Content-Length is not one number.')
    digits = length.lstrip('0') or '0'
    if len(digits) > COUNTABLE:
        raise Malformed('The body of the request is longer than anybody can take.', 413)
    return int(digits)


def _guessed(head: bytes | bytearray) -> httputil.RequestStartLine:
    """Return what a malformed head seems to begin with."""
    line = bytes(head[:200].split(b'\n', 1)[0].rstrip(b'\r'))
    method = 'HEAD' if line.startswith(b'HEAD ') else '-'
    return httputil.RequestStartLine(method, line.decode('latin-1'), '-')
