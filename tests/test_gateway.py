"""The server's side of PEP 3333, rule by rule: what an application may do, what it must not, and what becomes of it."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from crew_wsgi.gateway import (
    KEPT_FIELDS,
    MAX_KEPT_FIELD,
    MAX_WHOLE,
    Application,
    ApplicationError,
    StartResponse,
    _usual_field,
    run_application,
)
from crew_wsgi.messages import Response

Environ = dict[str, Any]
Pairs = list[tuple[str, str]]


class Stream:
    """Where a response goes before its run ends; what it gets is noted, and whether anybody takes it."""

    def __init__(self) -> None:
        self.head: Response | None = None
        self.whole: Response | None = None
        self.ended = False
        self.pieces: list[bytes] = []
        self.broken = False

    def begin(self, response: Response) -> None:
        assert self.head is None
        self.head = response

    def write(self, data: bytes) -> None:
        assert self.head is not None and data and not self.ended
        if self.broken:
            raise BrokenPipeError('nobody takes the answer any more')
        self.pieces.append(data)

    def end(self) -> None:
        assert self.head is not None and not self.ended
        self.ended = True

    def answer(self, response: Response) -> None:
        assert self.head is None and self.whole is None
        self.whole = response


def run(application: Application, method: str = 'GET', **options: Any) -> Response:
    """Run an application; return its response as the client has it, whole or in parts."""
    stream = Stream()
    response = run_application(application, {'REQUEST_METHOD': method}, stream, **options)
    if response is not None or stream.whole is not None:
        assert response is None or stream.whole is None
        return response or stream.whole
    assert stream.head is not None and stream.head.body == b''
    return replace(stream.head, body=b''.join(stream.pieces))


def stream_of(application: Application) -> Stream:
    """Run an application whose response leaves in parts."""
    stream = Stream()
    assert run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is None
    return stream


def leaves_whole(application: Application) -> bool:
    stream = Stream()
    return run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is not None or stream.whole is not None


def respond(*body: Any, status: Any = '200 OK', headers: Any = ()) -> Application:
    """An application that says this."""

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, list(headers) if isinstance(headers, tuple) else headers)
        return list(body)

    return application


class Body:
    """An iterable that counts how often it was asked and closed, and raises at its end if told so."""

    def __init__(self, *pieces: bytes, error: BaseException | None = None) -> None:
        self.pieces = iter(pieces)
        self.error = error
        self.asked = self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.asked += 1
        piece = next(self.pieces, None)
        if piece is not None:
            return piece
        raise self.error or StopIteration

    def close(self) -> None:
        self.closed += 1


def giving(body: Iterable[bytes], status: str = '200 OK', headers: Pairs | None = None) -> Application:
    """An application that returns this very iterable."""

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, headers or [])
        return body

    return application


# The body


@pytest.mark.parametrize('body', [[b'ab'], [b'a', b'b'], (b'a', b'', b'b'), iter([b'ab']), {b'ab': 1}])
def test_any_iterable_of_bytes_is_a_body(body: Iterable[bytes]) -> None:
    response = run(giving(body))
    assert (response.status, response.body) == ('200 OK', b'ab')


def test_a_generator_may_call_start_response_when_it_is_first_asked() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response('201 Created', [('X-A', '1')])
        yield b'body'

    response = run(application)
    assert (response.status, response.body) == ('201 Created', b'body')


def test_a_generator_may_yield_nothing_at_all() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response('200 OK', [])
        yield from ()

    assert run(application) == Response(status='200 OK', headers=[('Content-Length', '0')])


def test_empty_pieces_may_come_before_start_response() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        yield b''
        start_response('200 OK', [])
        yield b'body'

    assert run(application).body == b'body'


def test_a_body_that_begins_before_start_response_is_refused() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        yield b'body'
        start_response('200 OK', [])

    with pytest.raises(ApplicationError, match='before start_response'):
        run(application)


@pytest.mark.parametrize('piece', ['text', '', None, 3, bytearray(b'a'), memoryview(b'a'), [b'a']])
def test_a_piece_that_is_not_bytes_is_refused(piece: Any) -> None:
    with pytest.raises(ApplicationError, match='must be bytes'):
        run(respond(b'a', piece))


def test_what_is_written_comes_before_what_is_returned() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response('200 OK', [])
        write(b'1')
        write(b'2')
        return [b'3']

    assert run(application).body == b'123'


def test_text_is_refused_by_write_at_the_place_where_it_is_written() -> None:
    places: list[str] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write: Callable[[Any], object] = start_response('200 OK', [])
        try:
            write('text')
        except ApplicationError:
            places.append('here')
            raise
        return []

    with pytest.raises(ApplicationError, match='must be bytes, not str'):
        run(application)
    assert places == ['here']


# Whole or in parts


@pytest.mark.parametrize('body', [[], [b'ab'], (b'ab',), [b'x' * MAX_WHOLE], iter([]), iter([b'', b''])])
def test_what_has_one_short_piece_at_most_leaves_whole(body: Iterable[bytes]) -> None:
    assert leaves_whole(giving(body))


@pytest.mark.parametrize('body', [iter([b'ab']), Body(b'ab'), [b'ab', b'']])
def test_what_has_all_of_its_length_in_its_first_piece_leaves_whole(body: Iterable[bytes]) -> None:
    assert leaves_whole(giving(body, headers=[('Content-Length', '2')]))


@pytest.mark.parametrize('body', [[b'ab', b'c'], iter([b'ab', b'c']), Body(b'ab', b'', b'c')])
def test_pieces_leave_as_they_come(body: Iterable[bytes]) -> None:
    stream = stream_of(giving(body, '201 Created', [('X-A', '1')]))
    assert stream.head == Response(status='201 Created', headers=[('X-A', '1')])
    assert stream.pieces == [b'ab', b'c']


def test_no_piece_waits_for_the_next() -> None:
    stream = Stream()

    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response('200 OK', [])
        for count in range(3):
            assert len(stream.pieces) == count
            assert (stream.head is not None) == bool(count)
            yield b'x'

    assert run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is None
    assert stream.pieces == [b'x'] * 3


def test_what_is_written_leaves_at_once_and_before_what_is_returned() -> None:
    stream = Stream()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response('200 OK', [])
        write(b'')
        assert stream.head is None
        write(b'1')
        assert stream.pieces == [b'1']
        return [b'2']

    assert run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is None
    assert stream.pieces == [b'1', b'2']


def test_a_long_piece_leaves_in_parts_with_its_length() -> None:
    stream = stream_of(respond(b'x' * (MAX_WHOLE + 1)))
    assert stream.head is not None and lengths(stream.head) == [str(MAX_WHOLE + 1)]
    assert stream.pieces == [b'x' * (MAX_WHOLE + 1)]


def test_a_length_that_was_said_leaves_with_the_head() -> None:
    stream = stream_of(giving(iter([b'ab', b'c']), headers=[('Content-Length', '03')]))
    assert stream.head is not None and lengths(stream.head) == ['3']


def test_a_stream_shorter_than_its_length_is_refused_at_its_end() -> None:
    stream, body = Stream(), Body(b'a', b'b')
    with pytest.raises(ApplicationError, match='2 bytes, but its Content-Length says 4'):
        run_application(giving(body, headers=[('Content-Length', '4')]), {'REQUEST_METHOD': 'GET'}, stream)
    assert (stream.pieces, body.closed) == ([b'a', b'b'], 1)


def test_a_stream_longer_than_its_length_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    stream = stream_of(giving(iter([b'ab', b'cd', b'ef']), headers=[('Content-Length', '3')]))
    assert stream.pieces == [b'ab', b'c']
    assert caplog.text.count('was cut') == 1


def test_what_the_application_raises_in_the_middle_passes_as_it_is() -> None:
    stream, body = Stream(), Body(b'a', b'b', error=LookupError('mine'))
    with pytest.raises(LookupError, match='mine'):
        run_application(giving(body), {'REQUEST_METHOD': 'GET'}, stream)
    assert (stream.pieces, body.closed) == ([b'a', b'b'], 1)


@pytest.mark.parametrize('written', [False, True])
def test_a_stream_that_nobody_takes_ends_quietly_when_its_caller_is_gone(written: bool) -> None:
    stream, body = Stream(), Body(b'a', b'b')
    stream.broken = True

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response('200 OK', [])
        if written:
            write(b'0')
        return body

    # The caller is seen to be gone only when the write has failed.
    response = run_application(
        application, {'REQUEST_METHOD': 'GET'}, stream, cancelled=lambda: stream.head is not None
    )
    assert response is not None and response.code == 499
    assert body.closed == (0 if written else 1)


def test_a_stream_that_breaks_though_its_caller_is_there_is_an_error() -> None:
    stream = Stream()
    stream.broken = True
    with pytest.raises(BrokenPipeError):
        run_application(giving([b'a', b'b']), {'REQUEST_METHOD': 'GET'}, stream)


# close()


def test_close_is_called_once_after_success() -> None:
    body = Body(b'a')
    run(giving(body))
    assert (body.asked, body.closed) == (2, 1)


@pytest.mark.parametrize('error', [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_close_is_called_once_whatever_the_iterable_raises(error: type[BaseException]) -> None:
    body = Body(b'a', error=error('mine'))
    with pytest.raises(error, match='mine'):
        run(giving(body))
    assert body.closed == 1


@pytest.mark.parametrize(
    'application',
    [
        lambda body: lambda environ, start_response: body,
        lambda body: giving(body, headers=[('Content-Length', '5')]),
    ],
    ids=['no start_response', 'short body'],
)
def test_close_is_called_once_when_a_rule_was_broken(application: Callable[[Body], Application]) -> None:
    body = Body(b'a')
    with pytest.raises(ApplicationError):
        run(application(body))
    assert body.closed == 1


@pytest.mark.parametrize('headers', [[], [('Content-Length', '1')]])
def test_a_response_leaves_before_close_is_called(headers: Pairs) -> None:
    stream, left = Stream(), []

    class Slow(Body):
        def close(self) -> None:
            super().close()
            left.append(stream.whole)

    assert run_application(giving(Slow(b'a'), headers=headers), {'REQUEST_METHOD': 'GET'}, stream) is None
    assert [response and response.body for response in left] == [b'a' if headers else None]
    assert stream.ended == (not headers)


def test_a_generator_may_go_on_after_its_length_has_left() -> None:
    stream, left = Stream(), []

    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response('200 OK', [('Content-Length', '3')])
        yield from pieces
        left.append((stream.whole, stream.ended))
        yield b'too much'

    pieces = [b'abc']
    assert run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is None
    ((whole, _),) = left
    assert whole is not None and whole.body == b'abc'
    left.clear()
    pieces, stream = [b'ab', b'c'], Stream()
    assert run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is None
    assert left == [(None, True)] and stream.pieces == [b'ab', b'c']


def test_what_is_written_whole_leaves_while_the_application_goes_on() -> None:
    stream = Stream()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response('200 OK', [('Content-Length', '3')])(b'abc')
        assert stream.whole is not None and stream.whole.body == b'abc'
        return []

    assert run_application(application, {'REQUEST_METHOD': 'GET'}, stream) is None


def test_close_that_raises_fails_the_request() -> None:
    class Failing(Body):
        def close(self) -> None:
            super().close()
            raise ValueError('not closed')

    body = Failing(b'a')
    with pytest.raises(ValueError, match='not closed'):
        run(giving(body))
    assert body.closed == 1


def test_a_generator_is_closed_where_it_stands() -> None:
    ended: list[str] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response('200 OK', [])
        try:
            yield b'a'
            yield b'b'
        finally:
            ended.append('closed')

    run(application, cancelled=lambda: True)
    assert ended == ['closed']


def test_the_applications_own_exception_passes_as_it_is() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise LookupError('mine')

    with pytest.raises(LookupError, match='mine'):
        run(application)


# start_response


def test_an_application_that_never_calls_start_response_is_refused() -> None:
    with pytest.raises(ApplicationError, match='never called start_response'):
        run(lambda environ, start_response: [])


def test_start_response_twice_without_exc_info_is_refused() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response('200 OK', [])
        start_response('404 Not Found', [])
        return []

    with pytest.raises(ApplicationError, match='twice without exc_info'):
        run(application)


def failing_after(*written: bytes) -> Application:
    """An application that fails after it has written this, and wants to say so."""

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response('200 OK', [('X-A', '1')])
        for piece in written:
            write(piece)
        try:
            raise LookupError('mine')
        except LookupError as error:
            assert error.__traceback__ is not None
            start_response('500 Oops', [('X-B', '2')], sys.exc_info())  # type: ignore[arg-type]
        return [b'sorry']

    return application


@pytest.mark.parametrize('written', [(), (b'',)])
def test_start_response_with_exc_info_replaces_what_was_said_before_the_body_began(written: tuple[bytes, ...]) -> None:
    response = run(failing_after(*written))
    assert (response.status, response.body) == ('500 Oops', b'sorry')
    assert response.headers == [('X-B', '2'), ('Content-Length', '5')]


def test_start_response_with_exc_info_raises_it_when_the_body_has_begun() -> None:
    with pytest.raises(LookupError, match='mine') as raised:
        run(failing_after(b'half'))
    assert any(frame.name == 'application' for frame in raised.traceback)


def test_start_response_with_exc_info_may_come_first() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response('500 Oops', [], (ValueError, ValueError(), None))
        return []

    assert run(application).status == '500 Oops'


@pytest.mark.parametrize(
    'status', ['', '200OK', '20 OK', '200 OK\r\nX: y', '200 OK\n', '100 Continue', '999 x', 200, b'200 OK', None]
)
def test_a_status_that_is_none_is_refused(status: Any) -> None:
    with pytest.raises(ApplicationError, match='status'):
        run(respond(status=status))


@pytest.mark.parametrize(
    'headers',
    [
        (('a', 'b'), 'c'),
        (('a',),),
        (('a', 'b', 'c'),),
        (['a', 'b'],),
        (('a', 1),),
        ((b'a', 'b'),),
        (('a', ['b']),),
        (({}, 'b'),),
        ('ab',),
    ],
)
def test_headers_that_are_no_pairs_of_strings_are_refused(headers: Any) -> None:
    with pytest.raises(ApplicationError, match='pair of strings'):
        run(respond(headers=headers))


def test_a_field_is_judged_by_itself_however_often_it_came_and_whatever_came_before() -> None:
    for _ in range(3):
        response = run(respond(headers=[('X-A', ' 1\t'), ('X-A', '1'), ('x-a', '1'), ('X-A', '')]))
        assert response.headers[:4] == [('X-A', '1'), ('X-A', '1'), ('x-a', '1'), ('X-A', '')]
        with pytest.raises(ApplicationError, match='must not stand there'):
            run(respond(headers=[('X-A', '1'), ('X-A', '1\n')]))
        with pytest.raises(ApplicationError, match='not a header name'):
            run(respond(headers=[('X-A', '1'), ('X A', '1')]))


def test_fields_that_differ_each_time_are_not_kept_for_ever() -> None:
    for number in range(2 * KEPT_FIELDS):
        run(respond(headers=[('ETag', f'"{number}"')]))
    kept = _usual_field.cache_info()
    for long in (('X-A', 'x' * MAX_KEPT_FIELD), ('x' * MAX_KEPT_FIELD, 'a')):
        assert run(respond(headers=[long])).headers[0] == long
    assert _usual_field.cache_info() == kept
    assert _usual_field.cache_info().currsize <= KEPT_FIELDS


@pytest.mark.parametrize('headers', [{}, 'ab', None, iter([])])
def test_headers_that_are_no_list_are_refused(headers: Any) -> None:
    with pytest.raises(ApplicationError, match='must be a list'):
        run(respond(headers=headers))


@pytest.mark.parametrize(
    'pair',
    [
        ('X-A', 'a\r\nSet-Cookie: b'),
        ('X-A', 'a\n'),
        ('X-A', '\0'),
        ('X-A', '☃'),
        ('X-A\r\nB', ''),
        ('X A', ''),
        ('', ''),
    ],
)
def test_header_injection_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ApplicationError):
        run(respond(headers=(pair,)))


def test_a_refused_status_can_be_mended_with_exc_info() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            start_response('200 OK', [('X-A', 'a\nb')])
        except ApplicationError:
            start_response('500 Oops', [], sys.exc_info())  # type: ignore[arg-type]
        return []

    assert run(application).status == '500 Oops'


# Headers


def test_several_cookies_stay_several_and_in_order() -> None:
    cookies = (('Set-Cookie', 'b=2'), ('X-A', '1'), ('set-cookie', 'a=1'), ('Set-Cookie', 'b=2'))
    assert list(run(respond(headers=cookies)).headers)[:4] == list(cookies)


@pytest.mark.parametrize(
    'name', ['Connection', 'keep-alive', 'Transfer-Encoding', 'Upgrade', 'TE', 'Trailer', 'Proxy-Authenticate']
)
def test_a_hop_by_hop_header_is_dropped(name: str) -> None:
    assert run(respond(headers=((name, 'x'), ('X-A', '1')))).headers == [('X-A', '1'), ('Content-Length', '0')]


def test_what_connection_names_is_dropped_with_it() -> None:
    headers = (('Connection', 'close, X-B'), ('x-b', '1'), ('X-A', '2'))
    assert run(respond(headers=headers)).headers == [('X-A', '2'), ('Content-Length', '0')]


def test_a_header_may_be_any_latin_1() -> None:
    assert ('X-A', 'd\xe9j\xe0') in run(respond(headers=(('X-A', 'd\xe9j\xe0'),))).headers


def test_the_list_of_headers_may_be_changed_afterwards() -> None:
    headers = [('X-A', '1')]

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response('200 OK', headers)
        headers.append(('X\nB', ''))
        return []

    assert run(application).headers == [('X-A', '1'), ('Content-Length', '0')]


# Content-Length


def lengths(response: Response) -> list[str]:
    return [value for name, value in response.headers if name.lower() == 'content-length']


@pytest.mark.parametrize('body', [(), (b'',), (b'a',)])
def test_a_response_that_is_whole_is_given_its_length(body: tuple[bytes, ...]) -> None:
    assert lengths(run(respond(*body))) == [str(len(b''.join(body)))]


def test_a_right_length_is_said_once() -> None:
    for headers in ((('content-length', '3'),), (('Content-Length', ' 3 '),), (('Content-Length', '3'),) * 2):
        assert lengths(run(respond(b'abc', headers=headers))) == ['3']


def test_a_body_shorter_than_its_length_is_refused() -> None:
    with pytest.raises(ApplicationError, match='3 bytes, but its Content-Length says 4'):
        run(respond(b'abc', headers=(('Content-Length', '4'),)))


def test_a_body_longer_than_its_length_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    response = run(respond(b'abc', headers=(('Content-Length', '2'),)))
    assert (response.body, lengths(response)) == (b'ab', ['2'])
    assert 'more than its Content-Length of 2 bytes was cut' in caplog.text


@pytest.mark.parametrize('value', ['', '-1', '+1', '1.0', 'x', '1, 1', '0x1', '١', '1 1'])
def test_a_length_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ApplicationError):
        run(respond(b'a', headers=(('Content-Length', value),)))


def test_two_different_lengths_are_refused() -> None:
    with pytest.raises(ApplicationError, match='not one number'):
        run(respond(b'a', headers=(('Content-Length', '1'), ('Content-Length', '2'))))


# Responses without a body


@pytest.mark.parametrize(
    ('method', 'status', 'length'),
    [('HEAD', '200 OK', ['3']), ('GET', '304 Not Modified', ['3']), ('GET', '204 x', [])],
)
def test_a_response_that_has_no_body_says_the_length_only_where_it_may(
    method: str, status: str, length: list[str]
) -> None:
    response = run(respond(b'abc', status=status, headers=(('Content-Length', '3'), ('ETag', '"a"'))), method)
    assert (response.body, lengths(response)) == (b'', length)
    assert ('ETag', '"a"') in response.headers


@pytest.mark.parametrize(('method', 'status'), [('HEAD', '200 OK'), ('GET', '304 Not Modified'), ('GET', '204 x')])
def test_a_response_that_has_no_body_invents_no_length(method: str, status: str) -> None:
    assert lengths(run(respond(b'abc', status=status), method)) == []


@pytest.mark.parametrize(('method', 'status'), [('HEAD', '200 OK'), ('GET', '304 Not Modified'), ('GET', '204 x')])
def test_the_body_of_a_response_that_has_none_is_not_produced(method: str, status: str) -> None:
    body = Body(*[b'x' * 400] * 10)
    run(giving(body, status), method)
    assert (body.asked, body.closed) == (1, 1)


# A caller that is gone


def test_when_cancelled_no_more_is_asked_for_and_the_iterable_is_closed() -> None:
    body = Body(b'a', b'b', b'c')
    assert run(giving(body), cancelled=lambda: body.asked == 2).code == 499
    assert (body.asked, body.closed) == (2, 1)


@pytest.mark.parametrize(
    'application',
    [giving([b'a', b'bc'], headers=[('Content-Length', '3')]), lambda environ, start_response: [b'', b'']],
    ids=['length', 'no start_response yet'],
)
def test_when_cancelled_the_application_is_not_blamed_for_what_it_could_not_say(application: Application) -> None:
    run(application, cancelled=lambda: True)


def test_an_application_that_leaves_off_because_nobody_waits_is_not_blamed_for_that() -> None:
    gone = False

    def application(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        nonlocal gone
        start_response('200 OK', [('Content-Length', '3')])
        yield b'a'
        gone = True

    assert run(application, cancelled=lambda: gone).code == 499
