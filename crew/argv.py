"""The command line of this process, as every user of the machine can read it: in ``ps``, in ``/proc/PID/cmdline``.

Linux reads it from the process's own memory each time, so what is written there is what is shown. Forked processes
inherit that. From the start of the program until then a password is to be seen: the environment (``CREW_AMQP_URL``),
which only the same user can read, is the better place for it.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ['conceal_passwords', 'without_passwords']

# A URL with a user's name and a password, which may hold an @ that somebody forgot to encode.
_URL = re.compile(rb'(?is)([a-z]+://[^:/?@]*:)(.*)(?=@)')

_OPTION = b'--password'
_SHORTEST = b'--pa'

# proc(5), /proc/PID/stat: where in memory the arguments begin and end; counted from behind the program's name.
_ARG_START, _ARG_END = 45, 46


def conceal_passwords() -> None:
    """Take the passwords out of what others see of this process's command line.

    Only on Linux; where it cannot be done, nothing happens. What the program itself knows (``sys.argv``) stays.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        shown = Path('/proc/self/cmdline').read_bytes()
        concealed = b'\0'.join(without_passwords(shown.split(b'\0')))
        if concealed == shown:
            return
        fields = Path('/proc/self/stat').read_bytes().rpartition(b') ')[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        # Not by address through ctypes: here a wrong one is an error, and there the end of the process.
        with Path('/proc/self/mem').open('r+b', buffering=0) as memory:
            memory.seek(start)
            if memory.read(end - start) == shown:
                memory.seek(start)
                memory.write(concealed)


def without_passwords(arguments: Sequence[bytes]) -> list[bytes]:
    """Return the arguments of a command with stars for each byte of a password, in URLs and behind ``--password``.

    Args:
        arguments: the program and its arguments.
    """
    result: list[bytes] = []
    follows = False
    for argument in arguments:
        name, equals, value = argument.partition(b'=')
        # argparse takes the beginning of an option's name for it, if no other begins so.
        is_option = _OPTION.startswith(name) and len(name) >= len(_SHORTEST)
        if follows:
            result.append(_stars(argument))
        elif is_option and equals:
            result.append(name + equals + _stars(value))
        else:
            result.append(_URL.sub(lambda match: match[1] + _stars(match[2]), argument))
        follows = is_option and not equals and not follows
    return result


def _stars(secret: bytes) -> bytes:
    return b'*' * len(secret)
