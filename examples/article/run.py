"""The article's application on one console: a private RabbitMQ node, a worker of two processes, and the server.

Ctrl-C ends all of them and leaves nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from crew.exceptions import NodeError
from crew.private_node import PrivateNode

DIRECTORY = Path(__file__).resolve().parent


def main():
    """Run them until a signal comes or one of them ends by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--port', default='8888', help='the server’s (default: %(default)s)')
    options = parser.parse_args()
    print('starting a private RabbitMQ node; it takes some seconds', flush=True)
    try:
        with PrivateNode() as node:
            return serve(node, options.port)
    except NodeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while the node was starting
        return 0


def serve(node, port):
    """Run worker and server; return the exit code."""
    # Only noted: an exception out of here could come just when a process has been started and nobody knows it yet.
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.append(number))
    processes = [
        start(node, 'worker.py', '--forks', '2', '--graceful-timeout', '5'),
        start(node, 'master.py', '--port', port),
    ]
    while not signals and node.alive() and all(process.poll() is None for process in processes):
        time.sleep(0.1)
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
    return 0 if signals else 1


def start(node, script, *arguments):
    """Start one of the scripts beside this one."""
    return subprocess.Popen(
        [sys.executable, str(DIRECTORY / script), *arguments],
        env=os.environ | {'CREW_AMQP_URL': node.url},
        # Ctrl-C is for this process, which then tells the others: to a worker a second signal means to end at once.
        start_new_session=True,
    )


if __name__ == '__main__':
    sys.exit(main())
