"""Workers: ``from crew.worker import run, context, Task``.

A worker is a script that defines tasks and calls :func:`run`; ``docs/architecture.md`` shows what happens then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crew.worker.command import run
    from crew.worker.contexts import context
    from crew.worker.registry import HandlerClass, Task, on_start

__all__ = ['HandlerClass', 'Task', 'context', 'on_start', 'run']

_HOMES = {
    'HandlerClass': 'registry',
    'Task': 'registry',
    'context': 'contexts',
    'on_start': 'registry',
    'run': 'command',
}


def __getattr__(name: str) -> Any:
    # Loaded for who asks for it: what uses other parts of this package, as the bridge does, loads no tasks.
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
