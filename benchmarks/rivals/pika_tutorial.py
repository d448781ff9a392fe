"""The RPC of RabbitMQ's tutorial 6 in Python, with several calls in flight: ``pika_tutorial.py worker|calls URL …``."""

import sys
import time
import uuid
from typing import Any

import pika

QUEUE = 'tutorial'


def worker(url: str) -> None:
    """Run calls for ever."""
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.queue_declare(QUEUE)
    channel.basic_qos(prefetch_count=10)

    def run(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        reply = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish('', properties.reply_to, b'hello\n', reply)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(QUEUE, run)
    channel.start_consuming()


def calls(url: str, at_once: int, seconds: float) -> int:
    """Call for so long; return how many calls were answered."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(QUEUE)
    replies = channel.queue_declare('', exclusive=True).method.queue
    done, waiting = 0, set()

    def call() -> None:
        correlation_id = str(uuid.uuid4())
        waiting.add(correlation_id)
        channel.basic_publish('', QUEUE, b'', pika.BasicProperties(reply_to=replies, correlation_id=correlation_id))

    def replied(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        nonlocal done
        waiting.discard(properties.correlation_id)
        done += 1
        if time.monotonic() < end:
            call()

    channel.basic_consume(replies, replied, auto_ack=True)
    end = time.monotonic() + seconds
    for _ in range(at_once):
        call()
    while waiting:
        connection.process_data_events(time_limit=1)
    return done


if __name__ == '__main__':
    if sys.argv[1] == 'worker':
        worker(sys.argv[2])
    else:
        print(calls(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
