"""The broker goes away, comes back, takes nothing, or is changed by its operator, under load."""

import contextlib
import json
from collections.abc import Iterator

import pika

from tests.faults.load import Work
from tests.faults.scenarios import scenario
from tests.faults.stage import Stage

#: While everything is refused at once, clients should not take the machine for themselves.
CALM = Work(pause=0.02)

#: More than the one thread can do that serves it: something waits in the queue all the time.
MUCH = Work(shortest=0.015, longest=0.03, pause=0.01)

#: The longest pause between two attempts, and a moment, in seconds. A front that is back first waits for workers.
BACK = 8.0

#: What may be slow on a loaded machine that is answered at once, in seconds.
AT_ONCE = 1.0

#: The same for what had waited already. The front's timer would be at four.
BEFORE_TIMERS = 3.0


def _stack(stage: Stage, *arguments: str) -> None:
    stage.front(*arguments)
    stage.worker('--threads', '2', processes=2)


def _check_refused_at_once(stage: Stage, within: float = AT_ONCE) -> None:
    """Check that whoever was told to come again was told so at once."""
    late = [one.took for one in stage.account.exchanges if one.status == 503 and one.took > within]
    stage.check(not late, f'{len(late)} were refused late, the last after {max(late, default=0):.1f} s')


# Gone and back


@scenario('broker: stop_app, start_app', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True)
def restart_app(stage: Stage) -> None:
    """An operator stops RabbitMQ in its node for two seconds. In flight: 502 at once; new: 503 at once."""
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.ctl('stop_app')
        stage.sleep(2)
        stage.broker.ctl('start_app')
    _check_refused_at_once(stage)


@scenario('broker: SIGTERM, started again', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True)
def restart(stage: Stage) -> None:
    """The node ends in good order and is started again."""
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.terminate()
        stage.broker.start()
    _check_refused_at_once(stage)


@scenario(
    'broker: kill -9, started again', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True, short=True
)
def kill(stage: Stage) -> None:
    """The node is killed and started again."""
    _stack(stage)
    with stage.load(work=CALM, settle=0.5), stage.fault():
        stage.broker.kill()
        stage.broker.start()
    _check_refused_at_once(stage)


@scenario('broker: kill -9 while requests wait', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True)
def kill_waiting(stage: Stage) -> None:
    """The same with requests in the queue, which are gone with it."""
    stage.front()
    stage.worker()
    with stage.load(work=MUCH), stage.fault():
        stage.broker.kill()
        stage.broker.start()
    _check_refused_at_once(stage)


@scenario('broker: kill -STOP for 3 s', longest=6.0, recovers=0.0, own_broker=True)
def stop_briefly(stage: Stage) -> None:
    """The node does not run for three seconds. Everybody waits for it, and nobody hears anything but 200."""
    _stack(stage)
    with stage.load(work=CALM):
        with stage.fault(3):
            stage.broker.freeze()
        stage.broker.thaw()


@scenario(
    'broker: kill -STOP for 20 s, heartbeat 2 s',
    node={'heartbeat': 2},
    statuses={502, 503},
    longest=17.0,
    recovers=15.0,
)
def stop_long(stage: Stage) -> None:
    """Longer than heartbeats may fail: the connection is given up, and until then requests wait for their timers."""
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.freeze()
        stage.sleep(20)
        stage.broker.thaw()


# Alarms


@scenario('broker: memory alarm', statuses={503}, longest=12.0, recovers=1.0, own_broker=True)
def memory_alarm(stage: Stage) -> None:
    """The broker takes no messages for a few seconds. What is in flight waits for it; all else is 503 at once."""
    _stack(stage)
    with stage.load(work=CALM), _memory_alarm(stage):
        stage.sleep(3)
    _check_refused_at_once(stage)


@scenario('broker: disk alarm', statuses={503}, longest=12.0, recovers=1.0, own_broker=True)
def disk_alarm(stage: Stage) -> None:
    """The same with the disk's alarm."""
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.ctl('set_disk_free_limit', '10000GB')
        stage.sleep(3)
        stage.broker.ctl('set_disk_free_limit', '50MB')
    _check_refused_at_once(stage)


@scenario(
    'broker: memory alarm, longer than a request may wait',
    statuses={502, 503, 504},
    longest=4.0,
    recovers=1.0,
    own_broker=True,
)
def long_alarm(stage: Stage) -> None:
    """The alarm outlasts ``--queue-timeout 1``. Workers cannot say what they ran: it may not be called unrun."""
    _stack(stage, '--queue-timeout', '1')
    with stage.load(work=CALM), _memory_alarm(stage):
        stage.sleep(4)


@contextlib.contextmanager
def _memory_alarm(stage: Stage) -> Iterator[None]:
    with stage.fault():
        stage.broker.ctl('set_vm_memory_high_watermark', '0.00001')
        yield
        stage.broker.ctl('set_vm_memory_high_watermark', '0.6')


# Queues


