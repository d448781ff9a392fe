"""The way to the broker is long, narrow, cut, or dead though nobody says so, under load."""

from collections.abc import Callable

from tests.faults.load import Work
from tests.faults.proxy import Proxy, Way
from tests.faults.scenarios import scenario
from tests.faults.stage import Stage

CALM = Work(pause=0.02)

#: In the URL, so that a way that is dead is noticed soon: pika looks each 7 s then, RabbitMQ each 2 s.
HEARTBEAT = '?heartbeat=2'

DEAD = Way(dead=True)


def _behind(stage: Stage, who: str, *arguments: str, heartbeat: bool = False) -> Proxy:
    """Start a front and two workers: the front or the first of the workers, or all, have a proxy before the broker."""
    direct = stage.stack.amqp_url
    proxy = Proxy(direct, stage.choose)
    stage.at_close.callback(proxy.close)
    bad = proxy.url + (HEARTBEAT if heartbeat else '')
    stage.stack.amqp_url = bad if who in ('front', 'all') else direct
    stage.front(*arguments)
    stage.stack.amqp_url = bad if who in ('worker', 'all') else direct
    stage.worker('--threads', '2')
    stage.stack.amqp_url = bad if who == 'all' else direct
    stage.worker('--threads', '2')
    return proxy


def _spoil(stage: Stage, proxy: Proxy, way: Way, seconds: float = 3.0) -> None:
    with stage.fault():
        proxy.set(to=way, back=way)
        stage.sleep(seconds)
        proxy.set()


# Long and narrow


@scenario('network: 50 ms each way, 50 ms jitter', longest=3.0, recovers=0.0)
def latency(stage: Stage) -> None:
    """All ways to the broker are long. Everything takes longer, and that is all."""
    proxy = _behind(stage, 'all')
    with stage.load():
        _spoil(stage, proxy, Way(delay=0.05, jitter=0.05))


@scenario('network: 2 s each way', longest=14.0, recovers=0.0)
def long_latency(stage: Stage) -> None:
    """So long that workers ask before each run whether its caller still waits."""
    proxy = _behind(stage, 'all')
    with stage.load():
        _spoil(stage, proxy, Way(delay=2.0), 10)


@scenario('network: 100 kB/s', longest=6.0, recovers=0.0)
def narrow(stage: Stage) -> None:
    """All ways to the broker are narrow."""
    proxy = _behind(stage, 'all')
    with stage.load():
        _spoil(stage, proxy, Way(rate=100_000.0, piece=2_000))


@scenario('network: a byte at a time', longest=6.0, recovers=0.0, short=True)
def crumbs(stage: Stage) -> None:
    """Frames arrive in pieces of one byte."""
    proxy = _behind(stage, 'all')
    with stage.load(settle=0.3):
        _spoil(stage, proxy, Way(piece=1), 2)


@scenario('network: long answers on 2 MB/s, 20 ms', longest=15.0, recovers=0.0, doomed={200})
def long_answers(stage: Stage) -> None:
    """Answers of 2 MB travel beside small ones, which wait for what is under way, and no longer."""
    proxy = _behind(stage, 'all')
    with stage.load(work=CALM), stage.fault():
        narrow = Way(delay=0.02, rate=2_000_000.0, piece=20_000)
        proxy.set(to=narrow, back=narrow)
        for _ in range(2):
            stage.doom_later('GET', 'answer', stream=200)
        stage.sleep(4)
        proxy.set()


# Cut


@scenario('network: the front is reset in the middle of a frame', statuses={502, 503}, longest=3.0, recovers=2.5)
def reset_front(stage: Stage) -> None:
    """In flight: 502 at once; new: 503 at once, for about half a second."""
    _reset(stage, 'front')


@scenario('network: a worker is reset in the middle of a frame', statuses={502}, longest=3.0, recovers=1.0, short=True)
def reset_worker(stage: Stage) -> None:
    """What it ran is asked about anew: run once more elsewhere, or 502."""
    _reset(stage, 'worker')


