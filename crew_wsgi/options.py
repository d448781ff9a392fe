"""Options that the commands of the bridge share, beside those of every command."""

import argparse

from crew.options import add_queue_type, add_urls, queue_id
from crew.transports.addresses import DEFAULT_URL

__all__ = ['add_broker']


def add_broker(parser: argparse.ArgumentParser, otherwise: str = DEFAULT_URL, *, memory: bool = False) -> None:
    """Add what says which queue of which broker.

    Args:
        parser: the parser.
        otherwise: what is used when nobody says, for the help.
        memory: whether ``memory://`` may be said.
    """
    group = parser.add_argument_group('broker')
    add_urls(group, otherwise, memory=memory)
    group.add_argument(
        '--queue', metavar='NAME', type=queue_id, default='wsgi', help='id of the application (default: %(default)s)'
    )
    add_queue_type(group)
