"""A bridge as one writes it in an afternoon: Tornado, pika and a pickled environ; ``plain_pika.py front|worker …``."""

import asyncio
import pickle
import sys
import uuid
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from tornado.web import Application, RequestHandler

QUEUE = 'plain'


class Bridge:
    """The front's connection."""

    def __init__(self, url: str) -> None:
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        AsyncioConnection(pika.URLParameters(url), on_open_callback=lambda c: c.channel(on_open_callback=self.opened))

    def opened(self, channel: Any) -> None:
        """Declare the queues."""
        self.channel = channel
        channel.queue_declare(
            QUEUE, callback=lambda _: channel.queue_declare('', exclusive=True, callback=self.declared)
        )

    def declared(self, frame: Any) -> None:
        """Consume the replies."""
        self.reply_to = frame.method.queue
        self.channel.basic_consume(self.reply_to, self.replied, auto_ack=True)
        self.ready.set_result(None)

    def replied(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """Hand a reply to who waits for it."""
        self.waiting.pop(properties.correlation_id).set_result(pickle.loads(body))

    def call(self, environ: dict[str, str]) -> 'asyncio.Future[Any]':
        """Send a request."""
        correlation_id = uuid.uuid4().hex
        future = self.waiting[correlation_id] = asyncio.get_running_loop().create_future()
        properties = pika.BasicProperties(correlation_id=correlation_id, reply_to=self.reply_to)
        self.channel.basic_publish('', QUEUE, pickle.dumps(environ), properties)
        return future


class Handler(RequestHandler):
    """Turns a request into a message."""

    async def get(self) -> None:
        """Wait for the answer."""
        request = self.request
        environ = {
            'REQUEST_METHOD': request.method,
            'PATH_INFO': request.path,
            'QUERY_STRING': request.query,
            **{f'HTTP_{name.upper().replace("-", "_")}': value for name, value in request.headers.items()},
        }
        status, headers, body = await self.application.settings['bridge'].call(environ)
        self.set_status(status)
        for name, value in headers:
            self.set_header(name, value)
        self.write(body)


async def front(url: str, port: int) -> None:
    """Serve for ever."""
    bridge = Bridge(url)
    await bridge.ready
    Application([('/.*', Handler)], bridge=bridge).listen(port, '127.0.0.1')
    await asyncio.Event().wait()


def worker(url: str, prefetch: int) -> None:
    """Run requests for ever."""
    from hello import app

    def run(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        environ = pickle.loads(body)
        started: list[Any] = []
        pieces = app(environ, lambda status, headers: started.extend((int(status[:3]), headers)))
        answer = pickle.dumps((*started, b''.join(pieces)))
        reply = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish('', properties.reply_to, answer, reply)
        channel.basic_ack(method.delivery_tag)

    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.queue_declare(QUEUE)
    channel.basic_qos(prefetch_count=prefetch)
    channel.basic_consume(QUEUE, run)
    channel.start_consuming()


if __name__ == '__main__':
    if sys.argv[1] == 'front':
        asyncio.run(front(sys.argv[2], int(sys.argv[3])))
    else:
        worker(sys.argv[2], int(sys.argv[3]))
