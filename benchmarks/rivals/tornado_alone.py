"""Tornado and nothing behind it: ``python tornado_alone.py PORT``."""

import asyncio
import sys

from tornado.web import Application, RequestHandler


class Hello(RequestHandler):
    """Says hello."""

    def get(self) -> None:
        """Say hello."""
        self.write(b'hello\n')


async def main() -> None:
    """Serve for ever."""
    Application([('/', Hello)]).listen(int(sys.argv[1]), '127.0.0.1')
    await asyncio.Event().wait()


if __name__ == '__main__':
    asyncio.run(main())
