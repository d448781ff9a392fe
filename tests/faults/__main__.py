"""``make faults``: play the scenarios, print a row for each, and write the tables into ``docs/reliability.md``."""

import argparse
import fnmatch
import os
import random
import sys
import time
from pathlib import Path

from crew.private_node import PrivateNode
from tests.faults.report import HEADINGS, cells, group_of, line, write
from tests.faults.scenarios import all_scenarios
from tests.faults.stage import play


def main() -> int:
    """Play what the command line names; return 1 if any row does not pass."""
    parser = argparse.ArgumentParser(prog='python -m tests.faults', description=__doc__)
    parser.add_argument('only', nargs='*', metavar='PATTERN', help='scenarios, such as "worker*" (default: all)')
    parser.add_argument('--seed', default=os.environ.get('CREW_FAULTS_SEED'), help='repeats a run')
    parser.add_argument('--list', action='store_true', help='say which there are')
    parser.add_argument(
        '--write', action='store_true', help='write the tables of what is played whole into docs/reliability.md'
    )
    parser.add_argument('--keep', type=Path, metavar='DIR', help='keep all logs there')
    options = parser.parse_args()
    chosen = [one for one in all_scenarios() if _is_chosen(one.name, options.only)]
    if options.list:
        print('\n'.join(f'{one.name}: {one.text}' for one in chosen))
        return 0
    seed = options.seed or str(random.SystemRandom().randrange(10**6))
    print(f'seed {seed}\n{line(HEADINGS)}', flush=True)
    rows = []
    began = time.monotonic()
    with PrivateNode() as node:
        for number, one in enumerate(chosen):
            keep = options.keep / f'{number:02}' if options.keep else None
            rows.append(play(one, seed, lambda: node, keep))
            print(line(cells(rows[-1])), flush=True)
            for told in (*rows[-1].complaints[:10], *rows[-1].notes):
                print(f'    {told}', flush=True)
    failed = sum(not row.passed for row in rows)
    print(f'{len(rows)} scenarios, {failed} did not pass, {time.monotonic() - began:.0f} s, seed {seed}')
    if options.write:
        missing = {group_of(one.name) for one in all_scenarios() if one not in chosen}
        write([row for row in rows if group_of(row.scenario) not in missing], seed)
    return 1 if failed else 0


def _is_chosen(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, pattern) or name.startswith(pattern) for pattern in patterns)


if __name__ == '__main__':
    sys.exit(main())
