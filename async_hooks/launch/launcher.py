"""The first end of the movement: a signal is sent, and an envelope is made of it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from flask import Flask, current_app

from ..config import Config
from ..context import RunningTask, current_run, origin
from ..delivery import Addition, Terms
from ..envelope import Envelope, new_id
from ..errors import AsyncHooksError, ConfigError, DataError, DepthExceeded, OutboxUnavailable
from ..log import one_line
from ..registry import AppBound, Registry
from ..signals import send, task_failed, task_launched
from ..snapshot import plain, snapshot
from ..state import KEY, State, state_of
from ..task import AsyncTask, Auth, LaunchOptions, SkipTask, admits, ref_of
from ..validation import checked, delay_seconds, is_text, priority_number, queue_name
from .after_response import hand_over, wake

logger = logging.getLogger("async_hooks")


class Trigger(AppBound):
    """What is connected to a task's action: launches it, in an app that has the task."""

    def __init__(self, task: type[AsyncTask], tasks: Registry[type[AsyncTask]]) -> None:
        super().__init__(task.name, tasks)
        self._task = task
        self._reported = False

    def __call__(self, sender: Any, /, **kwargs: Any) -> str | None:
        """Launch, and return the envelope's id; None where there is nothing to launch."""
        try:
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        except RuntimeError:
            self._report_no_context()
            return None
        state: State | None = app.extensions.get(KEY)
        if state is None or not self.is_for(state.tasks):
            return None
        run = current_run.get(None)
        if run is not None and not run.launching:
            return None
        return _trigger(state, self._task, sender, kwargs)

    def _report_no_context(self) -> None:
        if not self._reported:
            self._reported = True
            logger.error(
                "The action of task %r was sent outside of an application context, so it was not "
                "launched. Send it inside 'with app.app_context():'.",
                self.name,
            )


def _trigger(
    state: State, task: type[AsyncTask], sender: Any, kwargs: Mapping[str, Any]
) -> str | None:
    envelope_id = new_id()
    try:
        user = _visitor(state, task)
        if not admits(task.auth_level, anonymous=user is None):
            return None
        data = task().prepare_data(sender, **kwargs)
        envelope = _envelope(state, task, data, user, task.priority, envelope_id)
        terms = _terms(task, envelope, LaunchOptions()) if state.ledger is not None else _NO_TERMS
    except SkipTask:
        return None
    except Exception as error:
        # Attempt 0: it never got as far as a first one.
        failed = Envelope(id=envelope_id, task=task.name, body="null", attempt=0)
        send(task_failed, state.app, envelope=failed, exception=error)
        if _propagates(state.app):
            raise
        return None
    return _launch(state, Addition(envelope, terms))


