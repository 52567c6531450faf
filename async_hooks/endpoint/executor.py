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

from ..context import admits
from ..current import current_attempt
from ..envelope import DISCARDED, FINISHED, holds_of
from ..errors import OutboxUnavailable
from ..log import ids
from ..raised import Discard, Retry
from ..receivers import awaited, explain_shared_name, find_receiver
from ..signals import send, send_in_context, task_failed, task_started, task_succeeded
from ..task import AsyncTask
from ..texts import log_exception
from ..verdict import Outcome, Verdict
from ..wsgi import is_from_keyboard
from .attempt import ATTEMPT, ENDPOINT, GOES_ON, PING, Attempt, unconnected
from .completion import complete
from .expiry import too_old_to_begin
from .fresh_request import Answered, fresh_environ, serve
from .interception import exempt, intercepted, not_restored

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger = logging.getLogger("async_hooks")


def execute(attempt: Attempt, wsgi_app: WSGIApplication, environ: WSGIEnvironment) -> Verdict:
    """Begin the attempt, serve its fresh request to the end, and return what became of it."""
    refusal = _begin(attempt)
    if refusal is not None:
        return refusal
    answered, error = Answered(), None
    reset = current_attempt.set(attempt)
    try:
        fresh = fresh_environ(attempt.state.config, attempt.envelope.origin, environ)
        answered = serve(wsgi_app, {**fresh, ATTEMPT: attempt})
    except BaseException as raised:
        if is_from_keyboard(raised):
            raise
        error = raised
    finally:
        current_attempt.reset(reset)
    verdict = Verdict(Outcome.FAILED, "The run ended without an outcome.")
    try:
        attempt.verdict = verdict = _verdict(attempt, answered, error)
    finally:
        attempt.state.process[os.getpid()].finish(attempt.envelope, verdict)
    return verdict


def _begin(attempt: Attempt) -> Verdict | None:
    """Begin this attempt at a delivery, which can be done once; say why not, if not."""
    envelope, store = attempt.envelope, attempt.state.store
    process = attempt.state.process[os.getpid()]
    if envelope.lease is None:
        process.runs.start(envelope, attempt.timeout)
        return None
    if store is None:
        return Verdict(
            Outcome.UNKNOWN, "This process has no outbox. Is its configuration the same?"
        )
    begun = False
    if process.runs.start(envelope, attempt.timeout):
        try:
            begun = store.begin(envelope, process.id if process.is_registered.is_set() else None)
        except OutboxUnavailable as error:
            return Verdict(Outcome.UNWRITTEN, str(error))
        finally:
            if not begun:
                process.runs.forget(envelope)
    if not begun:
        return Verdict(Outcome.REPLAYED, "This attempt already began, or another replaced it.")
    if envelope.rate_key is not None and attempt.state.relay is not None:
        attempt.state.relay.wake(holds_of([envelope]))  # The next has its turn from now on.
    return None


def restore(app: Flask, /, **_: Any) -> None:
    """Make this request the envelope's: its visitor, what it carries, its route."""
    attempt: Attempt | None = request.environ.get(ATTEMPT)
    if attempt is None:
        return
    # The token decided where this goes; no catch-all rule, subdomain or host has a say.
    rule = next(app.url_map.iter_rules(ENDPOINT))
    request.url_rule, request.view_args, request.routing_exception = rule, {}, None
    exempt(app, app.view_functions[ENDPOINT])
    context, user = attempt.state.context, attempt.envelope.user
    try:
        context.restore(app, attempt.envelope.carried)
        context.restore_visitor(app, user)
        attempt.anonymous = user is None or context.visitor(app) is None
    except Exception as error:
        attempt.exception = error
        raise


def run_view() -> Response:
    """Run the envelope of this request; the view behind the endpoint."""
    attempt: Attempt | None = request.environ.get(ATTEMPT)
    if attempt is None:
        abort(404)
    if attempt.envelope.task == PING:
        attempt.verdict = Verdict(Outcome.COMPLETED, _warning(request.environ))
    else:
        _run(attempt)
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
        and not envelope.tells_of_an_end
        and find_receiver(attempt.receivers_of(task), name) is None
    ):
        return Verdict(Outcome.UNKNOWN, unconnected(name, task))
    if envelope.lease is not None and name is None and len(attempt.receivers_of(task)) > 1:
        # Connected since it was launched; its children would not find their own receivers again.
        problem = explain_shared_name(attempt.state, task, anonymous=attempt.anonymous)
        if problem is not None:
            return Verdict(Outcome.UNKNOWN, problem)
    # An end is told whoever is gone meanwhile.
    if not (envelope.tells_of_an_end or admits(task.auth_level, anonymous=attempt.anonymous)):
        return Verdict(Outcome.DISCARDED, "The visitor it was launched for is gone.")
    return too_old_to_begin(attempt) or task


def _run(attempt: Attempt) -> None:
    app, envelope = attempt.state.app, attempt.envelope
    # It has come this far, so whatever escapes from here on is its failure.
    attempt.verdict = Verdict(Outcome.FAILED, "The run ended without an outcome.")
    try:
        task = _resolve(attempt)
        if isinstance(task, Verdict):
            attempt.verdict = task
            return
        send(task_started, app, envelope=envelope)
        data = envelope.data
        running: Any = task()  # Its methods may be asynchronous.
        attempt.launching = True
        try:
            if envelope.receiver == DISCARDED:
                awaited(app, running.discarded(data["data"], data["error"]))
            elif envelope.receiver == FINISHED:
                awaited(app, running.finish(attempt.result_of_root(), data))
            else:
                attempt.result = awaited(app, running.run_action(data))
        finally:
            attempt.launching = False
    except BaseException as error:  # sys.exit and CancelledError are failures like any other.
        attempt.fail(error)
        if attempt.verdict.outcome in GOES_ON:
            what = "Envelope %s: %s"
            logger.info(what, envelope.id, attempt.verdict.error, extra=ids(envelope))
            return
        send(task_failed, app, envelope=envelope, exception=error)
        if not issubclass(type(error), (Retry, Discard)):
            raise  # to the app's error handlers, and to Flask's log
    else:
        attempt.succeed()


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


def _verdict(attempt: Attempt, answered: Answered, error: BaseException | None) -> Verdict:
    where = f"the fresh request of envelope {attempt.envelope.id!r}"
    if error is not None:
        # Flask lets exceptions out in testing and debug, and teardown functions raise.
        # No debugger and no server will show this one.
        log_exception(logger, error, "Exception in %s", where)
    if attempt.verdict is None:
        if attempt.exception is not None:
            return not_restored(where, attempt.exception)
        return intercepted(attempt.state.app, where, answered, error)
    if attempt.verdict.outcome is Outcome.COMPLETED and error is not None:
        # A teardown function raised after all that could still be told in the request.
        attempt.fail(error)
        send_in_context(task_failed, attempt.state.app, envelope=attempt.envelope, exception=error)
    return attempt.verdict
