"""Runs in greenlets: what the hub has not begun can be taken back from the connection's thread, and never runs then."""

import subprocess
import sys

PATCHED = """
import gevent; gevent.get_hub()
from gevent import monkey; monkey.patch_all()
import time
from crew.messages import Call
from crew.transports.threads import start_native
from crew.worker.clock import Clock
from crew.worker.greenlets import GreenletRunner
from crew.worker.runs import Run

native_sleep = monkey.get_original('time', 'sleep')
clock = Clock(1)
begun, taken, done = [], [], []
runner = GreenletRunner(lambda run: begun.append(run.call.correlation_id))

def start(*names):
    for name in names:
        runner.start(Run(Call(correlation_id=name), 60.0, clock))

def retract():
    taken.extend(run.call.correlation_id for run in runner.retract())
"""

STUCK = """
def connection():
    start('1', '2', '3')
    retract()
    start('4')
    done.append(None)

start_native(connection, 'native')
while not done:
    native_sleep(0.01)
assert taken == ['1', '2', '3'], taken
gevent.sleep(0.1)
assert begun == ['4'], begun
start('5')
gevent.sleep(0.1)
assert begun == ['4', '5'], begun
"""

RACING = """
names = [str(number) for number in range(20000)]

def connection():
    for number, name in enumerate(names):
        start(name)
        if number % 7 == 0:
            retract()
        if number % 100 == 0:
            native_sleep(0)
    done.append(None)

start_native(connection, 'native')
while not done:
    gevent.sleep(0)
gevent.sleep(0.1)
retract()
assert begun and taken
assert sorted(begun + taken) == sorted(names), (len(begun), len(taken))
assert begun == sorted(begun, key=int)
"""


def in_patched_process(code: str) -> None:
    """Run code in a process of its own, whose main thread's hub runs greenlets."""
    done = subprocess.run([sys.executable, '-c', PATCHED + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_a_hub_that_does_not_turn_has_not_begun_is_taken_back_and_does_not_run() -> None:
    in_patched_process(STUCK)


def test_each_run_either_begins_or_is_taken_back_whenever_that_is() -> None:
    in_patched_process(RACING)
