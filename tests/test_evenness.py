"""The least busy worker takes the next request: nobody waits behind a slow one while another is idle."""

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.stack import Front, Stack

REQUESTS = 400
SLOW = 2.0


def ask(front: Front, count: int, method: str = 'GET', takes: str | None = None) -> list[tuple[str, float]]:
    """Make requests one after the other; return the process and the wait of each."""
    answers = []
    with front.connection() as connection:
        for _ in range(count):
            headers = {'X-Sent': str(time.monotonic()), **({'X-Takes': takes} if takes is not None else {})}
            connection.request(method, '/', headers=headers)
            response = connection.getresponse()
            assert response.status == 200
            process, waited = response.read().decode().split()
            answers.append((process, float(waited)))
    return answers


def test_no_request_waits_behind_a_slow_worker_and_equal_ones_share_evenly(stack: Stack) -> None:
    front = stack.front().await_ready()
    for takes in ('0.02', '0.02', '0.02', str(SLOW)):
        stack.worker('even:app', env={'TAKES': takes}).await_ready()
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for part in pool.map(lambda _: ask(front, REQUESTS // 8), range(8)) for answer in part]
    assert len(answers) == REQUESTS
    assert max(waited for _, waited in answers) < SLOW
    *equal, slow = sorted(Counter(process for process, _ in answers).values(), reverse=True)
    assert slow < min(equal) / 3
    assert len(equal) == 3
    assert max(equal) - min(equal) < 0.2 * max(equal)


def test_processes_of_one_worker_share_evenly(stack: Stack) -> None:
    front = stack.front().await_ready()
    stack.worker('even:app', '--processes', '3').await_ready(3)
    with ThreadPoolExecutor(6) as pool:
        answers = [answer for part in pool.map(lambda _: ask(front, 40), range(6)) for answer in part]
    shares = Counter(process for process, _ in answers).values()
    assert len(shares) == 3
    assert max(shares) - min(shares) < 0.2 * max(shares)


def test_what_is_fetched_ahead_of_short_requests_waits_for_no_long_one_and_counts_as_not_begun(stack: Stack) -> None:
    front = stack.front().await_ready()
    workers = [stack.worker('even:app', '-v').await_ready() for _ in range(2)]
    long = 0.6

    def mixed(number: int) -> list[tuple[str, float]]:
        # No method that may run twice: a request that counted as begun would be answered 502.
        if number == 0:
            return [
                answer for _ in range(8) for answer in (*ask(front, 1, 'POST', str(long)), *ask(front, 30, 'POST', '0'))
            ]
        return ask(front, 400, 'POST', '0')

    with ThreadPoolExecutor(12) as pool:
        answers = [answer for part in pool.map(mixed, range(12)) for answer in part]
    assert max(waited for _, waited in answers) < long / 2
    text = ''.join(worker.text for worker in workers)
    assert 'calls ahead' in text
    assert re.search('gave back [0-9]+ calls that were not started', text)
