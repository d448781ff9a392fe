"""One target under atheris, in a process of its own: ``python -m tests.fuzzing.engine TARGET [libFuzzer's arguments]``.

libFuzzer starts itself once more to reduce a corpus, by the name of the program: ``CREW_FUZZING_SELF`` is that.
"""

import logging
import os
import sys

import atheris

from tests.fuzzing.targets import check_of

#: What tells the search that it has come to something new: our own code, the models beside it, and what reads the wire.
INSTRUMENTED = ['crew', 'crew_wsgi', 'tests', 'pika']


def main() -> None:
    """Fuzz; does not return."""
    target, *arguments = sys.argv[1:]
    # What is logged is not what is looked for, and it would be much.
    logging.lastResort = None
    with atheris.instrument_imports(include=INSTRUMENTED):
        check = check_of(target)
    atheris.Setup([os.environ.get('CREW_FUZZING_SELF', sys.argv[0]), *arguments], check)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
