"""What the front allows a request."""

from dataclasses import dataclass

__all__ = ['COLLECTED_AT_ONCE', 'Limits']

MAX_BODY = 16 * 1024**3

#: A body is collected up to so many bytes before a worker is to take the request; a whole one is one message then.
COLLECTED_AT_ONCE = 64 * 1024

UNTAKEN_EACH = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the front allows; sizes in bytes, times in seconds.

    Args:
        max_body: the longest request body.
        max_head: the longest request line and header section together.
        max_inflight: how many requests may wait and run at once. It bounds the memory that slow clients take, too: see
            :attr:`max_collected` and :attr:`max_untaken`.
        max_connections: how many connections may be open at once.
        queue_timeout: from receipt until a worker accepts.
        timeout: from the start of the run to the response.
        idle_timeout: of a connection without a request.
        head_timeout: from the first byte of a head to its last.
        body_timeout: without a byte of the body from the client, or without one of the response to it.
        min_rate: how many bytes make good for a second of that; a client that is slower is given up, too, in the end.
    """

    max_body: int = MAX_BODY
    max_head: int = 64 * 1024
    max_inflight: int = 1000
    max_connections: int = 10_000
    queue_timeout: float = 30.0
    timeout: float = 60.0
    idle_timeout: float = 75.0
    head_timeout: float = 20.0
    body_timeout: float = 60.0
    min_rate: int = 1024

    @property
    def max_collected(self) -> int:
        """How many bytes of heads and bodies may be here that are not whole, and of which no worker knows."""
        return max(64, self.max_inflight) * COLLECTED_AT_ONCE

    @property
    def max_untaken(self) -> int:
        """How many bytes of answers may be here that no worker waits to go on with, and that clients have not taken."""
        return max(64, self.max_inflight) * UNTAKEN_EACH
