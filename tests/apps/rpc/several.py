"""A worker script of several tasks, whose ids begin with ``$QUEUE``; runs are noted in the file ``$RUNS`` names."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from crew.master.threaded_client import Client
from crew.worker import Task, context, run

PREFIX = os.environ['QUEUE']

# Made before the worker processes are forked, used in them.
client = Client()


def note(text: str) -> None:
    """Write a line that survives the process."""
    with Path(os.environ['RUNS']).open('a') as runs:
        runs.write(f'{text} {os.getpid()}\n')


def sleep(req: dict[str, Any]) -> int:
    """Sleep in pieces that an exception can get between; return the process."""
    note(req['name'])
    end = time.monotonic() + req['for']
    while time.monotonic() < end:
        time.sleep(0.01)
    note(f'ended:{req["name"]}')
    return os.getpid()


for name in 'abc':
    Task(f'{PREFIX}.{name}')(sleep)


@Task(f'{PREFIX}.again', idempotent=True)
def again(req: dict[str, Any]) -> int:
    """Do the same as the others, but as one that may run twice."""
    return sleep(req)


@Task(f'{PREFIX}.poison', idempotent=True)
def poison(req: dict[str, Any]) -> None:
    """Kill the process."""
    note(req['name'])
    os.kill(os.getpid(), signal.SIGKILL)


@Task(f'{PREFIX}.spin')
def spin(req: dict[str, Any]) -> None:
    """Compute for ever, but clean up when told to end."""
    note(req['name'])
    try:
        while True:
            pass
    finally:
        note(f'finally:{req["name"]}')


@Task(f'{PREFIX}.left')
def left(req: Any) -> float:
    """Return how long this run may still take."""
    return context.deadline


@Task(f'{PREFIX}.outer')
def outer(req: dict[str, Any]) -> tuple[float, Any]:
    """Call another task, with more time than there is; return how much there was, and its value."""
    left = context.deadline
    return left, client.call(f'{PREFIX}.{req["task"]}', req, timeout=1000).wait()


@Task(f'{PREFIX}.publish')
def publish(req: dict[str, Any]) -> str:
    """Publish, and go on until a run is noted that says so."""
    context.pubsub.publish(req['channel'], req['value'])
    while req['until'] not in Path(os.environ['RUNS']).read_text():
        time.sleep(0.01)
    return 'replied'


run()
