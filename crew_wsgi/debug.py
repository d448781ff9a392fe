"""For development: werkzeug's debugger around the application, and an end of the process when its code changes.

The supervisor starts another process at once, so an end is all that a reload takes. An application that cannot be
imported is served too, as the page that says why, until its code is mended.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, cast

from werkzeug._reloader import StatReloaderLoop
from werkzeug.debug import DebuggedApplication

from crew_wsgi.gateway import Application, StartResponse

__all__ = ['code_changed', 'load_debugged', 'reload_on_change']

log = logging.getLogger(__name__)

#: Set when this process has told itself to end because its code has changed.
code_changed = threading.Event()


def load_debugged(load: Callable[[], Application]) -> Application:
    """Return the application behind werkzeug's debugger.

    Args:
        load: imports and returns it; when it raises, the debugger shows that for every request.
    """
    try:
        application = load()
    except Exception as error:  # a syntax error, say: the page shows it, and the reloader waits for it to be mended
        log.error('%s', error)
        application = _raiser(error)
    # Its annotations name typeshed's start_response, ours PEP 3333's; they mean the same.
    debugged: Any = DebuggedApplication(cast(Any, application), evalex=True)
    log.warning('the debugger is active: whoever can reach the page can run code; PIN %s', debugged.pin)
    return cast(Application, debugged)


def reload_on_change() -> None:
    """End this worker process, as by ``SIGTERM``, when a file of the application changes.

    To be called before it is imported, so that no change falls between.
    """
    loop = _EndOnChange(interval=0.5)
    loop.__enter__()
    threading.Thread(target=loop.run, name='crew-reloader', daemon=True).start()


class _EndOnChange(StatReloaderLoop):
    """werkzeug's watch over the files of all modules, with another end."""

    def trigger_reload(self, filename: str) -> None:
        """End the process and the watch."""
        log.warning('%s has changed; loading it anew', filename)
        code_changed.set()
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit


def _raiser(error: Exception) -> Application:
    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        raise error

    return application
