"""What processes take of the machine's memory, looked at twice a second."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ['Sizes', 'resident']

PAGE = os.sysconf('SC_PAGE_SIZE')

LOOK_EVERY = 0.5


def resident(pid: int) -> int:
    """Return the resident size of a process, in bytes."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * PAGE


class Sizes:
    """The resident sizes of some parts, from now until :meth:`stop`.

    Args:
        parts: by name the processes, which must not end meanwhile.

    Attributes:
        samples: of each part, when it was looked at, in seconds since the beginning, and its size in bytes.
    """

    def __init__(self, parts: Mapping[str, Sequence[int]]) -> None:
        self.samples: dict[str, list[tuple[float, int]]] = {name: [] for name in parts}
        self._parts = parts
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join(5)

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_EVERY):
            for name, pids in self._parts.items():
                self.samples[name].append((time.monotonic() - self._began, sum(map(resident, pids))))
