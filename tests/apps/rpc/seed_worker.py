"""The worker of SEED.md: its tasks as the article has them, and some whose traces tests look at."""

import os
import signal
import time
from typing import Any

from crew.worker import HandlerClass, Task, context, run


@Task('test')
def long_task(req: Any) -> str:
    """Do what the article's first task does."""
    context.settings.counter += 1
    return 'Wake up Neo.\n'


@Task('stat')
def stat(req: Any) -> int:
    """Return how many tasks this process has counted; say in a header which process that is."""
    context.headers['worker'] = context.settings.uuid
    return context.settings.counter


@Task('echo')
def echo(req: Any) -> Any:
    """Return the argument, and its headers as headers."""
    context.headers.update(context.request_headers)
    return req


@Task('settings')
def settings(req: Any) -> dict[str, Any]:
    """Return what a worker knows of itself."""
    made = context.settings
    return {
        'uuid': made.uuid,
        'node_uuid': made.node_uuid,
        'forks': made.options.forks,
        'pid': os.getpid(),
        'correlation_id': context.correlation_id,
        'deadline': context.deadline,
    }


@Task('note')
def note(req: Any) -> None:
    """Remember the argument."""
    context.settings.notes.append(req)


@Task('notes')
def notes(req: Any) -> list[Any]:
    """Return what was remembered."""
    return context.settings.notes


@Task('fail')
def fail(req: Any) -> None:
    """Raise what the article's reader would."""
    raise LookupError(f'there is no {req}')


@Task('unsendable')
def unsendable(req: Any) -> object:
    """Return what no serializer but pickle carries."""
    return {1, 2}


@Task('dead')
def dead(req: Any) -> None:
    """Hang, and remember how that ended."""
    try:
        while True:
            pass
    except SystemExit:
        context.settings.notes.append(['stopped', req, context.cancelled])
        raise


@Task('sleep')
def sleep(req: Any) -> Any:
    """Block for a moment in pieces, and return the argument."""
    end = time.monotonic() + (req or 0.02)
    while time.monotonic() < end:
        time.sleep(0.01)
    return req


@Task('publish')
def publish(req: Any) -> str:
    """Publish from a worker."""
    context.pubsub.publish('test', req)
    return 'published'


@Task('die')
def die(req: Any) -> None:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)


@Task('zipped', force_gzip=True)
def zipped(req: Any) -> str:
    """Return something short that is compressed all the same."""
    return 'short'


class Job(HandlerClass):
    """A task as a class."""

    def process(self) -> list[Any]:
        """Return the argument, wrapped."""
        return [self.data]


Job.bind('job')

if __name__ == '__main__':
    run(counter=0, notes=[])
