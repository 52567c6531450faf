"""An envelope in its fresh request: begin, restore, resolve, run, complete, verdict.

An attempt enters the app as a WSGI call whose environ holds it. :func:`execute` begins it and
returns its verdict; in between, while the app serves the request, Flask calls the other three.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, abort, request

from ..context import admits, current_attempt
from ..errors import OutboxUnavailable
from ..receivers import explain_shared_name, find_receiver
from ..signals import send, send_in_context, task_failed, task_started, task_succeeded
from ..task import AsyncTask, Discard, Retry
from ..verdict import Outcome, Verdict
from ..wsgi import is_from_keyboard
from .attempt import ATTEMPT, ENDPOINT, PING, Attempt, unconnected
from .completion import complete, finish
from .fresh_request import freshen, serve

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger = logging.getLogger("async_hooks")


def execute(attempt: Attempt, wsgi_app: WSGIApplication, environ: WSGIEnvironment) -> Verdict:
    """Begin the attempt, serve its fresh request to the end, and return what became of it."""
    refusal = _begin(attempt)
    if refusal is not None:
        return refusal
    freshen(environ, attempt.envelope.origin)
    environ[ATTEMPT] = attempt
    status, error = "", None
    reset = current_attempt.set(attempt)
    try:
        status = serve(wsgi_app, environ)
    except BaseException as raised:
        if is_from_keyboard(raised):
            raise
        error = raised
    finally:
        current_attempt.reset(reset)
    attempt.verdict = _verdict(attempt, status, error)
    if attempt.envelope.lease is not None:
        attempt.state.process[os.getpid()].finish(attempt.envelope, attempt.verdict)
    return attempt.verdict


def _begin(attempt: Attempt) -> Verdict | None:
    """Begin this attempt at a delivery, which can be done once; say why not, if not."""
    envelope, store = attempt.envelope, attempt.state.store
    if envelope.lease is None:
        return None
    if store is None:
        return Verdict(
            Outcome.UNKNOWN, "This process has no outbox. Is its configuration the same?"
        )
    process = attempt.state.process[os.getpid()]
    begun = False
    if process.start(envelope):
        try:
            begun = store.begin(envelope, process.id if process.is_registered.is_set() else None)
        except OutboxUnavailable as error:
            return Verdict(Outcome.UNWRITTEN, str(error))
        finally:
            if not begun:
                process.forget(envelope)
    if not begun:
        return Verdict(Outcome.REPLAYED, "This attempt already began, or another replaced it.")
    return None


def restore(app: Flask, /, **_: Any) -> None:
    """Make this request the envelope's: its visitor, what it carries, its route."""
    attempt: Attempt | None = request.environ.get(ATTEMPT)
    if attempt is None:
        return
    # The token decided where this goes; no catch-all rule, subdomain or host has a say.
    rule = next(app.url_map.iter_rules(ENDPOINT))
    request.url_rule, request.view_args, request.routing_exception = rule, {}, None
    # A token proves more than a CSRF token does. Flask-WTF may be set up after us: ask late.
    exempt = getattr(app.extensions.get("csrf"), "exempt", None)
    if exempt is not None:
        exempt(app.view_functions[ENDPOINT])
    context = attempt.state.context
    context.restore(attempt.envelope.carried)
    context.restore_visitor(app, attempt.envelope.user)
    attempt.anonymous = context.visitor(app) is None


def run_view() -> Response:
    """Run the envelope of this request; the view behind the endpoint."""
    attempt: Attempt | None = request.environ.get(ATTEMPT)
    if attempt is None:
        abort(404)
    if attempt.envelope.task == PING:
        attempt.verdict = Verdict(Outcome.COMPLETED, _warning(request.environ))
    elif isinstance(resolved := _resolve(attempt), Verdict):
        attempt.verdict = resolved
    else:
        _run(attempt, resolved)
    return Response(status=204)