@scenario('broker: an operator deletes the queue', statuses={503, 504}, longest=3.0, recovers=3.0, short=True)
def delete_queue(stage: Stage) -> None:
    """What waits in it is gone, without a word to anybody: 503 or 504 by the front's timer (``--queue-timeout 1``).

    Until a worker has made the queue anew the front's messages come back: 503 at once.
    """
    stage.front('--queue-timeout', '1')
    stage.worker()
    with stage.load(work=MUCH, settle=0.5), stage.fault():
        _delete(stage)


@scenario('broker: an operator purges the queue', statuses={503, 504}, longest=4.0, recovers=4.0)
def purge_queue(stage: Stage) -> None:
    """What waits is gone without a dead letter: 503 or 504 by the front's timer (``--queue-timeout 2``)."""
    stage.front('--queue-timeout', '2')
    stage.worker()
    with stage.load(work=MUCH), stage.fault(), _channel(stage) as channel:
        channel.queue_purge(_queue(stage))


@scenario('broker: the queue has other arguments, from the start', recovers=0.0)
def other_arguments(stage: Stage) -> None:
    """Front and worker end with code 1 and 4 and a line that says what to do; without that queue they serve."""
    with _channel(stage) as channel:
        channel.queue_declare(_queue(stage), durable=True, arguments={'x-max-priority': 3})
        front = stage.stack.front()
        worker = stage.stack.worker('accounted:app')
        for process in (front, worker):
            code = process.wait(20)
            stage.check(code != 0, f'{process.log.name}: code {code}')
            told = [line for line in process.text.splitlines() if 'inequivalent arg' in line]
            stage.check(len(told) == 1 and 'delete it or use another name' in told[0], f'it said {process.text[-500:]}')
        channel.queue_delete(_queue(stage))
    _stack(stage)
    with stage.load(settle=0.3):
        pass


@scenario('broker: the queue has other arguments, later', statuses={503, 504}, longest=4.0, recovers=BACK)
def other_arguments_later(stage: Stage) -> None:
    """An operator replaces the queue by one that we cannot use. Workers say so and try again; it heals without it."""
    stage.front('--queue-timeout', '1')
    stage.worker('--threads', '2', processes=2)
    with stage.load(work=CALM), stage.fault(), _channel(stage) as channel:
        channel.queue_delete(_queue(stage))
        channel.queue_declare(_queue(stage), durable=True, arguments={'x-max-priority': 3})
        stage.workers[0].await_log('inequivalent arg')
        stage.sleep(3)
        channel.queue_delete(_queue(stage))
    lines = stage.workers[0].text.count('inequivalent arg')
    stage.check(2 <= lines <= 12, f'the worker said {lines} times that it is refused')


@scenario('broker: a policy bounds the queue, drop-head', statuses={503}, longest=5.0, recovers=1.0)
def drop_head(stage: Stage) -> None:
    """``max-length`` 3. What is thrown out comes back as a dead letter: 503 at once."""
    _bounded(stage, {'max-length': 3, 'overflow': 'drop-head'})
    _check_refused_at_once(stage, BEFORE_TIMERS)


@scenario('broker: a policy bounds the queue, reject-publish-dlx', statuses={503}, longest=5.0, recovers=1.0)
def reject_dlx(stage: Stage) -> None:
    """The same for what does not get in."""
    _bounded(stage, {'max-length': 3, 'overflow': 'reject-publish-dlx'})
    _check_refused_at_once(stage, BEFORE_TIMERS)


@scenario('broker: a policy bounds the queue, reject-publish', statuses={503, 504}, longest=5.0, recovers=5.0)
def reject(stage: Stage) -> None:
    """What does not get in is gone without a word: 503 or 504 by the front's timer (``--queue-timeout 3``)."""
    _bounded(stage, {'max-length': 3, 'overflow': 'reject-publish'})


@scenario('broker: a policy gives messages 0.3 s', statuses={503}, longest=5.0, recovers=1.5)
def time_to_live(stage: Stage) -> None:
    """``message-ttl`` 300. What has waited for longer comes back as a dead letter: 503 then."""
    _bounded(stage, {'message-ttl': 300})
    _check_refused_at_once(stage, BEFORE_TIMERS)


def _bounded(stage: Stage, definition: dict[str, object]) -> None:
    stage.front('--queue-timeout', '3')
    stage.worker()
    with stage.load(work=MUCH, clients=14), stage.fault():
        stage.broker.ctl('set_policy', '--apply-to', 'queues', 'bound', f'^{_queue(stage)}$', json.dumps(definition))
        stage.sleep(3)
        stage.broker.ctl('clear_policy', 'bound')
    stage.check(any(one.status == 503 for one in stage.account.exchanges), 'the policy had no effect')


def _queue(stage: Stage) -> str:
    return f'crew.tasks.{stage.queue}'


def _delete(stage: Stage) -> None:
    with _channel(stage) as channel:
        channel.queue_delete(_queue(stage))


