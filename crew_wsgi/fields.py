"""The header fields of one request (RFC 9110 §5): pairs in their order, and the same by name."""

from collections.abc import Iterator

__all__ = ['Fields']


class Fields:
    """Header fields, with Tornado's names for what can be asked of them.

    Args:
        pairs: names and values as they came.
    """

    __slots__ = ('_pairs', '_values')

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        values: dict[str, str] = {}
        for name, value in pairs:
            key = name.lower()
            values[key] = f'{values[key]},{value}' if key in values else value
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def get(self, name: str, default: str = '') -> str:
        """Return the value of a field; of one that occurs several times all, with commas between (RFC 9110 §5.2)."""
        return self._values.get(name.lower(), default)

    def get_list(self, name: str) -> list[str]:
        """Return the values of a field, in their order."""
        key = name.lower()
        if key not in self._values:
            return []
        return [value for other, value in self._pairs if other.lower() == key]

    def get_all(self) -> Iterator[tuple[str, str]]:
        """Return all fields in their order."""
        return iter(self._pairs)

    def replace(self, name: str, value: str | None) -> None:
        """Let a field occur once, with this value, where it occurred first; with None, let it not occur."""
        key = name.lower()
        if self._values.pop(key, None) is None:
            return
        place = next(place for place, (other, _) in enumerate(self._pairs) if other.lower() == key)
        rest = [pair for pair in self._pairs[place + 1 :] if pair[0].lower() != key]
        self._pairs[place:] = rest
        if value is not None:
            self._pairs.insert(place, (name, value))
            self._values[key] = value
