"""Workers that die, hang, or are replaced, under load."""

import os
import signal

from tests.faults.scenarios import scenario
from tests.faults.stage import Stage


@scenario('worker: kill -9 while running', statuses={502}, recovers=1.0, longest=5.0, short=True)
def kill_running(stage: Stage) -> None:
    """Three of the processes are killed, one after the other, while all of their threads run something.

    A GET or PUT is answered 200 by another process, a POST is 502 within a second.
    """
    stage.front()
    stage.worker('--threads', '2', processes=3)
    with stage.load():
        for _ in range(3):
            with stage.fault():
                os.kill(stage.choose.choice(stage.processes()), signal.SIGKILL)
            stage.sleep(1)
