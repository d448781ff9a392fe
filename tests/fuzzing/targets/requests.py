"""Bytes as the head of an HTTP request: it is what another strict reader takes it for, or we refuse it."""

import re

import h11

from crew_wsgi.http1 import Malformed, parse_head
from tests.fuzzing.bounds import assert_line, quick
from tests.fuzzing.choices import Choices

__all__ = ['check', 'seeds']

LINES = [b'GET / HTTP/1.1', b'POST /a?b HTTP/1.1', b'GET http://u@h:1/ HTTP/1.0', b'OPTIONS * HTTP/1.1']
LINES += [b'GET /\xc3\xa9 HTTP/1.1', b'GET / HTTP/1.2', b'GET  / HTTP/1.1', b'get / HTTP/2.0']

FIELDS = [b'Host: h', b'Host: [::1]:80', b'Host: ', b'Host: h,i', b'Content-Length: 5', b'Content-Length: 5, 5']
FIELDS += [b'Content-Length: +5', b'Content-Length: 0x5', b'Content-Length: 05', b'Content-Length: 6']
FIELDS += [b'Transfer-Encoding: chunked', b'Transfer-Encoding: CHUNKED', b'Transfer-Encoding: gzip, chunked']
FIELDS += [b'Transfer-Encoding: chunked, identity', b'Transfer-Encoding: \tchunked ', b'Transfer-Encoding:\x0bchunked']
FIELDS += [b'Connection: close, keep-alive', b'A : b', b' A: b', b'A: b\tc', b'A:', b': b', b'A: \xff', b'A: "\\""']
FIELDS += [b'Transfer-Encoding: chunked, chunked', b'Transfer-Encoding: ,chunked', b'Transfer-Encoding: x chunked']
FIELDS += [b'Content_Length: 9', b'Transfer-Encoding : chunked', b'Expect: 100-continue', b'A: b\x00c', b'A']

ENDS = [b'\r\n', b'\r\n', b'\r\n', b'\r\n', b'\n', b'\r', b'\r\r\n', b'\r\n ', b'\x0b\r\n', b'\r\n\r\n']


def check(data: bytes) -> None:
    """Read the bytes as a head, and let h11 read it."""
    head = _made(Choices(data))
    try:
        with quick():
            read = parse_head(head)
    except Malformed as error:
        assert_line(error)
        assert 400 <= error.problem.status < 600
        return
    start_line, section = read.start_line, read.section
    fields, chunked, length = list(section.fields), section.chunked, section.length
    assert start_line.version in ('HTTP/1.0', 'HTTP/1.1') and 0 <= length < 10**18
    # What must not pass on into a line, a log or an environ.
    assert not re.search('[\0-\x08\x0a-\x1f\x7f ]', start_line.method + start_line.path)
    for name, value in fields:
        assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert not re.search('[\0-\x08\x0a-\x1f\x7f]', value) and value == value.strip(' \t')
    lengths = [value for name, value in fields if name.lower() == 'content-length']
    assert lengths in ([], [str(length)]) and not (lengths and chunked)
    assert chunked == ('transfer-encoding' in [name.lower() for name, _ in fields])
    _compare(head, start_line.method, start_line.path, fields, chunked, length)


def _compare(head: bytes, method: str, target: str, fields: list[tuple[str, str]], chunked: bool, length: int) -> None:
    """Fail if h11 takes the head for another request, or for none."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    # That there is one Host is looked at elsewhere, and RFC 9110 §4.1 lets who likes take other bytes in a target.
    line, _, rest = head.partition(b'\r\n')
    line = re.sub(rb'[\x80-\xff]', b'x', line)
    connection.receive_data(line + b'\r\nHost: h\r\n' + re.sub(rb'(?im)^host:.*\r\n', b'', rest))
    target = re.sub('[\x80-\xff]', 'x', target)
    event = connection.next_event()
    assert isinstance(event, h11.Request), 'we have read a request where there is none, or not all of one'
    assert (event.method.decode(), event.target.decode('latin-1')) == (method, target)
    # h11 has the names in lower case, and the lengths put together.
    theirs = [(name.decode('latin-1'), value.decode('latin-1')) for name, value in event.headers]
    fields = [field for field in fields if field[0].lower() != 'host']
    assert sorted(map(_plain, fields)) == sorted(map(_plain, theirs[1:]))
    # What follows the head is the body for both.
    connection.receive_data(b'0\r\n\r\n' if chunked else b'x' * min(length, 1000))
    following = connection.next_event()
    if chunked or not length:
        assert isinstance(following, h11.EndOfMessage)
    else:
        assert isinstance(following, h11.Data) and len(following.data) == min(length, 1000)
        assert connection.next_event() is h11.NEED_DATA or length <= 1000


def _plain(field: tuple[str, str]) -> tuple[str, str]:
    name, value = field[0].lower(), field[1]
    if name == 'transfer-encoding':
        return name, value.lower()
    return name, str(int(value)) if name == 'content-length' else value


def _made(choices: Choices) -> bytes:
    if choices.byte() % 4 == 0:
        return _cut(choices.rest())
    parts = [choices.pick(LINES)]
    for _ in range(choices.below(8)):
        parts.append(choices.pick(ENDS) if choices.rarely() else b'\r\n')
        if choices.byte() % 4:
            parts.append(choices.pick(FIELDS))
        else:
            parts.append(choices.short())
    return _cut(b''.join(parts))


def _cut(data: bytes) -> bytes:
    """Return what is read as the head: all up to the first empty line."""
    whole = data + b'\r\n\r\n'
    end = re.search(rb'\n\r?\n', whole)
    assert end is not None
    return whole[: end.end()]


def seeds() -> list[bytes]:
    """Return one that is taken as it is, and some that are put together, each field among them."""
    whole = b'\0GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n'
    fields = (bytes([1, 1, 2, 0, 1, 0, 0, 1, number]) for number in range(len(FIELDS)))
    return [whole, *fields]
