"""nameko's standalone client: ``nameko_calls.py URL AT_ONCE SECONDS`` prints how many calls were answered."""

import sys
import time

from nameko.standalone.rpc import ClusterRpcProxy

url, at_once, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
done = 0
with ClusterRpcProxy({'AMQP_URI': url}) as proxy:
    end = time.monotonic() + seconds
    waiting = [proxy.hello.hello.call_async() for _ in range(at_once)]
    while waiting:
        assert waiting.pop(0).result() == 'hello\n'
        done += 1
        if time.monotonic() < end:
            waiting.append(proxy.hello.hello.call_async())
print(done)
