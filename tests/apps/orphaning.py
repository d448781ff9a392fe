"""An application that prints, and that has started a process which outlives it; ``$ORPHAN`` gets the id of that."""

import os
import subprocess
from pathlib import Path

orphan = subprocess.Popen(['/bin/sleep', '600'])
Path(os.environ['ORPHAN']).write_text(str(orphan.pid))


def app(environ, start_response):
    print('this was printed')
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'ok']
