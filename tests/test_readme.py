"""What the README shows is so: its scripts run, its names exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import crew
from crew.exceptions import CrewError
from crew.worker import command
from tests.stack import Process

README = (Path(__file__).parent.parent / 'README.md').read_text(encoding='utf-8')

#: The part on the library alone.
RPC = README.partition('## Use it without HTTP\n')[2].partition('\n## ')[0]


def scripts() -> dict[str, str]:
    """Return the Python scripts by the names in their first lines."""
    return {name: text for text, name in re.findall(r'```python\n(# (\S+\.py)\n.*?)```', RPC, re.DOTALL)}


def test_its_worker_and_its_client_work_in_any_order(amqp_url: str, tmp_path: Path) -> None:
    found = scripts()
    assert list(found) == ['worker.py', 'client.py']
    for name, text in found.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
    shown, expected = re.findall(r'\$ python (\S+\.py)\n(.*)\n```', RPC)[0]
    env = {'CREW_AMQP_URL': amqp_url, 'PYTHONPATH': str(tmp_path)}
    client = Process(shown.removesuffix('.py'), [], tmp_path / 'client.log', env)
    worker = Process('worker', ['--forks', '2'], tmp_path / 'worker.log', env)
    try:
        assert client.wait(30) == 0, client.text + worker.text
        assert client.text == f'{expected}\n'
        assert worker.terminate() == 0, worker.text
    finally:
        client.kill()
        worker.kill()


def test_the_modules_that_it_names_exist() -> None:
    modules = re.findall(r'`(crew\.master\.\w+)\.Client`|`(crew\w*\.testing)`', RPC)
    assert len(modules) == 7
    for names in modules:
        # Found, not imported: Twisted's would install a reactor in the process of the other tests.
        assert find_spec(''.join(names))


def test_its_table_of_errors_has_every_one_of_a_call() -> None:
    rows = re.findall(r'^\| `(\w+)`(, one of these)? \|', RPC, re.MULTILINE)
    errors: list[type[CrewError]] = []
    for name, is_one in rows:
        error = getattr(crew, name)
        assert issubclass(error, errors[-1] if is_one else CrewError)
        errors.append(error)
    # The others: the two roots, mistakes in the program's own code, and what only crew itself sees.
    others = {'CrewError', 'TaskError', 'DuplicateTask', 'DuplicateTaskId', 'ProtocolError'}
    assert {error.__name__ for error in errors} | others == set(crew.__all__)


def test_its_options_of_a_worker_are_there() -> None:
    table = RPC.partition('| `worker.py` |')[2].partition('\n\n')[0]
    shown = re.findall(r'`(--?[\w-]+)', table)
    assert len(shown) > 15
    assert set(shown) <= set(re.findall(r'(?<![\w-])--?\w[\w-]*', command.parser().format_help()))
