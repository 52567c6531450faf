"""What happens to an envelope in its fresh request: restore, run, verdict.

A run enters the app as a WSGI call whose environ holds the :class:`Run`. ``restore`` is called
when Flask starts that request, before anything of the app's own; ``execute`` is the view.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, abort, request

from .delivery import Addition, Terms
from .envelope import Envelope
from .errors import AsyncHooksError, DepthExceeded, OutboxUnavailable
from .keeping import finish, keep
from .receivers import call, find_receiver, receivers_of
from .signals import emit, task_failed, task_started, task_succeeded
from .state import State
from .task import (
    DISCARDED,
    AsyncTask,
    Discard,
    Retry,
    admits,
    async_signal,
    is_text,
    ref_of,
)
from .verdict import Outcome, Verdict

#: Where a Run lies in its request's environ. No client can put one there: theirs are strings.
RUN = "async_hooks.run"

#: The route's endpoint, and the task that only asks whether this is the right place.
ENDPOINT = "async_hooks.run"
PING = "async_hooks.ping"

logger = logging.getLogger("async_hooks")


class Run:
    """One attempt at one envelope, from its verification to its verdict."""

    def __init__(self, state: State, envelope: Envelope) -> None:
        self.state = state
        self.envelope = envelope
        self.launching = False
        self.anonymous = True
        self.verdict: Verdict | None = None
        self.exception: BaseException | None = None
        self.result: Any = None
        #: With an outbox: what was launched, and what the run was split into, kept with its end.
        self.additions: list[Addition] = []
        self._budget = envelope.budget
        self._children: set[str] = set()

    @property
    def is_split(self) -> bool:
        """Whether its receivers run elsewhere."""
        return bool(self._children)

    @property
    def is_after_the_end(self) -> bool:
        """Whether it only tells its task that a delivery was discarded."""
        return self.envelope.receiver == DISCARDED

    def fail(self, error: BaseException) -> None:
        """Take ``error`` for what became of the run."""
        self.exception = error
        self.verdict = _verdict_on(error)

    def send(self, task: type[AsyncTask], kwargs: Mapping[str, Any]) -> list[Any]:
        """Reach the receivers of the task's async signal: the only one here, several elsewhere."""
        if not self.launching:
            raise AsyncHooksError("'send' works inside run_action, not after it.")
        receivers = receivers_of(self.state, task, anonymous=self.anonymous)
        if self.envelope.receiver is not None:
            receivers = {self.envelope.receiver: _wanted(receivers, self.envelope.receiver, task)}
        if len(receivers) > 1:
            self._split(receivers)
            return []
        if not receivers and task.run_action is AsyncTask.run_action:
            _report_unheard(self.state, task)
        return [call(self.state.app, receiver, kwargs) for receiver in receivers.values()]

    def spend(self, what: str) -> None:
        if self._budget == 0:
            raise DepthExceeded(
                f"{what} would be one launch too many: what is launched may lead to "
                f"{self.state.config.max_launches} more, as 'ASYNC_HOOKS_MAX_LAUNCHES' allows. "
                "Do tasks launch each other?"
            )
        self._budget -= 1

    def share(self, count: int) -> int:
        share = self._budget // count
        self._budget -= share * count
        return share

    def _split(self, receivers: Mapping[str, Any]) -> None:
        for name in receivers:
            if self.state.ledger is not None and not is_text(name, 255):
                raise AsyncHooksError(
                    f"The receiver's name {name!r} is no text of up to 255 characters. "
                    "Give it one with hooks.receiver(…, name=…)."
                )
            child = self.envelope.for_receiver(name)
            if child.id not in self._children:
                self._children.add(child.id)
                self.spend(f"Receiver {name!r}")
                if self.state.ledger is None:
                    self.state.launcher.hand_over(child)
                else:
                    self.additions.append(Addition(child, self._terms_of_children()))

    def _terms_of_children(self) -> Terms:
        task = self.state.task_of(self.envelope)
        return Terms(task.queue, ref=ref_of(task, self.envelope)) if task else Terms()

    def taken_additions(self, *, with_children: bool) -> list[Addition]:
        """Return, once, what is to be kept, each with its share of the budget."""
        additions, self.additions = self.additions, []
        if not with_children:
            additions = [each for each in additions if each.envelope.parent_id != self.envelope.id]
        if not additions:
            return []
        share = self.share(len(additions))
        return [Addition(each.envelope._replace(budget=share), each.terms) for each in additions]


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
        run.verdict = Verdict(Outcome.UNKNOWN, _unconnected(run.envelope.receiver, task))
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
    emit(task_started, app, envelope=envelope)
    try:
        run.launching = True
        try:
            run.result = _call(task(), run)
        finally:
            run.launching = False
    except BaseException as error:  # sys.exit and CancelledError are failures like any other.
        run.fail(error)
        emit(task_failed, app, envelope=envelope, exception=error)
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
        emit(task_failed, app, envelope=envelope, exception=error)
    if run.state.ledger is not None:
        keep(run, run.state.ledger)
    if run.verdict.outcome is Outcome.COMPLETED:
        emit(task_succeeded, app, envelope=envelope, result=run.result)
        if run.verdict.is_kept or envelope.lease is None:
            finish(run)


def _verdict_on(error: BaseException) -> Verdict:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Retry):
        return Verdict(Outcome.RETRY, text, error.after)
    return Verdict(Outcome.DISCARDED if isinstance(error, Discard) else Outcome.FAILED, text)


def _has_receiver(run: Run, task: type[AsyncTask]) -> bool:
    name = run.envelope.receiver
    # Without an outbox, nobody waits for it.
    if name is None or run.envelope.lease is None or run.is_after_the_end:
        return True
    receivers = receivers_of(run.state, task, anonymous=run.anonymous)
    return find_receiver(receivers, name) is not None


def _wanted(receivers: Mapping[str, Any], name: str, task: type[AsyncTask]) -> Any:
    receiver = find_receiver(receivers, name)
    if receiver is None:
        raise AsyncHooksError(_unconnected(name, task))
    return receiver


def _unconnected(name: str | None, task: type[AsyncTask]) -> str:
    return (
        f"No receiver {name!r} is connected to {async_signal(task.action).name!r}. "
        "Is its module imported by your app factory?"
    )


def _unknown(envelope: Envelope) -> str:
    return (
        f"No task is registered under the name {envelope.task!r}. "
        "Is its module imported by your app factory?"
    )


def _report_unheard(state: State, task: type[AsyncTask]) -> None:
    if task.name not in state.unheard:
        state.unheard.add(task.name)
        logger.warning(
            "Task %r ran and reached no receiver. Connect one to %r, or override run_action.",
            task.name,
            async_signal(task.action).name,
        )


def _exempt_from_csrf(app: Flask) -> None:
    # A token proves more than a CSRF token does. Flask-WTF may be set up after us: ask late.
    exempt = getattr(app.extensions.get("csrf"), "exempt", None)
    if exempt is not None:
        exempt(app.view_functions[ENDPOINT])
