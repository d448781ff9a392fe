"""What is fuzzed, a module each: its ``check`` takes bytes, and raises if a promise is broken."""

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ['TARGETS', 'check_of', 'seeds_of']

#: What is fuzzed, and how many bytes an input has at most.
TARGETS = {
    'frames': 1024,
    'codec': 512,
    'payloads': 1024,
    'heads': 1024,
    'requests': 512,
    'connections': 256,
    'proxies': 256,
    'streams': 256,
    'calls': 512,
    'deliveries': 512,
    'broker': 512,
    'world': 512,
}


def check_of(target: str) -> Callable[[bytes], None]:
    """Return what is fuzzed. Only its module is imported, and what that needs."""
    check: Callable[[bytes], None] = _module(target).check
    return check


def seeds_of(target: str) -> list[bytes]:
    """Return inputs from which a search may begin."""
    seeds: list[bytes] = _module(target).seeds()
    return seeds


def _module(target: str) -> Any:
    return importlib.import_module(f'{__name__}.{target}')