def _warning(environ: Mapping[str, Any]) -> str | None:
    if environ["wsgi.multithread"] or environ["wsgi.multiprocess"]:
        return None
    return (
        "The server has one worker and no threads, so the next visitor waits while a task runs. "
        "Give it threads, e.g. gunicorn -k gthread --threads 8."
    )


def _resolve(attempt: Attempt) -> type[AsyncTask] | Verdict:
    """Return the task to run, or the verdict on an envelope that can't or must not run here."""
    envelope, task = attempt.envelope, attempt.task
    if task is None:
        error = f"No task is registered under the name {envelope.task!r}. "
        return Verdict(Outcome.UNKNOWN, error + "Is its module imported by your app factory?")
    if (
        (name := envelope.receiver) is not None
        and envelope.lease is not None  # Without an outbox, nobody waits for a receiver.
        and not attempt.is_after_the_end
        and find_receiver(attempt.receivers_of(task), name) is None
    ):
        return Verdict(Outcome.UNKNOWN, unconnected(name, task))
    if envelope.lease is not None and name is None and len(attempt.receivers_of(task)) > 1:
        # Connected since it was launched; its children would not find their own receivers again.
        problem = explain_shared_name(attempt.state, task, anonymous=attempt.anonymous)
        if problem is not None:
            return Verdict(Outcome.UNKNOWN, problem)
    if not admits(task.auth_level, anonymous=attempt.anonymous):
        return Verdict(Outcome.DISCARDED, "The visitor it was launched for is gone.")
    return task


def _run(attempt: Attempt, task: type[AsyncTask]) -> None:
    app, envelope = attempt.state.app, attempt.envelope
    send(task_started, app, envelope=envelope)
    try:
        data = envelope.data
        attempt.launching = True
        try:
            if attempt.is_after_the_end:
                task().discarded(data["data"], data["error"])
            else:
                attempt.result = task().run_action(data)
        finally:
            attempt.launching = False
    except BaseException as error:  # sys.exit and CancelledError are failures like any other.
        attempt.fail(error)
        send(task_failed, app, envelope=envelope, exception=error)
        if not isinstance(error, (Retry, Discard)):
            raise  # to the app's error handlers, and to Flask's log
    else:
        attempt.verdict = Verdict(Outcome.COMPLETED)


def at_teardown(error: BaseException | None) -> None:
    """Say whether the run succeeded: what the app does after a request, e.g. commit, counts."""
    attempt: Attempt | None = request.environ.get(ATTEMPT)
    if attempt is None or attempt.verdict is None or attempt.envelope.task == PING:
        return
    app, envelope = attempt.state.app, attempt.envelope
    if attempt.verdict.outcome is Outcome.COMPLETED and error is not None:
        attempt.fail(error)
        send(task_failed, app, envelope=envelope, exception=error)
    if attempt.state.store is not None:
        complete(attempt)
    if attempt.verdict.outcome is Outcome.COMPLETED:
        send(task_succeeded, app, envelope=envelope, result=attempt.result)
        if attempt.verdict.is_recorded or envelope.lease is None:
            finish(attempt)


def _verdict(attempt: Attempt, status: str, error: BaseException | None) -> Verdict:
    where = f"the fresh request of envelope {attempt.envelope.id!r}"
    if error is not None:
        # Flask lets exceptions out in testing and debug, and teardown functions raise.
        # No debugger and no server will show this one.
        logger.error("Exception in %s", where, exc_info=error)
    if attempt.verdict is None:
        what = f"raised {type(error).__name__}" if error else f"answered {status}"
        return Verdict(
            Outcome.INTERCEPTED,
            f"The app {what} before {where} reached its task. Does a before_request stand in "
            "the way? Let it pass when async_hooks.current_envelope is true.",
        )
    if attempt.verdict.outcome is Outcome.COMPLETED and error is not None:
        # A teardown function raised after all that could still be told in the request.
        attempt.fail(error)
        send_in_context(task_failed, attempt.state.app, envelope=attempt.envelope, exception=error)
    return attempt.verdict
