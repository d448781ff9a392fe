"""How long the next call would wait: the calls of one caller that wait in one shared queue, and how fast they leave it.

Sans-IO: the time is an argument. A caller sees its own calls only, and knows neither how many workers there are nor
who else calls them. It need not: while somebody waits, the time between one start and the next is what a place in the
line costs, whatever the others do. Where nobody waits behind another there is nothing to learn, so an idle queue is
taken neither for a slow one nor for a fast one.

What it says is a guess, fit for refusing calls that would wait in vain. It errs on the side of letting them wait:
nobody is refused before some have waited, nor because of a pause, as when all workers are being replaced.

A line takes a spike, and then it is long for a while. But where more is asked for than can be served, and goes on to be
when the line is full, a long line serves nobody: as many are refused, and the others wait for longer. So from then on
it is kept short, until less is asked for.
"""

import math

__all__ = ['Line']

#: A line in which nobody waits for longer is short, in seconds, or a part of its limit. A worker asks about calls that
#: have waited for more than a second, and such questions would come to a caller that has much to do already.
SHORT = 0.8
SHORT_PART = 0.25

#: Over how long it is measured how much is asked for, in seconds.
ASKED_WITHIN = 2.0

#: What began last must have waited for so long, in seconds: a short run tells of its start by its end only, so that a
#: wait which is not longer may be the run itself.
WAITED = 0.1

#: Nothing is known before this many, nearly, have begun after another.
KNOWN = 1.9

#: What is older fades, within this part of the limit, but no faster than by so much with each that begins: the wait of
#: a call is told by those that began just before, and a few are needed where they are slow.
MEMORY = 1 / 3
FADED = 1 / 16

#: A gap between two starts that is longer than so many seconds, and than so many times what is usual, is a pause.
PAUSE = 1.0
UNUSUAL = 8.0

#: A call that would wait for so much of its limit is refused: the guess may be wrong by the rest.
FULL = 0.8


class Line:
    """Calls that wait for a worker, and how long that takes.

    Args:
        limit: how long they may wait, in seconds. Where nothing has begun for so long, nothing is known.

    Attributes:
        waiting: how many wait.
    """

    def __init__(self, limit: float) -> None:
        self.waiting = 0
        self._limit = limit
        # When the last one began, if others waited behind it.
        self._last_start: float | None = None
        # How many have begun after another, and how long after it, each counting less as it gets older.
        self._starts = 0.0
        self._spent = 0.0
        self._seen = -math.inf
        self._last_wait = 0.0
        # How many have asked to join, each counting less as it gets older, and whether there is no end of them.
        self._asked = 0.0
        self._asked_at = -math.inf
        self._overrun = False

    def join(self) -> None:
        """Take note of one more that waits."""
        if not self.waiting:
            self._last_start = None
        self.waiting += 1

    def start(self, now: float, joined: float) -> None:
        """Take note that one has begun.

        Args:
            now: when it began.
            joined: when it began to wait.
        """
        self.waiting -= 1
        self._last_wait = now - joined
        if self._last_start is not None:
            # Of several starts that are told at once the last may be told first.
            self._measure(max(0.0, now - self._last_start), now)
            now = max(now, self._last_start)
        self._last_start = now

    def _measure(self, gap: float, now: float) -> None:
        since = now - self._seen
        if since > self._limit:
            self._starts = self._spent = 0.0
        faded = 1.0 - min(FADED, max(0.0, since) / (MEMORY * self._limit))
        pause = max(PAUSE, UNUSUAL * self._place)
        self._starts = self._starts * faded + 1.0
        self._spent = self._spent * faded + min(gap, pause)
        self._seen = max(self._seen, now)

    def leave(self) -> None:
        """Take note that one waits no more, though it has not begun."""
        self.waiting -= 1

    def wait(self, now: float) -> float:
        """Return how long a call would wait that joined now, in seconds; 0 if that is not known."""
        known = self._starts >= KNOWN and now - self._seen < self._limit
        return self.waiting * self._place if known else 0.0

    def admit(self, now: float, *, room: bool = True) -> bool:
        """Return whether somebody who asks now may join, and would not wait in vain.

        Args:
            now: the time.
            room: whether the caller itself has room for another.
        """
        self._asked = self._asked * math.exp((self._asked_at - now) / ASKED_WITHIN) + 1.0
        self._asked_at = now
        if self._asked / ASKED_WITHIN * self._place <= 1.0:
            self._overrun = False
        if not room:
            self._overrun = True
            return False
        wait, short = self.wait(now), min(SHORT, self._limit * SHORT_PART)
        if wait <= short:
            return True
        if self._last_wait > WAITED and wait > FULL * self._limit:
            self._overrun = True
        return not self._overrun

    @property
    def _place(self) -> float:
        """What a place in the line costs, in seconds."""
        return self._spent / self._starts if self._starts else 0.0
