"""A reply as it leaves the front: a length that is true, or no answer at all."""

import pytest

from crew.exceptions import ProtocolError
from crew_wsgi.answers import length_of, reframed
from crew_wsgi.messages import Response


def response(length: str | None = None, body: bytes = b'', status: str = '200 OK') -> Response:
    headers = [] if length is None else [('Content-Length', length)]
    return Response(status=status, headers=headers, body=body)


@pytest.mark.parametrize('length', ['x', '-1', '+1', '1.0', '²', '9' * 19, '1' * 5000, ''])
@pytest.mark.parametrize(('method', 'whole'), [('GET', False), ('GET', True), ('HEAD', True)])
def test_a_length_that_is_none_is_refused(length: str, method: str, whole: bool) -> None:
    with pytest.raises(ProtocolError, match='Content-Length'):
        reframed(response(length), method, whole=whole)


def test_a_length_of_what_comes_in_parts_is_known() -> None:
    assert length_of(reframed(response('5'), 'GET', whole=False)) == 5
    assert length_of(reframed(response(), 'GET', whole=False)) is None


def test_what_needs_no_change_is_not_made_anew() -> None:
    good = response('2', b'ab')
    assert reframed(good, 'GET', whole=True) is good


def test_what_is_missing_is_added_and_what_must_not_be_there_is_taken_away() -> None:
    assert list(reframed(response(None, b'ab'), 'GET', whole=True).headers) == [('Content-Length', '2')]
    assert list(reframed(response('0', status='204 No Content'), 'GET', whole=True).headers) == []
    hop = Response(status='200 OK', headers=[('Connection', 'close'), ('Content-Length', '2')], body=b'ab')
    assert list(reframed(hop, 'GET', whole=True).headers) == [('Content-Length', '2')]
    assert list(reframed(response('7'), 'HEAD', whole=True).headers) == [('Content-Length', '7')]
