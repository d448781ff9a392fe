"""``make fuzz-coverage``: let atheris search each target for bytes that break a promise, one after the other.

What it has kept of the search is added to the corpus, reduced to what it takes to get everywhere again. An input that
breaks a promise is written beside the corpus; mended, it becomes a test, and goes into the corpus with ``--add``.
"""

import argparse
import hashlib
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuzzing import corpus
from tests.fuzzing.targets import TARGETS, seeds_of

FOLDER = Path(__file__).parent

#: All that searches have kept so far, not reduced, for the next to begin with; not in the repository.
INPUTS = FOLDER / 'inputs'

#: Where inputs go that break a promise; not in the repository.
FOUND = FOLDER / 'found'

#: An input that takes longer has hung, in seconds; there may be others on this machine.
HUNG = 60

MEGABYTES = 1024

#: Of an input of these, the suite has to play a whole world. So of them those are kept that reach all code together,
#: and not those that reach some of it more often.
SLOW = {'world'}


@dataclass(frozen=True, slots=True)
class Result:
    """What a search came to.

    Args:
        executions: how many inputs were tried.
        seconds: how long that took.
        features: how much of the code was reached, and in which ways, as libFuzzer counts it.
        kept: how many inputs the corpus has now.
        found: the input that breaks a promise.
    """

    executions: int
    seconds: int
    features: int
    kept: int
    found: Path | None


class Search:
    """A search of one target.

    Args:
        target: which.
        folder: for what it writes.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._script = folder / 'self.sh'
        # The same seed is the same search only if sets have the same order.
        command = shlex.join([sys.executable, '-m', 'tests.fuzzing.engine', target])
        self._script.write_text(f'#!/bin/sh\nPYTHONHASHSEED=0 exec {command} "$@"\n')
        self._script.chmod(0o755)
        self._inputs = INPUTS / target
        self._inputs.mkdir(parents=True, exist_ok=True)

    def run(self, seconds: int, seed: int, folder: Path) -> Result:
        """Search for so long; what the corpus is to be then is in ``folder``."""
        _write(self._inputs, [*corpus.load(self._target), *seeds_of(self._target)])
        FOUND.mkdir(exist_ok=True)
        before = set(FOUND.iterdir())
        text = self._start(
            str(self._inputs),
            f'-max_total_time={seconds}',
            f'-seed={seed}',
            f'-max_len={TARGETS[self._target]}',
            f'-artifact_prefix={FOUND}/{self._target}-',
            '-print_final_stats=1',
        )
        found = [path for path in FOUND.iterdir() if path not in before and not path.name.count('slow-unit')]
        if found:
            print(_traceback(text), file=sys.stderr)
        elif 'stat::number_of_executed_units' not in text:
            raise SystemExit(f'the search did not come to its end:\n{text[-3000:]}')
        return Result(
            executions=max(map(int, re.findall(r'^#([0-9]+)', text, re.MULTILINE)), default=0),
            seconds=seconds,
            features=max(map(int, re.findall(r' ft: ([0-9]+)', text)), default=0),
            kept=self.reduce(folder),
            found=found[0] if found else None,
        )

    def reduce(self, folder: Path) -> int:
        """Reduce what was kept to what it takes to reach as much: that is the corpus now. Return how many."""
        folder.mkdir()
        how = ['-merge=1', *(['-use_counters=0'] if self._target in SLOW else [])]
        text = self._start(*how, str(folder), str(self._inputs), f'-max_len={TARGETS[self._target]}')
        if not list(folder.iterdir()):
            raise SystemExit(f'the corpus could not be reduced:\n{text[-3000:]}')
        kept = [path.read_bytes() for path in folder.iterdir()]
        corpus.save(self._target, kept)
        return len(kept)

    def _start(self, *arguments: str) -> str:
        limits = [f'-timeout={HUNG}', f'-rss_limit_mb={MEGABYTES}']
        done = subprocess.run(
            [str(self._script), *arguments, *limits],
            env={**os.environ, 'CREW_FUZZING_SELF': str(self._script)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        return done.stdout


def _write(folder: Path, inputs: Sequence[bytes]) -> None:
    for data in inputs:
        # As libFuzzer names them, so that none is there twice.
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def _traceback(text: str) -> str:
    found = re.search(r' === Uncaught Python exception|ERROR: libFuzzer', text)
    return text[found.start() if found else 0 :][:6000]


@contextmanager
def _searching(target: str) -> Iterator[tuple[Search, Path]]:
    with tempfile.TemporaryDirectory(prefix='crew-fuzzing-') as folder:
        yield Search(target, Path(folder)), Path(folder) / 'reduced'


def main() -> int:
    """Search; return how many targets had an input that breaks a promise."""
    parser = argparse.ArgumentParser(prog='python -m tests.fuzzing', description=__doc__)
    parser.add_argument('targets', nargs='*', metavar='TARGET', help=f'one of {", ".join(TARGETS)}; all by default')
    parser.add_argument('--seconds', type=int, default=60, help='for each target (default: 60)')
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1, 2**31), help='repeats a search')
    parser.add_argument(
        '--add', type=Path, help='put this input into the corpus of the one target, and do nothing else'
    )
    options = parser.parse_args()
    unknown = [target for target in options.targets if target not in TARGETS]
    if unknown or (options.add and len(options.targets) != 1):
        parser.error(f'no such target: {", ".join(unknown)}' if unknown else '--add is for one target')
    if options.add:
        [target] = options.targets
        corpus.save(target, [*corpus.load(target), options.add.read_bytes()])
        return 0
    print(f'seed {options.seed}, {options.seconds} s for each')
    print(f'{"target":<11} {"executions":>10} {"a second":>8} {"features":>8} {"corpus":>6}  found')
    failed = 0
    for target in options.targets or TARGETS:
        with _searching(target) as (search, folder):
            result = search.run(options.seconds, options.seed, folder)
        rate = result.executions // max(1, result.seconds)
        row = f'{target:<11} {result.executions:>10} {rate:>8} {result.features:>8} {result.kept:>6}'
        print(f'{row}  {result.found or "nothing"}', flush=True)
        failed += result.found is not None
    return failed


if __name__ == '__main__':
    sys.exit(main())
