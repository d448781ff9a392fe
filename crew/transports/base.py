"""The port between crew and a broker: what a connection and its channels can do, in no library's words.

A connection is opened, prepared, used and lost; after a loss a new one starts from nothing. Methods that need the
broker's answer are coroutines; those that only send (publish, ack, nack) return at once, and what is sent in one turn
of the loop leaves in one write when the turn ends.
"""

from collections.abc import Callable
from typing import Protocol

from crew.envelope import Envelope
from crew.topology import Binding, Exchange, Queue
from crew.values import value_class

__all__ = ['Channel', 'Connection', 'Delivery', 'OnClosed', 'OnConfirm', 'OnDelivery', 'OnReturn']


@value_class(frozen=True, slots=True)
class Delivery:
    """A message that a consumer got.

    Args:
        envelope: the message.
        tag: names the delivery on its channel, for ack and nack.
        redelivered: whether the broker delivered it before.
        channel: where it came in, and where it must be acknowledged.
    """

    envelope: Envelope
    tag: int
    redelivered: bool
    channel: 'Channel'


OnDelivery = Callable[[Delivery], None]
OnReturn = Callable[[Envelope, str], None]
OnClosed = Callable[[Exception], None]
OnConfirm = Callable[[Envelope, str, bool], None]


class Channel(Protocol):
    """One AMQP channel: what goes through it keeps its order."""

    async def declare(self, what: Queue | Exchange | Binding) -> None:
        """Declare it, or find that it exists as wanted.

        Raises:
            BrokerRefused: it exists with other arguments, or we may not.
            ConnectionError: the connection was lost.
        """

    async def unbind(self, binding: Binding) -> None:
        """Take a binding away; one that is not there is fine.

        Raises:
            ConnectionError: the connection was lost.
        """

    async def consume(
        self,
        queue: str,
        on_delivery: OnDelivery,
        *,
        no_ack: bool = False,
        prefetch: int | None = None,
        priority: int = 0,
    ) -> str:
        """Start to consume; return the consumer's tag.

        Args:
            queue: its name.
            on_delivery: gets the deliveries.
            no_ack: whether a delivery counts as acknowledged at once.
            prefetch: how many this consumer, and those that follow it on the channel, may hold unacknowledged; None:
                what was said before.
            priority: consumers of a lower one get what those of a higher one have no room for.

        Raises:
            BrokerRefused: we may not.
            ConnectionError: the connection was lost.
        """

    async def cancel(self, consumer_tag: str) -> None:
        """Stop to consume; when this returns, no more deliveries come.

        Raises:
            ConnectionError: the connection was lost.
        """

    def publish(self, envelope: Envelope, routing_key: str, *, exchange: str = '', mandatory: bool = False) -> None:
        """Send a message. With ``mandatory``, one that no queue takes goes to the channel's ``on_return``.

        On a channel that is closed the message is dropped: whoever needs to know hears of the loss of the connection,
        or by :meth:`confirmed` or :meth:`last_confirmed`.
        """

    async def confirmed(self) -> None:
        """Wait until the broker has all that was published on this channel (one opened with ``confirm``).

        Raises:
            ConnectionError: the connection was lost, or was lost before, or the broker refused a message.
        """

    async def last_confirmed(self) -> None:
        """Wait until the broker has what has just been published, whatever becomes of what was published before.

        Costs the same however much is not confirmed yet, so it is for those of whom many publish at once.

        Raises:
            ConnectionError: as :meth:`confirmed`, but only of this message.
        """

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery."""

    def nack(self, tag: int) -> None:
        """Put a delivery back into its queue."""

    async def close(self) -> None:
        """Close the channel. What it held unacknowledged goes back into its queue."""


class Connection(Protocol):
    """One connection to a broker, alive until ``on_close`` is called."""

    #: Set by the owner: called once with the reason when the connection is gone.
    on_close: Callable[[Exception], None]
    #: Set by the owner: called with True when the broker takes no messages (an alarm), with False when it does again.
    on_blocked: Callable[[bool], None]

    async def open_channel(
        self,
        *,
        prefetch: int = 0,
        confirm: bool = False,
        on_confirm: OnConfirm | None = None,
        on_return: OnReturn | None = None,
        on_closed: OnClosed | None = None,
    ) -> Channel:
        """Open a channel.

        Args:
            prefetch: how many deliveries each new consumer may hold unacknowledged; 0 is any number.
            confirm: whether the broker confirms what is published.
            on_confirm: asks for confirms, too, and gets each message with its routing key and whether the broker has
                it. If not, no queue has it, and it may be published again. Use this, or wait on the channel.
            on_return: gets messages that were published as mandatory and that no queue took, with their routing key.
            on_closed: told the reason when the broker closes this channel alone, or cancels a consumer of it because
                the queue is gone (the channel is then closed). Without it the whole connection is closed, to be made
                anew. Not called when the connection is lost, which ``on_close`` tells.

        Raises:
            ConnectionError: the connection was lost.
        """

    async def ensure(self, *shared: Queue | Exchange) -> None:
        """See that shared queues and exchanges are there: declare them, or find them where we may not declare.

        What was declared by somebody else is only looked for by its name. Costs no channel, whatever the answer is.

        Raises:
            BrokerRefused: one exists with other arguments, or is not there and we may not declare it.
            ConnectionError: the connection was lost.
        """

    async def exists(self, queue: str) -> bool:
        """Return whether there is a queue of this name.

        Raises:
            ConnectionError: the connection was lost.
            BrokerRefused: we may not ask.
        """

    async def close(self) -> None:
        """Send what is still to be sent, and close."""
