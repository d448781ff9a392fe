"""Who is compared: the commands that each needs, as its own documentation would have them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import RIVALS, Service

__all__ = [
    'AIO_PIKA',
    'BRIDGES',
    'CALLERS',
    'CELERY',
    'CREW',
    'CREW_1',
    'CREW_THREADS',
    'GUNICORN_1',
    'GUNICORN_2',
    'GUNICORN_THREADS',
    'NAMEKO',
    'PLAIN_1',
    'PLAIN_10',
    'PREFETCH',
    'Caller',
    'Contender',
    'crew_of',
]

#: The environment with what crew is compared with; crew itself runs in ours.
THEIRS = Path(__file__).parents[1] / '.venv-bench' / 'bin'


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that answers HTTP requests.

    Args:
        name: its row's title.
        services: makes its commands from the broker's address and the port to listen on.
    """

    name: str
    services: Callable[[str, int], Sequence[Service]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Something that makes RPC calls.

    Args:
        name: its row's title.
        worker: makes the worker's command from the broker's address.
        calls: makes the client's command, from that address, the calls in flight, and the seconds that it lasts; it
            prints how many calls were answered.
    """

    name: str
    worker: Callable[[str], Service]
    calls: Callable[[str, int, float], Service]


def crew_of(
    *worker: str, front: Sequence[str] = (), both: Sequence[str] = (), takes: float = 0
) -> Callable[[str, int], Sequence[Service]]:
    """Return crew's commands: a front with its access log in a file, and a worker.

    Args:
        worker: the worker's options.
        front: the front's options.
        both: options of both.
        takes: how long the application takes, in seconds.
    """

    def services(url: str, port: int) -> Sequence[Service]:
        environ = {'CREW_AMQP_URL': url, 'TAKES': str(takes)}
        ours = [sys.executable, '-m']
        return (
            Service('front', [*ours, 'crew_wsgi.front', '--port', str(port), *both, *front], environ),
            Service(
                'worker', [*ours, 'crew_wsgi.worker', 'hello:app', '--app-dir', str(RIVALS), *both, *worker], environ
            ),
        )

    return services


def _gunicorn(*options: str) -> Callable[[str, int], Sequence[Service]]:
    def services(url: str, port: int) -> Sequence[Service]:
        bind = ['--bind', f'127.0.0.1:{port}', '--access-logfile', '-']
        return (Service('worker', [str(THEIRS / 'gunicorn'), 'hello:app', *bind, *options]),)

    return services


def _tornado(url: str, port: int) -> Sequence[Service]:
    return (Service('front', _theirs('tornado_alone.py', port)),)


def _plain_pika(prefetch: int) -> Callable[[str, int], Sequence[Service]]:
    def services(url: str, port: int) -> Sequence[Service]:
        return (
            Service('worker', _theirs('plain_pika.py', 'worker', url, prefetch)),
            Service('front', _theirs('plain_pika.py', 'front', url, port)),
        )

    return services


def _aio_pika(url: str, port: int) -> Sequence[Service]:
    return (
        Service('worker', _theirs('aio_pika_rpc.py', 'worker', url)),
        Service('front', _theirs('aio_pika_rpc.py', 'front', url, port)),
    )


def _nameko(url: str, port: int) -> Sequence[Service]:
    run = [str(THEIRS / 'nameko'), 'run', '--broker', url]
    # nameko reads the port from a file of settings only.
    settings = RIVALS / 'nameko.yaml'
    environ = {'BROKER': url, 'PORT': str(port)}
    return (
        Service('worker', [*run, 'nameko_services:Hello']),
        Service(
            'front', [str(THEIRS / 'nameko'), 'run', '--config', str(settings), 'nameko_services:Gateway'], environ
        ),
    )


def _celery(url: str, port: int) -> Sequence[Service]:
    environ = {'BROKER': url}
    worker = [str(THEIRS / 'celery'), '-A', 'celery_app', 'worker', '--pool', 'prefork', '--concurrency', '1']
    front = [str(THEIRS / 'gunicorn'), 'celery_app:gateway', '--bind', f'127.0.0.1:{port}', '--threads', '32']
    return Service('worker', worker, environ), Service('front', front, environ)


def _theirs(script: str, *arguments: object) -> list[str]:
    return [str(THEIRS / 'python'), script, *(str(argument) for argument in arguments)]


def _ours(*arguments: object) -> list[str]:
    return [sys.executable, 'crew_calls.py', *(str(argument) for argument in arguments)]


CREW, CREW_1, CREW_THREADS = 'crew', 'crew --prefetch 1', 'crew --threads 4'
PREFETCH = 'crew --prefetch 10'
GUNICORN_1, GUNICORN_2, GUNICORN_THREADS = 'gunicorn 1 sync', 'gunicorn 2 sync', 'gunicorn 1×4 threads'
PLAIN_1, PLAIN_10 = 'plain pika bridge, prefetch 1', 'plain pika bridge, prefetch 10'
AIO_PIKA, NAMEKO, CELERY = 'aio-pika RPC behind aiohttp', 'nameko HTTP → RPC', 'celery rpc:// behind gunicorn'

#: In the order of the table.
BRIDGES = (
    Contender(CREW, crew_of()),
    Contender(CREW_1, crew_of('--prefetch', '1')),
    Contender(PREFETCH, crew_of('--prefetch', '10')),
    Contender(CREW_THREADS, crew_of('--threads', '4')),
    Contender('crew --gevent 50', crew_of('--gevent', '50')),
    Contender('crew, quorum queue', crew_of(both=('--queue-type', 'quorum', '--queue', 'quorum'))),
    Contender(GUNICORN_1, _gunicorn('--workers', '1')),
    Contender(GUNICORN_2, _gunicorn('--workers', '2')),
    Contender(GUNICORN_THREADS, _gunicorn('--workers', '1', '--threads', '4')),
    Contender('Tornado alone', _tornado),
    Contender(PLAIN_1, _plain_pika(1)),
    Contender(PLAIN_10, _plain_pika(10)),
    Contender(AIO_PIKA, _aio_pika),
    Contender(NAMEKO, _nameko),
    Contender(CELERY, _celery),
)

CALLERS = (
    Caller(
        'crew',
        lambda url: Service('worker', _ours('worker', '--amqp-url', url)),
        lambda url, at_once, seconds: Service('client', _ours('calls', url, at_once, seconds)),
    ),
    Caller(
        'aio-pika RPC',
        lambda url: Service('worker', _theirs('aio_pika_rpc.py', 'worker', url)),
        lambda url, at_once, seconds: Service('client', _theirs('aio_pika_rpc.py', 'calls', url, at_once, seconds)),
    ),
    Caller(
        'nameko',
        lambda url: Service('worker', [str(THEIRS / 'nameko'), 'run', '--broker', url, 'nameko_services:Hello']),
        lambda url, at_once, seconds: Service('client', _theirs('nameko_calls.py', url, at_once, seconds)),
    ),
    Caller(
        'celery',
        lambda url: Service(
            'worker',
            [str(THEIRS / 'celery'), '-A', 'celery_app', 'worker', '--pool', 'prefork', '--concurrency', '1'],
            {'BROKER': url},
        ),
        lambda url, at_once, seconds: Service('client', _theirs('celery_app.py', at_once, seconds), {'BROKER': url}),
    ),
    Caller(
        "pika, RabbitMQ's tutorial",
        lambda url: Service('worker', _theirs('pika_tutorial.py', 'worker', url)),
        lambda url, at_once, seconds: Service('client', _theirs('pika_tutorial.py', 'calls', url, at_once, seconds)),
    ),
)
