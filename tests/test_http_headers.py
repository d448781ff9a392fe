"""Header fields: the quick ways to say what may stand in them, and which of them pass, say what the RFC says."""

import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crew_wsgi import headers
from crew_wsgi.headers import HOP_BY_HOP, HeaderPairs, check_headers, end_to_end, is_token

# RFC 9110 §5.6.2 and §5.5, each written another way than in the module.
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
INSIDE = frozenset(chr(code) for code in range(256) if code == 9 or (code >= 32 and code != 127))
OUTSIDE = INSIDE - {' ', '\t'}


def may_be_name(text: str) -> bool:
    return bool(text) and set(text) <= TOKEN


def may_be_value(text: str) -> bool:
    return not text or (set(text) <= INSIDE and text[0] in OUTSIDE and text[-1] in OUTSIDE)


def passes(name: str, value: str) -> bool:
    """Return whether a field passes the check."""
    try:
        check_headers([(name, value)])
    except ValueError:
        return False
    return True


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, '_tokens', set())


LONG = 'a' * 200


@pytest.mark.parametrize(
    'around', [f'{LONG}{{}}', f'{{}}{LONG}', '{}', '{}a', 'a{}', 'a{}a', '{0}{0}', 'a {}', 'ä{}', '{}ä', 'ä{}ä']
)
def test_each_character_is_judged_by_the_grammar(around: str) -> None:
    for code in [*range(0x3000), 0xFEFF, 0xFF10, sys.maxunicode, *range(0xD800, 0xE000, 64)]:
        text = around.format(chr(code))
        # Twice, for a token that was seen is not looked at again.
        assert is_token(text) == is_token(text) == may_be_name(text), ascii(text)
        assert passes('x', text) == may_be_value(text), ascii(text)
        assert passes(text, 'x') == passes(text, 'x') == may_be_name(text), ascii(text)


texts = st.text(st.characters(max_codepoint=0x17F) | st.sampled_from(' \t\r\n\0a"\u3000')) | st.text()


@given(st.lists(st.tuples(st.sampled_from(['a', 'Host', 'X-Y', '']) | texts, texts), max_size=4))
@example([('a' * 65, ''), ('a' * 65, ' ')])
def test_fields_are_judged_by_the_grammar(pairs: HeaderPairs) -> None:
    good = all(may_be_name(name) and may_be_value(value) for name, value in pairs)
    for _ in range(2):
        try:
            check_headers(pairs)
        except ValueError:
            assert not good
        else:
            assert good


def test_a_refusal_says_which_field_it_is_for() -> None:
    with pytest.raises(ValueError, match="'a b' is not a header name"):
        check_headers([('A', ''), ('a b', 'c')])
    with pytest.raises(
        ValueError, match=re.escape(r"the value of header B has characters that must not stand there: 'c\n'")
    ):
        check_headers([('A', ''), ('B', 'c\n')])


def test_few_and_short_tokens_are_kept_whatever_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, '_MAX_TOKENS', 10)
    for number in range(1000):
        assert is_token(f'a{number}')
        assert not is_token(f'ä{number}')
        check_headers([(f'b{number}', '')])
        assert len(headers._tokens) <= 10
    # Who sends many has not driven out for good what all others send.
    assert is_token('Host') and 'Host' in headers._tokens
    assert is_token('a' * 64) and 'a' * 64 in headers._tokens
    assert is_token('a' * 65) and 'a' * 65 not in headers._tokens


# Which pass

NAMES = [*sorted(HOP_BY_HOP), 'Connection', 'TE', 'Host', 'host', 'x-a', 'X-B']


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(['x-a', 'X-B, host', ' Host ,', '', 'close']))))
def test_what_is_for_one_connection_or_named_by_it_does_not_pass(pairs: HeaderPairs) -> None:
    dropped = set(HOP_BY_HOP)
    for name, value in pairs:
        if name.lower() == 'connection':
            dropped |= {token.strip().lower() for token in value.split(',')}
    assert end_to_end(iter(pairs)) == [(name, value) for name, value in pairs if name.lower() not in dropped]
