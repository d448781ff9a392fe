"""Options that the commands share, and how their values are read."""

import argparse
import os
from importlib.metadata import version
from typing import NoReturn

from crew import topology
from crew.transports.addresses import check

__all__ = [
    'Parser',
    'add_broker',
    'add_graceful_timeout',
    'add_lifeline',
    'add_logging',
    'add_version',
    'amqp_url',
    'count',
    'queue_id',
    'seconds',
]

DEFAULT_URL = 'amqp://guest:guest@127.0.0.1:5672/%2F'


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage of so many options would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2."""
        self.exit(2, f'{self.prog}: {message} (see {self.prog} --help)\n')


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds') from None
    if not 0 < value <= 30 * 86400:
        raise argparse.ArgumentTypeError(f'{text!r} is not between 0 and 30 days, in seconds')
    return value


def count(text: str) -> int:
    """Read a positive whole number."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive whole number')
    return int(text)


def amqp_url(text: str) -> str:
    """Read an AMQP URL."""
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def queue_id(text: str) -> str:
    """Read the id of a queue."""
    try:
        topology.task_queue(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_broker(parser: argparse.ArgumentParser, default_url: str | None = None) -> None:
    """Add what says which queue of which broker."""
    group = parser.add_argument_group('broker')
    fallback = (default_url or 'a private node').replace('%', '%%')  # argparse expands what follows a percent sign
    group.add_argument(
        '--amqp-url',
        metavar='URL',
        type=amqp_url,
        default=os.environ.get('CREW_AMQP_URL') or default_url,
        help=f'the broker (default: $CREW_AMQP_URL, then {fallback})',
    )
    group.add_argument(
        '--queue', metavar='NAME', type=queue_id, default='wsgi', help='id of the application (default: %(default)s)'
    )
    group.add_argument(
        '--queue-type',
        choices=('classic', 'quorum'),
        default='classic',
        help='quorum for a cluster; the same for front and workers (default: %(default)s)',
    )


def add_logging(parser: argparse.ArgumentParser) -> None:
    """Add what says how much is logged and how."""
    group = parser.add_argument_group('log')
    group.add_argument('-v', '--verbose', action='count', default=0, help='more; twice for the libraries too')
    group.add_argument(
        '--log-format', choices=('text', 'json'), default='text', help='a JSON object a line for machines'
    )


def add_graceful_timeout(to: argparse._ActionsContainer) -> None:
    """Add how long an end may take."""
    to.add_argument(
        '--graceful-timeout',
        type=seconds,
        metavar='S',
        default=28.0,
        help='for requests that wait or run when told to end (default: %(default)g)',
    )


def add_lifeline(parser: argparse.ArgumentParser) -> None:
    """Add what ties the command to the program that started it."""
    parser.add_argument(
        '--end-with-stdin',
        action='store_true',
        help='end, as by SIGTERM, when standard input ends: for a program that starts this one through a pipe',
    )


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``."""
    parser.add_argument('--version', action='version', version=f'crew {version("crew")}')
