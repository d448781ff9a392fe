"""``docs/api.md`` is what the docstrings say now, and the docstrings say enough."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import crew
import crew.worker


def script() -> ModuleType:
    path = Path(__file__).parent.parent / 'scripts' / 'build_api_reference.py'
    spec = importlib.util.spec_from_file_location('build_api_reference', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = script()

CLASSES = [
    'master.client.BaseClient',
    'master.parallel.Parallel',
    'worker.registry.Task',
    'worker.registry.HandlerClass',
    'worker.contexts.PubSub',
]
FUNCTIONS = ['worker.command.run', 'worker.registry.on_start']


@pytest.fixture(scope='module')
def page() -> str:
    return build.page()


@pytest.fixture(scope='module')
def package():
    return build.load('crew')


def face(name: str) -> ModuleType:
    return importlib.import_module(f'crew.master.{name}')


def entries(page: str) -> dict[tuple[str, str], str]:
    """Return what is said under each heading, by that of its chapter and its own; without code."""
    prose = re.sub(r'^```.*?^```$', '', page, flags=re.DOTALL | re.MULTILINE)
    chapter, said = '', {}
    for heading, text in re.findall(r'^(#+ .+)\n((?:(?!#+ ).*\n)*)', prose, flags=re.MULTILINE):
        name = heading.lstrip('# ').strip('`')
        chapter = chapter if heading.startswith('####') else name
        said[chapter, name] = text.strip()
    return said


# The script reads the code without running it, so the page is the same on every Python.
def test_the_page_is_what_the_docstrings_say(page):
    assert build.TARGET.read_text(encoding='utf-8') == page, 'docs/api.md is behind the docstrings: make docs'


def test_every_link_leads_somewhere(page):
    seen: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r'^#+ (.+)$', re.sub(r'^```.*?^```$', '', page, flags=re.DOTALL | re.MULTILINE), re.M):
        slug = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        anchors.add(f'{slug}-{seen[slug]}' if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    assert set(re.findall(r'\]\(#([^)]*)\)', page)) <= anchors
    for name in re.findall(r'\]\(([^#)]+)\)', page):
        assert (build.TARGET.parent / name).is_file()


def test_no_markup_of_docstrings_is_left(page):
    prose = re.sub(r'^```.*?^```$', '', page, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r':\w+:`|``|>>>|[\0\1]', prose)


@pytest.mark.parametrize('name', crew.__all__)
def test_every_error_has_an_entry(page, name):
    assert entries(page)['Errors', f'crew.{name}']


@pytest.mark.parametrize('name', crew.worker.__all__)
def test_every_name_of_a_worker_has_an_entry(page, name):
    assert entries(page)[f'crew.worker.{name}', f'crew.worker.{name}']


@pytest.mark.parametrize(('module', 'name'), [(name, other) for name in build.FACES for other in face(name).__all__])
def test_every_name_of_a_client_module_has_an_entry(page, module, name):
    assert entries(page)[f'crew.master.{module}', name]


def described(function) -> set[str]:
    return {
        item.name.lstrip('*') for kind, _, items in build.sections(function) if kind == 'parameters' for item in items
    }


def check(function, documented=None) -> None:
    documented = documented or function
    assert documented.docstring is not None, f'{documented.path} has no docstring'
    assert documented.docstring.value.strip(), f'{documented.path} has an empty docstring'
    given = {parameter.name for parameter in build.parameters(function)}
    assert described(documented) == given, f'{documented.path}: the arguments are not those that its docstring names'


@pytest.mark.parametrize('path', FUNCTIONS)
def test_every_argument_of_a_function_is_described(package, path):
    check(package[path])


@pytest.mark.parametrize('path', CLASSES)
def test_every_argument_of_a_class_is_described(package, path):
    thing = package[path]
    if thing.name != 'PubSub':  # tasks find it in their context
        check(thing.members['__init__'], thing)
    for method in build.public_methods(thing):
        check(method)


@pytest.mark.parametrize('module', build.FACES)
def test_every_argument_of_what_a_face_adds_is_described(package, module):
    things = package[f'master.{module}']
    for name in things.exports:
        if not things.members[name].is_alias:
            for method in build.public_methods(things.members[name]):
                check(method)


def test_everything_in_the_context_is_described(package):
    context = package['worker.contexts.Context']
    members = [member for name, member in context.members.items() if not name.startswith('_')]
    assert members
    for member in members:
        assert member.docstring is not None, member.path
