"""What a scenario is, and the list of all of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tests.faults.account import Expectation

if TYPE_CHECKING:
    from tests.faults.stage import Stage

__all__ = ['Scenario', 'all_scenarios', 'scenario']

#: Where scenarios are, in the order of the table.
MODULES = ('workers', 'fronts', 'deploys', 'broker', 'network', 'clients', 'overload', 'cluster', 'soak')


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to break the stack.

    Args:
        name: what is broken and how: its row's title, unique.
        play: does it.
        expectation: what it may cost.
        own_broker: whether it needs a broker that nobody else uses, because it breaks it.
        node: with which arguments that broker is made; see :class:`crew.private_node.PrivateNode`.
        short: whether it is part of the ordinary tests.
        text: what it shows, from its docstring.
    """

    name: str
    play: 'Callable[[Stage], None]'
    expectation: Expectation
    own_broker: bool = False
    short: bool = False
    text: str = field(default='')
    node: Mapping[str, Any] = field(default_factory=dict)


_scenarios: list[Scenario] = []


def scenario(
    name: str,
    *,
    statuses: Collection[int] = (),
    doomed: Collection[int] = (),
    longest: float = 10.0,
    recovers: float = 5.0,
    unanswered: bool = False,
    own_broker: bool = False,
    node: Mapping[str, Any] | None = None,
    short: bool = False,
) -> 'Callable[[Callable[[Stage], None]], Callable[[Stage], None]]':
    """Enter a function into the list; see :class:`Scenario` and :class:`~tests.faults.account.Expectation`."""

    def enter(play: 'Callable[[Stage], None]') -> 'Callable[[Stage], None]':
        expectation = Expectation(frozenset(statuses), longest, recovers, unanswered, frozenset(doomed))
        text = ' '.join((play.__doc__ or '').split())
        own = own_broker or node is not None
        _scenarios.append(Scenario(name, play, expectation, own, short, text, node or {}))
        return play

    return enter


def all_scenarios() -> list[Scenario]:
    """Return every scenario, in the order of the table."""
    for module in MODULES:
        import_module(f'tests.faults.{module}')
    return _scenarios
