"""celery with the rpc:// result backend, behind gunicorn; ``celery_app.py AT_ONCE SECONDS`` calls it alone."""

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery

celery = Celery('celery_app', broker=os.environ.get('BROKER'), backend='rpc://')
celery.conf.task_ignore_result = False
celery.conf.worker_hijack_root_logger = False


@celery.task
def hello() -> str:
    """Say hello."""
    return 'hello\n'


def gateway(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Ask the worker."""
    answer = hello.delay().get(timeout=30).encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(answer)))])
    return [answer]


def calls(at_once: int, seconds: float) -> int:
    """Call for so long; return how many calls were answered."""
    done = 0
    end = time.monotonic() + seconds
    waiting = [hello.delay() for _ in range(at_once)]
    while waiting:
        assert waiting.pop(0).get(timeout=30) == 'hello\n'
        done += 1
        if time.monotonic() < end:
            waiting.append(hello.delay())
    return done


if __name__ == '__main__':
    # By its module's name, not __main__, the worker knows the task.
    from celery_app import calls as calls_of_the_worker

    print(calls_of_the_worker(int(sys.argv[1]), float(sys.argv[2])))
