"""What happens to an envelope in its fresh request: restore, run, verdict.

A run enters the app as a WSGI call whose environ holds the :class:`Run`. ``restore`` is called
when Flask starts that request, before anything of the app's own; ``execute`` is the view.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, abort, request

from ..envelope import Envelope
from ..errors import OutboxUnavailable
from ..receivers import find_receiver
from ..signals import send, task_failed, task_started, task_succeeded
from ..task import AsyncTask, Discard, Retry, admits
from ..verdict import Outcome, Verdict
from .attempt import ENDPOINT, PING, RUN, Run, unconnected
from .completion import finish, keep

logger = logging.getLogger("async_hooks")


def begin(run: Run) -> Verdict | None:
    """Begin this attempt at a delivery, which can be done once; say why not, if not."""
    envelope, ledger = run.envelope, run.state.ledger
    if envelope.lease is None:
        return None
    if ledger is None:
        return Verdict(
            Outcome.UNKNOWN, "This process has no outbox. Is it configured as the other?"
        )
    try:
        begun = ledger.begin(envelope)
    except OutboxUnavailable as error:
        return Verdict(Outcome.UNWRITTEN, str(error))
    if not begun:
        return Verdict(Outcome.REPLAYED, "This attempt began before, or another took its place.")
    return None


def restore(app: Flask) -> None:
    """Make this request the envelope's: its visitor, what it carries, its route."""
    run: Run | None = request.environ.get(RUN)
    if run is None:
        return
    # The token decided where this goes; no catch-all rule, subdomain or host has a say.
    rule = next(app.url_map.iter_rules(ENDPOINT))
    request.url_rule, request.view_args, request.routing_exception = rule, {}, None
    _exempt_from_csrf(app)
    context = run.state.context
    context.restore(run.envelope.carried)
    context.restore_visitor(app, run.envelope.user)
    run.anonymous = context.visitor(app) is None


def execute() -> Response:
    """Run the envelope of this request; the view behind the endpoint."""
    run: Run | None = request.environ.get(RUN)
    if run is None:
        abort(404)
    task = run.state.task_of(run.envelope)
    if run.envelope.task == PING:
        run.verdict = Verdict(Outcome.COMPLETED, _warning(request.environ))
    elif task is None:
        run.verdict = Verdict(Outcome.UNKNOWN, _unknown(run.envelope))
    elif not _has_receiver(run, task):
        run.verdict = Verdict(Outcome.UNKNOWN, unconnected(run.envelope.receiver, task))
    elif not admits(task.auth_level, anonymous=run.anonymous):
        run.verdict = Verdict(Outcome.DISCARDED, "The visitor it was launched for is gone.")
    else:
        _attempt(run, task)
    return Response(status=204)


def _warning(environ: Mapping[str, Any]) -> str | None:
    if environ["wsgi.multithread"] or environ["wsgi.multiprocess"]:
        return None
    return (
        "The server has one worker and no threads, so the next visitor waits while a task runs. "
        "Give it threads, e.g. gunicorn -k gthread --threads 8."
    )


def _attempt(run: Run, task: type[AsyncTask]) -> None:
    app, envelope = run.state.app, run.envelope
    send(task_started, app, envelope=envelope)
    try:
        run.launching = True
        try:
            run.result = _call(task(), run)
        finally:
            run.launching = False
    except BaseException as error:  # sys.exit and CancelledError are failures like any other.
        run.fail(error)
        send(task_failed, app, envelope=envelope, exception=error)
        if not isinstance(error, (Retry, Discard)):
            raise  # to the app's error handlers, and to Flask's log
    else:
        run.verdict = Verdict(Outcome.COMPLETED)


def _call(task: AsyncTask, run: Run) -> Any:
    data = run.envelope.data
    if run.is_after_the_end:
        return task.discarded(data["data"], data["error"])
    return task.run_action(data)


def at_teardown(error: BaseException | None) -> None:
    """Say whether the run succeeded: what the app does after a request, e.g. commit, counts."""
    run: Run | None = request.environ.get(RUN)
    if run is None or run.verdict is None or run.envelope.task == PING:
        return
    app, envelope = run.state.app, run.envelope
    if run.verdict.outcome is Outcome.COMPLETED and error is not None:
        run.fail(error)
        send(task_failed, app, envelope=envelope, exception=error)
    if run.state.ledger is not None:
        keep(run, run.state.ledger)
    if run.verdict.outcome is Outcome.COMPLETED:
        send(task_succeeded, app, envelope=envelope, result=run.result)
        if run.verdict.is_recorded or envelope.lease is None:
            finish(run)


def _has_receiver(run: Run, task: type[AsyncTask]) -> bool:
    name = run.envelope.receiver
    # Without an outbox, nobody waits for it.
    if name is None or run.envelope.lease is None or run.is_after_the_end:
        return True
    return find_receiver(run.receivers_of(task), name) is not None


def _unknown(envelope: Envelope) -> str:
    return (
        f"No task is registered under the name {envelope.task!r}. "
        "Is its module imported by your app factory?"
    )


def _exempt_from_csrf(app: Flask) -> None:
    # A token proves more than a CSRF token does. Flask-WTF may be set up after us: ask late.
    exempt = getattr(app.extensions.get("csrf"), "exempt", None)
    if exempt is not None:
        exempt(app.view_functions[ENDPOINT])
