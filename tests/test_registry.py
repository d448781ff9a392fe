"""Tasks by their ids: functions and classes, once each, and a text that finds both when there are two."""

import contextvars
import functools
import importlib
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crew import DuplicateTask
from crew.messages import Call, Reply
from crew.payloads import pack
from crew.worker import HandlerClass, Task, command, contexts, on_start, registry
from crew.worker.clock import Clock
from crew.worker.process import CannotStart
from crew.worker.registry import Registry
from crew.worker.runs import Run


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The tasks of this process, for this test alone."""
    own = Registry()
    monkeypatch.setattr(registry, 'tasks', own)
    monkeypatch.setattr(command, 'tasks', own)
    monkeypatch.setattr(contexts, '_process_settings', None)
    return own


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / f'{name}.py'
    path.write_text(text)
    return path


ONE_TASK = """
from crew.worker import Task

@Task({id!r})
def task(req):
    return req
"""

ONE_CLASS = """from crew.worker import HandlerClass

class Job(HandlerClass):
    def process(self):
        return self.data

Job.bind({id!r})
"""


# Functions


def test_a_function_becomes_a_task_and_stays_as_it_is(tasks: Registry) -> None:
    @Task('test')
    def function(req: Any) -> Any:
        return req, 1

    assert function('a') == ('a', 1)
    [task] = tasks
    assert (task.id, task.function, len(tasks)) == ('test', function, 1)
    assert tasks['test'] is task
    assert (task.idempotent, task.force_gzip, task.serializer) == (False, False, None)


def test_options_are_kept(tasks: Registry) -> None:
    Task('test', True, idempotent=True, serializer='text')(str)
    task = tasks['test']
    assert (task.force_gzip, task.idempotent, task.serializer) == (True, True, 'text')
    assert [(each.task, each.idempotent, each.stop_on_cancel) for each in command.terms(tasks)] == [
        ('test', True, True)
    ]


def test_a_registry_of_ones_own_is_another(tasks: Registry) -> None:
    own = Registry()
    Task('test', registry=own)(str)
    Task('test')(repr)
    assert (own['test'].function, tasks['test'].function) == (str, repr)


def test_one_function_may_have_two_ids(tasks: Registry) -> None:
    Task('one')(Task('two')(str))
    assert {task.id: task.function for task in tasks} == {'one': str, 'two': str}


@pytest.mark.parametrize('id', ['', 'x' * 245, 'ü' * 123])
def test_an_id_must_be_a_name_for_a_queue(tasks: Registry, id: str) -> None:
    with pytest.raises(ValueError, match='a queue id must have 1 to 244 bytes'):
        Task(id)(str)
    assert len(tasks) == 0


@pytest.mark.parametrize('id', ['x' * 244, 'ü' * 122, 'with blanks.and-ünusual #*'])
def test_every_name_for_a_queue_may_be_an_id(tasks: Registry, id: str) -> None:
    Task(id)(str)
    assert tasks[id].function is str


@pytest.mark.parametrize('serializer', ['yaml', '', 'JSON'])
def test_a_serializer_must_be_known(tasks: Registry, serializer: Any) -> None:
    with pytest.raises(ValueError, match=r'no such serializer.* there are json, text, bytes, pickle'):
        Task('test', serializer=serializer)(str)
    assert len(tasks) == 0


# Classes


def test_a_class_makes_an_object_for_each_call(tasks: Registry) -> None:
    made = []

    class Job(HandlerClass):
        def process(self) -> Any:
            made.append(self)
            return self.data * 2

    Job.bind('job', True, idempotent=True, serializer='json')
    task = tasks['job']
    assert (task.function(2), task.function('a')) == (4, 'aa')
    assert made[0] is not made[1]
    assert (task.force_gzip, task.idempotent, task.serializer) == (True, True, 'json')


def test_a_class_may_be_bound_to_two_ids_and_its_subclass_to_another(tasks: Registry) -> None:
    class Job(HandlerClass):
        number = 1

        def process(self) -> Any:
            return self.number

    class Other(Job):
        number = 2

    for id, job in (('a', Job), ('b', Job), ('c', Other)):
        job.bind(id)
    assert [tasks[id].function(None) for id in 'abc'] == [1, 1, 2]


def test_a_class_must_define_what_it_does(tasks: Registry) -> None:
    class Job(HandlerClass):
        pass

    Job.bind('job')
    with pytest.raises(NotImplementedError, match=r'Job does not define process\(\)'):
        tasks['job'].function(None)


# Two of one id


@pytest.mark.parametrize(
    ('first', 'second', 'places'),
    [(ONE_TASK, ONE_TASK, (4, 4)), (ONE_TASK, ONE_CLASS, (4, 7)), (ONE_CLASS, ONE_TASK, (7, 4))],
)
def test_two_tasks_of_one_id_are_an_error_that_names_both(
    modules: Path, first: str, second: str, places: tuple[int, int]
) -> None:
    one = write(modules, 'tasks_of_one', first.format(id='same'))
    other = write(modules, 'tasks_of_another', second.format(id='same'))
    importlib.import_module('tasks_of_one')
    with pytest.raises(DuplicateTask) as error:
        importlib.import_module('tasks_of_another')
    expected = f"two tasks have the id 'same': one at {one}:{places[0]}, one at {other}:{places[1]}"
    assert str(error.value) == expected


def test_two_tasks_of_one_id_in_one_module_are_an_error_too(modules: Path) -> None:
    path = write(modules, 'tasks_twice', ONE_TASK.format(id='same') * 2)
    with pytest.raises(DuplicateTask, match=f'{path}:4, one at {path}:10'):
        importlib.import_module('tasks_twice')


@pytest.mark.parametrize('text', [ONE_TASK, ONE_CLASS])
def test_the_same_module_may_be_imported_twice(modules: Path, tasks: Registry, text: str) -> None:
    write(modules, 'tasks_again', text.format(id='same'))
    module = importlib.import_module('tasks_again')
    first = tasks['same'].function
    importlib.reload(module)
    assert len(tasks) == 1
    assert tasks['same'].function is not first


def test_a_script_may_import_a_module_that_imports_it(tmp_path: Path) -> None:
    write(tmp_path, 'helper', 'import script\n')
    text = ONE_TASK.format(id='same') + ONE_CLASS.format(id='other')
    write(tmp_path, 'script', f'{text}\nimport helper\nfrom crew.worker.registry import tasks\nprint(len(tasks))\n')
    ran = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stderr == ''
    assert ran.stdout.split()[-1] == '2'


# When a worker process starts


def test_starters_are_called_in_order_with_the_settings_before_any_task(tasks: Registry) -> None:
    order: list[str] = []

    @on_start
    def first(settings: SimpleNamespace) -> None:
        order.append(f'first {settings.given}')
        settings.database = 'connected'

    @on_start
    def second(settings: SimpleNamespace) -> None:
        order.append(f'second {settings.database}')

    @Task('test')
    def task(req: Any) -> str:
        return f'{req} {contexts.context.settings.database}'

    assert first.__name__ == 'first'
    assert tasks.starters == [first, second]
    run_task = command._loader(Namespace(accept=[]), {'given': 1})()
    assert order == ['first 1', 'second connected']
    argument = pack('is')
    call = Call(correlation_id='1', body=argument.body, content_type=argument.content_type)
    reply = run_here(run_task, Run(call, 60.0, Clock(1), 'test'))
    assert isinstance(reply, Reply)
    assert reply.body == b'"is connected"'
    assert order == ['first 1', 'second connected']


@pytest.mark.parametrize('error', [OSError('no database'), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_starter_that_fails_keeps_the_worker_from_starting(tasks: Registry, error: BaseException) -> None:
    called = []

    @on_start
    def failing(settings: SimpleNamespace) -> None:
        raise error

    on_start(called.append)
    with pytest.raises(CannotStart, match=f'the worker cannot start: {type(error).__name__}: {error}'):
        command._loader(Namespace(accept=[]), {})()
    assert called == []


def run_here(task: Any, run: Run) -> Any:
    """Run a task, and leave nothing of it in this thread's context."""
    return contextvars.copy_context().run(task, run)


def test_two_tasks_under_the_same_decorator_are_told_apart() -> None:
    registry = Registry()

    def plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(function)
        def wrapper(argument: Any) -> Any:
            return function(argument)

        return wrapper

    @Task('one', registry=registry)
    @plain
    def first(_: Any) -> None: ...

    with pytest.raises(DuplicateTask):

        @Task('one', registry=registry)
        @plain
        def second(_: Any) -> None: ...
