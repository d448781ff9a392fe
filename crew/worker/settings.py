"""What a worker process is set up with, as plain values.

Apart from what goes by them, for the supervisor has them and loads nothing of that; so they are named tuples, too:
what makes dataclasses takes a megabyte.
"""

from collections.abc import Sequence
from typing import NamedTuple

from crew.topology import QueueType

__all__ = ['Limits', 'Settings', 'Terms']


class Limits(NamedTuple):
    """The worker's own limits, in seconds.

    Args:
        timeout: the longest run, or None to leave it to the caller. It only lowers what the caller says.
        kill_after: from the end of a run's time until its process is given up.
        consumer_timeout: the broker's own limit for holding a delivery, after which it closes the channel.
    """

    timeout: float | None = None
    kill_after: float = 5.0
    consumer_timeout: float = 1800.0


class Terms(NamedTuple):
    """On which terms the calls of one shared queue are run.

    Args:
        task: the id of the task or web application.
        idempotent: whether a call may run a second time when its worker dies.
        stop_on_cancel: whether a run whose caller no longer waits is stopped as if its time were over. If not, it may
            look at ``cancelled`` and stop by itself.
    """

    task: str = ''
    idempotent: bool = False
    stop_on_cancel: bool = False


class Settings(NamedTuple):
    """What a consumer is set up with.

    Args:
        urls: the brokers of a cluster, tried in turn.
        queues: the tasks or web applications whose calls are taken.
        queue_type: ``classic``, or ``quorum`` for a cluster.
        slots: how many calls run at once in this process.
        prefetch: how many deliveries it may hold. What is above ``slots`` is fetched before there is a slot, and may
            wait here while another worker is idle. Only for one queue. None: as many as ``slots``, and more for as long
            as runs are short (:mod:`crew.worker.lookahead`).
        limits: of each run.
        graceful_timeout: how long running calls may take when the worker is told to end, in seconds.
        publishes: whether runs may publish to subscribers.
        name: what the broker's operator sees.
    """

    urls: Sequence[str]
    queues: Sequence[Terms]
    queue_type: QueueType = 'classic'
    slots: int = 1
    prefetch: int | None = None
    limits: Limits = Limits()
    graceful_timeout: float = 28.0
    publishes: bool = False
    name: str = 'crew-worker'
