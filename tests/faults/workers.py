"""Workers that die, hang, or are replaced, under load."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.account import IDEMPOTENT
from tests.faults.scenarios import scenario
from tests.faults.stage import Stage
from tests.waiting import wait_until

#: For how long a run may hang, and then its process, where they do.
HURRIED = ('--timeout', '1', '--kill-after', '1')


def _kill(stage: Stage, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to one of the worker processes; return which."""
    pid = stage.choose.choice(stage.processes())
    os.kill(pid, number)
    return pid


def _gone(pids: Sequence[int]) -> bool:
    return not any(Path(f'/proc/{pid}').exists() for pid in pids)


def _check_second_runs(stage: Stage) -> None:
    """Check that what may be run again was, and so was answered 200."""
    lost = [one for one in stage.account.exchanges if one.status == 502 and one.method in IDEMPOTENT and not one.doomed]
    stage.check(not lost, f'{len(lost)} idempotent requests were answered 502')


# Dying


@scenario('worker: kill -9 while running', statuses={502}, recovers=1.0, longest=5.0, short=True)
def kill_running(stage: Stage) -> None:
    """Three of the processes are killed, one after the other, while all of their threads run something.

    A GET or PUT is answered 200 by another process, a POST is 502 within a second.
    """
    _kill_running(stage, '--threads', '2')


@scenario('worker: kill -9 while running, --gevent 10', statuses={502}, recovers=1.0, longest=5.0)
def kill_running_gevent(stage: Stage) -> None:
    """The same with greenlets."""
    _kill_running(stage, '--gevent', '10')


@scenario('worker: kill -9 with look-ahead full, --prefetch 10', statuses={502}, recovers=1.0, longest=5.0)
def kill_ahead(stage: Stage) -> None:
    """Three of the processes are killed while each holds requests that it has not begun.

    Those count as begun, for nobody can know: a POST is 502 though it has not run.
    """
    _kill_running(stage, '--prefetch', '10')
    runs = {line.split()[0] for line in stage.stack.runs}
    unrun = sum(one.status == 502 and one.id not in runs for one in stage.account.exchanges)
    stage.note(f'{unrun} of the requests that were answered 502 had not run')


def _kill_running(stage: Stage, *arguments: str) -> None:
    stage.front()
    stage.worker(*arguments, processes=3)
    killed = []
    with stage.load(clients=24):
        for _ in range(3):
            with stage.fault():
                _kill(stage)
            killed.append(time.monotonic())
            stage.sleep(1)
    within = 1 + stage.account.slack
    for one in stage.account.exchanges:
        if one.status == 502:
            stage.check(
                any(0 < one.ended - at < within for at in killed), f'{one.id} was 502 later than {within:.1f} s'
            )
    _check_second_runs(stage)


@scenario('worker: its supervisor is killed', longest=5.0, recovers=0.0)
def kill_supervisor(stage: Stage) -> None:
    """The supervisor of two processes is killed. They finish what they run, put back the rest, and end."""
    stage.front()
    stage.worker(processes=2)
    first = stage.workers[0]
    stage.worker('--threads', '2')
    orphans = first.children()
    with stage.load(settle=0.5):
        with stage.fault():
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        wait_until(lambda: _gone(orphans), 5, 'the end of the processes without a supervisor')


@scenario('worker: a request that kills whom it meets', doomed={502}, statuses={502}, longest=5.0, recovers=2.0)
def poison(stage: Stage) -> None:
    """Requests that kill (SIGKILL, as for want of memory; a segmentation fault; ``os._exit``) each process they meet.

    A GET kills two and is 502, a POST one. Nothing else that runs in those processes is lost but POSTs.
    """
    _poison(stage)


@scenario('worker: a request that kills whom it meets, --threads 4', doomed={502}, statuses={502}, recovers=2.0)
def poison_threads(stage: Stage) -> None:
    """The same, with other requests in the same processes."""
    _poison(stage, '--threads', '4')


def _poison(stage: Stage, *arguments: str) -> None:
    stage.front()
    stage.worker(*arguments, processes=3)
    with stage.load():
        for do in ('kill', 'segfault', 'leave'):
            for method in ('GET', 'POST'):
                with stage.fault():
                    stage.doom(method, do)
                stage.sleep(0.5)
    runs = [line.split()[0] for line in stage.stack.runs]
    for one in stage.account.exchanges:
        if one.doomed:
            expected = 2 if one.method == 'GET' else 1
            stage.check(runs.count(one.id) == expected, f'{one.id} was run {runs.count(one.id)} times')


@scenario('worker: out of memory', doomed={500, 502}, statuses={500, 502}, longest=15.0)
def devour(stage: Stage) -> None:
    """The application takes all the memory that its process may have (RLIMIT_AS).

    It gets a ``MemoryError`` (500), and its process serves on, or is replaced.
    """
    _devour(stage)


