"""The article's worker: it does what the server must not, one task after the other."""

import logging
import os
import time

from crew.worker import Task, context, run

log = logging.getLogger('article')


@Task('test')
def wake_up(req):
    """Say what the article says."""
    context.settings.counter += 1
    return 'Wake up Neo.\n'


@Task('stat')
def stat(req):
    """Tell how much this process has done; its id travels beside the text, as a header."""
    context.settings.counter += 1
    context.headers['worker'] = context.settings.uuid
    return f'process {os.getpid()} has run {context.settings.counter} tasks\n'


@Task('dead')
def hang(req):
    """Hang, as a bug would have it, until the time of the call is over."""
    context.settings.counter += 1
    try:
        while True:
            pass
    finally:
        log.info('interrupted: here a task may clean up')


@Task('publish')
def publish(req):
    """Give what was posted to all who poll."""
    context.settings.counter += 1
    context.pubsub.publish('test', req)
    return 'published by a worker\n'


@Task('sleep')
def sleep(req):
    """Block, which is fine here."""
    context.settings.counter += 1
    # Many short naps: a thread cannot be interrupted within one, only between two.
    end = time.monotonic() + (1.0 if req is None else float(req))
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
    return 'slept\n'


if __name__ == '__main__':
    run(counter=0)
