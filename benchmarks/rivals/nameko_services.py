"""nameko: an HTTP entrypoint that calls a service; run with ``nameko run``."""

from nameko.rpc import RpcProxy, rpc
from nameko.web.handlers import http


class Gateway:
    """The front."""

    name = 'gateway'
    hello = RpcProxy('hello')

    @http('GET', '/')
    def get(self, request: object) -> str:
        """Ask the service."""
        return self.hello.hello()


class Hello:
    """The worker."""

    name = 'hello'

    @rpc
    def hello(self) -> str:
        """Say hello."""
        return 'hello\n'