@scenario('worker: out of memory, --threads 4', doomed={500, 502}, statuses={500, 502}, longest=15.0)
def devour_threads(stage: Stage) -> None:
    """The same; the ``MemoryError`` may be anybody's in that process."""
    _devour(stage, '--threads', '4')


def _devour(stage: Stage, *arguments: str) -> None:
    stage.front()
    stage.worker(*arguments, processes=2, env={'MEMORY': str(400 * 1024 * 1024)})
    with stage.load():
        for method in ('GET', 'POST', 'POST', 'POST'):
            with stage.fault():
                stage.doom(method, 'devour')
            stage.sleep(1)


@scenario('worker: killed, a process that it forked lives on', statuses={502}, recovers=1.0, longest=5.0, short=True)
def forked(stage: Stage) -> None:
    """The application has forked, as pools of processes do; the worker is killed, its child lives on.

    The child must not hold the connection: the broker would wait for the worker's heartbeat.
    """
    stage.front()
    stage.worker(processes=2)
    with stage.load():
        stage.doom('POST', 'fork')
        pid = next(int(line.split()[2]) for line in stage.stack.runs if line.startswith('doomed'))
        # A list for each thread that has forked.
        tasks = Path(f'/proc/{pid}/task').iterdir()
        (child,) = (int(child) for task in tasks for child in (task / 'children').read_text().split())
        with stage.fault():
            os.kill(pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    _check_second_runs(stage)


# Hanging


@scenario('worker: hangs in C code that holds the interpreter', doomed={504}, recovers=1.0, longest=6.0)
def hang(stage: Stage) -> None:
    """A GET and a POST hang where no exception reaches them: 504 in time, another process."""
    _hang(stage, 'hang')


@scenario('worker: hangs in C code, --threads 4', doomed={504}, statuses={502, 504}, recovers=3.0, longest=6.0)
def hang_threads(stage: Stage) -> None:
    """The same; what ran in the same process cannot go on either, and is run again where that is safe."""
    _hang(stage, 'hang', '--threads', '4')


@scenario('worker: hangs in C code, --gevent 10', doomed={504}, statuses={502, 504}, recovers=3.0, longest=6.0)
def hang_gevent(stage: Stage) -> None:
    """The same with greenlets."""
    _hang(stage, 'hang', '--gevent', '10')


@scenario('worker: hangs in a system call', doomed={504}, recovers=1.0, longest=6.0)
def block(stage: Stage) -> None:
    """A GET and a POST hang in a system call: 504 in time, the process is replaced."""
    _hang(stage, 'block')


@scenario('worker: hangs in a system call, --threads 4', doomed={504}, recovers=1.0, longest=6.0)
def block_threads(stage: Stage) -> None:
    """The same; its siblings finish."""
    _hang(stage, 'block', '--threads', '4')


@scenario('worker: hangs in a system call, --gevent 10', doomed={504}, statuses={502, 504}, recovers=3.0, longest=6.0)
def block_gevent(stage: Stage) -> None:
    """The same with greenlets, whose hub hangs with it."""
    _hang(stage, 'block', '--gevent', '10')


def _hang(stage: Stage, do: str, *arguments: str) -> None:
    stage.front('--timeout', '1')
    stage.worker(*HURRIED, *arguments, processes=3)
    with stage.load():
        for method in ('GET', 'POST'):
            with stage.fault():
                exchange = stage.doom(method, do)
            within = 2.5 + stage.account.slack
            stage.check(exchange.took < within, f'{method} took {exchange.took:.1f} s; its limit was 1 s')
            pid = next(int(line.split()[2]) for line in stage.stack.runs if line.startswith(f'{exchange.id} '))
            wait_until(lambda: _gone([pid]), 6, 'the end of the process that hangs')  # noqa: B023 it is called at once
    _check_second_runs(stage)


# Stopped


@scenario('worker: kill -STOP, until its time is over', statuses={502, 504}, recovers=2.5, longest=5.0)
def stop_process(stage: Stage) -> None:
    """A process is stopped while it runs something. The caller hears 504 in time, another process comes."""
    stage.front('--timeout', '1')
    stage.worker(*HURRIED, processes=3)
    with stage.load():
        with stage.fault():
            stopped = _kill(stage, signal.SIGSTOP)
        wait_until(lambda: _gone([stopped]), 8, 'the end of the stopped process')


@scenario(
    'worker: kill -STOP of a process, then -CONT', node={'heartbeat': 2}, statuses={502}, longest=12.0, recovers=12.0
)
def stop_and_continue(stage: Stage) -> None:
    """A process does not run for 12 s; the broker misses its heartbeats and gives what it held to others.

    When it goes on it drops what was sent to it meanwhile, answers nothing that has been answered, and serves again.
    """
    stage.front()
    stage.worker('--threads', '2', processes=3)
    with stage.load():
        _stop_for(stage, 12, [stage.choose.choice(stage.processes())])


@scenario(
    'worker: kill -STOP of all of it, then -CONT', node={'heartbeat': 2}, statuses={502}, longest=12.0, recovers=12.0
)
def stop_whole(stage: Stage) -> None:
    """The same with a whole worker, supervisor and processes, and look-ahead."""
    stage.front()
    stage.worker('--prefetch', '10', processes=2)
    stage.worker('--threads', '2')
    first = stage.workers[0]
    with stage.load():
        _stop_for(stage, 12, [first.pid, *first.children()])


def _stop_for(stage: Stage, seconds: float, pids: Sequence[int]) -> None:
    with stage.fault():
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    stage.sleep(seconds)
    late = [one for one in stage.account.exchanges if one.status != 200]
    stage.check(time.monotonic() - max([one.ended for one in late], default=0) > 2, 'it was not over before -CONT')
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: _serves(stage, pids[-1]), 15, 'the stopped process to serve again')
    _check_second_runs(stage)


