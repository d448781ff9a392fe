"""Which application a request is for: host and path to a queue, the longest prefix wins.

A route is written ``HOST/PREFIX=QUEUE[;timeout=S][;queue-timeout=S][;priority=N]``; either of host and prefix may be
left out. The prefix becomes the application's ``SCRIPT_NAME``. Paths are compared as the application sees them, that is
decoded; dot segments are parts like any other, as in PEP 3333.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from crew import topology
from crew_wsgi.environ import unquoted

__all__ = ['Route', 'Routes', 'begins_with', 'quoted_prefix', 'read_route', 'read_table']

_OPTIONS = {'timeout': float, 'queue-timeout': float, 'priority': int}

_HOST = re.compile(r'(?:[0-9a-z_-]+(?:\.[0-9a-z_-]+)*|\[[0-9a-f:.]+\])?')
# RFC 3986 §3.3: what may stand in a path, other characters being percent-encoded.
_PREFIX = re.compile(r"(?:/[0-9A-Za-z._~!$&'()*+,;=:@%/-]*[0-9A-Za-z._~!$&'()*+,;=:@%-])?")
_SAFE = "/!$&'()*+,;=:@"


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of a host and a prefix go.

    Args:
        queue: the id of the application.
        host: the host, in lower case without a port; empty for every host.
        prefix: the first part of the path, percent-encoded, without a slash at its end; empty for every path.
        timeout: how long the application may run, in seconds, or None for the front's limit.
        queue_timeout: how long a request may wait for a worker, in seconds, or None for the front's limit.
        priority: of its requests, 0–255; higher first where several routes share a queue.
    """

    queue: str
    host: str = ''
    prefix: str = ''
    timeout: float | None = None
    queue_timeout: float | None = None
    priority: int = 0

    def __hash__(self) -> int:
        """Hash it by its queue, for it is looked up with each request."""
        return hash(self.queue)

    def __post_init__(self) -> None:
        """Check what could not be served.

        Raises:
            ValueError: a field makes no sense.
        """
        topology.task_queue_name(self.queue)
        if not _HOST.fullmatch(self.host):
            raise ValueError(f'{self.host!r} is not a host in lower case, without a port; other alphabets in punycode')
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(
                f'a prefix begins with a slash and does not end with one, percent-encoded: {self.prefix!r}'
            )
        if not 0 <= self.priority <= 255:
            raise ValueError(f'priority must be 0 to 255, not {self.priority}')
        for name, limit in (('timeout', self.timeout), ('queue-timeout', self.queue_timeout)):
            if limit is not None and not 0 < limit <= 30 * 86400:
                raise ValueError(f'{name} must be between 0 and 30 days, in seconds, not {limit}')


class Routes:
    """A front's routes.

    Args:
        routes: in any order.

    Raises:
        ValueError: two are for the same host and prefix.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        # A route for the host comes before one for every host; then the longest prefix.
        table = [(route.host, unquoted(route.prefix), route) for route in routes]
        self._table = sorted(table, key=lambda entry: (bool(entry[0]), len(entry[1])), reverse=True)
        seen: set[tuple[str, str]] = set()
        for host, prefix, _ in table:
            if (host, prefix) in seen:
                raise ValueError(f'two routes are for {host}{prefix or "/"}')
            seen.add((host, prefix))

    @property
    def queues(self) -> list[str]:
        """The ids of all applications."""
        return list(dict.fromkeys(route.queue for _, _, route in self._table))

    def find(self, host: str, path: str) -> Route | None:
        """Return the route of a request, or None.

        Args:
            host: the ``Host`` field, or the target's; the port does not count.
            path: the path, decoded.
        """
        for host_of_route, prefix, route in self._table:
            if host_of_route and host_of_route != _name(host):
                continue
            if begins_with(path, prefix):
                return route
        return None


def read_route(text: str) -> Route:
    """Read a route as it is written on the command line.

    Raises:
        ValueError: it is none; the text says why.
    """
    where, separator, rest = text.partition('=')
    if not separator:
        raise ValueError(f'{text!r} should look like HOST/PREFIX=QUEUE')
    queue, *options = rest.split(';')
    values: dict[str, Any] = {}
    for option in options:
        name, _, value = (part.strip() for part in option.partition('='))
        if name in values:
            raise ValueError(f'{name} is there twice in {text!r}')
        values[name] = value
    return _made(where.strip(), queue.strip(), values)


def read_table(document: Mapping[str, Any]) -> list[Route]:
    """Read routes from a TOML file's ``[[route]]`` tables: ``match``, ``queue`` and the options.

    Args:
        document: the whole file, in which nothing else may stand: misspelt, a route would be missing.

    Raises:
        ValueError: one of them is none; the text says why.
    """
    table = document.get('route')
    if set(document) != {'route'} or not isinstance(table, list) or not table:
        raise ValueError('there must be [[route]] tables, and nothing else')
    routes = []
    for entry in table:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ('match', 'queue')):
            raise ValueError(f'a [[route]] needs match = "HOST/PREFIX" and queue = "ID": {entry!r}')
        options = {name: value for name, value in entry.items() if name not in ('match', 'queue')}
        routes.append(_made(entry['match'], entry['queue'], options))
    return routes


def _made(where: str, queue: str, options: dict[str, Any]) -> Route:
    unknown = set(options) - set(_OPTIONS)
    if unknown:
        raise ValueError(f'no such option of a route: {", ".join(sorted(unknown))}; there are {", ".join(_OPTIONS)}')
    host, slash, prefix = where.partition('/')
    values: dict[str, Any] = {}
    for name, value in options.items():
        number = _number(_OPTIONS[name], value)
        if number is None:
            raise ValueError(f'{name} of the route {where!r} is no number: {value!r}')
        values[name.replace('-', '_')] = number
    encoded = quoted_prefix(f'{slash}{prefix}')
    return Route(queue, host=host.lower().removesuffix('.'), prefix=encoded, **values)


def quoted_prefix(text: str) -> str:
    """Return the first part of paths as somebody has written it, percent-encoded and without a slash at its end.

    Raises:
        ValueError: it is no Unicode.
    """
    return quote(text.rstrip('/'), safe=f'{_SAFE}%')


def begins_with(path: str, prefix: str) -> bool:
    """Return whether a prefix without a slash at its end is the first part of a path, both of them decoded."""
    return not prefix or path == prefix or path.startswith(f'{prefix}/')


def _number(kind: type[float] | type[int], value: Any) -> float | None:
    # TOML knows booleans, which Python would count, and floats, which int() would cut.
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None


def _name(host: str) -> str:
    """Return the name in a ``Host`` field. A dot at its end only says that nothing is to be appended."""
    return re.sub(r':[0-9]*\Z', '', host).lower().removesuffix('.')
