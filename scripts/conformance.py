"""Write ``docs/conformance.md``: what crew and gunicorn do with the applications and requests of ``tests/conformance``.

Both get the same applications: gunicorn with its usual (sync) workers, crew as a front and worker processes on a
RabbitMQ of its own. The exit code is 1 when gunicorn does something that crew does not.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from crew.private_node import PrivateNode  # noqa: E402
from tests.conformance import CHECKS, Check  # noqa: E402
from tests.conformance.servers import APPLICATIONS, Crew, Gunicorn, Sites  # noqa: E402

__all__ = ['TARGET', 'document', 'run', 'shown']

TARGET = ROOT / 'docs' / 'conformance.md'

INTRODUCTION = """# Conformance

`make conformance` writes this page: each line is a check of `tests/conformance`, run against crew (a front and worker
processes on a RabbitMQ of their own) and against gunicorn with its usual workers, with the same applications. crew’s
column is also what `tests/test_real_applications.py` holds it to.

A ✗ for gunicorn is not always a fault of it. Some are a choice, and its options may have another: its sync workers
close each connection after one response, and its limits on a request’s head are lower by default. The pushes fail
because dulwich takes chunks apart itself where the environ has `HTTP_TRANSFER_ENCODING`; gunicorn says so of a body
that it has taken apart already, crew does not.
"""


def run(check: Check, sites: Sites) -> str | None:
    """Run a check; return None, or why it failed in one line."""
    try:
        check.run(sites[check.app])
    except Exception as error:
        text = f'{error}' if isinstance(error, AssertionError) else f'{type(error).__name__}: {error}'
        line = ' '.join(text.split())
        return line if len(line) < 160 else f'{line[:157]} …'
    return None


def run_all(name: str, sites: Sites, checks: list[Check]) -> list[str | None]:
    """Run checks one by one, and say how they end."""
    results = []
    for check in checks:
        result = run(check, sites)
        results.append(result)
        print(f'{name}: {"✗" if result else "✓"} {check.group}: {check.text}{f" ({result})" if result else ""}')
    return results


def document(checks: list[Check], crew: list[str | None], gunicorn: list[str | None]) -> str:
    """Return the page."""
    rows = list(zip(checks, crew, gunicorn, strict=True))
    return '\n'.join([INTRODUCTION, *_summary(rows), *_tables(rows)])


Row = tuple[Check, str | None, str | None]


def _summary(rows: list[Row]) -> Iterator[str]:
    passed = [sum(row[column] is None for row in rows) for column in (1, 2)]
    yield f'Of {len(rows)} checks crew passes {passed[0]}, gunicorn {passed[1]}.\n'


def _tables(rows: list[Row]) -> Iterator[str]:
    for group, some in groupby(rows, lambda row: row[0].group):
        yield f'## {group}\n\n| check | crew | gunicorn | note |\n| --- | :-: | :-: | --- |'
        for check, crew, gunicorn in some:
            notes = [f'{name}: {why}' for name, why in (('crew', crew), ('gunicorn', gunicorn)) if why]
            yield f'| {shown(check.text)} | {_mark(crew)} | {_mark(gunicorn)} | {shown("; ".join(notes))} |'
        yield ''


def _mark(result: str | None) -> str:
    return '✗' if result else '✓'


def shown(text: str) -> str:
    """Return a text as it stands in a table of the page."""
    return text.replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*').replace('_', '\\_')


def main() -> int:
    """Run all checks against both servers, and write the page."""
    parser = argparse.ArgumentParser(description='Write docs/conformance.md.')
    parser.add_argument('words', nargs='*', help='only checks with these words in them; the page is not written then')
    words = parser.parse_args().words
    missing = {name for application in APPLICATIONS.values() for name in application.missing}
    if missing:
        print(f'not installed: {", ".join(sorted(missing))}; run: make .venv', file=sys.stderr)
        return 2
    checks = [check for check in CHECKS if all(word in f'{check.group}: {check.text}' for word in words)]
    results = {}
    with tempfile.TemporaryDirectory() as directory, PrivateNode() as node:
        servers: dict[str, Callable[[Path], Sites]] = {'crew': lambda path: Crew(node.url, path), 'gunicorn': Gunicorn}
        for name, make in servers.items():
            with make(Path(directory) / name) as sites:
                results[name] = run_all(name, sites, checks)
    if not words:
        TARGET.write_text(document(checks, results['crew'], results['gunicorn']), encoding='utf-8')
    pairs = zip(checks, results['crew'], results['gunicorn'], strict=True)
    behind = [check.text for check, crew, gunicorn in pairs if crew is not None and gunicorn is None]
    for text in behind:
        print(f'gunicorn does, crew does not: {text}', file=sys.stderr)
    return 1 if behind else 0


if __name__ == '__main__':
    sys.exit(main())
