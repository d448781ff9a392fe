"""Finding the application: by module and attribute or factory; what goes wrong is one line that says what to do."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crew.worker.process import CannotStart
from crew_wsgi.loader import load_application

SOURCE = """
def app(environ, start_response):
    return [b'app']

class Site:
    class api:
        wsgi = staticmethod(app)

def make(*arguments, **keywords):
    def made(environ, start_response):
        return arguments, keywords
    return made

def make_nothing():
    return None

def make_error():
    raise LookupError('no\\n  database')

def make_exit():
    raise SystemExit(3)

number = 3
"""

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module into the application's directory; what is imported from there is forgotten after the test."""
    path, modules = sys.path[:], set(sys.modules)

    def write(name: str, source: str) -> None:
        file = tmp_path / f'{name}.py'
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)

    write('loaded', SOURCE)
    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def refusal(name: str, directory: Path) -> str:
    """The one line that says why there is no such application."""
    with pytest.raises(CannotStart) as raised:
        load_application(name, str(directory))
    text = str(raised.value)
    assert text and len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize('name', ['loaded:app', 'loaded:Site.api.wsgi'])
def test_an_application_is_found_by_its_name(write: Write, tmp_path: Path, name: str) -> None:
    assert load_application(name, str(tmp_path))({}, lambda *_: lambda data: None) == [b'app']


def test_a_module_in_a_package_is_found(write: Write, tmp_path: Path) -> None:
    write('site_package/__init__', '')
    write('site_package/wsgi', SOURCE)
    assert load_application('site_package.wsgi:app', str(tmp_path)).__module__ == 'site_package.wsgi'


@pytest.mark.parametrize(
    ('call', 'arguments', 'keywords'),
    [
        ('make()', (), {}),
        ('make(1, "two", None, -3.5, b"4")', (1, 'two', None, -3.5, b'4'), {}),
        ('make({"a": [1, (2,)]}, debug=True)', ({'a': [1, (2,)]},), {'debug': True}),
        ('make("a:b.c()")', ('a:b.c()',), {}),
        ('make( )', (), {}),
    ],
)
def test_a_factory_is_called_with_literals(
    write: Write, tmp_path: Path, call: str, arguments: object, keywords: object
) -> None:
    application = load_application(f'loaded:{call}', str(tmp_path))
    assert application({}, lambda *_: lambda data: None) == (arguments, keywords)


def test_the_directory_comes_first_on_the_path_once(write: Write, tmp_path: Path) -> None:
    load_application('loaded:app', str(tmp_path))
    load_application('loaded:app', f'{tmp_path}/.')
    assert sys.path.index(str(tmp_path)) == 0
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize('name', ['', 'loaded', 'loaded:', ':app', ':', 'loaded:a b', 'loaded:1', 'loaded:app)'])
def test_what_is_no_name_is_told_how_to_write_one(write: Write, tmp_path: Path, name: str) -> None:
    assert 'write MODULE:ATTRIBUTE' in refusal(name, tmp_path)


@pytest.mark.parametrize('name', ['loaded:a[0]', 'loaded:a + b', 'loaded:lambda: 0', 'loaded:"app"', 'loaded:app.'])
def test_an_expression_is_not_evaluated(write: Write, tmp_path: Path, name: str) -> None:
    assert 'write MODULE:ATTRIBUTE' in refusal(name, tmp_path)


@pytest.mark.parametrize(
    'call', ['make(number)', 'make(__import__("os"))', 'make(*[1])', 'make(**{"a": 1})', 'make(a=app)', 'make({[]})']
)
def test_a_factory_takes_only_literals(write: Write, tmp_path: Path, call: str) -> None:
    assert 'only literals' in refusal(f'loaded:{call}', tmp_path)


def test_a_module_that_is_not_there_is_told_where_it_was_looked_for(write: Write, tmp_path: Path) -> None:
    text = refusal('nowhere_at_all:app', tmp_path)
    assert "no module 'nowhere_at_all'" in text
    assert '--app-dir' in text


def test_a_package_that_lacks_the_module_is_told_so(write: Write, tmp_path: Path) -> None:
    assert "no module 'loaded.wsgi'" in refusal('loaded.wsgi:app', tmp_path)


def test_a_directory_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    text = refusal('loaded:app', tmp_path / 'nowhere')
    assert '--app-dir' in text and 'no such directory' in text


@pytest.mark.parametrize('name', ['loaded:nothing', 'loaded:Site.nothing', 'loaded:nothing()', 'loaded:app.x.y'])
def test_an_attribute_that_is_not_there_is_named(write: Write, tmp_path: Path, name: str) -> None:
    assert f'has no attribute {name.partition(":")[2].removesuffix("()")!r}' in refusal(name, tmp_path)


@pytest.mark.parametrize('name', ['loaded:number', 'loaded:make_nothing()'])
def test_what_cannot_be_called_is_no_application(write: Write, tmp_path: Path, name: str) -> None:
    assert 'no WSGI application' in refusal(name, tmp_path)


def test_what_cannot_be_called_is_no_factory(write: Write, tmp_path: Path) -> None:
    assert 'no factory' in refusal('loaded:number()', tmp_path)


@pytest.mark.parametrize(
    ('call', 'error'), [('make_error', 'LookupError: no database'), ('make_exit', 'SystemExit: 3')]
)
def test_a_factory_that_fails_names_the_place(write: Write, tmp_path: Path, call: str, error: str) -> None:
    text = refusal(f'loaded:{call}()', tmp_path)
    assert error in text
    assert f'{tmp_path}/loaded.py:' in text


@pytest.mark.parametrize(
    ('source', 'line', 'error'),
    [
        ('x = 1\n1 / 0\n', 2, 'ZeroDivisionError'),
        ('import nowhere_at_all\n', 1, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ('x = 1\nx = = 2\n', 2, 'SyntaxError'),
        ('if True:\nx = 1\n', 2, 'IndentationError'),
        ('raise RuntimeError("several\\nlines")\n', 1, 'RuntimeError: several lines'),
        ('import sys\nsys.exit("usage")\n', 2, 'SystemExit: usage'),
        ('from loaded import nothing\n', 1, 'ImportError'),
    ],
)
def test_a_broken_module_names_the_place(write: Write, tmp_path: Path, source: str, line: int, error: str) -> None:
    write('broken', source)
    text = refusal('broken:app', tmp_path)
    assert error in text
    assert f'{tmp_path}/broken.py:{line}' in text


def test_a_module_that_is_broken_deep_inside_names_that_place(write: Write, tmp_path: Path) -> None:
    write('inner', 'def f():\n    return {}["key"]\n')
    write('outer', 'import inner\n\ninner.f()\n')
    assert f"KeyError: 'key' ({tmp_path}/inner.py:2)" in refusal('outer:app', tmp_path)
