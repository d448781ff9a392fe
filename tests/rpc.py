"""Worker scripts as processes, as a person starts them, and clients of their tasks."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from crew import codec, topology
from crew.envelope import Envelope
from crew.master.threaded_client import Client
from crew.messages import Call
from crew.payloads import pack
from crew.transports.addresses import dial
from tests.stack import APPS, Worker
from tests.waiting import wait_until


class Script(Worker):
    """A script that ends with ``run()``, its log in a file."""

    def __init__(self, script: Path, arguments: list[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open('wb') as output:
            self._popen = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
            )


class Rpc:
    """Worker scripts and clients on task ids of one test's own; all end with the test."""

    def __init__(self, amqp_url: str, prefix: str, directory: Path) -> None:
        self.amqp_url = amqp_url
        self.prefix = prefix
        self._directory = directory
        self._notes = directory / 'runs'
        self._notes.touch()
        self._scripts: list[Script] = []
        self._clients: list[Client] = []

    def script(self, name: str, *arguments: str) -> Script:
        """Start a worker script of ``tests/apps/rpc``; wait until it is ready with :meth:`Worker.await_ready`."""
        env = {'QUEUE': self.prefix, 'RUNS': str(self._notes), 'CREW_AMQP_URL': self.amqp_url}
        log = self._directory / f'{name}-{len(self._scripts)}.log'
        command = ['--amqp-url', self.amqp_url, *arguments]
        script = Script(APPS / 'rpc' / f'{name}.py', command, log, env)
        self._scripts.append(script)
        return script

    def client(self, *tasks: str) -> Client:
        """Return a connected client that declares the queues of these tasks."""
        client = Client(self.amqp_url, tasks=[self.id(task) for task in tasks])
        self._clients.append(client)
        client.connect()
        return client

    def id(self, task: str) -> str:
        """Return a task's whole id."""
        return f'{self.prefix}.{task}'

    def send_alone(self, task: str, *arguments: dict[str, Any], **fields: Any) -> None:
        """Send calls that nobody waits for, each under the ``name`` of its argument as its id."""
        payloads = [pack(argument) for argument in arguments]
        calls = [
            Call(correlation_id=argument['name'], body=payload.body, content_type=payload.content_type, **fields)
            for argument, payload in zip(arguments, payloads, strict=True)
        ]

        async def send() -> None:
            connection = await dial(self.amqp_url)
            channel = await connection.open_channel(confirm=True)
            await channel.declare(topology.DEAD_LETTERS)
            await channel.declare(topology.task_queue(self.id(task)))
            for call in calls:
                channel.publish(codec.encode(call), topology.task_queue_name(self.id(task)))
            await channel.confirmed()
            await connection.close()

        asyncio.run(send())

    def taken(self, task: str) -> Envelope:
        """Take a call from a task's queue, as a worker would, and put it back."""
        return asyncio.run(asyncio.wait_for(self._taken(topology.task_queue_name(self.id(task))), 15))

    async def _taken(self, queue: str) -> Envelope:
        connection = await dial(self.amqp_url)
        channel = await connection.open_channel(prefetch=1)
        taken: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        await channel.consume(queue, lambda delivery: taken.done() or taken.set_result(delivery.envelope))
        envelope = await taken
        await connection.close()
        return envelope

    @property
    def notes(self) -> Counter[str]:
        """What tasks noted, and how often."""
        return Counter(line.rpartition(' ')[0] for line in self._notes.read_text().splitlines())

    def note(self, text: str) -> None:
        """Note something beside the tasks."""
        with self._notes.open('a') as notes:
            notes.write(f'{text} 0\n')

    def await_note(self, name: str, count: int = 1, timeout: float = 15) -> int:
        """Wait until something was noted so often; return the process that did so last."""
        wait_until(lambda: self.notes[name] >= count, timeout, f'{count} times {name!r}')
        lines = [line.rpartition(' ') for line in self._notes.read_text().splitlines()]
        return int([process for noted, _, process in lines if noted == name][-1])

    def close(self) -> None:
        """End all that still runs."""
        for client in self._clients:
            client.close()
        for script in reversed(self._scripts):
            script.kill()
