"""Options that all commands share, and how their values are read."""

import argparse
import os
from typing import Any, NoReturn

from crew import argv, topology
from crew.transports.addresses import Url, check, is_memory

__all__ = [
    'Parser',
    'add_consumer_timeout',
    'add_end_with_stdin',
    'add_graceful_timeout',
    'add_kill_after',
    'add_queue_type',
    'add_urls',
    'add_verbosity',
    'add_version',
    'amqp_url',
    'broker_url',
    'count',
    'password',
    'queue_id',
    'seconds',
]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage of so many options would push it off the screen.

    The command line that it reads is then shown to other users of the machine without its passwords (:mod:`crew.argv`).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the arguments, by default those of this process."""
        if args is None:
            argv.conceal_passwords()
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2."""
        self.exit(2, f'{self.prog}: {message} (see {self.prog} --help)\n')


class _Formatter(argparse.HelpFormatter):
    """As wide as the terminal. argparse's own asks shutil for that, which loads three libraries that compress."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, width=_columns() - 2, **options)


def _columns() -> int:
    said = os.environ.get('COLUMNS', '')
    if said.isdecimal() and int(said) > 0:
        return int(said)
    try:
        return os.get_terminal_size().columns or 80
    except OSError:
        return 80


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
    """Read the URL of a broker that several processes can reach."""
    if is_memory(text):
        raise argparse.ArgumentTypeError('memory:// is a broker inside one process, and this command has several')
    return broker_url(text)


class _Password(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def password(text: str) -> str:
    """Read a password; where it is shown as a value, it is not shown."""
    return _Password(text)


def broker_url(text: str) -> str:
    """Read the URL of a broker, ``memory://`` included."""
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Url(text)


def queue_id(text: str) -> str:
    """Read the id of a queue."""
    try:
        topology.task_queue_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


class _Urls(argparse.Action):
    """Collects URLs; the first one takes the place of the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if given is self.default else [*given, values])


def add_urls(to: argparse._ActionsContainer, otherwise: str, *, memory: bool = False) -> None:
    """Add where the broker is; ``amqp_urls`` is None when neither the command line nor the environment says it.

    Args:
        to: the parser or group.
        otherwise: what is used then, for the help.
        memory: whether ``memory://`` may be said.
    """
    read = broker_url if memory else amqp_url
    given = os.environ.get('CREW_AMQP_URL', '').split()
    try:
        default = [read(url) for url in given] or None
    except argparse.ArgumentTypeError as error:
        # Where argparse would look at a default, it is one string.
        to.error(f'CREW_AMQP_URL: {error}')  # type: ignore[attr-defined]
    to.add_argument(
        '--amqp-url',
        dest='amqp_urls',
        metavar='URL',
        type=read,
        action=_Urls,
        default=default,
        # argparse expands what follows a percent sign.
        help='the broker; more than once for a cluster, tried in turn (default: $CREW_AMQP_URL, several separated by '
        f'blanks; then {otherwise.replace("%", "%%")})',
    )


def add_queue_type(to: argparse._ActionsContainer) -> None:
    """Add the kind of shared queues."""
    to.add_argument(
        '--queue-type',
        choices=('classic', 'quorum'),
        default='classic',
        help='quorum for a cluster; the same on both sides (default: %(default)s)',
    )


def add_kill_after(to: argparse._ActionsContainer, default: float) -> None:
    """Add the hard limit."""
    to.add_argument(
        '--kill-after',
        type=seconds,
        metavar='S',
        default=default,
        help='from the end of a run’s time until its process is replaced (default: %(default)g)',
    )


def add_consumer_timeout(to: argparse._ActionsContainer, default: float) -> None:
    """Add the broker's limit for who holds a message."""
    to.add_argument(
        '--consumer-timeout',
        type=seconds,
        metavar='S',
        default=default,
        help='the broker’s own consumer_timeout, if it is not its default; what runs nearly as long is acked before '
        '(default: %(default)g)',
    )


def add_graceful_timeout(to: argparse._ActionsContainer) -> None:
    """Add how long an end may take."""
    to.add_argument(
        '--graceful-timeout',
        type=seconds,
        metavar='S',
        default=28.0,
        help='for what waits or runs when told to end (default: %(default)g)',
    )


def add_verbosity(to: argparse._ActionsContainer) -> None:
    """Add how much is logged and how."""
    to.add_argument('-v', '--verbose', action='count', default=0, help='more; twice for the libraries too')
    to.add_argument('--log-format', choices=('text', 'json'), default='text', help='a JSON object a line for machines')


def add_end_with_stdin(to: argparse._ActionsContainer) -> None:
    """Add what ties the command to the program that started it."""
    to.add_argument(
        '--end-with-stdin',
        action='store_true',
        help='end, as by SIGTERM, when standard input ends: for a program that starts this one through a pipe',
    )


def add_version(to: argparse._ActionsContainer) -> None:
    """Add ``--version``."""
    to.add_argument('--version', action=_Version, nargs=0, help="show program's version number and exit")


class _Version(argparse.Action):
    """Says which crew this is."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        # It takes longer to load than all the rest of a command line.
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version('crew')
        except PackageNotFoundError:  # a source tree that was never installed
            number = 'of a source tree'
        print(f'crew {number}')
        parser.exit()
