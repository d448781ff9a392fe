"""What both worker commands do once they know what to run: supervise processes that run it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from crew.worker.settings import Settings
from crew.worker.supervisor import Policy, supervise

if TYPE_CHECKING:
    from crew.messages import Accept
    from crew.worker.runs import Task
    from crew.worker.ties import Ties

__all__ = ['launch']


def launch(
    settings: Settings,
    load: 'Callable[[], Task]',
    *,
    what: str,
    processes: int,
    gevent: bool,
    lifeline: int | None,
) -> int:
    """Keep worker processes alive until told to end; return the exit code.

    Args:
        settings: of each process.
        load: returns the task; called in each process.
        what: what is run and where, for the log.
        processes: how many.
        gevent: whether runs are greenlets of a patched process instead of threads.
        lifeline: see :class:`crew.worker.supervisor.Policy`.
    """
    policy = Policy(
        what=what,
        lifeline=lifeline,
        processes=processes,
        slots=settings.slots,
        kill_after=settings.limits.kill_after,
        graceful_timeout=settings.graceful_timeout,
    )

    # What these load is for the processes that are forked for them, not for the supervisor.
    def serve(ties: 'Ties') -> int:
        from crew.worker import process

        return process.serve(settings, load, ties, gevent=gevent)

    def speak(reply_to: str, accept: 'Accept') -> None:
        from crew.worker import spokesman

        spokesman.speak(settings.urls, reply_to, accept)

    return supervise(policy, serve, speak)
