"""Say one thing to one caller on a connection of its own, for a process that cannot speak."""

import asyncio
from collections.abc import Sequence

from crew import codec
from crew.exceptions import ConnectionError
from crew.messages import Accept
from crew.transports.addresses import dial

__all__ = ['speak']

#: The caller's own timer is not far; a broker with an alarm takes nothing before.
SPOKEN_WITHIN = 10.0


def speak(urls: Sequence[str], reply_to: str, accept: Accept) -> None:
    """Publish ``accept`` to a reply queue by the first broker that can be reached, and return when it is sent.

    Raises:
        ConnectionError: none can be reached.
        asyncio.TimeoutError: none takes messages.
    """
    asyncio.run(asyncio.wait_for(_speak(urls, reply_to, accept), SPOKEN_WITHIN))


async def _speak(urls: Sequence[str], reply_to: str, accept: Accept) -> None:
    reason = ConnectionError('there is no broker to speak through')
    for url in urls:
        try:
            connection = await dial(url, name='crew-spokesman', timeout=5.0)
        except ConnectionError as error:
            reason = error
            continue
        channel = await connection.open_channel(confirm=True)
        channel.publish(codec.encode(accept), reply_to)
        await channel.confirmed()
        await connection.close()
        return
    raise reason
