"""What runs in each worker process and since when, where the supervisor can read it without the process's help.

A process whose C code holds the interpreter lock cannot answer any question, so it writes down beforehand: shared
memory, one record a slot, made before the fork. The process writes, the supervisor reads; a record that is caught
half-written fails its check and is read again.
"""

import mmap
import struct
from typing import NamedTuple

__all__ = ['Clock', 'Record']

_HEADER = struct.Struct('=B256sH512s')
_REASON_AT = struct.calcsize('=B256s')
_RECORD = struct.Struct('=BBdddH256sH256sH512s')
_RECORDS_AT, _RECORD_SIZE = _HEADER.size, _RECORD.size
_TIMES_AT = struct.calcsize('=BB')
_TEXT_AT = struct.calcsize('=BBdddH256sH256s')
_TEXT = struct.Struct('=H512s')

_IDLE, _RUNNING = 0, 1
_READY, _LEAVING = 1, 2


class Record(NamedTuple):
    """What one slot runs.

    Args:
        correlation_id: the call.
        reply_to: its caller's reply queue.
        started: when its run began, on ``time.monotonic``, which all processes of a machine share.
        timeout: how long it may run, in seconds.
        accepted: whether its caller has heard that it runs.
        text: what it is, for a person: a request line, a task's name.
    """

    correlation_id: str
    reply_to: str
    started: float
    timeout: float
    accepted: bool
    text: str


class Clock:
    """The records of one worker process; made by the supervisor, written by the process.

    Attributes:
        LAYOUT: names the way in which it is written.
        slots: how many calls run at once.

    Args:
        slots: how many calls run at once.
        descriptor: a file of :meth:`size_of` bytes that others may map, too; by default memory that forks share.
    """

    LAYOUT = _HEADER.format + _RECORD.format

    def __init__(self, slots: int, descriptor: int = -1) -> None:
        self.slots = slots
        self._memory = mmap.mmap(descriptor, self.size_of(slots))

    @staticmethod
    def size_of(slots: int) -> int:
        """Return how many bytes a clock of so many slots takes."""
        return _RECORDS_AT + slots * _RECORD_SIZE

    def close(self) -> None:
        """Free the memory of this process's view."""
        self._memory.close()

    # Written by the process

    def set_inbox(self, inbox: str) -> None:
        """Note where callers reach the process; before the first call can come."""
        struct.pack_into('256s', self._memory, 1, inbox.encode()[:256])

    def set_reason(self, text: str) -> None:
        """Note why the process cannot start, for a person."""
        cut = _cut(text)
        _TEXT.pack_into(self._memory, _REASON_AT, len(cut), cut)

    def set_ready(self) -> None:
        """Note that the process takes calls."""
        self._memory[0] = _READY

    def set_leaving(self) -> None:
        """Note that the process gives itself up, so that another may take its place already."""
        self._memory[0] = _LEAVING

    def start(
        self,
        slot: int,
        correlation_id: str,
        reply_to: str,
        started: float,
        timeout: float,
        accepted: bool,
        text: str,
    ) -> None:
        """Note that a slot begins a run; what is noted of it is a :class:`Record`."""
        id_bytes, reply_bytes = correlation_id.encode()[:256], reply_to.encode()[:256]
        cut = _cut(text)
        at = self._at(slot)
        _RECORD.pack_into(
            self._memory,
            at,
            _IDLE,
            accepted,
            started,
            timeout,
            started + timeout,
            len(id_bytes),
            id_bytes,
            len(reply_bytes),
            reply_bytes,
            len(cut),
            cut,
        )
        # Last, for packing zeroes the record first: half-written, it must not look like a run.
        self._memory[at] = _RUNNING

    def renew(self, slot: int, started: float, timeout: float) -> None:
        """Note that the time of a slot's run begins anew.

        Args:
            slot: which.
            started: from when on it counts, on ``time.monotonic``.
            timeout: how long it may go on from then, in seconds.
        """
        struct.pack_into('=ddd', self._memory, self._at(slot) + _TIMES_AT, started, timeout, started + timeout)

    def describe(self, slot: int, text: str) -> None:
        """Note what a slot's run is, for a person."""
        cut = _cut(text)
        _TEXT.pack_into(self._memory, self._at(slot) + _TEXT_AT, len(cut), cut)

    def accept(self, slot: int) -> None:
        """Note that the caller has heard of a slot's run."""
        self._memory[self._at(slot) + 1] = 1

    def stop(self, slot: int) -> None:
        """Note that a slot is free."""
        self._memory[self._at(slot)] = _IDLE

    # Read by the supervisor

    @property
    def was_ready(self) -> bool:
        """Whether the process has ever taken up its work."""
        return self._memory[0] in (_READY, _LEAVING)

    @property
    def leaving(self) -> bool:
        """Whether the process gives itself up."""
        return self._memory[0] == _LEAVING

    @property
    def inbox(self) -> str:
        """The process's private queue."""
        return str(_HEADER.unpack_from(self._memory, 0)[1].rstrip(b'\0').decode('utf-8', 'replace'))

    @property
    def reason(self) -> str:
        """Why the process cannot start, as far as it could say; or empty."""
        size, text = _TEXT.unpack_from(self._memory, _REASON_AT)
        return str(text[:size].decode('utf-8', 'replace'))

    def running(self) -> list[Record]:
        """Return what runs now."""
        records = (self._read(slot) for slot in range(self.slots))
        return [record for record in records if record is not None]

    def _read(self, slot: int) -> Record | None:
        if self._memory[self._at(slot)] == _IDLE:
            return None
        fields = _RECORD.unpack_from(self._memory, self._at(slot))
        state, accepted, started, timeout, check, id_size, id_bytes, reply_size, reply_bytes, text_size, text = fields
        if state == _IDLE or started == 0 or check != started + timeout:
            return None
        return Record(
            correlation_id=id_bytes[:id_size].decode('utf-8', 'replace'),
            reply_to=reply_bytes[:reply_size].decode('utf-8', 'replace'),
            started=started,
            timeout=timeout,
            accepted=bool(accepted),
            text=text[:text_size].decode('utf-8', 'replace'),
        )

    def _at(self, slot: int) -> int:
        return _RECORDS_AT + slot * _RECORD_SIZE


def _cut(text: str) -> bytes:
    return text.encode('utf-8', 'replace')[:512]
