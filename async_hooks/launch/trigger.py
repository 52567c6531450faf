"""The trigger of a task: it launches what was sent, where that is wanted."""

from __future__ import annotations

import logging
from typing import Any

from flask import Flask, current_app

from ..context import admits
from ..envelope import Envelope, new_id
from ..raised import SkipTask
from ..registry import AppBound, Registry
from ..signals import send, task_failed
from ..state import KEY, current_state
from ..task import AsyncTask
from .builder import Builder
from .launcher import attempt_of, launch, visitor_for

_NO_CONTEXT = (
    "The action of task %r was sent outside of an application context, so it was not launched. "
    "Send it inside 'with app.app_context():'."
)

logger = logging.getLogger("async_hooks")


class Trigger(AppBound):
    """What is connected to a task's action: launches it, in an app that has the task."""

    def __init__(self, task: type[AsyncTask], tasks: Registry[type[AsyncTask]]) -> None:
        super().__init__(task.name, tasks)
        self._task = task
        self._reported = False

    def __call__(self, sender: Any, /, **kwargs: Any) -> str | None:
        """Launch, and return the envelope's id; None where there is nothing to launch."""
        if not current_app:
            if not self._reported:
                logger.error(_NO_CONTEXT, self.name)
            self._reported = True
            return None
        state = current_state() if KEY in current_app.extensions else None
        if state is None or self.tasks() is not state.tasks:
            self.warn_without_app()
            return None
        attempt = attempt_of(state)
        if attempt is not None and not attempt.launching:
            return None
        task, envelope_id = self._task, new_id()
        try:
            user = visitor_for(state, task)
            if not admits(task.auth_level, anonymous=user is None):
                return None
            data = task().prepare_data(sender, **kwargs)
            envelope = Builder(state, attempt, task, user).build(data, envelope_id)
        except SkipTask:
            return None
        except Exception as error:
            # Attempt 0: it never got as far as a first one.
            failed = Envelope(id=envelope_id, task=task.name, body="null", attempt=0)
            send(task_failed, state.app, envelope=failed, exception=error)
            if _propagates(state.app):
                raise
            return None
        return launch(state, attempt, [envelope])[0]


def _propagates(app: Flask) -> bool:
    propagate = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing or app.debug if propagate is None else propagate)
