"""Errors survive being pickled and copied, as between the processes of a pool."""

import copy
import pickle
from typing import Any

import pytest

from crew import ExpirationError, RemoteError, Unroutable, WorkerLost

ERRORS = [
    RemoteError('KeyError', "'x'", 'Traceback …', refused=True),
    ExpirationError('too late', reason='maxlen', time=1.5, expiration=3.0),
    Unroutable('no queue', expiration=3.0),
    WorkerLost('gone'),
]


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize('again', [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=['pickle', 'copy'])
def test_an_error_is_the_same_when_it_comes_back(error: Exception, again: Any) -> None:
    other = again(error)
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
