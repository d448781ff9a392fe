"""Ids are UUIDs that nobody can guess, and no process gives away those of its parent."""

import os
from uuid import UUID

from crew.ids import AT_ONCE, unique_id


def test_an_id_is_a_random_uuid_and_no_two_are_the_same() -> None:
    ids = [unique_id() for _ in range(3 * AT_ONCE)]
    assert len(set(ids)) == len(ids)
    assert {UUID(id).version for id in ids} == {4}
    assert {id for id in ids if UUID(id).hex != id or UUID(id).variant != 'specified in RFC 4122'} == set()


def test_a_forked_child_makes_its_own() -> None:
    unique_id()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, ''.join(unique_id() for _ in range(10)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    theirs = {told[at : at + 32] for at in range(0, 320, 32)}
    assert len(theirs) == 10
    assert theirs.isdisjoint(unique_id() for _ in range(2 * AT_ONCE))
