"""In process: a fresh request through the app's own WSGI entry, in an empty context."""

from __future__ import annotations

import contextvars
import time

from flask import Flask

from ..endpoint.attempt import ATTEMPT, Attempt
from ..endpoint.fresh_request import fresh_environ, serve
from ..envelope import Envelope
from ..state import state_of
from ..verdict import Outcome, Verdict


class InProcess:
    """Runs an envelope in the calling thread, which sees nothing of its caller's context."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def send(self, envelope: Envelope) -> Verdict:
        return _verdict_of(self._run(envelope))

    def _run(self, envelope: Envelope) -> Attempt:
        state = state_of(self._app)
        attempt = Attempt(state, envelope)
        environ = fresh_environ(state.config, envelope.origin)
        environ[ATTEMPT] = attempt
        contextvars.Context().run(serve, self._app.wsgi_app, environ)
        return attempt


class Eager(InProcess):
    """Runs an envelope at once, as a token that was signed and verified; for tests."""

    def send(self, envelope: Envelope) -> Verdict:
        """Return the verdict; raise what ``run_action`` or a receiver raised."""
        state = state_of(self._app)
        now = time.time()
        token = state.signing.sign(envelope, now=now)
        arrived, _ = state.signing.verify(token, now=now, max_age=state.config.max_age)
        attempt = self._run(arrived)
        if attempt.exception is not None:
            raise attempt.exception
        return _verdict_of(attempt)


def _verdict_of(attempt: Attempt) -> Verdict:
    if attempt.verdict is None:
        return Verdict(
            Outcome.INTERCEPTED,
            "A WSGI middleware answered before the app did. If it demands a login or a header, set "
            "'ASYNC_HOOKS_AUTH' or 'ASYNC_HOOKS_HEADERS'.",
        )
    return attempt.verdict
