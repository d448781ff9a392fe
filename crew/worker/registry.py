"""Which tasks a worker has: functions and classes by the ids that callers know them by."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from crew import topology
from crew.exceptions import DuplicateTask
from crew.serializers import CONTENT_TYPES, Serializer

__all__ = ['HandlerClass', 'Registered', 'Registry', 'Task', 'on_start', 'tasks']

Function = TypeVar('Function', bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Registered:
    """One task.

    Args:
        id: callers call it by this.
        function: is given the argument, returns the value.
        place: where it stands in the code, for the error that names two of one id.
        idempotent: whether it may run a second time when its worker dies.
        force_gzip: whether its value is compressed whatever its size.
        serializer: how its value is written; None for the usual.
    """

    id: str
    function: Callable[[Any], Any]
    place: str
    idempotent: bool = False
    force_gzip: bool = False
    serializer: Serializer | None = None

    def is_of(self, thing: object) -> bool:
        """Return whether this is a task of ``thing``: its function, its class, its id, or a module that defines it."""
        if isinstance(thing, ModuleType):
            return self.place.rpartition(':')[0] == thing.__file__
        return thing == self.id or self.function is thing or getattr(self.function, '__wrapped__', None) is thing


class Registry:
    """The tasks of one worker, and what is done when it starts."""

    def __init__(self) -> None:
        self._tasks: dict[str, Registered] = {}
        self.starters: list[Callable[[Any], Any]] = []

    def add(self, task: Registered) -> None:
        """Add a task.

        Raises:
            DuplicateTask: there is one with this id, elsewhere in the code. (A module that is imported twice, as
                ``__main__`` and by its name, adds the same ones.)
            ValueError: the id is no name for a queue, or there is no such serializer.
        """
        topology.task_queue_name(task.id)
        if task.serializer is not None and task.serializer not in CONTENT_TYPES:
            raise ValueError(f'no such serializer: {task.serializer!r}; there are {", ".join(CONTENT_TYPES)}')
        other = self._tasks.get(task.id)
        if other is not None and other.place != task.place:
            raise DuplicateTask(f'two tasks have the id {task.id!r}: one at {other.place}, one at {task.place}')
        self._tasks[task.id] = task

    def __getitem__(self, id: str) -> Registered:
        return self._tasks[id]

    def __iter__(self) -> Iterator[Registered]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)


#: The tasks of this process, filled as modules are imported.
tasks = Registry()


class Task:
    """Decorator: makes a function the task of an id. The function itself stays as it is.

    >>> @Task('test')
    ... def long_task(req):
    ...     return 'Wake up Neo.\\n'

    Args:
        id: callers call it by this; its queue is ``crew.tasks.<id>``.
        force_gzip: whether its value is compressed whatever its size.
        idempotent: whether it may run a second time when its worker dies; otherwise its caller gets
            :class:`crew.WorkerLost`.
        serializer: how its value is written: ``json``, ``text``, ``bytes`` or ``pickle``. None is ``pickle`` for a call
            that came so, ``bytes`` for bytes, ``json`` for all else.
        registry: where to add it, if not to this process's tasks.

    Raises:
        DuplicateTask: another task has this id; the text names both places.
        ValueError: the id is no name for a queue, or there is no such serializer.
    """

    def __init__(
        self,
        id: str,
        force_gzip: bool = False,
        *,
        idempotent: bool = False,
        serializer: Serializer | None = None,
        registry: Registry | None = None,
    ) -> None:
        self._id = id
        self._force_gzip = force_gzip
        self._idempotent = idempotent
        self._serializer = serializer
        self._registry = tasks if registry is None else registry

    def __call__(self, function: Function) -> Function:
        """Add the function.

        Args:
            function: is given the call's argument, returns the value.

        Returns:
            The function itself.
        """
        self._add(function, _place(function))
        return function

    def _add(self, function: Callable[[Any], Any], place: str) -> None:
        self._registry.add(
            Registered(
                id=self._id,
                function=function,
                place=place,
                idempotent=self._idempotent,
                force_gzip=self._force_gzip,
                serializer=self._serializer,
            )
        )


class HandlerClass:
    """Base of tasks that are classes: one object for each call.

    >>> class Job(HandlerClass):
    ...     def process(self):
    ...         return self.data
    >>> Job.bind('job')

    Args:
        data: the call's argument.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def process(self) -> Any:
        """Do the work. To be defined by the class.

        Returns:
            The value of the call.
        """
        raise NotImplementedError(f'{type(self).__name__} does not define process()')

    @classmethod
    def bind(cls, id: str, force_gzip: bool = False, **options: Any) -> None:
        """Make this class the task of an id.

        Args:
            id: as for :class:`Task`.
            force_gzip: as for :class:`Task`.
            options: as for :class:`Task`.

        Raises:
            DuplicateTask: another task has this id.
            ValueError: the id is no name for a queue, or there is no such serializer.
        """
        frame = sys._getframe(1)
        place = f'{frame.f_code.co_filename}:{frame.f_lineno}'

        def process(data: Any) -> Any:
            return cls(data).process()

        process.__wrapped__ = cls  # type: ignore[attr-defined]
        Task(id, force_gzip, **options)._add(process, place)


def on_start(function: Function) -> Function:
    """Decorator: have a function called once in each worker process before it takes tasks.

    The place for what must not be shared between processes, such as database connections.

    Args:
        function: is given ``context.settings``, to put into it what the tasks need. If it raises, the worker does not
            start.

    Returns:
        The function itself.
    """
    tasks.starters.append(function)
    return function


def _place(function: Callable[..., Any]) -> str:
    # Two that wear the same decorator have the wrapper's code in common.
    function = inspect.unwrap(function)
    code = getattr(function, '__code__', None)
    if code is None:
        return f'{getattr(function, "__module__", "?")}.{getattr(function, "__qualname__", repr(function))}'
    return f'{code.co_filename}:{code.co_firstlineno}'
