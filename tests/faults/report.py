"""The table of the fault suite, on the console and in ``docs/reliability.md``."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.account import Row

__all__ = ['HEADINGS', 'cells', 'line', 'write']

PAGE = Path(__file__).parents[2] / 'docs' / 'reliability.md'
BEGIN, END = '<!-- measured by make faults -->', '<!-- end of the measured table -->'

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


def write(rows: Sequence[Row], seed: str) -> None:
    """Put the table into the page, between its marks."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    table = [
        BEGIN,
        f'Measured on {date} with seed {seed}.',
        '',
        f'| {" | ".join(HEADINGS)} |',
        f'|{"---|" * len(HEADINGS)}',
        *(f'| {" | ".join(cells(row))} |' for row in rows),
        *_remarks(rows),
        END,
    ]
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f'{BEGIN}.*{END}', lambda _: '\n'.join(table), page, flags=re.DOTALL))


def _remarks(rows: Sequence[Row]) -> list[str]:
    remarks = [f'* {row.scenario}: {text}' for row in rows for text in (*row.complaints[:3], *row.notes)]
    return ['', *remarks] if remarks else []
