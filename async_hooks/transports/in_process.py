"""In process: a fresh request through the app's own WSGI entry, in an empty context."""

from __future__ import annotations

import contextvars
import io
import sys
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..endpoint.attempt import RUN, Run
from ..envelope import Envelope
from ..state import state_of
from ..verdict import Outcome, Verdict
from ..wsgi import drain

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class InProcess:
    """Runs an envelope in the calling thread, which sees nothing of its caller's context."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def send(self, envelope: Envelope) -> Verdict:
        return verdict_of(self.run(envelope))

    def run(self, envelope: Envelope) -> Run:
        """Run ``envelope`` and return the run, which knows its verdict and its exception."""
        state = state_of(self._app)
        run = Run(state, envelope)
        environ = _environ(f"{state.config.url_prefix}/run")
        environ[RUN] = run
        contextvars.Context().run(_call, self._app, environ)
        return run


def verdict_of(run: Run) -> Verdict:
    if run.verdict is None:
        return Verdict(Outcome.INTERCEPTED, "A WSGI middleware answered before the app did.")
    return run.verdict


def _call(app: Flask, environ: WSGIEnvironment) -> None:
    drain(app.wsgi_app(environ, _start_response))


def _start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
    return lambda data: None


def _environ(path: str) -> WSGIEnvironment:
    # Scheme, host and root are the origin's; the endpoint puts them in.
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
