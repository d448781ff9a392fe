"""The header fields of a request: pairs in their order, and the same by name in any case."""

from hypothesis import given
from hypothesis import strategies as st

from crew_wsgi.fields import Fields

NAMES = st.sampled_from(['A', 'a', 'B', 'b-c', 'B-C'])


def test_fields_are_found_by_their_name_in_any_case() -> None:
    fields = Fields([('A', '1'), ('b', '2'), ('a', '3')])
    assert 'a' in fields and 'B' in fields and 'c' not in fields
    assert (fields['A'], fields.get('B'), fields.get('c'), fields.get('c', '0')) == ('1,3', '2', '', '0')
    assert (fields.get_list('a'), fields.get_list('c')) == (['1', '3'], [])
    assert list(fields.get_all()) == [('A', '1'), ('b', '2'), ('a', '3')]


def test_a_field_is_replaced_where_it_stood_first_or_taken_away() -> None:
    fields = Fields([('A', '1'), ('b', '2'), ('a', '3')])
    fields.replace('a', '4')
    assert list(fields.get_all()) == [('a', '4'), ('b', '2')]
    fields.replace('A', None)
    assert list(fields.get_all()) == [('b', '2')]
    assert 'a' not in fields
    fields.replace('a', '5')
    assert 'a' not in fields


@given(pairs=st.lists(st.tuples(NAMES, st.text('xyz', max_size=2))), name=NAMES, value=st.none() | st.just('new'))
def test_whatever_is_replaced_all_ways_to_ask_agree(pairs: list[tuple[str, str]], name: str, value: str | None) -> None:
    fields = Fields(list(pairs))
    for _ in range(2):
        for asked in ('A', 'b', 'B-C'):
            values = [text for other, text in fields.get_all() if other.lower() == asked.lower()]
            assert fields.get_list(asked) == values
            assert (asked in fields) == bool(values)
            assert fields.get(asked) == ','.join(values)
        fields.replace(name, value)
