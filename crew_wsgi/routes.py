"""Which application a request is for: host and path to a queue, the longest prefix wins.

A route is written ``HOST/PREFIX=QUEUE[;timeout=S][;queue-timeout=S][;priority=N]``; either of host and prefix may be
left out. The prefix becomes the application's ``SCRIPT_NAME``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crew import topology

__all__ = ['Route', 'Routes', 'read_route', 'read_table']

_OPTIONS = {'timeout': float, 'queue-timeout': float, 'priority': int}


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of a host and a prefix go.

    Args:
        queue: the id of the application.
        host: the host, in lower case without a port; empty for every host.
        prefix: the first part of the path, without a slash at its end; empty for every path.
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

    def __post_init__(self) -> None:
        """Check what could not be served.

        Raises:
            ValueError: a field makes no sense.
        """
        topology.task_queue_name(self.queue)
        if self.prefix and (not self.prefix.startswith('/') or self.prefix.endswith('/')):
            raise ValueError(f'a prefix begins with a slash and does not end with one: {self.prefix!r}')
        if not 0 <= self.priority <= 255:
            raise ValueError(f'priority must be 0 to 255, not {self.priority}')
        for name, limit in (('timeout', self.timeout), ('queue-timeout', self.queue_timeout)):
            if limit is not None and not 0 < limit <= 30 * 86400:
                raise ValueError(f'{name} must be between 0 and 30 days, in seconds, not {limit}')

    def takes(self, host: str, path: str) -> bool:
        """Return whether a request is for this application."""
        if self.host and self.host != host:
            return False
        return not self.prefix or path == self.prefix or path.startswith(f'{self.prefix}/')


class Routes:
    """A front's routes.

    Args:
        routes: in any order.

    Raises:
        ValueError: two are for the same host and prefix.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        # A route for the host comes before one for every host; then the longest prefix.
        self._routes = sorted(routes, key=lambda route: (bool(route.host), len(route.prefix)), reverse=True)
        seen: set[tuple[str, str]] = set()
        for route in routes:
            where = route.host, route.prefix
            if where in seen:
                raise ValueError(f'two routes are for {route.host}{route.prefix or "/"}')
            seen.add(where)

    @property
    def queues(self) -> list[str]:
        """The ids of all applications."""
        return list(dict.fromkeys(route.queue for route in self._routes))

    def find(self, host: str, path: str) -> Route | None:
        """Return the route of a request, or None.

        Args:
            host: the ``Host`` field, or the target's; the port does not count.
            path: the path as sent, percent-encoded.
        """
        name = re.sub(r':[0-9]*\Z', '', host).lower().rstrip('.')
        return next((route for route in self._routes if route.takes(name, path)), None)


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
        name, _, value = option.partition('=')
        values[name.strip()] = value.strip()
    return _made(where.strip(), queue.strip(), values)


def read_table(table: Iterable[Any]) -> list[Route]:
    """Read routes from a TOML file's ``[[route]]`` tables: ``match``, ``queue`` and the options.

    Raises:
        ValueError: one of them is none; the text says why.
    """
    routes = []
    for entry in table:
        if not isinstance(entry, dict) or not isinstance(entry.get('match'), str):
            raise ValueError(f'a [[route]] needs match = "HOST/PREFIX" and queue = "ID": {entry!r}')
        options = {name: value for name, value in entry.items() if name not in ('match', 'queue')}
        routes.append(_made(entry['match'], str(entry.get('queue', '')), options))
    return routes


def _made(where: str, queue: str, options: dict[str, Any]) -> Route:
    unknown = set(options) - set(_OPTIONS)
    if unknown:
        raise ValueError(f'no such option of a route: {", ".join(sorted(unknown))}; there are {", ".join(_OPTIONS)}')
    host, slash, prefix = where.partition('/')
    values: dict[str, Any] = {}
    for name, value in options.items():
        try:
            values[name.replace('-', '_')] = _OPTIONS[name](value)
        except (TypeError, ValueError):
            raise ValueError(f'{name} of the route {where!r} is no number: {value!r}') from None
    return Route(queue, host=host.lower(), prefix=f'{slash}{prefix}'.rstrip('/'), **values)
