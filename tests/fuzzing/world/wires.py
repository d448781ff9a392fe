"""The broker in memory behind wires that may be slow, cut, or cut and not yet noticed at one end."""

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from crew.envelope import Envelope
from crew.memory_broker import (
    PRECONDITION_FAILED,
    BrokerChannel,
    BrokerConnection,
    MemoryBroker,
    _Consumer,
    _Message,
    _Refusal,
)
from crew.topology import Binding, Exchange, Queue

__all__ = ['Wires']


class Wires(MemoryBroker):
    """A broker that hears what its clients say when it is to.

    Attributes:
        held: the connections of which nothing arrives now.
        lost: how often each call came back from a connection or channel that had it and is gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: set[BrokerConnection] = set()
        self.lost: Counter[str] = Counter()
        self.delivered: dict[tuple[BrokerChannel, int], float] = {}
        self._way: dict[BrokerConnection, deque[Callable[[], None]]] = {}
        self._lingering: list[BrokerConnection] = []
        self.lingers = False

    # What clients say

    def publish(
        self,
        channel: BrokerChannel,
        envelope: Envelope,
        routing_key: str,
        *,
        exchange: str = '',
        mandatory: bool = False,
    ) -> None:
        """Take a message, when it arrives."""
        publish = partial(super().publish, channel, envelope, routing_key, exchange=exchange, mandatory=mandatory)
        self._carry(channel, publish)

    def ack(self, channel: BrokerChannel, tag: int) -> None:
        """Acknowledge a delivery, when it arrives."""
        self._carry(channel, partial(super().ack, channel, tag))

    def nack(self, channel: BrokerChannel, tag: int, *, requeue: bool = True) -> None:
        """Put a delivery back, when it arrives."""
        self._carry(channel, partial(super().nack, channel, tag, requeue=requeue))

    def declare(self, channel: BrokerChannel, what: Queue | Exchange | Binding) -> None:
        """Declare something, when it arrives."""
        self._carry(channel, partial(super().declare, channel, what))

    def consume(self, channel: BrokerChannel, queue: str, consumer_tag: str, **options: Any) -> None:
        """Start to consume, when it arrives."""
        self._carry(channel, partial(super().consume, channel, queue, consumer_tag, **options))

    def cancel(self, channel: BrokerChannel, consumer_tag: str) -> None:
        """Stop to consume, when it arrives."""
        self._carry(channel, partial(super().cancel, channel, consumer_tag))

    def close_channel(self, channel: BrokerChannel) -> None:
        """Close a channel, when it arrives."""
        self._carry(channel, partial(super().close_channel, channel))

    def close(self, connection: BrokerConnection) -> None:
        """Close a connection: behind all that was said on it, or later if it is to linger."""
        if self.lingers and connection.open:
            self._way.pop(connection, None)
            self._lingering.append(connection)
            return
        self.arrive(connection)
        super().close(connection)

    def _carry(self, channel: BrokerChannel, operation: Callable[[], None]) -> None:
        way = self._way.get(channel.connection)
        # While it has an alarm, a broker reads nothing that comes behind a message: no ack overtakes a reply.
        if way or channel.connection in self.held or channel.connection._blocked:
            self._way.setdefault(channel.connection, deque()).append(operation)
        else:
            operation()

    # The wires

    def clear_alarm(self) -> None:
        """Read on."""
        super().clear_alarm()
        for connection in list(self._way):
            if connection not in self.held:
                self.arrive(connection)

    def arrive(self, connection: BrokerConnection, most: int = 1_000_000) -> None:
        """Let the first of what is on its way arrive."""
        way = self._way.get(connection)
        while way and most:
            way.popleft()()
            most -= 1

    def drop(self, connection: BrokerConnection) -> None:
        """Cut a connection, as the broker sees it: what is on its way is lost."""
        self._way.pop(connection, None)
        super().close(connection)

    def notice(self) -> None:
        """Find out which connections were cut."""
        lingering, self._lingering = self._lingering, []
        for connection in lingering:
            super().close(connection)

    @property
    def slow(self) -> bool:
        """Whether anything is on its way, or not noticed."""
        return bool(self._lingering) or any(self._way.values())

    # Deliveries

    def _deliver(self, consumer: _Consumer, message: _Message) -> None:
        super()._deliver(consumer, message)
        if not consumer.no_ack:
            self.delivered[consumer.channel, consumer.channel._last_tag] = self._now

    def _end(self, channel: BrokerChannel) -> None:
        for message, _ in channel._unacked.values():
            self.lost[message.envelope.correlation_id] += 1
        super()._end(channel)

    def close_late(self, consumer_timeout: float) -> None:
        """Close the channels of those who hold a delivery for too long."""
        late: list[BrokerChannel] = []
        for (channel, tag), since in list(self.delivered.items()):
            if tag not in channel._unacked or not channel.open:
                del self.delivered[channel, tag]
            elif self._now - since > consumer_timeout and channel not in late:
                late.append(channel)
        for channel in late:
            text = 'PRECONDITION_FAILED - delivery acknowledgement on channel timed out'
            self._refuse(channel, _Refusal(PRECONDITION_FAILED, text))
            self._route_letters()

    # The operator

    def restart(self) -> None:
        """Restart: all connections are gone, and what is not persistent."""
        for connection in list(self._connections):
            self.drop(connection)
        for queue in self._queues.values():
            for level in queue.levels:
                kept = [message for message in level if message.envelope.persistent]
                queue.ready -= len(level) - len(kept)
                level.clear()
                level.extend(kept)

    def everything(self) -> dict[str, Any]:
        """Return what there is, for the text of a failure."""
        return dict(self.queues())
