"""The first end of the movement: a signal is sent, and an envelope is made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import Flask, current_app

from .config import Config
from .context import current_run, origin
from .envelope import Envelope, new_id
from .errors import AsyncHooksError, ConfigError, DepthExceeded
from .handover import hand_over
from .registry import Owned, Registry
from .signals import emit, task_failed, task_launched
from .snapshot import plain, snapshot
from .state import KEY, State, state_of
from .task import AsyncTask, Auth, SkipTask, admits

logger = logging.getLogger("async_hooks")


class Trigger(Owned):
    """What is connected to a task's action: launches it, in an app that has the task."""

    def __init__(self, task: type[AsyncTask], registry: Registry) -> None:
        super().__init__(task.name, registry)
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
        if state is None or not self.belongs_to(state.registry, state.generation):
            return None
        run = current_run.get(None)
        if run is not None and not run.launching:
            return None
        return _trigger(state, self._task, sender, kwargs)

    def _is_current(self, registry: Registry, generation: int) -> bool:
        return registry.tasks.find(self.name, generation) is self._task

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
    except SkipTask:
        return None
    except Exception as error:
        # Attempt 0: it never got as far as a first one.
        failed = Envelope(id=envelope_id, task=task.name, body="null", attempt=0)
        emit(task_failed, state.app, envelope=failed, exception=error)
        if _propagates(state.app):
            raise
        return None
    return _launch(state, envelope)


class Launcher:
    """Launches for one app."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def dispatch(
        self, task: type[AsyncTask], data: Mapping[str, Any], *, priority: int | None, user: Any
    ) -> str:
        state = state_of(self._app)
        if state.registry.tasks.find(task.name, state.generation) is not task:
            raise ConfigError(
                f"Task {task.name!r} is not registered for {self._app.name!r}. "
                "Decorate it with @hooks.register."
            )
        run = current_run.get(None)
        if run is not None and not run.launching:
            raise AsyncHooksError(
                f"Task {task.name!r} was dispatched in the fresh request of another, outside its "
                "run_action. Dispatch it where async_hooks.current_envelope is false."
            )
        if priority is not None and type(priority) is not int:
            raise ConfigError(f"expected 'priority' to be an int, got: {priority!r}")
        if user is None:
            user = _visitor(state, task)
        if not admits(task.auth_level, anonymous=user is None):
            raise AsyncHooksError(
                f"Task {task.name!r} launches for {task.auth_level!r} visitors only. "
                "Name the visitor with dispatch(…, user=id), or widen its 'auth_level'."
            )
        priority = task.priority if priority is None else priority
        return _launch(state, _envelope(state, task, data, user, priority, new_id()))

    def hand_over(self, envelope: Envelope) -> None:
        hand_over(self._app, envelope)


def _envelope(
    state: State,
    task: type[AsyncTask],
    data: Mapping[str, Any],
    user: Any,
    priority: int,
    envelope_id: str,
) -> Envelope:
    config = state.config
    if not state.is_reachable():
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


def _launch(state: State, envelope: Envelope) -> str:
    emit(task_launched, state.app, envelope=envelope)
    state.launcher.hand_over(envelope)
    return envelope.id


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
