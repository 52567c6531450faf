"""The tasks and receivers that an AsyncHooks knows, by the names that travel."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from .errors import ConfigError


class Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> Iterable[str]: ...


T = TypeVar("T", bound=Named)


class Names(Generic[T]):
    """Entries by name, each remembered with the generation it was added in.

    An app factory that runs twice on one AsyncHooks defines its local classes twice. Each app
    then keeps those that were made for it: a generation begins with each ``init_app``. A name that
    was first added before any app was, is added before its app the next time as well.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, dict[int, T]] = {}

    def add(self, entry: T, *, generation: int, local: bool) -> bool:
        """Add ``entry`` under its name and aliases; return whether it is new.

        ``local`` says that a factory may define it again.

        :raises ConfigError: if another entry has the name.
        """
        if entry in self._entries.get(entry.name, {}).values():
            return False
        generation += 0 in self._entries.get(entry.name, {})
        for name in (entry.name, *entry.aliases):
            versions = self._entries.get(name, {})
            if versions and (not local or generation in versions):
                raise ConfigError(
                    f"{name!r} is already the name of another {self._kind}. "
                    "Give one of them a 'name' of its own."
                )
        for name in (entry.name, *entry.aliases):
            self._entries.setdefault(name, {})[generation] = entry
        return True

    def find(self, name: str, generation: int) -> T | None:
        """Return what ``name`` means to the app of ``generation``."""
        versions = self._entries.get(name)
        if not versions:
            return None
        if generation in versions:
            return versions[generation]
        older = [key for key in versions if key <= generation]
        return versions[max(older) if older else min(versions)]

    def all(self, generation: int) -> Iterator[tuple[str, T]]:
        """Return every name, and what it means to the app of ``generation``."""
        for name in list(self._entries):
            entry = self.find(name, generation)
            if entry is not None:
                yield name, entry


class Registry:
    """What was registered on one AsyncHooks; ``generation`` counts its apps."""

    def __init__(self) -> None:
        self.generation = 0
        self.tasks: Names[Any] = Names("task")
        self.receivers: Names[Any] = Names("receiver")


class Owned:
    """A connected callable that keeps out of apps that are not its registry's.

    Signals are global and apps are not: every app's connections are there for every send.
    """

    def __init__(self, name: str, registry: Registry) -> None:
        self.name = name
        self._registry = weakref.ref(registry)  # Weak: a signal keeps what is connected alive.

    def __call__(self, sender: Any, /, **kwargs: Any) -> Any:
        raise NotImplementedError

    def belongs_to(self, registry: Registry, generation: int) -> bool:
        return registry is self._registry() and self._is_current(registry, generation)

    def _is_current(self, registry: Registry, generation: int) -> bool:
        raise NotImplementedError