def _reset(stage: Stage, who: str) -> None:
    proxy = _behind(stage, who)
    with stage.load(work=CALM, settle=0.5):
        for _ in range(2):
            with stage.fault():
                stage.check(proxy.reset(in_frame=True), 'there was no connection')
            stage.sleep(1.5)


@scenario('network: the front finds no broker for 3 s', statuses={502, 503}, longest=3.0, recovers=6.0)
def refused_front(stage: Stage) -> None:
    """Connections are reset and refused."""
    _refused(stage, 'front')


@scenario('network: a worker finds no broker for 3 s', statuses={502}, longest=3.0, recovers=0.0)
def refused_worker(stage: Stage) -> None:
    """The other worker serves meanwhile; this one comes back."""
    _refused(stage, 'worker')
    stage.check(stage.workers[0].text.count('taking requests from') == 2, 'the worker did not come back')


def _refused(stage: Stage, who: str) -> None:
    proxy = _behind(stage, who)
    with stage.load(work=CALM):
        with stage.fault(3):
            proxy.refuse()
        proxy.admit()
        # The pause before the next attempt.
        stage.sleep(6)


@scenario('network: connections are accepted 3 s late', statuses={502, 503}, longest=8.0, recovers=8.0)
def slow_accept(stage: Stage) -> None:
    """The front and the workers are reset, and get their next connection 3 s late."""
    proxy = _behind(stage, 'all')
    with stage.load(work=CALM), stage.fault():
        proxy.set(accept_after=3.0)
        proxy.reset()


# Dead, and nobody says so


@scenario('network: the front is cut off without a word', statuses={502, 503, 504}, longest=15.0, recovers=12.0)
def half_open_front(stage: Stage) -> None:
    """Nothing passes, sockets stay open. Requests wait until heartbeats (2 s) or their own timers tell."""
    _dead(stage, 'front', lambda proxy: proxy.set(to=DEAD, back=DEAD))


@scenario('network: a worker is cut off without a word', statuses={502}, longest=12.0, recovers=0.0)
def half_open_worker(stage: Stage) -> None:
    """The broker misses its heartbeats (2 s) and gives what it held to the other."""
    _dead(stage, 'worker', lambda proxy: proxy.set(to=DEAD, back=DEAD))


@scenario('network: the front is heard and hears nothing', statuses={502, 503, 504}, longest=15.0, recovers=12.0)
def deaf_front(stage: Stage) -> None:
    """Its requests are run, and no answer comes. Its timers (``--queue-timeout 1``) call nothing unrun that ran."""
    _dead(stage, 'front', lambda proxy: proxy.set(back=DEAD), '--queue-timeout', '1')


@scenario('network: the front hears and is not heard', statuses={502, 503, 504}, longest=15.0, recovers=12.0)
def mute_front(stage: Stage) -> None:
    """Its requests do not arrive; the broker misses its heartbeats and hangs up."""
    _dead(stage, 'front', lambda proxy: proxy.set(to=DEAD), '--queue-timeout', '1')


@scenario('network: a worker hears and is not heard', statuses={502, 503, 504}, longest=15.0, recovers=0.0)
def mute_worker(stage: Stage) -> None:
    """It runs what it gets, and its answers do not arrive. The broker misses its heartbeats and hangs up."""
    _dead(stage, 'worker', lambda proxy: proxy.set(to=DEAD), '--queue-timeout', '1')


@scenario('network: a worker is heard and hears nothing', statuses={502, 503}, longest=15.0, recovers=0.0)
def deaf_worker(stage: Stage) -> None:
    """What is sent to it does not arrive; it notices by missing heartbeats (2 s) and connects anew."""
    _dead(stage, 'worker', lambda proxy: proxy.set(back=DEAD))


def _dead(stage: Stage, who: str, kill: Callable[[Proxy], None], *arguments: str) -> None:
    proxy = _behind(stage, who, *arguments, heartbeat=True)
    with stage.load(work=CALM):
        with stage.fault(16):
            kill(proxy)
        proxy.set()
