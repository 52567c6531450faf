"""What one AsyncHooks knows by name, and what connects it to the signals."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import blinker

from .actions import action_name, action_signal, async_signal, note_deferred
from .declarations import check, option_for_outbox
from .launch.trigger import Trigger
from .receivers import Receiver
from .registry import Registry, default_name
from .task import AsyncTask, default_task


class Registration:
    """The tasks and receivers of one AsyncHooks.

    If an app factory defines a local one at each call, the newest counts, in every app.
    """

    def __init__(self) -> None:
        self.tasks: Registry[type[AsyncTask]] = Registry("task", option_for_outbox)
        self.receivers: Registry[Receiver] = Registry("receiver", Receiver.option_for_outbox)
        #: Counts the calls of init_app: what a factory defines again, it defines in another.
        self.period = 0
        #: The connections of default tasks, by the name of their action.
        self._of_defaults: dict[str, list[Any]] = defaultdict(list)

    def add_task(self, task: type[AsyncTask]) -> None:
        """Let ``task`` launch when its action is sent, and no default task any more."""
        check(task)
        if self.tasks.find(task.name) is task:
            return
        note_deferred(task.action)
        self._add(self.tasks, task, task)
        self._connect(task, action_signal(task.action), Trigger(task, self.tasks))
        for key in self._of_defaults.pop(action_name(task.action), ()):
            self.tasks.connections.pop(key)()

    def add_job(self, task: type[AsyncTask]) -> None:
        """Add the task of a job, which no signal launches."""
        check(task)
        self._add(self.tasks, task, task)

    def add_receiver(self, action: str | blinker.Signal, receiver: Receiver, function: Any) -> None:
        """Let ``receiver``, made of ``function``, be reached by the runs of ``action``'s tasks."""
        self._add(self.receivers, receiver, function)
        self._connect(receiver, async_signal(action), receiver)
        self._add_default(action)

    def _add_default(self, action: str | blinker.Signal) -> None:
        """Let ``action`` launch a task of its own, as long as no other one defers it.

        What that launches is run by it also where another has taken its place, by another release
        or in another order of imports: so it is there in any case.
        """
        name = action_name(action)
        if name.startswith("nopriv_"):  # Fired with another, and sent by nobody.
            return
        default = self.tasks.add_default(default_task(action))
        key = (default, action_signal(action))
        is_deferred = any(action_name(task.action) == name for task in self.tasks.added())
        if is_deferred or key in self.tasks.connections:
            return
        note_deferred(action)
        self._connect(key, action_signal(action), Trigger(default, self.tasks))
        self._of_defaults[name].append(key)

    def _add(self, registry: Registry[Any], entry: Any, definition: Any) -> None:
        """Add ``entry``, and end the connection of what it replaces."""
        is_local = "<locals>" in default_name(definition)
        replaced = registry.add(entry, period=self.period if is_local else None)
        if replaced in self.tasks.connections:
            self.tasks.connections.pop(replaced)()

    def _connect(self, key: Any, signal: blinker.Signal, bound: Any) -> None:
        # Signals outlive apps: the connection ends with the tasks of the apps that it is for, which
        # hold what is connected. The signal may not: a closure over the app would keep that alive.
        signal.connect(bound)
        self.tasks.connections[key] = partial(signal.disconnect, bound)
