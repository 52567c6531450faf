"""Apps and tasks for tests."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from typing import Any

import blinker
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask

KEY = "a key for tests, thirty-two bytes or more"


def make_app(**config: Any) -> tuple[Flask, AsyncHooks]:
    """Return an app, eager unless told otherwise, and its AsyncHooks."""
    app = plain_app(**{"ASYNC_HOOKS_TRANSPORT": "eager", **config})
    return app, AsyncHooks(app)


def plain_app(**config: Any) -> Flask:
    """Return an app without AsyncHooks, whose instance folder is nobody else's."""
    folder = tempfile.mkdtemp(prefix="async_hooks_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    app = Flask("tests.app", instance_path=folder)
    app.config.update({"SECRET_KEY": KEY, **config})
    return app


def make_task(hooks: AsyncHooks, on: str | blinker.Signal, **members: Any) -> type[AsyncTask]:
    """Register a task on the action ``on`` whose data is what the signal was sent with."""

    def prepare_data(self: AsyncTask, sender: Any, /, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    members = {"action": on, "prepare_data": prepare_data, "__module__": "tests", **members}
    return hooks.register(type("Task", (AsyncTask,), members))
