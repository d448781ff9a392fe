"""Which deliveries of a channel are still in somebody's hands, and how the others are acknowledged together. Sans-IO.

An ack that says *multiple* is for all deliveries of its channel up to a tag (AMQP 0-9-1, basic.ack), those included
that still run. So it may only reach up to the first of these, and not over one that was never seen here.
"""

__all__ = ['Acks']


class Acks:
    """The acks of one channel."""

    def __init__(self) -> None:
        # In the order of their tags, which is that of their arrival.
        self._open: dict[int, None] = {}
        self._last = 0
        self._gapless = True
        self._due: list[int] = []

    def arrived(self, tag: int, *, no_ack: bool = False) -> None:
        """Take note of a delivery.

        Args:
            tag: names it. The broker counts those of a channel from 1.
            no_ack: whether it expects no ack.
        """
        if tag != self._last + 1:
            # Somebody else has got one, and perhaps still has it.
            self._gapless = False
        self._last = tag
        if not no_ack:
            self._open[tag] = None

    def ack(self, tag: int) -> bool:
        """Take note that a delivery is to be acknowledged; return whether it is the first since :meth:`collect`."""
        self._due.append(tag)
        return len(self._due) == 1

    def nack(self, tag: int) -> None:
        """Take note that a delivery has been put back."""
        self._open.pop(tag, None)

    def collect(self) -> list[tuple[int, bool]]:
        """Return the acks to be sent: tags, and whether each is for all up to it."""
        due, self._due = self._due, []
        for tag in due:
            self._open.pop(tag, None)
        if len(due) > 1 and self._gapless:
            first_open = next(iter(self._open), self._last + 1)
            before = [tag for tag in due if tag < first_open]
            if len(before) > 1:
                return [(max(before), True), *((tag, False) for tag in due if tag >= first_open)]
        return [(tag, False) for tag in due]
