"""Find a WSGI application by ``package.module:attribute`` or ``package.module:factory()``."""

import ast
import importlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from crew.worker.process import CannotStart
from crew_wsgi.gateway import Application

__all__ = ['add_app_dir', 'load_application']

log = logging.getLogger(__name__)


def load_application(name: str, app_dir: str = '.') -> Application:
    """Import and return an application.

    Args:
        name: ``module:attribute``, where the attribute may have dots; or a call of a factory with literal arguments,
            ``module:make_app()``.
        app_dir: put first on ``sys.path``.

    Raises:
        CannotStart: there is none; the text is one line that says why and what to do.
    """
    directory = add_app_dir(app_dir)
    module, separator, expression = name.partition(':')
    if not separator or not module or not expression:
        raise CannotStart(f'{name!r} names no application; write MODULE:ATTRIBUTE, for example myapp:app')
    attribute, arguments, keywords = _parse(name, expression)
    application = _get(name, module, attribute, directory)
    if arguments is not None:
        if not callable(application):
            raise CannotStart(f'{name}: {attribute} in module {module} is not callable, so it is no factory')
        try:
            application = application(*arguments, **keywords)
        except (Exception, SystemExit) as error:
            log.debug('calling %s failed', expression, exc_info=error)
            raise CannotStart(f'{name}: the factory failed: {_where(error)}') from error
    if not callable(application):
        raise CannotStart(f'{name}: {attribute} is a {type(application).__name__}, not callable: no WSGI application')
    return cast(Application, application)


def add_app_dir(app_dir: str) -> Path:
    """Put a directory first on ``sys.path``; return its whole path.

    Raises:
        CannotStart: there is none.
    """
    directory = Path(app_dir).resolve()
    if not directory.is_dir():
        raise CannotStart(f'--app-dir {app_dir}: there is no such directory')
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return directory


def _get(name: str, module: str, attribute: str, directory: Path) -> Any:
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f'{module}.'.startswith(f'{error.name}.'):
            hint = f'looked in {os.path.relpath(directory)} (--app-dir) and on sys.path'
            raise CannotStart(f'there is no module {module!r}; {hint}') from None
        log.debug('importing %s failed', module, exc_info=error)
        raise CannotStart(f'module {module!r} cannot be imported: {_where(error)}') from error
    for part in attribute.split('.'):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise CannotStart(f'{name}: module {module!r} has no attribute {attribute!r}') from None
    return found


def _parse(name: str, expression: str) -> tuple[str, list[Any] | None, dict[str, Any]]:
    """Return an attribute, and the arguments if the expression calls it."""
    wrong = CannotStart(f'{name!r} names no application; write MODULE:ATTRIBUTE or MODULE:FACTORY()')
    try:
        node = ast.parse(expression, mode='eval').body
    except (SyntaxError, ValueError):
        raise wrong from None
    if not isinstance(node, ast.Call):
        if all(part.isidentifier() for part in expression.split('.')):
            return expression, None, {}
        raise wrong
    try:
        arguments = [ast.literal_eval(argument) for argument in node.args]
        keywords = {_keyword(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, TypeError):
        raise CannotStart(f'{name!r}: only literals may be given to a factory') from None
    return ast.unparse(node.func), arguments, keywords


def _keyword(name: str | None) -> str:
    if name is None:
        raise ValueError('** is no literal')
    return name


def _where(error: BaseException) -> str:
    """Say where a module failed, in one line: its innermost frame is what its author wants to see."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f' ({frames[-1].filename}:{frames[-1].lineno})' if frames else ''
    if isinstance(error, SyntaxError) and error.filename:
        place = f' ({error.filename}:{error.lineno})'
    return ' '.join(f'{type(error).__name__}: {error}{place}'.split())
