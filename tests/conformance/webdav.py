"""WebDAV by WsgiDAV (``tests/apps/dav.py``)."""

import os
from xml.etree import ElementTree

import requests

from tests.conformance.site import Checks, Site, need, same

__all__ = ['checks']

checks = Checks('WebDAV', 'dav')

MEBIBYTE = 1024 * 1024

LOCK = """<?xml version="1.0" encoding="utf-8"?>
<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype>
<D:owner>ada</D:owner></D:lockinfo>"""

PROPPATCH = """<?xml version="1.0" encoding="utf-8"?>
<D:propertyupdate xmlns:D="DAV:" xmlns:X="urn:x"><D:set><D:prop><X:colour>grün</X:colour></D:prop></D:set>
</D:propertyupdate>"""


class Folder:
    """A collection of a check's own."""

    def __init__(self, site: Site) -> None:
        self._root = f'/{site.key()}'
        self._url = site.url
        self.ask('MKCOL', '', wanted=201)

    def url(self, path: str) -> str:
        return f'{self._url}{self._root}{path}'

    def ask(self, method: str, path: str, *, wanted: int, **options: object) -> requests.Response:
        """Make a request that must be answered so."""
        answer = requests.request(method, self.url(path), timeout=30, **options)  # type: ignore[arg-type]
        same(f'{method} {path or "/"}', answer.status_code, wanted)
        return answer

    def list(self, path: str = '/') -> set[str]:
        """Return the paths that PROPFIND finds."""
        answer = self.ask('PROPFIND', path, wanted=207, headers={'Depth': '1'})
        found = [href.text or '' for href in ElementTree.fromstring(answer.content).iter('{DAV:}href')]
        return {href.removeprefix(self._root) for href in found}


@checks('OPTIONS says that it is WebDAV')
def _(site: Site) -> None:
    answer = requests.options(f'{site.url}/', timeout=30)
    same('the status', answer.status_code, 200)
    need('1' in answer.headers['DAV'], 'DAV is missing')
    need('PROPFIND' in answer.headers['Allow'], 'PROPFIND is not allowed')


@checks('PUT, GET, PROPFIND, DELETE')
def _(site: Site) -> None:
    folder = Folder(site)
    folder.ask('PUT', '/a.txt', wanted=201, data=b'one')
    folder.ask('PUT', '/a.txt', wanted=204, data=b'two')
    same('the file', folder.ask('GET', '/a.txt', wanted=200).content, b'two')
    same('the list', folder.list(), {'/', '/a.txt'})
    folder.ask('DELETE', '/a.txt', wanted=204)
    folder.ask('GET', '/a.txt', wanted=404)


@checks('PUT of nothing, of 5 MiB, and of 5 MiB in chunks')
def _(site: Site) -> None:
    folder = Folder(site)
    folder.ask('PUT', '/empty', wanted=201, data=b'')
    same('the empty file', folder.ask('GET', '/empty', wanted=200).content, b'')
    data = os.urandom(5 * MEBIBYTE)
    folder.ask('PUT', '/sized', wanted=201, data=data)
    folder.ask('PUT', '/chunked', wanted=201, data=iter([data[:100], data[100:MEBIBYTE], data[MEBIBYTE:]]))
    for path in ('/sized', '/chunked'):
        content = folder.ask('GET', path, wanted=200).content
        need(content == data, f'{len(content)} bytes of {path} came, not {len(data)}')


@checks('ranges of a file')
def _(site: Site) -> None:
    folder = Folder(site)
    folder.ask('PUT', '/file', wanted=201, data=b'0123456789')
    same('the range', folder.ask('GET', '/file', wanted=206, headers={'Range': 'bytes=3-5'}).content, b'345')


@checks('MKCOL, COPY and MOVE')
def _(site: Site) -> None:
    folder = Folder(site)
    folder.ask('MKCOL', '/sub', wanted=201)
    folder.ask('MKCOL', '/sub', wanted=405)
    folder.ask('PUT', '/sub/a ä.txt', wanted=201, data=b'content')
    folder.ask('COPY', '/sub', wanted=201, headers={'Destination': folder.url('/copy')})
    folder.ask('MOVE', '/sub', wanted=201, headers={'Destination': folder.url('/moved')})
    same('the list', folder.list(), {'/', '/copy/', '/moved/'})
    same('the file', folder.ask('GET', '/copy/a ä.txt', wanted=200).content, b'content')
    answer = folder.ask('MOVE', '/copy', wanted=412, headers={'Destination': folder.url('/moved'), 'Overwrite': 'F'})
    need(answer.headers, 'no head')


@checks('LOCK and UNLOCK')
def _(site: Site) -> None:
    folder = Folder(site)
    folder.ask('PUT', '/file', wanted=201, data=b'one')
    headers = {'Timeout': 'Second-60', 'Content-Type': 'application/xml'}
    token = folder.ask('LOCK', '/file', wanted=200, data=LOCK, headers=headers).headers['Lock-Token']
    folder.ask('PUT', '/file', wanted=423, data=b'two')
    folder.ask('PUT', '/file', wanted=204, data=b'three', headers={'If': f'({token})'})
    folder.ask('UNLOCK', '/file', wanted=204, headers={'Lock-Token': token})
    folder.ask('PUT', '/file', wanted=204, data=b'four')


@checks('PROPPATCH')
def _(site: Site) -> None:
    folder = Folder(site)
    folder.ask('PUT', '/file', wanted=201, data=b'one')
    folder.ask('PROPPATCH', '/file', wanted=207, data=PROPPATCH.encode())
    answer = folder.ask('PROPFIND', '/file', wanted=207, headers={'Depth': '0'})
    need('grün' in answer.content.decode(), 'the property is not there')
