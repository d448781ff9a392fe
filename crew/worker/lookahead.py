"""How many calls a worker fetches before it has a slot for them. Sans-IO: how long runs took comes in.

Between two short runs lies a round trip to the broker, which takes longer than they do; fetched before, they follow
each other at once. But what is fetched waits here, even while another worker is idle. So it is only done for as long as
runs are short, and for no more of them than are over in a moment. When one is not short after all, what waits behind it
is given to others: so a mistake costs little, and may be made again soon. On a busy machine any run may become long.
"""

__all__ = ['SHORT', 'LookAhead']

#: A run that lasts longer is not short, and nothing is to wait behind it, in seconds.
SHORT = 0.005

#: The most that is fetched: more makes nothing faster.
MOST = 24

#: So many runs in a row must be short, before anything is fetched ahead.
CAUTION = 16

#: How much one run says of how long runs take.
WEIGHT = 1 / 16


class LookAhead:
    """Learns from each run how many calls may wait behind it.

    Args:
        slots: how many run at once.

    Attributes:
        window: how many calls to fetch beyond the slots.
    """

    def __init__(self, slots: int) -> None:
        self.window = 0
        self._slots = slots
        self._mean = 0.0
        self._in_a_row = 0

    def ran(self, took: float) -> None:
        """Take note of a run that has ended.

        Args:
            took: how long it ran, in seconds.
        """
        if took >= SHORT:
            self.stop()
            return
        self._mean += (took - self._mean) * (WEIGHT if self._mean else 1.0)
        self._in_a_row += 1
        if self._in_a_row < CAUTION:
            return
        fit = int(min(MOST, self._slots * SHORT / self._mean))
        # To change it costs round trips.
        if not self.window / 2 < fit < 2 * self.window:
            self.window = fit

    def stop(self) -> None:
        """Fetch nothing ahead for now: a run is not short."""
        self.window = 0
        self._in_a_row = 0
