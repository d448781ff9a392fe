"""A client under fire: calls whose answers it knows, as long as its standard input is open; then a report as JSON.

Calls under ids that nobody else knows must be answered rightly. Those under known ids may have been settled by a forged
message, but settled they must be.
"""

import json
import logging
import os
import random
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

from crew import CrewError, RemoteError
from crew.master.threaded_client import Client, Result

PREFIX = os.environ['QUEUE']
KNOWN = os.environ['KNOWN'].split()

#: No call that a client may wait for takes longer, however slow the machine is.
HANG = 100.0

counts: Counter[str] = Counter()
wrong: list[str] = []
ending = threading.Event()


def call(client: Client, **options: Any) -> tuple[str, Any, Result]:
    """Make a call; return its task, its argument and what brings its outcome."""
    task = random.choice(['echo', 'nap', 'again', 'fail'])
    argument = {'for': random.choice([0.001, 0.01]), 'n': random.random()}
    return task, argument, client.call(f'{PREFIX}.{task}', argument, **options)


def check(task: str, argument: Any, result: Result) -> None:
    """Wait for the outcome of a call under an id of its own: it must be the right one."""
    try:
        value = result.result(HANG)
        right = task != 'fail' and value == argument
    except RemoteError as error:
        right, value = task == 'fail' and error.type == 'Known', error
    except Exception as error:
        right, value = False, error
    counts['right' if right else 'wrong'] += 1
    if not right:
        wrong.append(f'{task}({argument!r}): {value!r}')


def call_steadily(client: Client) -> None:
    """Make a call every few milliseconds, and check each."""
    pending: deque[tuple[str, Any, Result]] = deque()
    while not ending.is_set():
        pending.append(call(client, expiration=HANG, timeout=60))
        while pending and (pending[0][2].done() or len(pending) > 50):
            check(*pending.popleft())
        time.sleep(0.005)
    while pending:
        check(*pending.popleft())


def call_known(client: Client, id: str) -> None:
    """Make calls under an id that others use too, one after the other."""
    while not ending.is_set():
        try:
            call(client, set_cid=id, expiration=2, timeout=2)[2].result(HANG)
            counts['known answered'] += 1
        except CrewError as error:
            counts[f'known {type(error).__name__}'] += 1
        except Exception as error:
            wrong.append(f'{id}: {error!r}')


def main() -> None:
    """Call until standard input ends; then print the report, and stay idle until killed."""
    logging.basicConfig(level='INFO', format='%(levelname)s %(name)s %(message)s')
    client = Client()
    client.connect()
    client.subscribe('news', lambda value: counts.update(['published']))
    client.consume(f'{PREFIX}.consumed', lambda value, headers: counts.update(['consumed']), prefetch=50)
    threads = [threading.Thread(target=call_steadily, args=(client,))]
    threads += [threading.Thread(target=call_known, args=(client, id)) for id in KNOWN]
    for thread in threads:
        thread.start()
    print('ready', flush=True)
    sys.stdin.readline()
    ending.set()
    for thread in threads:
        thread.join()
    # What is on its way; counted when it has come.
    sys.stdin.readline()
    slots = ('late', 'refused', 'republished', 'stopped', 'dropped')
    counters = {name: getattr(client.counters, name) for name in slots}
    print(json.dumps({'counts': counts, 'counters': counters, 'wrong': wrong[:20]}), flush=True)
    threading.Event().wait()


if __name__ == '__main__':
    main()
