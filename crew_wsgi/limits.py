"""What the front allows a request."""

from dataclasses import dataclass

__all__ = ['Limits']

MAX_BODY = 16 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the front allows a request; sizes in bytes, times in seconds.

    Args:
        max_body: the longest request body.
        max_head: the longest request line and header section together.
        max_inflight: how many requests may be read, wait, run and be answered at once.
        queue_timeout: from receipt until a worker accepts.
        timeout: from the start of the run to the response.
        body_timeout: without a byte of the body from the client, or without one of the response to it.
    """

    max_body: int = MAX_BODY
    max_head: int = 64 * 1024
    max_inflight: int = 1000
    queue_timeout: float = 30.0
    timeout: float = 60.0
    body_timeout: float = 60.0
