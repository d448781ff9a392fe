"""Workers: ``from crew.worker import run, context, Task``.

A worker is a script that defines tasks and calls :func:`run`; ``docs/architecture.md`` shows what happens then.
"""

from crew.worker.command import run
from crew.worker.contexts import context
from crew.worker.registry import HandlerClass, Task, on_start

__all__ = ['HandlerClass', 'Task', 'context', 'on_start', 'run']
