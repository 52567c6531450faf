"""An envelope in its fresh request: begin, restore, resolve, run, complete, verdict.

A run enters the app as a WSGI call whose environ holds the :class:`Run`. :func:`execute` begins it
and returns its verdict; in between, while the app serves the request, Flask calls the other three.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, abort, request

from ..context import admits, current_run
from ..errors import OutboxUnavailable
from ..receivers import find_receiver
from ..signals import send, send_in_context, task_failed, task_started, task_succeeded
from ..task import AsyncTask, Discard, Retry
from ..verdict import Outcome, Verdict
from ..wsgi import is_from_keyboard
from .attempt import ENDPOINT, PING, RUN, Run, unconnected
from .completion import complete, finish
from .fresh_request import freshen, serve

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger = logging.getLogger("async_hooks")


def execute(run: Run, wsgi_app: WSGIApplication, environ: WSGIEnvironment) -> Verdict:
    """Begin the attempt, serve its fresh request to the end, and return what became of it."""
    refusal = _begin(run)
    if refusal is not None:
        return refusal
    freshen(environ, run.envelope.origin)
    environ[RUN] = run
    status, error = "", None
    reset = current_run.set(run)
    try:
        status = serve(wsgi_app, environ)
    except BaseException as raised:
        if is_from_keyboard(raised):
            raise
        error = raised
    finally:
        current_run.reset(reset)
    run.verdict = _verdict(run, status, error)
    if run.envelope.lease is not None:
        run.state.process[os.getpid()].finish(run.envelope, run.verdict)
    return run.verdict


def _begin(run: Run) -> Verdict | None:
    """Begin this attempt at a delivery, which can be done once; say why not, if not."""
    envelope, store = run.envelope, run.state.store
    if envelope.lease is None:
        return None
    if store is None:
        return Verdict(
            Outcome.UNKNOWN, "This process has no outbox. Is it configured as the other?"
        )
    process = run.state.process[os.getpid()]
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
        return Verdict(Outcome.REPLAYED, "This attempt began before, or another took its place.")
    return None


def restore(app: Flask, /, **_: Any) -> None:
    """Make this request the envelope's: its visitor, what it carries, its route."""
    run: Run | None = request.environ.get(RUN)
    if run is None:
        return
    # The token decided where this goes; no catch-all rule, subdomain or host has a say.
    rule = next(app.url_map.iter_rules(ENDPOINT))
    request.url_rule, request.view_args, request.routing_exception = rule, {}, None
    # A token proves more than a CSRF token does. Flask-WTF may be set up after us: ask late.
    exempt = getattr(app.extensions.get("csrf"), "exempt", None)
    if exempt is not None:
        exempt(app.view_functions[ENDPOINT])
    context = run.state.context
    context.restore(run.envelope.carried)
    context.restore_visitor(app, run.envelope.user)
    run.anonymous = context.visitor(app) is None


def run_view() -> Response:
    """Run the envelope of this request; the view behind the endpoint."""
    run: Run | None = request.environ.get(RUN)
    if run is None:
        abort(404)
    if run.envelope.task == PING:
        run.verdict = Verdict(Outcome.COMPLETED, _warning(request.environ))
    elif isinstance(resolved := _resolve(run), Verdict):
        run.verdict = resolved
    else:
        _run(run, resolved)
    return Response(status=204)


def _warning(environ: Mapping[str, Any]) -> str | None:
    if environ["wsgi.multithread"] or environ["wsgi.multiprocess"]:
        return None
    return (
        "The server has one worker and no threads, so the next visitor waits while a task runs. "
        "Give it threads, e.g. gunicorn -k gthread --threads 8."
    )


def _resolve(run: Run) -> type[AsyncTask] | Verdict:
    """Return the task to run, or the verdict on an envelope that can't or must not run here."""
    envelope, task = run.envelope, run.task
    if task is None:
        error = f"No task is registered under the name {envelope.task!r}. "
        return Verdict(Outcome.UNKNOWN, error + "Is its module imported by your app factory?")
    if (
        (name := envelope.receiver) is not None
        and envelope.lease is not None  # Without an outbox, nobody waits for a receiver.
        and not run.is_after_the_end
        and find_receiver(run.receivers_of(task), name) is None
    ):
        return Verdict(Outcome.UNKNOWN, unconnected(name, task))
    if not admits(task.auth_level, anonymous=run.anonymous):
        return Verdict(Outcome.DISCARDED, "The visitor it was launched for is gone.")
    return task


def _run(run: Run, task: type[AsyncTask]) -> None:
    app, envelope = run.state.app, run.envelope
    send(task_started, app, envelope=envelope)
    try:
        data = envelope.data
        run.launching = True
        try:
            if run.is_after_the_end:
                task().discarded(data["data"], data["error"])
            else:
                run.result = task().run_action(data)
        finally:
            run.launching = False
    except BaseException as error:  # sys.exit and CancelledError are failures like any other.
        run.fail(error)
        send(task_failed, app, envelope=envelope, exception=error)
        if not isinstance(error, (Retry, Discard)):
            raise  # to the app's error handlers, and to Flask's log
    else:
        run.verdict = Verdict(Outcome.COMPLETED)


def at_teardown(error: BaseException | None) -> None:
    """Say whether the run succeeded: what the app does after a request, e.g. commit, counts."""
    run: Run | None = request.environ.get(RUN)
    if run is None or run.verdict is None or run.envelope.task == PING:
        return
    app, envelope = run.state.app, run.envelope
    if run.verdict.outcome is Outcome.COMPLETED and error is not None:
        run.fail(error)
        send(task_failed, app, envelope=envelope, exception=error)
    if run.state.store is not None:
        complete(run)
    if run.verdict.outcome is Outcome.COMPLETED:
        send(task_succeeded, app, envelope=envelope, result=run.result)
        if run.verdict.is_recorded or envelope.lease is None:
            finish(run)


def _verdict(run: Run, status: str, error: BaseException | None) -> Verdict:
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
        send_in_context(task_failed, run.state.app, envelope=run.envelope, exception=error)
    return run.verdict
