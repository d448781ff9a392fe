"""``make bench``: start everything, measure it in turn, and write the tables into ``benchmarks/README.md``."""

import argparse
import datetime
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import contenders as c
from benchmarks import growth
from benchmarks.bodies import compare_bodies, raw_stream
from benchmarks.bridges import Figures, compare
from benchmarks.callers import compare_callers
from benchmarks.evenness import CONNECTIONS, LONG, RARE, waits
from crew.private_node import PrivateNode

PAGE = Path(__file__).with_name('README.md')

RATIO = ('ratio', 'measured', 'wanted')
CPU = ('front', 'worker', 'broker')
SIZES = (1_000, 64_000, 1_000_000, 16_000_000)
BACKLOG = 100_000


class Bench:
    """The tables, each a method; what was measured by one is used by the ratios of another.

    Args:
        node: a running broker.
        rounds: how often each is measured, in turn with the others.
        seconds: how long each time.
        log: where the output of what is started goes.
    """

    def __init__(self, node: PrivateNode, rounds: int, seconds: int, log: Path) -> None:
        self._node = node
        self._rounds = rounds
        self._seconds = seconds
        self._log = log
        self._by_name = {one.name: one for one in c.BRIDGES}

    def bridges(self) -> list[str]:
        """HTTP requests, 32 connections."""
        figures = compare(c.BRIDGES, self._node, self._rounds, self._seconds, self._log)
        rows = [_bridge_row(name, found, figures[c.GUNICORN_1]) for name, found in figures.items()]
        heads = ('', 'req/s', '÷ gunicorn 1 sync', 'p50 ms', 'p99 ms', 'CPU ms a request: front / worker / broker')
        ratios = [
            _ratio('default ÷ gunicorn 1 sync', figures[c.CREW].rate, figures[c.GUNICORN_1].rate, 1.25),
            _ratio('default ÷ gunicorn 2 sync', figures[c.CREW].rate, figures[c.GUNICORN_2].rate, 1.0),
            _ratio('--prefetch 10 ÷ gunicorn 2 sync', figures[c.PREFETCH].rate, figures[c.GUNICORN_2].rate, 1.25),
            _ratio('--prefetch 1 ÷ plain pika bridge, 1', figures[c.CREW_1].rate, figures[c.PLAIN_1].rate, 3),
            _ratio('--prefetch 10 ÷ plain pika bridge, 10', figures[c.PREFETCH].rate, figures[c.PLAIN_10].rate, 3),
            _ratio('default ÷ aio-pika RPC behind aiohttp', figures[c.CREW].rate, figures[c.AIO_PIKA].rate, 5),
            _ratio('default ÷ nameko', figures[c.CREW].rate, figures[c.NAMEKO].rate, 9),
            _ratio('default ÷ celery', figures[c.CREW].rate, figures[c.CELERY].rate, 9),
            _ratio(
                'worker CPU of the default ÷ gunicorn sync',
                figures[c.CREW].cpu('worker'),
                figures[c.GUNICORN_1].cpu('worker'),
                0.5,
                most=True,
            ),
        ]
        table = _table((*heads, 'peak MB: front / worker', 'errors'), rows)
        return [*table, '', *_table(RATIO, ratios)]

    def single(self) -> list[str]:
        """HTTP requests, one connection."""
        chosen = [self._by_name[name] for name in (c.CREW, c.PLAIN_1, c.GUNICORN_1)]
        figures = compare(chosen, self._node, self._rounds, self._seconds, self._log, connections=1)
        rows = [(name, f'{found.p50 * 1e3:.2f}', f'{found.p99 * 1e3:.2f}') for name, found in figures.items()]
        ratio = _ratio('p50, default ÷ plain pika bridge', figures[c.CREW].p50, figures[c.PLAIN_1].p50, 0.8, most=True)
        return [*_table(('', 'p50 ms', 'p99 ms'), rows), '', *_table(RATIO, [ratio])]

    def calls(self) -> list[str]:
        """RPC calls, 1 and 32 in flight."""
        rates = compare_callers(c.CALLERS, self._node, self._rounds, self._seconds, (1, 32), self._log)
        rows = [(name, f'{found[1]:.0f}', f'{found[32]:.0f}') for name, found in rates.items()]
        ratio = _ratio('crew ÷ aio-pika RPC, 32 in flight', rates['crew'][32], rates['aio-pika RPC'][32], 6)
        return [
            *_table(('', '1 in flight', '32 in flight'), rows),
            '',
            *_table(RATIO, [ratio]),
        ]

    def bodies(self) -> list[str]:
        """Bodies, four clients at once."""
        chosen = [self._by_name[name] for name in (c.CREW_THREADS, c.GUNICORN_THREADS)]
        rates = compare_bodies(chosen, self._node, self._rounds, self._seconds, SIZES, self._log)
        raw = max(raw_stream(self._node, self._seconds) for _ in range(self._rounds))
        rows = [
            (f'{size / 1000:g} kB {way}', *(f'{rates[one.name, size, way] / 1e6:.1f}' for one in chosen))
            for size in SIZES
            for way in ('up', 'down')
        ]
        rows.append(('a bare pika stream of chunks', f'{raw / 1e6:.1f}', ''))
        ratios = [
            _ratio(
                f'64 kB {way} ÷ gunicorn 1×4 threads',
                rates[c.CREW_THREADS, 64_000, way],
                rates[c.GUNICORN_THREADS, 64_000, way],
                1.0,
            )
            for way in ('up', 'down')
        ]
        # An upload is echoed, so its bytes cross the broker twice.
        ratios.append(_ratio('16 MB down ÷ bare pika stream', rates[c.CREW_THREADS, 16_000_000, 'down'], raw, 0.6))
        ratios.append(
            _ratio('16 MB up and down ÷ bare pika stream', 2 * rates[c.CREW_THREADS, 16_000_000, 'up'], raw, 0.6)
        )
        heads = ('MB/s', *(one.name for one in chosen))
        return [*_table(heads, rows), '', *_table(RATIO, ratios)]

    def evenness(self) -> list[str]:
        """Two workers, and requests of which one in some is long."""
        found = {
            name: waits(self._node, options, 2 * self._seconds, self._log)
            for name, options in {'--prefetch 1': ('--prefetch', '1'), 'default': ()}.items()
        }
        rows = [
            (name, each.requests, *(f'{value * 1e3:.1f}' for value in (each.p50, each.p99, each.longest)))
            for name, each in found.items()
        ]
        more = (found['default'].p99 - found['--prefetch 1'].p99) * 1e3
        ratio = _ratio('99 %, default less --prefetch 1, ms', more, 1, 10, most=True)
        heads = ('waits while another worker is idle, ms', 'short requests', '50 %', '99 %', 'longest')
        said = f'{CONNECTIONS} connections; one request in {RARE} takes {LONG * 1e3:.0f} ms.'
        return [said, '', *_table(heads, rows), '', *_table(RATIO, [ratio])]

    def workers(self) -> list[str]:
        """Workers of an application that takes 20 ms."""
        figures = growth.workers(self._node, (1, 2, 4, 8, 16), self._seconds, self._log)
        rows = [(count, f'{found.rate:.0f}', f'{found.p99 * 1e3:.0f}') for count, found in figures.items()]
        ratio = _ratio('16 workers ÷ 16 × one', figures[16].rate, 16 * figures[1].rate, 0.95)
        return [*_table(('workers', 'req/s', 'p99 ms'), rows), '', *_table(RATIO, [ratio])]

    def backlog(self) -> list[str]:
        """A queue of 100,000."""
        without, answered, drained = growth.backlog(self._node, BACKLOG, self._seconds, self._log)
        rows = [('none', f'{without:.0f}', '0'), (f'{BACKLOG:,}', f'{answered:.0f}', f'{drained:.0f}')]
        ratio = _ratio(f'both with {BACKLOG:,} queued ÷ with none', answered + drained, without, 0.9)
        header = ('queued at a lower priority', 'answered a second', 'of the queued run a second')
        return [*_table(header, rows), '', *_table(RATIO, [ratio])]

    def heads(self) -> list[str]:
        """Long heads, and 1,000 connections."""
        chosen = [self._by_name[name] for name in (c.CREW, c.GUNICORN_THREADS, 'Tornado alone')]
        rates = growth.heads(chosen, self._node, self._seconds, self._log)
        many = compare(chosen, self._node, 1, self._seconds, self._log, connections=1000)
        rows = [
            (
                one.name,
                *(f'{rates[one.name, what]:.0f}' for what in ('50 headers', 'a head of 8 kB')),
                f'{many[one.name].rate:.0f}',
                many[one.name].errors,
            )
            for one in chosen
        ]
        return _table(('req/s', '50 headers', 'a head of 8 kB', '1,000 connections', 'errors there'), rows)

    def starting(self) -> list[str]:
        """Starting, and doing nothing."""
        told, ready = growth.start_up(self._node, self._log)
        share = growth.idle(self._node, 20.0, self._log)
        ratios = [
            _ratio('crew-wsgi-worker --help, s', told, 1, 0.15, most=True),
            _ratio('a worker takes requests, s', ready, 1, 0.5, most=True),
            _ratio('idle CPU of front and worker, % of a core', share * 100, 1, 0.5, most=True),
        ]
        return _table(('', 'measured', 'wanted'), ratios)


