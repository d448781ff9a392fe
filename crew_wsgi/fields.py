"""The header fields of one message (RFC 9110 §5): pairs in their order, and what is often asked of them."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from json.encoder import encode_basestring_ascii as quoted

from crew_wsgi.headers import HeaderPairs, end_to_end

__all__ = ['Fields', 'quoted_pairs']


class Fields(tuple[tuple[str, str], ...]):
    """Header fields that have been checked. What is found out about them is kept with them.

    So who has the same fields again, as most clients of a connection send and most answers of an application have, need
    not find it out again.
    """

    @classmethod
    def of(cls, pairs: HeaderPairs) -> 'Fields':
        """Return fields that have been checked, with what was found out about them."""
        return pairs if isinstance(pairs, cls) else cls(pairs)

    @cached_property
    def values(self) -> Mapping[str, str]:
        """The value by the name in lower case; of one that occurs several times all, with commas (RFC 9110 §5.2)."""
        values: dict[str, str] = {}
        for name, value in self:
            key = name.lower()
            values[key] = f'{values[key]},{value}' if key in values else value
        return values

    def get(self, name: str, default: str = '') -> str:
        """Return the value of a field whose name is given in lower case."""
        return self.values.get(name, default)

    def get_list(self, name: str) -> list[str]:
        """Return the values of a field whose name is given in lower case, in their order."""
        if name not in self.values:
            return []
        return [value for other, value in self if other.lower() == name]

    def replaced(self, name: str, value: str | None) -> 'Fields':
        """Return these fields where one occurs once, with this value, where it occurred first.

        Args:
            name: its name.
            value: None, and it does not occur.
        """
        key = name.lower()
        if key not in self.values:
            return self
        place = next(place for place, (other, _) in enumerate(self) if other.lower() == key)
        rest = [pair for pair in self[place:] if pair[0].lower() != key]
        return Fields([*self[:place], *([] if value is None else [(name, value)]), *rest])

    @property
    def passing(self) -> 'Fields':
        """Those that pass a gateway."""
        return self if self._passing is None else self._passing

    @cached_property
    def _passing(self) -> 'Fields | None':
        # Nothing for itself: the fields would keep themselves.
        passing = end_to_end(self)
        return None if len(passing) == len(self) else Fields(passing)

    @cached_property
    def lines(self) -> str:
        """As they stand in a head, each with the end of its line."""
        return ''.join([f'{name}: {value}\r\n' for name, value in self])

    @cached_property
    def carried(self) -> str:
        """What the application gets of a request's, as the elements of a JSON array.

        Its id is not among them: that is ours to say. Neither is a name with an underscore, which stands for another in
        an environ.
        """
        return quoted_pairs(
            [(name, value) for name, value in self.passing if '_' not in name and name.lower() != 'x-request-id']
        )


def quoted_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """Return pairs as the elements of a JSON array."""
    return ','.join([f'[{quoted(name)},{quoted(value)}]' for name, value in pairs])
