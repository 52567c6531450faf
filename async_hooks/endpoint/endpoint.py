"""The endpoint: the app's own POST route; it refuses strangers before Flask sees them.

WSGI middleware. A token is verified here, so that no before_request, no session and no error
page ever sees a stranger; then the app serves a fresh request, and its verdict is signed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Flask

from ..config import Config
from ..errors import TokenError, TokenExpired, TokenReplayed
from ..host.per_process import PerProcess
from ..signals import send, task_rejected
from ..signing import CONTENT_TYPE, VERDICT_HEADER, WrongVersion
from ..state import state_of
from ..verdict import STATUS, Outcome, Verdict
from ..wsgi import is_served
from .attempt import ATTEMPT, Attempt, Slot
from .executor import execute

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: What a token needs beside its data: head, carried context, signature.
_OVERHEAD = 64 * 1024

#: The outcome for a token that is genuine; every other is a stranger's, and gets a bare status.
_GENUINE: dict[type[Exception], Outcome] = {
    WrongVersion: Outcome.UNKNOWN,
    TokenExpired: Outcome.EXPIRED,
    TokenReplayed: Outcome.REPLAYED,
}

#: Outcomes of a genuine token that did not run.
_REFUSED = (Outcome.BUSY, Outcome.REPLAYED, Outcome.UNKNOWN, Outcome.EXPIRED)


class Rejected(TokenError):
    """A stranger's request: its bare status, and the reason for our side only."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Endpoint:
    """Receives tokens at ``POST <prefix>/run``; lets everything else pass.

    ``prepare`` is called before the first request, ``observe`` is shown the environ of every
    request that comes in, and ``start`` is called before those that a server passes in.
    """

    def __init__(
        self,
        app: Flask,
        wsgi_app: WSGIApplication,
        *,
        config: Config,
        prepare: Callable[[], None],
        observe: Callable[[Mapping[str, object]], None],
        start: Callable[[], None] | None,
    ) -> None:
        self._app = app
        self._wsgi_app = wsgi_app
        self._path = config.url_prefix + "/run"
        self._prepare: Callable[[], None] | None = prepare
        self._observe = observe
        self._start = start
        # A fork would copy the slots that its parent's runs hold, and nobody would give them back.
        self._slots = PerProcess(lambda: _Slots(config.concurrency))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        attempt: Attempt | None = environ.get(ATTEMPT)
        if attempt is not None:
            attempt.verdict = execute(attempt, self._wsgi_app, environ)
            return _answer(start_response, 204)
        self._observe(environ)
        if self._start is not None and is_served(environ):
            self._start()
        if environ.get("PATH_INFO") != self._path:
            return self._wsgi_app(environ, start_response)
        return self._receive(environ, start_response)

    def _receive(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        state, envelope, token = state_of(self._app), None, b""
        config, signing = state.config, state.signing
        try:
            token = _read(environ, config.max_bytes + _OVERHEAD)
            envelope, issued_at = signing.verify(token, now=time.time(), max_age=config.max_age)
            verdict = self._run(Attempt(state, envelope), token, issued_at, environ)
        except TokenError as error:
            if type(error) not in _GENUINE:
                send(task_rejected, self._app, envelope=None, reason=str(error))
                return _answer(start_response, getattr(error, "status", 401))
            verdict = Verdict(_GENUINE[type(error)], str(error))
        if verdict.outcome in _REFUSED:
            reason = verdict.error or verdict.outcome
            send(task_rejected, self._app, envelope=envelope, reason=reason)
        if envelope is None or envelope.lease is None:  # Else the outbox knows what began.
            verdict = replace(verdict, host_id=state.replay_guard.host_id)
        headers = [(VERDICT_HEADER, signing.sign_verdict(token, verdict))]
        if verdict.outcome is Outcome.BUSY:
            headers.append(("Retry-After", "1"))
        return _answer(start_response, STATUS[verdict.outcome], headers)

    def _run(
        self, attempt: Attempt, token: bytes, issued_at: float, environ: WSGIEnvironment
    ) -> Verdict:
        slots = self._slots[os.getpid()]
        slot = slots.take(attempt.timeout)
        if slot is None:
            return Verdict(Outcome.BUSY, "'ASYNC_HOOKS_CONCURRENCY' allows no more runs at once.")
        attempt.slot = slot
        try:
            if attempt.envelope.lease is None:  # Else the outbox knows whether it began.
                attempt.state.replay_guard.consume(token, issued_at)
            elif attempt.state.relay is not None and is_served(environ):
                attempt.state.relay.attend()
            return execute(attempt, self._wsgi_app, environ)
        finally:
            slots.give_back(slot)


class _Slots:
    """How many runs the endpoint of one process takes at once: ``limit``.

    One more for each that is overdue, at most as many more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._taken: set[Slot] = set()

    def take(self, timeout: float) -> Slot | None:
        """Return a slot for a run that may take ``timeout`` seconds, None if all are taken."""
        now = time.monotonic()
        slot = Slot(now + timeout)
        with self._lock:
            overdue = sum(taken.until <= now for taken in self._taken)
            if len(self._taken) >= self._limit + min(overdue, self._limit):
                return None
            self._taken.add(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        with self._lock:
            self._taken.remove(slot)


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


def _answer(
    start_response: StartResponse, status: int, headers: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    lines = [*headers]
    if status != 204:
        lines.append(("Content-Length", "0"))
    if status == 405:
        lines.append(("Allow", "POST"))
    start_response(f"{status} {HTTPStatus(status).phrase}", lines)
    return [b""]  # Because hypercorn sends the head with the first chunk only.
