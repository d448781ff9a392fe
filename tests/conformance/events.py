"""Server-sent events: each must come when it is sent (``tests/apps/events.py``)."""

import time

from tests.conformance.site import Checks, Site, need, same
from tests.conformance.wire import Wire

__all__ = ['checks']

checks = Checks('Server-sent events', 'events')

#: After so many seconds a person would call an event late.
LATE = 1.0


def _watch(site: Site, version: str) -> None:
    key = site.key()
    with Wire(site.port) as wire:
        wire.send(f'GET /?key={key} HTTP/{version}\r\nHost: a.test\r\nAccept: text/event-stream\r\n\r\n')
        head = wire.head()
        same('the type', (head.status, head.get('Content-Type')), (200, 'text/event-stream'))
        late = []
        for number in range(5):
            site.go(f'{key}.{number}')
            while not (line := wire.line()).startswith('data: '):
                pass
            late.append(time.time() - float(line.removeprefix('data: ')))
        need(sorted(late)[-2] < LATE, f'events came {[round(seconds, 2) for seconds in late]} s after they were sent')


@checks('each event comes at once, and before the next is sent')
def _(site: Site) -> None:
    _watch(site, '1.1')


@checks('the same for a client of HTTP/1.0')
def _(site: Site) -> None:
    _watch(site, '1.0')
