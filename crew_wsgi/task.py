"""A WSGI application as the task of a worker: each call is a request, its reply the response."""

import io
import logging
from typing import Any, BinaryIO

from crew import deadlines
from crew.messages import Reply
from crew.worker.bodies import Input, Output
from crew.worker.runs import Outcome, Run, Task
from crew_wsgi.environ import build_environ
from crew_wsgi.gateway import Application, run_application
from crew_wsgi.messages import CONTENT_TYPE, Request, Response, decode_request, encode_response

__all__ = ['wsgi_task']

# The lines are the command's, to who reads the log.
log = logging.getLogger('crew_wsgi.worker')

#: How much of a long request body is taken from its stream at once, in bytes.
READ_AHEAD = 64 * 1024


def wsgi_task(application: Application, *, multithread: bool, multiprocess: bool) -> Task:
    """Return the task that runs an application once for each call.

    Args:
        application: the WSGI application.
        multithread: what ``wsgi.multithread`` says.
        multiprocess: what ``wsgi.multiprocess`` says.
    """

    def task(run: Run) -> Outcome:
        def disconnected() -> bool:
            return run.cancelled

        # Calls that the application makes get no more time than it has itself.
        deadlines.enter(run.time_left())
        request = decode_request(run.call.body)
        run.describe(f'{request.method} {request.target} (request {request.request_id})')
        body = _body(run, request)
        environ = build_environ(request, body, multithread=multithread, multiprocess=multiprocess)
        environ['crew.disconnected'] = disconnected
        answer = _Answer(run)
        response = run_application(application, environ, answer, cancelled=disconnected)
        return answer.reply if response is None else _reply(run, response)

    return task


def _body(run: Run, request: Request) -> BinaryIO | None:
    """Return the body of a request that did not come whole."""
    if run.input is None:
        return None
    run.input.prepend(request.body)
    return io.BufferedReader(_Body(run, run.input), READ_AHEAD)


def _reply(run: Run, response: Response) -> Reply:
    _log_answer(run, response)
    return Reply(correlation_id=run.call.correlation_id, body=encode_response(response), content_type=CONTENT_TYPE)


def _log_answer(run: Run, response: Response) -> None:
    # Frameworks log their own exceptions, but know no request id; this line beside it has it.
    level = logging.WARNING if response.code >= 500 else logging.DEBUG
    if log.isEnabledFor(level):
        milliseconds = 1000 * (run.timeout - run.time_left())
        log.log(level, '%s: the application answered %s in %.1f ms', run.text, response.status, milliseconds)


class _Body(io.RawIOBase):
    """The body of a request as it comes. With each piece the time begins anew, that of the application's calls too."""

    def __init__(self, run: Run, body: Input) -> None:
        super().__init__()
        self._run = run
        self._body = body

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; see :class:`crew.worker.bodies.Input`."""
        size = self._body.readinto(buffer)
        deadlines.enter(self._run.timeout)
        return size

    def readall(self) -> bytes:
        """Read all that is still to come; see :class:`crew.worker.bodies.Input`."""
        try:
            return self._body.readall()
        finally:
            deadlines.enter(self._run.timeout)


class _Answer:
    """A response that leaves before the run ends: the ``Stream`` of :mod:`crew_wsgi.gateway`.

    Attributes:
        reply: the whole response, if it left so.
    """

    def __init__(self, run: Run) -> None:
        self.reply: Reply | None = None
        self._run = run
        self._output: Output | None = None

    def begin(self, response: Response) -> None:
        """Send the head."""
        _log_answer(self._run, response)
        self._output = self._run.begin(
            Reply(
                correlation_id=self._run.call.correlation_id,
                body=encode_response(response),
                content_type=CONTENT_TYPE,
                more=True,
            )
        )

    def write(self, data: bytes) -> None:
        """Send bytes of the body."""
        assert self._output is not None
        self._output.write(data)
        deadlines.enter(self._run.timeout)

    def end(self) -> None:
        """Send the end of the body."""
        assert self._output is not None
        self._output.end()

    def answer(self, response: Response) -> None:
        """Send the whole response."""
        self.reply = _reply(self._run, response)
        self._run.answer(self.reply)