class Launcher:
    """Launches for one app."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def dispatch(
        self,
        task: type[AsyncTask],
        data: Mapping[str, Any],
        *,
        priority: int | None,
        user: Any,
        options: LaunchOptions,
    ) -> str:
        state = state_of(self._app)
        registered: type[AsyncTask] | None = state.tasks.newest(task)
        if registered is None:
            raise ConfigError(
                f"Task {task.name!r} is not registered for {self._app.name!r}. "
                "Decorate it with @hooks.register."
            )
        task = registered
        run = current_run.get(None)
        if run is not None and not run.launching:
            raise AsyncHooksError(
                f"Task {task.name!r} was dispatched in the fresh request of another, outside its "
                "run_action. Dispatch it where async_hooks.current_envelope is false."
            )
        if priority is not None:
            checked(priority_number, priority, "priority", where=task.name)
        if user is None:
            user = _visitor(state, task)
        if not admits(task.auth_level, anonymous=user is None):
            raise AsyncHooksError(
                f"Task {task.name!r} launches for {task.auth_level!r} visitors only. "
                "Name the visitor with dispatch(…, user=id), or widen its 'auth_level'."
            )
        priority = task.priority if priority is None else priority
        envelope = _envelope(state, task, data, user, priority, new_id())
        terms = _terms(task, envelope, options) if state.ledger is not None else _NO_TERMS
        return _launch(state, Addition(envelope, terms))

    def hand_over(self, envelope: Envelope) -> None:
        hand_over(self._app, envelope)

    def keep(self, additions: Sequence[Addition]) -> None:
        keep(state_of(self._app), additions)


def _envelope(
    state: State,
    task: type[AsyncTask],
    data: Mapping[str, Any],
    user: Any,
    priority: int,
    envelope_id: str,
) -> Envelope:
    config = state.config
    if state.ledger is None and not state.is_reachable():
        raise ConfigError(
            "'ASYNC_HOOKS_URL' is not set, no request has shown yet where this app listens, and "
            "'ASYNC_HOOKS_FALLBACK' is None. Set one of them."
        )
    run = current_run.get(None)
    if run is not None:
        _check_depth(task, run.envelope, config)
        run.spend(f"Task {task.name!r}")
    # What travels beside the data counts as well: the endpoint limits the whole.
    visitor = plain(user, "user")
    carried = state.context.capture(config.max_bytes)
    beside = len(carried) + (len(str(visitor)) if visitor is not None else 0)
    return Envelope(
        id=envelope_id,
        task=task.name,
        body=snapshot(data, max_bytes=config.max_bytes - beside),
        depth=run.envelope.depth + 1 if run is not None else 0,
        budget=config.max_launches,
        user=visitor,
        carried=carried,
        origin=origin(state.app),
        priority=priority,
    )


def _check_depth(task: type[AsyncTask], parent: Envelope, config: Config) -> None:
    if parent.depth >= config.max_depth:
        raise DepthExceeded(
            f"Task {task.name!r} was launched {parent.depth + 1} runs deep; "
            f"'ASYNC_HOOKS_MAX_DEPTH' allows {config.max_depth}. Does it launch itself?"
        )


def _launch(state: State, addition: Addition) -> str:
    """Send the envelope on its way: into the outbox if there is one, else into memory."""
    envelope, terms = addition
    if terms.unique_key is not None:
        envelope = envelope._replace(is_awaited=True)
        addition = Addition(envelope, terms)
    if state.ledger is None:
        send(task_launched, state.app, envelope=envelope)
        state.launcher.hand_over(envelope)
        return envelope.id
    run = current_run.get(None)
    if state.ledger.joins or run is not None:
        if terms.unique_key is not None:
            winner = _own(run, terms.unique_key) or state.ledger.unfinished(terms.unique_key)
            if winner is not None:
                return winner
        # Kept when the app's transaction commits, or with the run's completion.
        if state.ledger.joins:
            state.ledger.join(addition)
        elif run is not None:
            run.additions.append(addition)
    else:
        winner = keep(state, [addition]).get(envelope.id)
        if winner is not None:
            return winner
    send(task_launched, state.app, envelope=envelope)
    return envelope.id


def _own(run: RunningTask | None, unique_key: str) -> str | None:
    """Return the id of what this run has launched under ``unique_key``."""
    launched = run.additions if run is not None else ()
    same = (each.envelope.id for each in launched if each.terms.unique_key == unique_key)
    return next(same, None)


def keep(state: State, additions: Sequence[Addition]) -> Mapping[str, str]:
    """Add to the outbox what nothing of the app's own is committed with, and let it be carried.

    Return the winners' ids for those whose unique key was taken.

    :raises OutboxUnavailable: if it is down, unless 'ASYNC_HOOKS_OUTBOX_DOWN' says otherwise.
    """
    assert state.ledger is not None  # noqa: S101 - asked by all who come here
    only = additions[0].envelope if len(additions) == 1 else None
    is_due = only is not None and additions[0].terms.run_at is None
    queue = additions[0].terms.queue
    leased = state.relay.reserve(only, queue) if only is not None and is_due else None
    try:
        lost = state.ledger.add(additions, lease=leased.lease if leased is not None else None)
    except OutboxUnavailable as error:
        if leased is not None:
            state.relay.release(leased)
        if state.config.outbox_down is None:
            raise
        logger.error("What is launched now goes unkept, by loopback: %s", one_line(error))
        for addition in additions:
            state.launcher.hand_over(addition.envelope)
        return {}
    if leased is None:
        wake(state.app)
    elif leased.id in lost:
        state.relay.release(leased)
    else:
        state.launcher.hand_over(leased)
    return lost


#: Of a launch without an outbox.
_NO_TERMS = Terms()


def _terms(task: type[AsyncTask], envelope: Envelope, options: LaunchOptions) -> Terms:
    """Return what the delivery keeps beside its envelope.

    :raises ConfigError: for a wish that can't be had.
    """
    if not is_text(task.name, 255):
        raise ConfigError(f"{task.name!r}: an outbox keeps names of up to 255 characters.")
    delay = checked(delay_seconds, options.delay or task.delay, "delay", where=task.name)
    queue = task.queue if options.queue is None else options.queue
    checked(queue_name, queue, "queue", where=task.name)
    run_at: float | None = time.time() + delay if delay else None
    if options.run_at is not None:
        if options.delay:
            raise ConfigError(f"{task.name!r}: 'delay' and 'run_at' exclude each other.")
        moment = options.run_at
        run_at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    key = options.unique_key
    if key is None and task.unique_key is not AsyncTask.unique_key:
        key = task().unique_key(envelope.data)
    digest = None if key is None else _digest(task, key)
    return Terms(queue, run_at, digest, ref_of(task, envelope))


def _digest(task: type[AsyncTask], key: str) -> str:
    if not isinstance(key, str):
        raise DataError(f"The unique_key of task {task.name!r} is no text: {key!r}")
    text = f"{task.name}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def _visitor(state: State, task: type[AsyncTask]) -> Any:
    if task.auth_level == Auth.LOGGED_IN and not state.context.knows_visitors(state.app):
        raise ConfigError(
            f"Task {task.name!r} is for logged-in visitors, but nothing tells who is logged in. "
            "Set up Flask-Login, or call hooks.identity(capture, restore)."
        )
    return state.context.visitor(state.app)


def _propagates(app: Flask) -> bool:
    propagate = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing or app.debug if propagate is None else propagate)
