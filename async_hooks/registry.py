"""The tasks and receivers that an AsyncHooks knows, by the names that travel."""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from .errors import ConfigError, OutboxRequired
from .validation import needs_outbox


class Entry(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> Iterable[str]: ...


logger = logging.getLogger("async_hooks")

T = TypeVar("T", bound=Entry)


class Registry(Generic[T]):
    """Entries by name and alias.

    An app factory that runs twice on one AsyncHooks defines its local classes and functions twice:
    the newest takes the place of the one before, in every app.
    """

    def __init__(
        self, kind: str, option_for_outbox: Callable[[T], str | None] = lambda entry: None
    ) -> None:
        """``option_for_outbox`` returns what an entry declares and only an outbox can keep."""
        self._kind = kind
        self._option_for_outbox = option_for_outbox
        self._lacks_outbox = False
        #: Whether an app was set up with its AsyncHooks, and whether the lack of one was reported.
        self.has_app = self.is_reported = False
        #: What ends each connection; holds what is connected for as long as an app has the tasks.
        self.connections: dict[Any, Callable[[], object]] = {}
        self._entries: dict[str, T] = {}
        #: What is found by names that no entry has.
        self._defaults: dict[str, T] = {}
        self._periods: dict[str, int | None] = {}
        self._replaced: weakref.WeakSet[T] = weakref.WeakSet()

    def add(self, entry: T, *, period: int | None) -> T | None:
        """Add ``entry`` under its name and aliases; return the one that it replaces.

        ``period`` counts the apps that were there before. What was added under the same name in
        an earlier one is replaced, unless either has None: what no factory defines is unique.

        :raises ConfigError: if another entry has the name.
        :raises OutboxRequired: if it declares what only an outbox can keep, and an app has none.
        """
        if self._lacks_outbox:
            self._check(entry)
        names = (entry.name, *entry.aliases)
        replaced = self._entries.get(entry.name) if self._is_earlier(entry, period) else None
        for name in names:
            if self._entries.get(name, replaced) is not replaced:
                raise ConfigError(
                    f"{name!r} is already the name of another {self._kind}. "
                    "Give one of them a 'name' of its own."
                )
        others = {name: each for name, each in self._entries.items() if each is not replaced}
        self._entries = others | dict.fromkeys(names, entry)
        self._periods[entry.name] = period
        if replaced is not None:
            self._replaced.add(replaced)
        return replaced

    def add_default(self, entry: T) -> T:
        """Let ``entry`` be found by its name as long as no other is; return the first of a name."""
        self._defaults = {entry.name: entry, **self._defaults}
        return self._defaults[entry.name]

    def _is_earlier(self, entry: T, period: int | None) -> bool:
        """Tell whether what has the name of ``entry`` is what a factory defined before it."""
        known = self._periods.get(entry.name)
        return known is not None and period is not None and known < period

    def refuse_options(self) -> None:
        """Refuse options that need an outbox, in the entries there are.

        :raises OutboxRequired: if one declares it.
        """
        for entry in self._entries.values():
            self._check(entry)

    def keep_refusing(self) -> None:
        """Refuse them in the entries to come as well: an app without an outbox has them all."""
        self._lacks_outbox = True

    def _check(self, entry: T) -> None:
        option = self._option_for_outbox(entry)
        if option is not None:
            raise OutboxRequired(needs_outbox(option, f"{self._kind} {entry.name!r}"))

    def find(self, name: str) -> T | None:
        found = self._entries.get(name)
        return self._defaults.get(name) if found is None else found

    def newest(self, entry: T) -> T | None:
        """Return ``entry``, or what has taken its place; None if it was never added."""
        found = self.find(entry.name)
        return found if found is entry or entry in self._replaced else None

    def added(self) -> Iterable[T]:
        """Return the entries that are no defaults, some several times."""
        return self._entries.values()  # A new one is made when an entry is added.

    def all(self) -> Mapping[str, T]:
        """Return every entry by each of its names, and the defaults."""
        return {**self._defaults, **self._entries}


class AppBound:
    """What is connected to a signal and keeps out of the apps of other AsyncHooks.

    Signals are global and apps are not: every app's connections are there for every send.
    """

    def __init__(self, name: str, tasks: Registry[Any]) -> None:
        self.name = name
        #: The tasks of the AsyncHooks that it is of. Weak, because they hold what is connected.
        self.tasks = weakref.ref(tasks)

    def warn_without_app(self) -> None:
        """Warn, once for each AsyncHooks, if no app was ever set up with it."""
        tasks = self.tasks()
        if tasks is None or tasks.has_app or tasks.is_reported:
            return
        tasks.is_reported = True
        logger.warning(
            "The action of task %r was sent, and not launched: no app has its AsyncHooks. Call "
            "init_app(app) of the object that the task is registered with.",
            self.name,
        )


def default_name(thing: Any) -> str:
    """Return ``module.QualName``; for ``__main__``, the module that importing its file gives."""
    thing = definition_of(thing)
    module = thing.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif path := getattr(main, "__file__", None):
            module = Path(path).stem
    return f"{module}.{thing.__qualname__}"


def definition_of(thing: Any) -> Any:
    """Return what has a name: of a partial its function, of an object that is called its class."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing if hasattr(thing, "__qualname__") else type(thing)
