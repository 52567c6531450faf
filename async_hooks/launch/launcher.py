"""The launcher: it turns what a task launches with into an envelope, and sends that on its way."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..context import admits, origin
from ..current import RunningTask, current_attempt
from ..declarations import check_options
from ..endpoint.attempt import children_of
from ..envelope import Envelope, new_id
from ..errors import AsyncHooksError, ConfigError, DataError, OutboxUnavailable
from ..log import one_line
from ..receivers import receivers_of, refuse_shared_names
from ..signals import send, task_launched
from ..snapshot import plain, snapshot
from ..state import State
from ..task import AsyncTask, Auth, LaunchOptions
from ..texts import repr_of
from ..validation import is_text, seconds_or_zero
from .after_response import after_response

logger = logging.getLogger("async_hooks")


def dispatch(
    state: State,
    task: type[AsyncTask],
    data: Mapping[str, Any],
    *,
    user: Any,
    options: LaunchOptions,
) -> str:
    """Launch ``task`` with ``data`` as :meth:`.AsyncTask.dispatch` promises, and return the id."""
    check_options(task, options, has_outbox=state.config.outbox is not None)
    registered: type[AsyncTask] | None = state.tasks.newest(task)
    if registered is None:
        raise ConfigError(
            f"Task {task.name!r} is not registered for {state.app.name!r}. "
            "Decorate it with @hooks.register."
        )
    attempt = attempt_of(state)
    if attempt is not None and not attempt.launching:
        raise AsyncHooksError(
            f"Task {task.name!r} was dispatched in the fresh request of another, outside its "
            "run_action. Dispatch it where async_hooks.current_envelope is false."
        )
    if user is None:
        user = visitor_for(state, registered)
    if not admits(registered.auth_level, anonymous=user is None):
        raise AsyncHooksError(
            f"Task {task.name!r} launches for {registered.auth_level!r} visitors only. "
            "Name the visitor with dispatch(…, user=id), or widen its 'auth_level'."
        )
    envelope = envelope_for(state, attempt, registered, data, user, new_id(), options)
    return launch(state, attempt, envelope)


def attempt_of(state: State) -> RunningTask | None:
    """Return the attempt that this context belongs to, if it is one of this app."""
    attempt = current_attempt.get(None)
    return attempt if attempt is not None and attempt.state.app is state.app else None


def visitor_for(state: State, task: type[AsyncTask]) -> Any:
    """Return whom ``task`` shall run as, None for nobody.

    :raises ConfigError: if it wants somebody logged in, and nothing tells who that is.
    """
    if task.auth_level == Auth.LOGGED_IN and not state.context.knows_visitors(state.app):
        raise ConfigError(
            f"Task {task.name!r} is for logged-in visitors, but nothing tells who is logged in. "
            "Set up Flask-Login, or call hooks.identity(capture, restore)."
        )
    return state.context.captured_visitor(state.app, task.auth_level)


def envelope_for(
    state: State,
    attempt: RunningTask | None,
    task: type[AsyncTask],
    data: Mapping[str, Any],
    user: Any,
    envelope_id: str,
    options: LaunchOptions = LaunchOptions(),  # noqa: B008 - a value
) -> Envelope:
    """Return what carries a launch of ``task`` with ``data`` for ``user``."""
    if state.store is None and not state.is_reachable():
        raise ConfigError(
            "'ASYNC_HOOKS_URL' is not set, no request has shown yet where this app listens, and "
            "'ASYNC_HOOKS_FALLBACK' is None. Set one of them."
        )
    refuse_shared_names(state, task)
    if attempt is not None:
        attempt.count_launch(task)
    # What travels beside the data counts as well: the endpoint limits the whole.
    max_bytes = state.config.max_bytes
    carried, where = state.context.capture(state.app, max_bytes), origin(state.app)
    visitor = plain(user, "user")
    beside = len(carried) + (len(str(visitor)) if visitor is not None else 0)
    envelope = Envelope(
        id=envelope_id,
        task=task.name,
        body=snapshot(data, max_bytes=max_bytes - beside),
        depth=attempt.envelope.depth + 1 if attempt is not None else 0,
        user=visitor,
        carried=carried,
        origin=where,
        priority=task.priority if options.priority is None else options.priority,
    )
    if state.store is None:
        return envelope
    return _with_options(task, envelope, options, state.store.now)


def _with_options(
    task: type[AsyncTask], envelope: Envelope, options: LaunchOptions, now: Callable[[], float]
) -> Envelope:
    """Return ``envelope`` with what an outbox keeps of it.

    :raises ConfigError: for options that exclude each other, or too long a name.
    :raises DataError: for a key or a ref that can't be kept.
    """
    if not is_text(task.name, 255):
        raise ConfigError(f"{task.name!r}: an outbox keeps names of up to 255 characters.")
    delay, run_at = options.delay or task.delay, None
    if delay:
        run_at = now() + seconds_or_zero(delay)
    if options.run_at is not None:
        if options.delay:
            raise ConfigError(f"{task.name!r}: 'delay' and 'run_at' exclude each other.")
        run_at = options.run_at.timestamp()
    key, ref = options.unique_key, None
    if key is None and task.unique_key is not AsyncTask.unique_key:
        key = task().unique_key(envelope.data)
    if task.ref is not AsyncTask.ref:
        ref = task().ref(envelope.data)
        if ref is not None and not is_text(ref, 255):
            raise DataError(f"The ref of task {task.name!r} is no text of up to 255 characters.")
    return envelope._replace(
        queue=task.queue if options.queue is None else options.queue,
        run_at=run_at,
        unique_key=None if key is None else _digest(task, key),
        ref=ref,
        finishes=task.finish is not AsyncTask.finish,
    )


def _digest(task: type[AsyncTask], key: str) -> str:
    if not isinstance(key, str):
        raise DataError(f"The unique_key of task {task.name!r} is no text: {repr_of(key)}")
    text = f"{task.name}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def launch(state: State, attempt: RunningTask | None, envelope: Envelope) -> str:
    """Send ``envelope`` into the outbox if there is one, else into memory; return its id.

    Return another's id where that waits with the same unique key.
    """
    key, winner, parts = envelope.unique_key, None, _parts(state, envelope)
    if state.store is None:
        send(task_launched, state.app, envelope=envelope)
        hand_over(state, envelope)
        return envelope.id
    if state.session is None and attempt is None:
        winner = add(state, parts).get(envelope.id)
    elif key is not None:
        additions = () if attempt is None else attempt.additions
        own = {each.unique_key: each.id for each in additions}
        winner = own.get(key) or (state.session or state.store).unfinished(key)
    if winner is not None:
        return winner
    # Added when the app's transaction commits, or with the run's completion.
    if state.session is not None:
        for part in parts:
            state.session.add(part)
    elif attempt is not None:
        attempt.additions += parts
    send(task_launched, state.app, envelope=envelope)
    return envelope.id


def _parts(state: State, envelope: Envelope) -> list[Envelope]:
    """Return the rows of a launch: itself, and its children if it can be split already."""
    task: Any = state.tasks.find(envelope.task)
    has_time = envelope.run_at is not None  # Who receives is decided then.
    if state.store is None or has_time or task.run_action is not AsyncTask.run_action:
        return [envelope]
    receivers = receivers_of(state, task, anonymous=envelope.user is None)
    if len(receivers) < 2:
        return [envelope]
    return [envelope, *children_of(state, envelope, receivers)]


def hand_over(state: State, envelope: Envelope) -> None:
    """Hand ``envelope``, which only memory has, over after this request's response."""
    after_response(state.app, partial(state.memory.submit, envelope), priority=envelope.priority)


def add(state: State, envelopes: Sequence[Envelope]) -> Mapping[str, str]:
    """Add to the outbox what nothing of the app's own is committed with, and wake the relays.

    Return the winners' ids for those whose unique key was taken.

    :raises OutboxUnavailable: if it is down, unless 'ASYNC_HOOKS_OUTBOX_DOWN' says otherwise.
    """
    assert state.store is not None  # noqa: S101 - asked by all who come here
    try:
        lost = state.store.add(envelopes)
    except OutboxUnavailable as error:
        if state.config.outbox_down is None:
            raise
        logger.error("Launches go by loopback, not recorded: %s", one_line(error))
        added = {envelope.id for envelope in envelopes}
        for envelope in envelopes:
            if envelope.parent_id not in added:  # Else that will be split again.
                hand_over(state, envelope)
        return {}
    if len(lost) < len(envelopes):
        wake(state)
    return lost


def wake(state: State) -> None:
    """Tell the relays, after this request's response, that the outbox has something."""
    if state.relay is not None:
        after_response(state.app, state.relay.wake)
