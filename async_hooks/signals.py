"""The lifecycle signals: what happens to an envelope, told to whoever listens.

The sender is always the app. A listener that raises is logged and ignored.
"""

from __future__ import annotations

import logging
from typing import Any

from blinker import Namespace, Signal
from flask import Flask, current_app

from .texts import log_exception

logger = logging.getLogger("async_hooks")

_signals = Namespace()

task_launched = _signals.signal("task_launched")
task_started = _signals.signal("task_started")
task_overdue = _signals.signal("task_overdue")
task_succeeded = _signals.signal("task_succeeded")
task_failed = _signals.signal("task_failed")
task_retrying = _signals.signal("task_retrying")
task_discarded = _signals.signal("task_discarded")
task_cancelled = _signals.signal("task_cancelled")
task_rejected = _signals.signal("task_rejected")
queue_paused = _signals.signal("queue_paused")
queue_resumed = _signals.signal("queue_resumed")
worker_started = _signals.signal("worker_started")
worker_stopped = _signals.signal("worker_stopped")
worker_error = _signals.signal("worker_error")


def send(signal: Signal, app: Flask, /, **facts: Any) -> None:
    """Send ``facts`` to every listener of ``signal``, whatever one of them does."""
    if not signal.receivers:
        return
    for listener in signal.receivers_for(app):
        try:
            listener(app, **facts)
        except Exception as error:
            what = "A listener of %s raised; the task goes on."
            log_exception(logger, error, what, _name(signal))


def send_in_context(signal: Signal, app: Flask, /, **facts: Any) -> None:
    """Emit ``signal`` where there may be no request: with an application context in any case."""
    if current_app and current_app._get_current_object() is app:  # type: ignore[attr-defined]
        send(signal, app, **facts)
        return
    try:
        with app.app_context():
            send(signal, app, **facts)
    except Exception as error:
        log_exception(logger, error, "A teardown function raised after %s.", _name(signal))


def _name(signal: Signal) -> str:
    return str(getattr(signal, "name", signal))
