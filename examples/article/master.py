"""The article's server: Tornado answers, and whatever would block it is a call that a worker runs."""

import argparse
import asyncio
import logging
import signal
import sys
from typing import ClassVar

from tornado import gen
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from crew import ExpirationError, TimeoutError
from crew.master.tornado import Client

log = logging.getLogger('article')


class Handler(RequestHandler):
    """What all pages share."""

    @property
    def crew(self):
        return self.application.crew

    def set_default_headers(self):
        # What one visitor posts is shown to others: it must not be HTML.
        self.set_header('Content-Type', 'text/plain; charset=utf-8')

    def write_error(self, status_code, **kwargs):
        self.finish(f'{status_code} {self._reason}\n')


class MainHandler(Handler):
    """The shortest one."""

    async def get(self):
        self.write(await self.crew.call('test', priority=100))


class StatHandler(Handler):
    """As one wrote it before there was ``await``."""

    @gen.coroutine
    def get(self):
        response = yield self.crew.call('stat')
        self.write(response)


class Stat2Handler(Handler):
    """The same in callback style."""

    async def get(self):
        self.answered = asyncio.Event()
        self.crew.call('stat', callback=self.on_response)
        # When get() returns, Tornado ends the response.
        await self.answered.wait()

    def on_response(self, response, headers):
        if isinstance(response, Exception):
            self.set_status(503)
            self.write(f'{response}\n')
        else:
            self.set_header('X-Worker', headers['worker'])
            self.write(response)
        self.answered.set()


class FastHandler(Handler):
    """A task that hangs. Its caller hears so in time, and the worker goes on with the next one."""

    async def get(self):
        try:
            self.write(await self.crew.call('dead', persistent=False, priority=255, expiration=3))
        except TimeoutError:
            self.set_status(504)
            self.write('Timeout\n')
        except ExpirationError:
            self.set_status(503)
            self.write('All workers are gone\n')


class LongPollingHandler(Handler):
    """Long polling: hangs until somebody posts."""

    waiting: ClassVar = set()

    async def get(self):
        self.published = asyncio.get_running_loop().create_future()
        try:
            # Before that is in place, a post would pass this client by.
            await self.application.subscribed
            self.waiting.add(self.published)
            log.info('%d waiting for a post', len(self.waiting))
            self.write(await self.published)
        except asyncio.CancelledError:
            pass  # nobody is there to be told
        finally:
            self.waiting.discard(self.published)

    def on_connection_close(self):
        self.published.cancel()

    @classmethod
    def responder(cls, data):
        """Answer all who wait; called by crew with what was published."""
        for published in cls.waiting:
            if not published.done():
                published.set_result(data)
        cls.waiting.clear()


class PublishHandler(Handler):
    """A worker publishes what is posted."""

    async def post(self):
        self.write(await self.crew.call('publish', self.request.body))


class Publish2Handler(Handler):
    """The server itself publishes it; no worker takes part."""

    async def post(self):
        await self.crew.publish('test', self.request.body)
        self.write('published by the server\n')


class ParallelHandler(Handler):
    """Two calls at once, and both results."""

    async def get(self):
        with self.crew.parallel() as mc:
            mc.call('test')
            mc.call('stat')
        test_result, stat_result = await mc.result()
        self.write(f'{test_result}{stat_result}')


def make_application(amqp_url=None):
    """Return the application, its client connecting."""
    application = Application(
        [
            (r'/', MainHandler),
            (r'/stat', StatHandler),
            (r'/stat2', Stat2Handler),
            (r'/fast', FastHandler),
            (r'/subscribe', LongPollingHandler),
            (r'/publish', PublishHandler),
            (r'/publish2', Publish2Handler),
            (r'/parallel', ParallelHandler),
        ]
    )
    application.crew = Client(url=amqp_url)
    application.crew.connect()
    application.subscribed = application.crew.subscribe('test', LongPollingHandler.responder)
    return application


async def main():
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--port', type=int, default=8888, help='0 for a free one (default: %(default)d)')
    parser.add_argument('--amqp-url', help='the broker (default: $CREW_AMQP_URL, then RabbitMQ on this machine)')
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(name)s: %(message)s')
    # crew says in its own words what pika says in many.
    logging.getLogger('pika').setLevel(logging.CRITICAL)

    told_to_end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)

    try:
        sockets = bind_sockets(options.port, '127.0.0.1')
    except OSError as error:
        sys.exit(f'cannot listen on port {options.port}: {error.strerror}')
    try:
        application = make_application(options.amqp_url)
    except ValueError as error:
        parser.error(str(error))
    server = HTTPServer(application)
    server.add_sockets(sockets)
    log.info('listening on http://127.0.0.1:%d/', sockets[0].getsockname()[1])
    await told_to_end.wait()
    server.stop()
    await server.close_all_connections()
    await application.crew.close()


if __name__ == '__main__':
    asyncio.run(main())
