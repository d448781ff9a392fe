"""What wakes up a loop from other threads."""

import asyncio
import gc
import os
import threading

import pytest

from crew.transports.bell import Bell
from tests.waiting import wait_until


class NoReaders(asyncio.SelectorEventLoop):
    """A loop that knows no readers, as those of other systems."""

    def add_reader(self, fd: object, callback: object, *args: object) -> None:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize('kind', [asyncio.SelectorEventLoop, NoReaders])
def test_what_rings_in_any_thread_is_heard_in_the_loops(kind: type[asyncio.SelectorEventLoop]) -> None:
    loop, heard = kind(), []
    bell = Bell(loop, lambda: heard.append(threading.get_ident()))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    for each in range(1, 4):
        bell.ring()
        wait_until(lambda each=each: len(heard) == each, what='the bell')
    assert set(heard) == {thread.ident}
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    with pytest.raises(RuntimeError, match='closed'):
        bell.ring()


def test_many_that_ring_before_the_loop_turns_are_heard_once() -> None:
    loop, heard = asyncio.new_event_loop(), []
    bell = Bell(loop, lambda: heard.append(1))
    for _ in range(1000):
        bell.ring()
    loop.run_until_complete(asyncio.sleep(0.01))
    assert heard == [1]
    bell.silence()
    bell.ring()
    loop.run_until_complete(asyncio.sleep(0.01))
    assert heard == [1]
    loop.close()


def test_its_descriptor_lives_as_long_as_anybody_may_ring_and_no_longer() -> None:
    loop = asyncio.new_event_loop()
    bell: Bell | None = Bell(loop, lambda: None)
    assert bell is not None
    descriptor = bell._descriptor
    assert descriptor is not None
    loop.close()
    os.fstat(descriptor)
    bell = None
    gc.collect()
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(descriptor)
