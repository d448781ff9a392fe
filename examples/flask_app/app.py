"""A small Flask application to play with behind the bridge: each page shows one thing that the bridge must get right.

Nothing here knows of the bridge or of AMQP. Any WSGI server can run it, for instance
``flask --app examples/flask_app/app.py run``; that is the point.
"""

import hashlib
import itertools
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

from flask import Flask, Response, flash, g, json, jsonify, redirect, render_template, request, session, url_for
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.wrappers import Response as AnyResponse

app = Flask(__name__)
app.config.update(
    # Every worker process must sign with the same key, or the session is lost whenever another one answers. This fixed
    # key is public, so it is good for a demo only: set SECRET_KEY for anything else.
    SECRET_KEY=os.environ.get('SECRET_KEY') or 'crew-demo-key-known-to-everybody',
    # Cookies are shared by all ports of a host; the default name would mix with other Flask apps on 127.0.0.1.
    SESSION_COOKIE_NAME='crew_demo_session',
    SESSION_COOKIE_SAMESITE='Lax',
)

LONGEST_WAIT = 30.0
# A time limit works by an exception in the thread, which Python raises only between two bytecodes, not within a system
# call. Many short sleeps let it in soon, and unlike `while True: pass` they leave the CPU to the other workers.
NAP = 0.1
# Both go into the session cookie, and a browser drops a cookie of more than 4 KiB.
LONGEST_NAME = 40
LONGEST_MESSAGE = 200
PIECE = 64 * 1024


# The pages, as the navigation and the front page list them


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of the demo: its link, what to watch for there, and how to see the same with curl."""

    endpoint: str
    label: str
    title: str
    watch: str
    curl: str = 'curl -i'
    query: str = ''

    @property
    def path(self) -> str:
        """The link to this page, wherever the application is mounted."""
        return url_for(self.endpoint) + self.query

    @property
    def curl_line(self) -> str:
        """The command that fetches this page from the server that is answering now."""
        return f"{self.curl} '{url_for(self.endpoint, _external=True)}{self.query}'"


PAGES = (
    Page(
        endpoint='form',
        label='Form',
        title='Form, flash message and session',
        watch='The POST is answered with 303; the page after it counts your posts, whichever worker answers.',
        curl="curl -i -L -c jar.txt -b jar.txt -d name=Ada -d 'message=Hello, queue'",
    ),
    Page(
        endpoint='upload',
        label='Upload',
        title='File upload',
        watch='The size and the SHA-256 are those that sha256sum shows for your file: no byte changed on the way.',
        curl='curl -i -F file=@README.md',
    ),
    Page(
        endpoint='redirect_home',
        label='Redirect',
        title='Redirect',
        watch='302 to this page, with a cookie that carries a message; it is shown once.',
    ),
    Page(
        endpoint='show_json',
        label='JSON',
        title='JSON',
        watch='GET tells what the application saw of your request; POST answers with the JSON you sent.',
        curl="curl -i -H 'Content-Type: application/json' -d '{\"hello\": [1, 2, 3]}'",
    ),
    Page(
        endpoint='slow',
        label='Slow',
        title='A page that takes two seconds',
        watch='One worker is busy for that time. Load other pages meanwhile: an idle worker takes them.',
        query='?seconds=2',
    ),
    Page(
        endpoint='hang',
        label='Hang (10 s)',
        title='A page that hangs: its time limit is 10 s in this demo',
        watch='504 when the time is over; then the worker is free again and the next request is served.',
    ),
    Page(
        endpoint='error',
        label='Error',
        title='A page that raises an exception',
        watch='500 here, the traceback in the log of the worker, and the worker lives on.',
    ),
    Page(
        endpoint='worker',
        label='Worker',
        title='Which worker served this?',
        watch='Reload and see the pid change; or send 40 requests at once and see how evenly they spread.',
    ),
    Page(
        endpoint='headers',
        label='Headers',
        title='Request headers and WSGI environ',
        watch='What reached the application, X-Request-ID among it: find the same id in the logs.',
    ),
)

# What an application may read of its environ beside the headers (PEP 3333), and the names servers add to it.
ENVIRON_KEYS = (
    'HTTP_X_REQUEST_ID',
    'REQUEST_METHOD',
    'SCRIPT_NAME',
    'PATH_INFO',
    'QUERY_STRING',
    'RAW_URI',
    'REQUEST_URI',
    'CONTENT_TYPE',
    'CONTENT_LENGTH',
    'SERVER_NAME',
    'SERVER_PORT',
    'SERVER_PROTOCOL',
    'SERVER_SOFTWARE',
    'REMOTE_ADDR',
    'REMOTE_PORT',
    'wsgi.version',
    'wsgi.url_scheme',
    'wsgi.multithread',
    'wsgi.multiprocess',
    'wsgi.run_once',
    'wsgi.input_terminated',
)


@app.context_processor
def _for_every_template() -> dict[str, object]:
    return {'pages': PAGES, 'worker_facts': worker_facts}


# Who answers

# next() on it is one step that no other thread can get into, so it needs no lock.
_numbers = itertools.count(1)


@app.before_request
def _count_request() -> None:
    g.served = next(_numbers)


def worker_facts() -> dict[str, str | int]:
    """Tell which process and thread is serving this request, and how many the process has served, this one included."""
    return {
        'pid': os.getpid(),
        'thread': threading.current_thread().name,
        'hostname': socket.gethostname(),
        'served': g.served,
    }


@app.get('/worker')
def worker() -> Response:
    """Show which worker served this page, and let a script ask 40 times more."""
    return _never_stored(Response(render_template('worker.html'), mimetype='text/html'))


@app.get('/worker.json')
def worker_json() -> Response:
    """Give the facts of ``/worker`` to its script."""
    return _never_stored(jsonify(worker_facts()))


def _never_stored(response: Response) -> Response:
    """Keep caches out of it: the answer of one worker must not stand in for that of another."""
    response.cache_control.no_store = True
    return response


# Pages, forms and redirects


@app.get('/')
def index() -> str:
    """Say what this is and where to go."""
    return render_template('index.html')


@app.get('/favicon.ico')
def favicon() -> tuple[str, int]:
    """Answer clients that ask for an icon unasked; the pages themselves carry it in a ``data:`` link."""
    return '', 204


@app.get('/form')
def form() -> str:
    """Show the form, and from the session what was posted before."""
    return render_template('form.html', longest_name=LONGEST_NAME, longest_message=LONGEST_MESSAGE)


@app.post('/form')
def post_form() -> AnyResponse | tuple[str, int]:
    """Remember the post in the session and send the browser back to the form, so that a reload posts nothing."""
    name = request.form.get('name', '').strip()
    message = request.form.get('message', '').strip()
    if not (0 < len(name) <= LONGEST_NAME and 0 < len(message) <= LONGEST_MESSAGE):
        flash(f'A name (up to {LONGEST_NAME} characters) and a message (up to {LONGEST_MESSAGE}) are needed.', 'error')
        return form(), 400
    session['posts'] = session.get('posts', 0) + 1
    session['message'] = message
    flash(f'Thank you, {name}. Your message has arrived.')
    return redirect(url_for('form'), 303)


@app.get('/redirect')
def redirect_home() -> AnyResponse:
    """Send the browser to the front page, with a message for it."""
    flash('You were redirected here by /redirect.')
    return redirect(url_for('index'), 302)


@app.get('/upload')
def upload() -> str:
    """Show the upload form."""
    return render_template('upload.html')


@app.post('/upload')
def post_upload() -> str | tuple[str, int]:
    """Show what arrived of the file."""
    file = request.files.get('file')
    if file is None or not file.filename:
        flash('Choose a file first.', 'error')
        return upload(), 400
    size, sha256 = measure(file)
    return render_template('upload.html', file=file, size=size, sha256=sha256)


def measure(file: FileStorage) -> tuple[int, str]:
    """Return the size and the SHA-256 of an uploaded file.

    Read in pieces: Werkzeug has already put a large upload into a temporary file, and it need not come back into
    memory as a whole.
    """
    size, digest = 0, hashlib.sha256()
    while piece := file.stream.read(PIECE):
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


# What the application sees of a request


@app.get('/json')
def show_json() -> Response:
    """Tell what the application saw of the request. A header or argument that was sent twice is listed twice."""
    return jsonify(
        method=request.method,
        args=request.args.to_dict(flat=False),
        headers=list(request.headers),
        worker=worker_facts(),
    )


@app.post('/json')
def echo_json() -> Response:
    """Answer with the JSON that was posted, its keys in the order they came in."""
    text = json.dumps(request.get_json(), indent=2, sort_keys=False, ensure_ascii=False)
    return Response(text + '\n', mimetype='application/json')


@app.get('/headers')
def headers() -> Response:
    """List the request's headers and the part of the WSGI environ that is worth a look, as plain text."""
    lines = ['Request headers', '']
    lines += [f'{name}: {value}' for name, value in request.headers]
    lines += ['', 'WSGI environ', '']
    lines += [f'{key} = {request.environ.get(key, "(not set)")}' for key in ENVIRON_KEYS]
    return Response('\n'.join(lines) + '\n', mimetype='text/plain')


