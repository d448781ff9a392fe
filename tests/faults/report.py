"""The tables of the fault suite, on the console and in ``docs/reliability.md``."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.account import Row

__all__ = ['HEADINGS', 'cells', 'group_of', 'line', 'write']

PAGE = Path(__file__).parents[2] / 'docs' / 'reliability.md'
BEGIN, END = '<!-- make faults: {} -->', '<!-- end of {} -->'

HEADINGS = ('scenario', 'sent', '200', '503', 'other', 'none', 'run twice', 'wrong', 'longest', 'recovery', '')
WIDTHS = (58, 6, 6, 5, 5, 5, 9, 5, 8, 8, 4)


def cells(row: Row) -> tuple[str, ...]:
    """Return what the table says of one scenario."""
    return (
        row.scenario,
        *(str(n) for n in (row.sent, row.answered, row.refused, row.failed, row.unanswered, row.run_twice, row.wrong)),
        f'{row.longest:.2f} s',
        '–' if row.recovery is None else f'{row.recovery:.2f} s',
        'ok' if row.passed else 'FAIL',
    )


def line(texts: Sequence[str]) -> str:
    """Return one line for the console."""
    first, *others = texts
    return ' '.join(
        [first.ljust(WIDTHS[0]), *(text.rjust(width) for text, width in zip(others, WIDTHS[1:], strict=True))]
    )


def group_of(scenario: str) -> str:
    """Return what a scenario breaks: the first word of its name."""
    return scenario.partition(':')[0]


def write(rows: Sequence[Row], seed: str) -> None:
    """Put a table for each group of these rows into the page, in the place of that group's old one."""
    page = PAGE.read_text()
    for group in dict.fromkeys(group_of(row.scenario) for row in rows):
        table = _table(group, [row for row in rows if group_of(row.scenario) == group], seed)
        begin, end = BEGIN.format(group), END.format(group)
        if begin not in page:
            page = f'{page.rstrip()}\n\n{begin}\n{end}\n'
        page = re.sub(f'{re.escape(begin)}.*{re.escape(end)}', lambda _, table=table: table, page, flags=re.DOTALL)
    PAGE.write_text(page)


def _table(group: str, rows: Sequence[Row], seed: str) -> str:
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    lines = [
        BEGIN.format(group),
        f'Measured on {date} with seed {seed}.',
        '',
        f'| {" | ".join(HEADINGS)} |',
        f'|{"---|" * len(HEADINGS)}',
        *(f'| {" | ".join(cells(row))} |' for row in rows),
        *_remarks(rows),
        END.format(group),
    ]
    return '\n'.join(lines)


def _remarks(rows: Sequence[Row]) -> list[str]:
    remarks = [f'* {row.scenario}: {text}' for row in rows for text in (*row.complaints[:3], *row.notes)]
    return ['', *remarks] if remarks else []
