"""The answers that the front makes itself: status, cause for machines, text for the reader."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crew.exceptions import (
    Blocked,
    BrokerRefused,
    ConnectionError,
    CrewError,
    ExpirationError,
    ProtocolError,
    RemoteError,
    TimeoutError,
    Unroutable,
    WorkerLost,
)
from crew_wsgi.problems import (
    LONGEST_ACCEPT,
    UNAVAILABLE,
    Problem,
    bad_request,
    problem_of,
    respond,
    too_long,
    too_many,
)
from tests.fuzzing.bounds import quick

#: RFC 9209 §2.3, those that we use.
ERROR_TYPES = {
    'connection_limit_reached',
    'connection_terminated',
    'destination_unavailable',
    'http_protocol_error',
    'http_request_error',
    'http_response_timeout',
    'proxy_internal_error',
}

ERRORS: list[tuple[CrewError, int, str]] = [
    (ExpirationError(), 503, 'destination_unavailable'),
    (TimeoutError('late'), 504, 'http_response_timeout'),
    (WorkerLost('died'), 502, 'connection_terminated'),
    (RemoteError('KeyError', '3'), 500, 'proxy_internal_error'),
    (RemoteError('ProtocolError', 'of urllib3'), 500, 'proxy_internal_error'),
    (RemoteError('ProtocolError', '?', refused=True), 502, 'http_protocol_error'),
    (Blocked('alarm'), 503, 'destination_unavailable'),
    (Unroutable('no queue'), 503, 'destination_unavailable'),
    (ConnectionError('lost', published=True), 502, 'connection_terminated'),
    (ConnectionError('lost'), 503, 'destination_unavailable'),
    (BrokerRefused('password'), 503, 'destination_unavailable'),
    (ProtocolError('?'), 503, 'destination_unavailable'),
    (CrewError('?'), 503, 'destination_unavailable'),
]
PROBLEMS = [too_many(0.0), too_long(25.0), UNAVAILABLE, *(problem_of(error) for error, _, _ in ERRORS)]
PROBLEMS += [bad_request('The head is longer than 3 bytes.', status) for status in (400, 408, 413, 431, 501)]

PROBLEMS += [problem_of(ExpirationError(), idempotent=False)]

every_problem = pytest.mark.parametrize('problem', PROBLEMS, ids=lambda problem: f'{problem.status}-{problem.error}')


def header(problem: Problem, name: str) -> str | None:
    found = [value for each, value in respond(problem).headers if each == name]
    assert len(found) < 2
    return found[0] if found else None


@pytest.mark.parametrize(('error', 'status', 'cause'), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_has_its_status_and_cause(error: CrewError, status: int, cause: str) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.error) == (status, cause)


def test_the_client_learns_nothing_of_what_the_application_raised() -> None:
    response = respond(problem_of(RemoteError('KeyError', 'password=hunter2', 'Traceback /srv/app.py')))
    told = str(response.headers).encode() + response.body
    assert not [secret for secret in (b'KeyError', b'hunter2', b'/srv') if secret in told]


@every_problem
def test_only_a_503_says_when_to_try_again(problem: Problem) -> None:
    retry_after = header(problem, 'Retry-After')
    if problem.status == 503:
        assert retry_after is not None and retry_after.isdigit() and int(retry_after) > 0
    else:
        assert retry_after is None


@every_problem
def test_the_proxy_status_is_a_structured_field(problem: Problem) -> None:
    # RFC 9209 §2, RFC 9651 §3.1: an item, a token, with parameters that are a token and a string.
    token, string = r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*", r'"[\x20\x21\x23-\x5b\x5d-\x7e]*"'
    field = header(problem, 'Proxy-Status')
    assert field is not None
    parsed = re.fullmatch(rf'({token}); error=({token}); details=({string})', field)
    assert parsed is not None
    assert parsed[1] == 'crew'
    assert parsed[2] in ERROR_TYPES
    assert parsed[3] == f'"{problem.detail}"'


@every_problem
def test_a_problem_has_its_length_and_is_never_stored(problem: Problem) -> None:
    response = respond(problem)
    assert header(problem, 'Content-Length') == str(len(response.body))
    assert header(problem, 'Cache-Control') == 'no-store'
    assert (response.code, bool(response.reason)) == (problem.status, True)


def media_type(accept: str) -> str:
    return dict(respond(UNAVAILABLE, accept).headers)['Content-Type']


@pytest.mark.parametrize(
    ('accept', 'expected'),
    [
        ('', 'text/plain'),
        ('*/*', 'text/plain'),
        ('text/plain', 'text/plain'),
        ('image/png', 'text/plain'),
        ('application/json', 'application/problem+json'),
        ('application/problem+json', 'application/problem+json'),
        ('application/json, */*;q=0.5', 'application/problem+json'),
        ('application/json, text/plain, */*', 'text/plain'),
        ('text/html;q=0.1, application/json', 'application/problem+json'),
        ('text/html', 'text/html'),
        ('text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8', 'text/html'),
        ('text/html;q=0, */*', 'text/plain'),
        (';;;=,q', 'text/plain'),
    ],
)
def test_the_body_is_what_the_client_prefers(accept: str, expected: str) -> None:
    assert media_type(accept).partition(';')[0] == expected


@example('text/html;q=' + '9' * 400)
@example('a/b;q=nan')
@example('/')
@given(st.text(st.characters(max_codepoint=255), max_size=30) | st.text('texthmlapicjson/*;q=.,01 "', max_size=30))
def test_any_accept_gets_an_answer(accept: str) -> None:
    assert media_type(accept).partition(';')[0] in ('text/plain', 'text/html', 'application/problem+json')


def test_a_long_accept_is_not_read() -> None:
    read = 'application/json'.ljust(LONGEST_ACCEPT)
    assert media_type(read) == 'application/problem+json'
    assert media_type(f'{read} ') == 'text/plain; charset=utf-8'
    with quick(0.05):
        respond(UNAVAILABLE, 'a/b,' * 16_000)


@every_problem
def test_the_json_is_that_of_rfc_9457(problem: Problem) -> None:
    response = respond(problem, 'application/json')
    assert json.loads(response.body) == {
        'type': 'about:blank',
        'title': response.reason,
        'status': problem.status,
        'detail': problem.detail,
    }


def test_a_page_quotes_what_it_shows() -> None:
    page = respond(Problem(400, 'http_request_error', '<script>&'), 'text/html').body.decode()
    assert '&lt;script&gt;&amp;' in page
    assert '<script>' not in page


def test_plain_text_says_status_and_what_happened() -> None:
    assert respond(too_many(0.0)).body == b'503 Service Unavailable\nToo many requests are in flight.\n'


@pytest.mark.parametrize(
    ('error', 'status'),
    [(ExpirationError(), 504), (ExpirationError(time=1.0), 503), (ExpirationError(reason='maxlen', time=1.0), 503)],
)
def test_only_a_dead_letter_proves_that_nothing_was_run(error: ExpirationError, status: int) -> None:
    assert problem_of(error, idempotent=True).status == 503
    assert problem_of(error, idempotent=False).status == status
    assert problem_of(Unroutable('no queue'), idempotent=False).status == 503
