"""The far end of the movement: the app's own POST route, answered before Flask for strangers.

WSGI middleware. A token is verified here, so that no before_request, no session and no error
page ever sees a stranger; then the app serves a fresh request, and its verdict is signed.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..config import Config
from ..context import current_run
from ..errors import TokenError, TokenExpired, TokenReplayed
from ..signals import send, send_in_context, task_failed, task_rejected
from ..signing import CONTENT_TYPE, VERDICT_HEADER, WrongVersion
from ..state import State, state_of
from ..verdict import STATUS, Outcome, Verdict
from ..wsgi import drain, is_from_keyboard
from .attempt import RUN, Run
from .executor import begin

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: What a token needs beside its data: head, carried context, signature.
_OVERHEAD = 64 * 1024

#: Headers that the fresh request does not have, whoever sends them.
_NOT_OURS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_COOKIE")

logger = logging.getLogger("async_hooks")


class Rejected(Exception):
    """A stranger's request: its bare status, and the reason for our side only."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Endpoint:
    """Receives tokens at ``POST <prefix>/run``; lets everything else pass.

    ``notice`` is shown the environ of every request that a server passes in.
    """

    def __init__(
        self,
        app: Flask,
        wsgi_app: WSGIApplication,
        *,
        config: Config,
        observe: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._app = app
        self._wsgi_app = wsgi_app
        self._path = config.url_prefix + "/run"
        self._observe = observe
        self._slots = threading.BoundedSemaphore(config.concurrency)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        run: Run | None = environ.get(RUN)
        if run is not None:
            run.verdict = begin(run) or self._serve(run, environ)
            return _answer(start_response, 204)
        self._observe(environ)
        if environ.get("PATH_INFO") != self._path:
            return self._wsgi_app(environ, start_response)
        return self._receive(environ, start_response)

    def _receive(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        state = state_of(self._app)
        try:
            token = _read(environ, state.config.max_bytes + _OVERHEAD)
            verdict = replace(
                self._verify(state, token, environ), host_id=state.replay_guard.host_id
            )
        except Rejected as refused:
            send(task_rejected, self._app, envelope=None, reason=str(refused))
            return _answer(start_response, refused.status)
        status = STATUS[verdict.outcome]
        headers = [(VERDICT_HEADER, state.signing.sign_verdict(token, verdict))]
        if verdict.outcome is Outcome.BUSY:
            headers.append(("Retry-After", "1"))
        return _answer(start_response, status, headers)

    def _verify(self, state: State, token: bytes, environ: WSGIEnvironment) -> Verdict:
        try:
            envelope, issued_at = state.signing.verify(
                token, now=time.time(), max_age=state.config.max_age
            )
        except WrongVersion as error:
            send(task_rejected, self._app, envelope=None, reason=str(error))
            return Verdict(Outcome.UNKNOWN, str(error))
        except TokenExpired as error:
            send(task_rejected, self._app, envelope=None, reason=str(error))
            return Verdict(Outcome.EXPIRED, str(error))
        except TokenError as error:
            raise Rejected(401, str(error)) from None
        verdict = self._run(Run(state, envelope), token, issued_at, environ)
        if verdict.outcome in (Outcome.BUSY, Outcome.REPLAYED, Outcome.UNKNOWN):
            reason = verdict.error or verdict.outcome
            send(task_rejected, self._app, envelope=envelope, reason=reason)
        return verdict

    def _run(self, run: Run, token: bytes, issued_at: float, environ: WSGIEnvironment) -> Verdict:
        if not self._slots.acquire(blocking=False):
            return Verdict(
                Outcome.BUSY, "As many envelopes run as 'ASYNC_HOOKS_CONCURRENCY' allows."
            )
        try:
            refusal = self._refusal(run, token, issued_at)
            return refusal if refusal is not None else self._serve(run, environ)
        finally:
            self._slots.release()

    def _refusal(self, run: Run, token: bytes, issued_at: float) -> Verdict | None:
        """Consume the token, once and for all; say why it can't be, if so."""
        if run.envelope.lease is not None:
            return begin(run)
        try:
            run.state.replay_guard.take(token, issued_at)
        except TokenReplayed as error:
            return Verdict(Outcome.REPLAYED, str(error))
        return None

    def _serve(self, run: Run, environ: WSGIEnvironment) -> Verdict:
        """Let the app serve the run's fresh request to its end, and say what became of it."""
        _fresh_environ(environ, run)
        status = ""

        def note(answered: str, *args: Any) -> Callable[[bytes], None]:
            nonlocal status
            status = answered
            return lambda data: None

        error: BaseException | None = None
        reset = current_run.set(run)
        try:
            drain(self._wsgi_app(environ, note))
        except BaseException as raised:
            if is_from_keyboard(raised):
                raise
            error = raised
        finally:
            current_run.reset(reset)
        run.verdict = self._settled(run, status, error)
        if run.envelope.lease is not None and run.state.ledger is not None:
            run.state.ledger.end(run.envelope, run.verdict)
        return run.verdict

    def _settled(self, run: Run, status: str, error: BaseException | None) -> Verdict:
        where = f"the fresh request of envelope {run.envelope.id!r}"
        if error is not None:
            # Flask lets exceptions out in testing and debug, and teardown functions raise.
            # No debugger and no server will show this one.
            logger.error("Exception in %s", where, exc_info=error)
        if run.verdict is None:
            what = f"raised {type(error).__name__}" if error else f"answered {status}"
            return Verdict(
                Outcome.INTERCEPTED,
                f"The app {what} before {where} reached its task. Does a before_request stand in "
                "the way? Let it pass when async_hooks.current_envelope is true.",
            )
        if run.verdict.outcome is Outcome.COMPLETED and error is not None:
            # A teardown function raised after all that could still be told in the request.
            run.fail(error)
            send_in_context(task_failed, self._app, envelope=run.envelope, exception=error)
        return run.verdict


def _read(environ: WSGIEnvironment, limit: int) -> bytes:
    """Return the request's body, if it can be a token at all."""
    if environ["REQUEST_METHOD"] != "POST":
        raise Rejected(405, f"The method is {environ['REQUEST_METHOD']!r}, not POST.")
    if environ.get("CONTENT_TYPE") != CONTENT_TYPE:
        raise Rejected(400, f"The content type is not {CONTENT_TYPE}.")
    length = environ.get("CONTENT_LENGTH") or ""
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Rejected(400, "The content length is missing or malformed.")
    if int(length) > limit:
        raise Rejected(413, f"The token is {length} bytes long; {limit} are allowed.")
    token: bytes = environ["wsgi.input"].read(int(length))
    if len(token) != int(length):
        raise Rejected(400, "The body ended early.")
    return token


def _fresh_environ(environ: WSGIEnvironment, run: Run) -> None:
    """Make ``environ`` that of a request which came in where the triggering one did."""
    # The loopback's own way here is over: a ProxyFix inside must not take it for the visitor's.
    # We send no cookies; what comes with some was put together by another.
    for key in [key for key in environ if key.startswith(_NOT_OURS)]:
        del environ[key]
    origin = run.envelope.origin
    name, _, port = origin.host.rpartition(":")
    if not name or not port.isdigit():
        name, port = origin.host, "443" if origin.scheme == "https" else "80"
    environ.update(
        {
            RUN: run,
            "wsgi.url_scheme": origin.scheme,
            "HTTP_HOST": origin.host,
            "SERVER_NAME": name,
            "SERVER_PORT": port,
            "SCRIPT_NAME": origin.root,
            "QUERY_STRING": "",
            "CONTENT_TYPE": "",
            "CONTENT_LENGTH": "0",
            "wsgi.input": io.BytesIO(),
        }
    )


def _answer(
    start_response: StartResponse, status: int, headers: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    lines = [*headers]
    if status != 204:
        lines.append(("Content-Length", "0"))
    if status == 405:
        lines.append(("Allow", "POST"))
    start_response(f"{status} {HTTPStatus(status).phrase}", lines)
    return []