TABLES = ('bridges', 'single', 'calls', 'bodies', 'evenness', 'workers', 'backlog', 'heads', 'starting')


def _bridge_row(name: str, found: Figures, against: Figures) -> tuple[object, ...]:
    return (
        name,
        f'{found.rate:.0f}',
        f'{found.rate / against.rate:.2f}',
        f'{found.p50 * 1e3:.1f}',
        f'{found.p99 * 1e3:.1f}',
        ' / '.join(f'{found.cpu(role):.3f}' for role in CPU),
        ' / '.join(f'{found.peak(role) / 1e6:.0f}' for role in ('front', 'worker')),
        found.errors,
    )


def _ratio(name: str, ours: float, theirs: float, wanted: float, most: bool = False) -> tuple[str, str, str]:
    ratio = ours / theirs
    well = ratio <= wanted if most else ratio >= wanted
    return name, f'{ratio:.2f}{"" if well else " (missed)"}', f'{"≤" if most else "≥"} {wanted:g}'


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [
        f'| {" | ".join(heads)} |',
        f'|{"---|" * len(heads)}',
        *(f'| {" | ".join(str(cell) for cell in row)} |' for row in rows),
    ]


def _write(name: str, lines: Sequence[str]) -> None:
    """Put a table into the page, between its marks."""
    begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
    page = re.sub(f'{begin}.*{end}', lambda _: '\n'.join((begin, *lines, end)), PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('tables', nargs='*', metavar='TABLE', choices=[*TABLES, []], help=f'{", ".join(TABLES)}')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--seconds', type=int, default=5, help='of each measurement (default: %(default)s)')
    parser.add_argument(
        '--log', type=Path, default=Path(tempfile.gettempdir(), 'crew-bench.log'), help='default: %(default)s'
    )
    parser.add_argument('--write', action='store_true', help='write the tables into benchmarks/README.md')
    options = parser.parse_args()
    options.log.unlink(missing_ok=True)
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True).stdout.strip()
    with PrivateNode() as node:
        bench = Bench(node, options.rounds, options.seconds, options.log)
        for name in options.tables or TABLES:
            date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
            lines = getattr(bench, name)()
            made = f'Measured on {date} at {commit}, {os.cpu_count()} cores, {options.rounds} × {options.seconds} s.'
            print('\n'.join((f'\n{name}', *lines)), flush=True)
            if options.write:
                _write(name, [made, '', *lines])


if __name__ == '__main__':
    main()