def _serves(stage: Stage, pid: int) -> bool:
    since = time.monotonic() - 1
    return any(int(line.split()[2]) == pid and float(line.split()[3]) > since for line in stage.stack.runs[-200:])


# Meddling


@scenario('worker: raises what is no Exception, floods the log', doomed={200, 500}, recovers=0.0)
def raise_all(stage: Stage) -> None:
    """``SystemExit``, ``KeyboardInterrupt``, ``MemoryError`` and ``RecursionError`` are 500 and end nothing."""
    _raise_all(stage)


@scenario('worker: raises what is no Exception, --gevent 10', doomed={200, 500}, recovers=0.0)
def raise_all_gevent(stage: Stage) -> None:
    """The same in greenlets, where gevent would end the process."""
    _raise_all(stage, '--gevent', '10')


def _raise_all(stage: Stage, *arguments: str) -> None:
    stage.front()
    stage.worker(*arguments)
    before = stage.processes()
    with stage.load(settle=0.3):
        for do in ('exit', 'interrupt', 'exhaust', 'recurse', 'flood'):
            with stage.fault():
                exchange = stage.doom('POST', do)
            stage.check(exchange.status == (200 if do == 'flood' else 500), f'{do} was answered {exchange.status}')
    stage.check(stage.processes() == before, 'a process was replaced')


@scenario('worker: closes files that are not its own', doomed={200, 502}, statuses={502}, recovers=5.0)
def close_all(stage: Stage) -> None:
    """The application closes every file of its process but the first three: the process is replaced."""
    _close_all(stage)


@scenario('worker: closes files that are not its own, --threads 4', doomed={200, 502}, statuses={502}, recovers=5.0)
def close_all_threads(stage: Stage) -> None:
    """The same with other requests in the same process."""
    _close_all(stage, '--threads', '4')


@scenario('worker: closes files that are not its own, --gevent 10', doomed={200, 502}, statuses={502}, recovers=5.0)
def close_all_gevent(stage: Stage) -> None:
    """The same with greenlets."""
    _close_all(stage, '--gevent', '10')


def _close_all(stage: Stage, *arguments: str) -> None:
    stage.front()
    stage.worker(*arguments, processes=2)
    with stage.load():
        for method in ('GET', 'POST'):
            with stage.fault():
                stage.doom(method, 'close')
            stage.sleep(1)
            pids = {int(line.split()[2]) for line in stage.stack.runs if line.startswith('doomed')}
            wait_until(lambda: _gone([*pids]), 10, 'the end of the processes')  # noqa: B023 it is called at once


@scenario('worker: ignores signals, changes umask and directory', doomed={200}, recovers=0.0)
def meddle(stage: Stage) -> None:
    """The process serves on. As it ignores SIGTERM now, it is killed when ``--graceful-timeout`` is over."""
    stage.front()
    worker = stage.worker('--graceful-timeout', '2', processes=2)
    before = stage.processes()
    with stage.load(), stage.fault():
        for _ in range(4):
            stage.doom('POST', 'meddle')
    stage.check(stage.processes() == before, 'a process was replaced')
    stage.check(worker.terminate() == 1, 'the worker told nothing of what it had to kill')


@scenario('worker: the application handles SIGTERM itself', recovers=0.0, longest=3.0, short=True)
def handle_signals(stage: Stage) -> None:
    """Loaded, it has installed a handler that ends its process, and runs an event loop. Workers drain all the same."""
    stage.front()
    env = {'HANDLES_SIGNALS': 'yes'}
    stage.worker('--threads', '2', env=env)
    with stage.load(settle=0.3), stage.fault():
        stage.worker('--threads', '2', env=env)
        stage.check(stage.workers[0].terminate() == 0, 'a worker has abandoned something')
