"""The header fields of a request: pairs in their order, and the same by name in any case."""

from hypothesis import given
from hypothesis import strategies as st

from crew_wsgi.fields import Fields

NAMES = st.sampled_from(['A', 'a', 'B', 'b-c', 'B-C'])


def test_fields_are_found_by_their_name_in_any_case() -> None:
    fields = Fields([('A', '1'), ('b', '2'), ('a', '3')])
    assert fields.values == {'a': '1,3', 'b': '2'}
    assert (fields.get('a'), fields.get('b'), fields.get('c'), fields.get('c', '0')) == ('1,3', '2', '', '0')
    assert (fields.get_list('a'), fields.get_list('c')) == (['1', '3'], [])
    assert list(fields) == [('A', '1'), ('b', '2'), ('a', '3')]


def test_a_field_is_replaced_where_it_stood_first_or_taken_away() -> None:
    fields = Fields([('A', '1'), ('b', '2'), ('a', '3')])
    assert list(fields.replaced('a', '4')) == [('a', '4'), ('b', '2')]
    assert list(fields.replaced('A', None)) == [('b', '2')]
    assert fields.replaced('c', '5') is fields
    assert list(fields) == [('A', '1'), ('b', '2'), ('a', '3')]


def test_what_is_found_out_about_fields_is_what_a_gateway_and_an_application_may_have() -> None:
    fields = Fields([('A', '1'), ('Connection', 'b'), ('B', '2'), ('X-Request-Id', '3'), ('a_b', '"\xe9')])
    assert list(fields.passing) == [('A', '1'), ('X-Request-Id', '3'), ('a_b', '"\xe9')]
    assert fields.passing.passing is fields.passing
    assert fields.carried == '["A","1"]'
    assert Fields([('A', '"\xe9'), ('b', '')]).carried == '["A","\\"\\u00e9"],["b",""]'
    assert Fields([('A', '1'), ('b', '')]).lines == 'A: 1\r\nb: \r\n'


@given(pairs=st.lists(st.tuples(NAMES, st.text('xyz', max_size=2))), name=NAMES, value=st.none() | st.just('new'))
def test_whatever_is_replaced_all_ways_to_ask_agree(pairs: list[tuple[str, str]], name: str, value: str | None) -> None:
    fields = Fields(list(pairs))
    for _ in range(2):
        for asked in ('a', 'b', 'b-c'):
            values = [text for other, text in fields if other.lower() == asked]
            assert fields.get_list(asked) == values
            assert (asked in fields.values) == bool(values)
            assert fields.get(asked) == ','.join(values)
        fields = fields.replaced(name, value)
