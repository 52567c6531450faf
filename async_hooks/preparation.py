"""Preparation: what is done once before an app serves, relays or is managed by a command."""

from __future__ import annotations

import difflib
import logging
import weakref
from collections.abc import Collection
from importlib import import_module

import blinker
from flask import Flask

from .actions import action_name, async_signal, async_signals, is_deferred, nopriv_signal
from .config import Config, keys_of, read, refuse_late
from .connected import connected
from .context import admits
from .errors import ConfigError
from .registry import AppBound
from .state import State
from .task import AsyncTask

logger = logging.getLogger("async_hooks")


class Preparation:
    """Prepares ``app`` when it is first called, in each process.

    Not in init_app: what it imports may need what the app's factory makes later.
    """

    def __init__(self, app: Flask, config: Config) -> None:
        self._app = app
        self._config = config
        self._keys = keys_of(app.config)
        self._is_done = False

    def __call__(self) -> None:
        """Import what ``ASYNC_HOOKS_IMPORTS`` names.

        Without a lock, which a fork could copy locked: Python's own import has those it needs.

        :raises ConfigError: if a module can't be imported, or a key was set after init_app.
        """
        if self._is_done:
            return
        keys = keys_of(self._app.config)
        refuse_late(self._keys, keys)
        read(keys)  # What may be set late may be wrong.
        for name in self._config.imports:
            self._import(name)
        self._is_done = True

    def _import(self, name: str) -> None:
        with self._app.app_context():
            try:
                import_module(name)
            except Exception as error:
                raise ConfigError(
                    f"'ASYNC_HOOKS_IMPORTS' names {name!r}, which can't be imported "
                    f"({type(error).__name__}: {error}). Correct the name, or the module."
                ) from error


def prepare_to_serve(state: State) -> None:
    """Prepare the app of ``state`` for its first request, and report what is never called."""
    state.prepare()
    for problem in receivers_without_task(state):
        logger.warning("%s", problem)


def launching_tasks(state: State) -> list[type[AsyncTask]]:
    """Return the tasks, each once, but for default ones in whose place another one launches."""
    added = {task.name: task for task in state.tasks.added()}
    deferred = {action_name(task.action) for task in added.values()}
    others = (task for task in state.tasks.all().values() if task.name not in added)
    return [*added.values(), *(each for each in others if action_name(each.action) not in deferred)]


def receivers_without_task(state: State) -> list[str]:
    """Say which receivers wait for an async signal that no task of their own apps fires.

    Plain receivers may be for another app of this process: one of its tasks counts for them.
    """
    tasks = launching_tasks(state)
    fired = {async_signal(task.action).name for task in tasks}
    # It fires for those visitors only whom the task is for.
    anonymous = [task for task in tasks if admits(task.auth_level, anonymous=True)]
    fired |= {nopriv_signal(task.action).name for task in anonymous}
    problems: list[str] = []
    for signal in async_signals():
        if signal.name in fired:
            problems += _of_no_app(signal)
            continue
        for each in connected([signal], state.app, state.tasks):
            if isinstance(each.receiver, AppBound) or not is_deferred(signal):
                problems.append(_explain(each.name, signal.name, fired))
    return problems


def _of_no_app(signal: blinker.NamedSignal) -> list[str]:
    """Say which receivers of ``signal`` are registered with an AsyncHooks that no app has."""
    kept = signal.receivers.copy().values()
    found = [each() if isinstance(each, weakref.ref) else each for each in kept]
    bound = [(each.name, each.tasks()) for each in found if isinstance(each, AppBound)]
    return [
        f"Receiver {name!r} is registered with an AsyncHooks that no app has, so it is never "
        "called. Register it with the one whose init_app is called, or call that of its own."
        for name, tasks in bound
        if tasks is not None and not tasks.has_app
    ]


def _explain(receiver: str, signal: str, fired: Collection[str]) -> str:
    near = difflib.get_close_matches(signal, fired, n=1, cutoff=0.8)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"Receiver {receiver!r} is connected to {signal!r}, which no task fires so far, so it is "
        f"not called. Register a task with that action, or import its module.{hint}"
    )
