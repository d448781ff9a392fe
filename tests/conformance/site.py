"""What a check is, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from tests.waiting import wait_until

__all__ = ['Check', 'Checks', 'Site', 'need', 'same']


@dataclass(frozen=True)
class Site:
    """An application that answers on a port of this machine.

    Args:
        port: where it does.
        data: a directory that it shares with the check; both sides leave files there that say what has happened.
    """

    port: int
    data: Path

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.port}'

    def key(self) -> str:
        """Return a name for files that no other check uses."""
        return uuid4().hex

    def go(self, name: str) -> None:
        """Let the application go on that waits for this name."""
        (self.data / name).touch()

    def await_note(self, name: str, timeout: float = 15) -> None:
        """Wait until the application has noted this name."""
        wait_until((self.data / name).exists, timeout, f'the application’s note of {name.partition(".")[2]}')


Function: TypeAlias = Callable[[Site], None]


@dataclass(frozen=True)
class Check:
    """One thing that a server must do.

    Args:
        group: a heading.
        text: what it must do, as half a sentence.
        app: which of ``servers.APPS`` is asked.
        run: raises if the server does not.
    """

    group: str
    text: str
    app: str
    run: Function


@dataclass
class Checks:
    """Collects the checks of a module."""

    group: str
    app: str
    all: list[Check] = field(default_factory=list)

    def __call__(self, text: str) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            self.all.append(Check(self.group, text, self.app, function))
            return function

        return register


def same(what: str, got: Any, wanted: Any) -> None:
    """Fail unless both are equal; long ones are cut in the message."""
    if got != wanted:
        raise AssertionError(f'{what}: {_short(got)}, not {_short(wanted)}')


def need(condition: object, message: str) -> None:
    """Fail unless the condition is true."""
    if not condition:
        raise AssertionError(message)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f'{text[:100]} … {text[-60:]}'
