"""A head is taken in: where it came from, which application it is for, or why it is refused before its body is read."""

import re
from typing import Any

from tornado import httputil

from crew.ids import unique_id
from crew.values import value_class
from crew_wsgi.environ import authority, split_target, unquoted
from crew_wsgi.fields import Fields, quoted_pairs
from crew_wsgi.forwarded import Origin, Proxies
from crew_wsgi.headers import for_host
from crew_wsgi.limits import Limits
from crew_wsgi.messages import carry_request
from crew_wsgi.problems import NOT_FOUND, Problem, bad_request
from crew_wsgi.routes import Route, Routes, begins_with

__all__ = ['NO_PROXIES', 'Head', 'Intake', 'request_id_of', 'too_large']

NO_PROXIES = Proxies()

_REQUEST_ID = re.compile(r'[\x21-\x7e]{1,128}')


@value_class(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of a request that an application may have.

    Args:
        start_line: as it came.
        fields: the header fields, without those of proxies that nobody is to believe.
        origin: where the request came from.
        route: which application it is for.
        root: the first part of ``SCRIPT_NAME``, which is not in the target.
        mount: the rest of ``SCRIPT_NAME``, with which the target begins.
        request_id: of the request, for logs.
    """

    start_line: httputil.RequestStartLine
    fields: Fields
    origin: Origin
    route: Route
    root: str
    mount: str
    request_id: str

    def carried(self, body: bytes, server: Any) -> bytes:
        """Return the request as it is sent to a worker.

        Args:
            body: what there is of its body.
            server: the address that it came to, as sockets name it.
        """
        method, target, version = self.start_line
        fields, id_field = self.fields.carried, quoted_pairs((('X-Request-ID', self.request_id),))
        return carry_request(
            method,
            target,
            version,
            f'{fields},{id_field}' if fields else id_field,
            body,
            scheme=self.origin.scheme,
            client=self.origin.client,
            server=(server[0], server[1]) if isinstance(server, tuple) else ('localhost', 80),
            root=self.root,
            mount=self.mount,
            request_id=self.request_id,
        )


class Intake:
    """Takes heads in that :mod:`crew_wsgi.http1` has read.

    Args:
        routes: which application a request is for.
        limits: what a request is allowed.
        proxies: who is believed about where a request came from.
        root_path: where all applications are for the client, percent-encoded and without a slash at its end.
    """

    def __init__(self, routes: Routes, limits: Limits, proxies: Proxies, root_path: str) -> None:
        self._routes = routes
        self._limits = limits
        self._proxies = proxies
        self._root_path = root_path
        self._root = unquoted(root_path)

    def read(
        self, start_line: httputil.RequestStartLine, headers: Fields, context: Any, request_id: str
    ) -> Head | Problem:
        """Return a head that an application may have, or why none may have it.

        Args:
            start_line: of the request.
            headers: of the request.
            context: who sent it (:class:`crew_wsgi.connections.Context`).
            request_id: of the request.
        """
        problem = self._check(start_line, headers)
        if problem is not None:
            return problem
        address = context.address
        peer = (str(address[0]), int(address[1])) if isinstance(address, tuple) else ('', 0)
        origin, believed = self._proxies.origin(peer, context.protocol, headers)
        path = unquoted(split_target(start_line.path)[0])
        host = origin.host or headers.get('host')
        if not origin.host and (named := authority(start_line.path)):
            # RFC 9112 §3.2.2: in absolute-form the target names the host, and a Host header that differs is ignored.
            host, believed = named, for_host(named, believed)
        # A proxy may have taken the root path off, or not.
        within = begins_with(path, self._root)
        route = self._routes.find(host, path.removeprefix(self._root) if within else path)
        if route is None:
            return NOT_FOUND
        return Head(
            start_line=start_line,
            fields=Fields.of(believed),
            origin=origin,
            route=route,
            root=origin.prefix if within else origin.prefix + self._root_path,
            mount=self._root_path + route.prefix if within else route.prefix,
            request_id=request_id,
        )

    def _check(self, start_line: httputil.RequestStartLine, headers: Fields) -> Problem | None:
        method, target, version = start_line
        hosts = len(headers.get_list('host'))
        if hosts > 1 or (not hosts and version != 'HTTP/1.0'):
            # RFC 9112 §3.2: who serves several names must not guess which one is meant.
            return bad_request('There must be one Host header.')
        if method == 'CONNECT':
            return bad_request('This server is no proxy for CONNECT.', 501)
        path_or_url = target.startswith('/') or target.lower().startswith(('http://', 'https://'))
        if not path_or_url and (target != '*' or method != 'OPTIONS'):
            return bad_request('The request target is neither a path nor a URL.')
        # What was read is a number, and not too long to be counted.
        if int(headers.get('content-length', '0')) > self._limits.max_body:
            return too_large(self._limits.max_body)
        return None


def request_id_of(headers: Fields) -> str:
    """Return the id of a request: the client's, if it can be used, or a new one."""
    given = headers.get('x-request-id')
    return given if given and _REQUEST_ID.fullmatch(given) else unique_id()


def too_large(limit: int) -> Problem:
    """Return the problem of a body that is longer than so many bytes."""
    return bad_request(f'The body of the request is longer than {limit} bytes.', 413)
