"""What the logs say: whoever has a request's id finds out what became of it."""

import os
import signal

import pytest

from tests.stack import Stack
from tests.waiting import wait_until

ID = {'X-Request-ID': 'find-me'}


def test_an_application_that_configures_logging_does_not_silence_the_worker(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('logging_of_its_own:app').await_ready()
    assert front.get('/raise', ID).status == 500
    worker.await_log(r'GET /raise \(request find-me\) raised\nTraceback')
    worker.await_log('ValueError: on purpose')


def test_a_failure_that_the_application_caught_is_found_by_its_request_id(stack: Stack) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('logging_of_its_own:app').await_ready()
    assert front.get('/caught', ID).status == 500
    worker.await_log(r'GET /caught \(request find-me\): the application answered 500 Internal Server Error')
    front.await_log('"GET /caught HTTP/1.1" 500 .* id=find-me')


def test_a_refusal_says_why(stack: Stack) -> None:
    stack.amqp_url = 'amqp://guest:guest@127.0.0.1:1/%2F'
    front = stack.front().await_listening()
    assert front.get('/', ID).status == 503
    front.await_log(r'503 .* id=find-me \(The queue cannot be reached now\.\)')


@pytest.mark.parametrize('whom', ['supervisor', 'process'])
def test_sigquit_shows_where_everything_is_and_ends_nothing(stack: Stack, whom: str) -> None:
    front = stack.front().await_ready()
    worker = stack.worker('faults:app').await_ready()
    answer = front.later('GET', '/sleep?for=2')
    wait_until(lambda: bool(stack.runs), 10, 'the run')
    os.kill(worker.pid if whom == 'supervisor' else worker.children()[0], signal.SIGQUIT)
    worker.await_log(r'worker process \d+ is here:\n(.*\n)*.*in sleep')
    front.signal(signal.SIGQUIT)
    front.await_log('most recent call first')
    assert answer.result(10).status == 200
