"""A request becomes a WSGI environ (PEP 3333, "environ Variables")."""

import io
import re
import sys
from functools import lru_cache
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from crew_wsgi.messages import Request

__all__ = ['authority', 'build_environ', 'split_target', 'unquoted']

#: Names of header fields are kept up to this length, in characters: anybody may send others, and longer ones.
MAX_KEPT_NAME = 64


def build_environ(
    request: Request, body: BinaryIO | None = None, *, multithread: bool, multiprocess: bool
) -> dict[str, Any]:
    """Return the environ of a request.

    Args:
        request: what the client sent.
        body: its body, if that is not whole in the request.
        multithread: whether the application may be called by another thread of this process meanwhile.
        multiprocess: whether another process may run the same application.
    """
    path, query = split_target(request.target)
    environ: dict[str, Any] = {
        'REQUEST_METHOD': request.method,
        'SCRIPT_NAME': unquoted(request.root + request.mount),
        # Decoded first: the client may have encoded the mount in another way.
        'PATH_INFO': unquoted(path).removeprefix(unquoted(request.mount)),
        'QUERY_STRING': query,
        'REQUEST_URI': request.target,
        'RAW_URI': request.target,
        'SERVER_NAME': request.server[0],
        'SERVER_PORT': str(request.server[1]),
        'SERVER_PROTOCOL': request.version,
        'SERVER_SOFTWARE': 'crew',
        'REMOTE_ADDR': request.client[0],
        'REMOTE_PORT': str(request.client[1]),
        'wsgi.version': (1, 0),
        'wsgi.url_scheme': request.scheme,
        'wsgi.input': io.BytesIO(request.body) if body is None else body,
        'wsgi.input_terminated': True,
        'wsgi.errors': sys.stderr,
        'wsgi.file_wrapper': FileWrapper,
        'wsgi.multithread': multithread,
        'wsgi.multiprocess': multiprocess,
        'wsgi.run_once': False,
        'crew.request_id': request.request_id,
    }
    _add_headers(environ, request)
    if body is None and (request.body or 'CONTENT_LENGTH' in environ):
        # The body is whole, so its length is known even if it came in chunks.
        environ['CONTENT_LENGTH'] = str(len(request.body))
    return environ


def authority(target: str) -> str:
    """Return the host that a request target in absolute-form names, or an empty string."""
    _, absolute, rest = target.partition('://')
    if not absolute or target.startswith('/'):
        return ''
    return re.split('[/?#]', rest, maxsplit=1)[0].rpartition('@')[2]


def unquoted(path: str) -> str:
    """Return a path as the application sees it: decoded, each byte a character (PEP 3333)."""
    if '%' not in path:
        return path
    return unquote_to_bytes(path.encode('latin-1')).decode('latin-1')


def split_target(target: str) -> tuple[str, str]:
    """Return path and query of a request target, still percent-encoded (RFC 9112 §3.2)."""
    if target == '*':
        # Asterisk-form: no path at all.
        return '', ''
    if not target.startswith('/'):
        # Absolute-form, as sent to proxies; a server must accept it too.
        after_authority = re.search('[/?]', target.partition('://')[2])
        target = after_authority.string[after_authority.start() :] if after_authority else '/'
    path, _, query = target.partition('?')
    return path or '/', query


def _add_headers(environ: dict[str, Any], request: Request) -> None:
    for name, value in request.headers:
        key = _usual_variable(name) if len(name) <= MAX_KEPT_NAME else _variable(name)
        if not key:
            continue
        # RFC 3875 §4.1.18: fields of one name are joined.
        if key in environ:
            separator = '; ' if key == 'HTTP_COOKIE' else ','
            value = f'{environ[key]}{separator}{value}'
        environ[key] = value


def _variable(name: str) -> str:
    """Return the variable that a header field becomes (RFC 3875 §4.1.18); of one that becomes none, an empty string."""
    if '_' in name:
        # It would become the same variable as a hyphen, so a client could say under another name what only a proxy may.
        return ''
    key = name.upper().replace('-', '_')
    return key if key in ('CONTENT_TYPE', 'CONTENT_LENGTH') else f'HTTP_{key}'


#: Clients send few names.
_usual_variable = lru_cache(maxsize=1024)(_variable)
