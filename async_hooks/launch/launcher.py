"""The launcher: it has envelopes built of what is launched, and sends them on their way."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from operator import not_
from typing import Any

from ..context import admits
from ..current import RunningTask, current_attempt
from ..declarations import check_options
from ..endpoint.attempt import children_of
from ..envelope import Envelope, holds_of, new_id
from ..errors import AsyncHooksError, ConfigError, OutboxUnavailable
from ..log import one_line
from ..receivers import receivers_of
from ..signals import send, task_launched
from ..state import State
from ..task import AsyncTask, Auth, LaunchOptions
from ..validation import is_text
from .after_response import after_response
from .builder import Builder

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
    attempt, builder = _begin(state, task, user, options)
    return launch(state, attempt, [builder.build(data, new_id())])[0]


def dispatch_many(
    state: State,
    task: type[AsyncTask],
    items: Iterable[Mapping[str, Any]],
    *,
    user: Any,
    options: LaunchOptions,
) -> list[str]:
    """Launch as :meth:`.AsyncTask.dispatch_many` promises, and return the ids."""
    attempt, builder = _begin(state, task, user, options)
    items = list(items)
    return launch(state, attempt, builder.build_many(items)) if items else []


def _begin(
    state: State, task: type[AsyncTask], user: Any, options: LaunchOptions
) -> tuple[RunningTask | None, Builder]:
    """Return the run that launches, if one does, and what builds the envelopes."""
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
    return attempt, Builder(state, attempt, registered, user, options)


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


def launch(state: State, attempt: RunningTask | None, envelopes: Sequence[Envelope]) -> list[str]:
    """Send ``envelopes`` into the outbox if there is one, else into memory; return their ids.

    Another's id where that waits with the same unique key.
    """
    winners: dict[str, str] = {}
    if state.store is None:
        for envelope in envelopes:
            send(task_launched, state.app, envelope=envelope)
            hand_over(state, envelope)
        return [envelope.id for envelope in envelopes]
    # In a run, what is debounced does not wait for the end: it is launched again if need be.
    is_at_once = [
        state.session is None and (attempt is None or each.debounce is not None)
        for each in envelopes
    ]
    at_once = [*compress(envelopes, is_at_once)]
    later = [*compress(envelopes, map(not_, is_at_once))]
    if at_once:
        winners.update(add(state, _parts(state, at_once)))
    if later:
        winners.update(_winners(state, attempt, later))
        # The one that waits may be claimed before this is added, and then this one is needed.
        later = [each for each in later if each.id not in winners or each.waiting_key is not None]
        # Added when the app's transaction commits, or with the run's completion.
        if state.session is not None:
            state.session.add(_parts(state, later))
        elif attempt is not None:
            attempt.additions.extend(_parts(state, later))
    for envelope in envelopes:
        if envelope.id not in winners:
            send(task_launched, state.app, envelope=envelope)
    return [winners.get(envelope.id, envelope.id) for envelope in envelopes]


def _winners(
    state: State, attempt: RunningTask | None, envelopes: Iterable[Envelope]
) -> Mapping[str, str]:
    """Return whose id counts for those whose unique key is taken, here or in the outbox."""
    assert state.store is not None  # noqa: S101 - asked by the only one who comes here
    winners: dict[str, str] = {}
    own = {} if attempt is None else {each.unique_key: each.id for each in attempt.additions}
    for envelope in envelopes:
        if (key := envelope.unique_key) is not None:
            winner = own.get(key) or (state.session or state.store).unfinished(key)
            if winner is not None:
                winners[envelope.id] = winner
            own[key] = winner or envelope.id
    return winners


def _parts(state: State, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
    """Return the rows of launches of one task: each, and its children if it can be split now."""
    if state.store is None or not envelopes:
        return envelopes
    first = envelopes[0]
    task: Any = state.tasks.find(first.task)
    # Who receives is decided when it runs, if that is later; and its claim frees its key.
    has_time = first.run_at is not None or any(each.waiting_key for each in envelopes)
    if has_time or task.run_action is not AsyncTask.run_action:
        return envelopes
    receivers = receivers_of(state, task, anonymous=first.user is None)
    if len(receivers) < 2 or not all(is_text(name, 255) for name in receivers):
        return envelopes  # Its run splits it, or says which name can't be kept.
    return [part for each in envelopes for part in (each, *children_of(state, each, receivers))]


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
        wake(state, envelopes)
    return lost


def wake(state: State, envelopes: Iterable[Envelope]) -> None:
    """Tell the relays, after this request's response, that the outbox has ``envelopes``."""
    if state.relay is not None:
        holds = holds_of(envelopes)
        call = partial(state.relay.wake, holds) if holds else state.relay.wake
        after_response(state.app, call)
