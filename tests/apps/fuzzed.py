"""A worker script under fire; its tasks' ids begin with ``$QUEUE``. They take anything, and raise ``Known`` alone."""

import os
import time
from typing import Any

from crew.worker import Task, run

PREFIX = os.environ['QUEUE']


class Known(Exception):
    """What the tasks raise."""


@Task(f'{PREFIX}.echo')
def echo(req: Any) -> Any:
    """Return the argument."""
    return req


@Task(f'{PREFIX}.nap')
def nap(req: Any) -> Any:
    """Sleep a little, and return the argument."""
    wanted = req.get('for') if isinstance(req, dict) else None
    time.sleep(min(max(wanted, 0), 0.3) if isinstance(wanted, (int, float)) else 0.001)
    return req


@Task(f'{PREFIX}.again', idempotent=True)
def again(req: Any) -> Any:
    """Do the same as a task that may run twice."""
    return nap(req)


@Task(f'{PREFIX}.fail')
def fail(req: Any) -> None:
    """Raise."""
    raise Known(repr(req)[:40])


if __name__ == '__main__':
    run()