@contextlib.contextmanager
def _channel(stage: Stage) -> 'Iterator[pika.adapters.blocking_connection.BlockingChannel]':
    """An operator's channel; faster than ``rabbitmqctl`` by a second."""
    connection = pika.BlockingConnection(pika.URLParameters(stage.broker.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


# Connections and rights


@scenario('broker: an operator closes all connections', statuses={502, 503}, longest=3.0, recovers=2.5)
def close_connections(stage: Stage) -> None:
    """In flight: 502 at once. Everybody is back within two seconds."""
    _stack(stage)
    with stage.load(work=CALM, settle=0.5), stage.fault():
        _close_connections(stage)
    _check_refused_at_once(stage)


@scenario('broker: an operator closes one connection after the other', statuses={502, 503}, longest=5.0, recovers=2.5)
def close_each(stage: Stage) -> None:
    """The same with only one connection at a time; a worker's connection costs nobody more than a POST."""
    _stack(stage)
    with stage.load(work=CALM):
        for line in stage.broker.ctl('list_connections', 'pid', '--no-table-headers').splitlines():
            with stage.fault():
                stage.broker.ctl('close_connection', line, 'closed by the operator')
    _check_refused_at_once(stage)


@scenario(
    'broker: the password is changed for a while', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True
)
def password(stage: Stage) -> None:
    """Nobody notices until connections are closed; then they are refused, until the old password counts again."""
    _stack(stage)
    with stage.load(work=CALM):
        stage.broker.ctl('change_password', 'guest', 'swordfish')
        with stage.fault():
            _close_connections(stage)
            stage.sleep(2)
            stage.broker.ctl('change_password', 'guest', 'guest')
    _check_refused_at_once(stage)
    for process in (stage.fronts[0], stage.workers[0]):
        stage.check('refused the user name or password' in process.text, f'{process.log.name} does not tell why')
        stage.check('swordfish' not in process.text and 'guest:guest' not in process.text, 'a password was logged')


@scenario(
    'broker: permissions are taken away for a while', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True
)
def permissions(stage: Stage) -> None:
    """The user may do nothing for some seconds. Open connections are closed, so that nothing is remembered."""
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.ctl('set_permissions', 'guest', '^$', '^$', '^$')
        _close_connections(stage)
        stage.sleep(2)
        stage.broker.ctl('set_permissions', 'guest', '.*', '.*', '.*')
    _check_refused_at_once(stage)
    stage.check('ACCESS_REFUSED' in stage.fronts[0].text, 'the front does not tell why')


@scenario(
    'broker: permissions are taken from open connections',
    statuses={502, 503},
    longest=4.0,
    recovers=BACK,
    own_broker=True,
)
def permissions_open(stage: Stage) -> None:
    """The same with open connections, which RabbitMQ lets do what they have done before."""
    _stack(stage, '--queue-timeout', '2')
    with stage.load(work=CALM), stage.fault():
        stage.broker.ctl('clear_permissions', 'guest')
        stage.sleep(2)
        stage.broker.ctl('set_permissions', 'guest', '.*', '.*', '.*')


@scenario(
    'broker: the virtual host is deleted and made again',
    statuses={502, 503},
    longest=BACK,
    recovers=BACK,
    own_broker=True,
)
def virtual_host(stage: Stage) -> None:
    """Everything that was in it is gone. Front and worker make it anew as soon as there is a virtual host."""
    _make_host(stage)
    stage.stack.amqp_url = f'amqp://guest:guest@127.0.0.1:{stage.broker.port}/faults'
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.ctl('delete_vhost', 'faults')
        stage.sleep(1)
        _make_host(stage)
    _check_refused_at_once(stage)


def _make_host(stage: Stage) -> None:
    stage.broker.ctl('add_vhost', 'faults')
    stage.broker.ctl('set_permissions', '--vhost', 'faults', 'guest', '.*', '.*', '.*')


@scenario('broker: no more connections are allowed', statuses={502, 503}, longest=BACK, recovers=BACK, own_broker=True)
def connection_limit(stage: Stage) -> None:
    """A limit of the virtual host lets none in that was closed; without it they are back."""
    _stack(stage)
    with stage.load(work=CALM), stage.fault():
        stage.broker.ctl('set_vhost_limits', '{"max-connections": 0}')
        _close_connections(stage)
        stage.sleep(2)
        stage.broker.ctl('clear_vhost_limits')
    _check_refused_at_once(stage)
    stage.check('takes no more connections' in stage.fronts[0].text, 'the front does not tell why')


@scenario('broker: one channel a connection', node={'config': ['channel_max = 1']}, recovers=0.0)
def channel_limit(stage: Stage) -> None:
    """The broker allows one channel a connection; front and worker can do with that, but for look-ahead."""
    _stack(stage)
    with stage.load(settle=0.3):
        pass


def _close_connections(stage: Stage) -> None:
    stage.broker.ctl('close_all_connections', 'closed by the operator')
