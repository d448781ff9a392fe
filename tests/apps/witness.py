"""An application that notes each run in the file ``$RUNS`` names, and answers with what it was given."""

import json
import os
import time
from pathlib import Path
from urllib.parse import parse_qs


def app(environ, start_response):
    """Answer with the environ and the body; ``?sleep=S`` takes so long, ``?fifo=PATH`` until somebody has written."""
    with Path(os.environ['RUNS']).open('a') as runs:
        runs.write(f'{environ["REQUEST_METHOD"]} {environ["SCRIPT_NAME"]}{environ["PATH_INFO"]}\n')
    query = parse_qs(environ['QUERY_STRING'])
    if 'fifo' in query:
        Path(query['fifo'][0]).read_bytes()
    end = time.monotonic() + float(query.get('sleep', ['0'])[0])
    while time.monotonic() < end:
        time.sleep(0.01)
    body = environ['wsgi.input'].read()
    seen = {name: value for name, value in environ.items() if isinstance(value, (str, bool))}
    seen['body'] = body.decode('latin-1')
    seen['app'] = os.environ.get('APP', '')
    answer = json.dumps(seen).encode()
    start_response('200 OK', [('Content-Type', 'application/json'), ('Content-Length', str(len(answer)))])
    return [answer]
