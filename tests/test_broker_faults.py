"""The broker goes away, comes back, takes no messages, or loses a queue: all are answered, and it heals."""

from crew.private_node import PrivateNode
from tests.stack import Front, Stack
from tests.waiting import wait_until


def await_status(front: Front, status: int) -> None:
    wait_until(lambda: front.get('/').status == status, 30, f'a {status}:\n{front.text}')


def test_a_broker_that_restarts(own_stack: Stack, fresh_broker: PrivateNode) -> None:
    front = own_stack.front().await_ready()
    worker = own_stack.worker('faults:app', '--threads', '2').await_ready()
    running = front.later('GET', '/sleep?for=4')
    wait_until(lambda: bool(own_stack.runs), 10, 'the run')
    fresh_broker.kill()
    # Published and unanswered: it may have run.
    assert running.result(10).status == 502
    refused = front.get('/')
    assert refused.status == 503
    assert int(refused.headers['Retry-After']) > 0
    assert 'error=destination_unavailable' in refused.headers['Proxy-Status']
    worker.await_log('trying again in about')
    fresh_broker.start()
    await_status(front, 200)
    # Which of the two depends on whether the worker is connected again when its run ends.
    worker.await_log(r'was dropped: (the connection was lost while it ran|its caller is gone)')


def test_a_broker_with_an_alarm_is_503_at_once_and_serves_again_after_it(
    own_stack: Stack, fresh_broker: PrivateNode
) -> None:
    front = own_stack.front('--queue-timeout', '2').await_ready()
    own_stack.worker('faults:app').await_ready()
    assert front.get('/').status == 200
    fresh_broker.ctl('set_vm_memory_high_watermark', '0.00001')
    # The broker speaks of its alarm only when somebody publishes, so the first one waits.
    assert front.get('/').status == 503
    front.await_log('the broker takes no messages')
    refused = front.get('/')
    assert refused.status == 503
    assert 'details="The broker takes no messages now."' in refused.headers['Proxy-Status']
    fresh_broker.ctl('set_vm_memory_high_watermark', '0.6')
    await_status(front, 200)


def test_a_queue_that_an_operator_deleted_comes_back(own_stack: Stack, fresh_broker: PrivateNode) -> None:
    front = own_stack.front().await_ready()
    worker = own_stack.worker('faults:app').await_ready()
    fresh_broker.ctl('delete_queue', f'crew.tasks.{own_stack.queue}')
    worker.await_log('the broker cancelled a consumer')
    worker.await_ready(2)
    await_status(front, 200)


def test_no_such_queue_is_503_at_once(own_stack: Stack, fresh_broker: PrivateNode) -> None:
    front = own_stack.front().await_ready()
    fresh_broker.ctl('delete_queue', f'crew.tasks.{own_stack.queue}')
    answer = front.get('/')
    assert answer.status == 503
    front.await_log('there is no queue')


def test_nobody_takes_the_request_in_time(own_stack: Stack) -> None:
    front = own_stack.front('--queue-timeout', '0.5').await_ready()
    answer = front.get('/', {'Accept': 'application/json'})
    assert answer.status == 503
    assert answer.headers['Content-Type'] == 'application/problem+json'
    assert int(answer.headers['Retry-After']) > 0