# Slow, hanging and failing


@app.get('/slow')
def slow() -> str:
    """Wait for as long as ``seconds`` says, then answer; 400 if that is no number from 0 to 30."""
    seconds = wanted_seconds(request.args.get('seconds', '2'))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, NAP))
    return render_template('slow.html', seconds=seconds, longest=LONGEST_WAIT)


def wanted_seconds(text: str) -> float:
    """Read a waiting time.

    Raises:
        BadRequest: it is not a number, or not one from 0 to 30.
    """
    try:
        seconds = float(text)
    except ValueError:
        raise BadRequest('seconds must be a number.') from None
    # float() also reads 'nan', which no comparison holds for: so ask what is allowed, not what is forbidden.
    if not 0 <= seconds <= LONGEST_WAIT:
        raise BadRequest(f'seconds must be from 0 to {LONGEST_WAIT:g}.')
    return seconds


@app.get('/hang')
def hang() -> NoReturn:
    """Never answer. Only something outside can end this."""
    while True:
        time.sleep(NAP)


@app.get('/error')
def error() -> NoReturn:
    """Fail, as an application with a bug does."""
    raise RuntimeError('This page fails on purpose.')


@app.errorhandler(HTTPException)
def show_error(failure: HTTPException) -> AnyResponse:
    """Show an error within the page's frame; its status and its headers (``Allow`` of a 405, say) stay as they are."""
    response = failure.get_response()
    assert isinstance(response, AnyResponse)
    response.set_data(render_template('error.html', error=failure))
    return response
