"""What the unit tests share: apps, actions that no other test has, and what listens to them."""

from __future__ import annotations

import atexit
import itertools
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import blinker
import pytest
from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, signals

KEY = "a key for tests, thirty-two bytes or more"

MakeApp = Callable[..., tuple[Flask, AsyncHooks]]

_numbers = itertools.count(1)


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


@pytest.fixture
def action() -> str:
    """A signal name that no other test uses: signals are global."""
    return f"action_{next(_numbers)}"


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Ignore none of what ends a process: a shell's '&' and nohup do, and children inherit it."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


class Facts:
    """What the lifecycle signals said, in order, and a way to wait for it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()

    def note(self, name: str, facts: dict[str, Any]) -> None:
        with self._changed:
            self.said.append((name, facts))
            self._changed.notify_all()

    def of(self, name: str) -> list[dict[str, Any]]:
        return [facts for said, facts in list(self.said) if said == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Return what ``name`` said once it has said it ``count`` times; fail after 20 s."""
        with self._changed:
            met = self._changed.wait_for(lambda: len(self.of(name)) >= count, timeout=20)
        assert met, f"{name} was said {len(self.of(name))} times, not {count}: {self.said}"
        return self.of(name)


@pytest.fixture
def facts() -> Iterator[Facts]:
    """Everything that any app's lifecycle signals say during the test."""
    heard = Facts()
    connected = []
    for name in ("launched", "started", "succeeded", "failed", "retrying", "discarded", "rejected"):
        signal = getattr(signals, f"task_{name}")

        def listen(sender: Any, /, _name: str = name, **said: Any) -> None:
            heard.note(_name, said)

        signal.connect(listen, weak=False)
        connected.append((signal, listen))
    yield heard
    for signal, listen in connected:
        signal.disconnect(listen)
