"""Several calls at once, and their results in the order of the calls."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from crew.exceptions import TaskError

if TYPE_CHECKING:
    from crew.master.client import BaseClient, Outgoing, Pending

__all__ = ['Parallel']

P = TypeVar('P', bound='Parallel')

_UNSETTLED = object()


class Parallel:
    """Calls that are made at once; made by ``client.parallel()``, as a context manager or not.

    >>> with client.parallel() as parallel:
    ...     for number in range(3):
    ...         parallel.call('square', number)
    ...     results = parallel.result()  # await it in asyncio and Tornado; a Deferred in Twisted

    An error that leaves the ``with`` block cancels the calls.

    Args:
        client: who makes them.
    """

    def __init__(self, client: 'BaseClient[Any]') -> None:
        self._client = client
        self._outcomes: list[Any] = []
        self._ids: list[str] = []
        self._left = 0
        self._pending: list[Pending[Any]] = []

    def __enter__(self: P) -> P:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._cancel()

    def call(self, channel: str, data: Any = None, **options: Any) -> None:
        """Make one call, at once.

        Args:
            channel: the task's id.
            data: its argument.
            options: as for ``client.call``, except ``callback``.

        Raises:
            ValueError: an argument makes no sense. Whatever else goes wrong is among the results.
        """
        slot = len(self._outcomes)
        self._outcomes.append(_UNSETTLED)
        try:
            outgoing: Outgoing = self._client._outgoing(channel, data, **options)
        except TaskError as error:
            self._outcomes[slot] = error
            return
        except BaseException:
            self._outcomes.pop()
            raise
        self._ids.append(outgoing.id)
        with self._client._lock:
            self._left += 1
        self._client._send(outgoing, _Slot(self, slot))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for all calls made so far, or give what the framework waits on.

        Args:
            timeout: for blocking clients: how long to wait, in seconds; None for as long as it takes.

        Returns:
            The results in the order of the calls; a call that failed has its exception in its place.

        Raises:
            TimeoutError: for blocking clients: they are not all there in time.
        """
        pending = self._client._pending(self._cancel)
        with self._client._lock:
            self._pending.append(pending)
        self._look()
        return self._client._finish(pending, timeout)

    def settle(self, slot: int, outcome: Any) -> None:
        """Take the outcome of one call, on the loop of the connection.

        Args:
            slot: which call's.
            outcome: its value, or its error.
        """
        with self._client._lock:
            if self._outcomes[slot] is not _UNSETTLED:
                return
            self._outcomes[slot] = outcome
            self._left -= 1
        self._look()

    def _look(self) -> None:
        with self._client._lock:
            if self._left:
                return
            pending, self._pending = self._pending, []
        for each in pending:
            each.resolve(list(self._outcomes), {})

    def _cancel(self) -> None:
        for id in self._ids:
            self._client.cancel(id)
        # Somebody else may wait for them, too.
        for slot in range(len(self._outcomes)):
            self.settle(slot, TaskError('the call was cancelled'))


class _Slot:
    """Where the outcome of one of the calls goes."""

    future = None

    def __init__(self, parallel: Parallel, slot: int) -> None:
        self._parallel = parallel
        self._slot = slot

    def resolve(self, value: Any, headers: Any) -> None:
        self._parallel.settle(self._slot, value)

    def reject(self, error: BaseException) -> None:
        self._parallel.settle(self._slot, error)
