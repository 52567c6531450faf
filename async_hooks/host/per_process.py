"""Values that belong to one process. A forked child must not use its parent's threads or files."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """One value for each process, made by ``make`` when it is first asked for.

    There is no lock that a fork could copy locked: of several values made at once, one wins.
    """

    def __init__(self, make: Callable[[], T], abandon: Callable[[T], None] | None = None) -> None:
        """``abandon`` is called in a forked child with its parent's value."""
        self._make = make
        self._abandon = abandon
        self._values: dict[int, T] = {}
        self._inherited: list[dict[int, T]] = []
        _all.add(self)

    def get(self) -> T:
        value = self._values.get(os.getpid())
        return self._values.setdefault(os.getpid(), self._make()) if value is None else value

    def made(self) -> T | None:
        """Return the value if this process has one."""
        return self._values.get(os.getpid())

    def forget(self) -> None:
        # Kept, but out of reach: the end of a parent's connection, as an object, would close it.
        self._inherited.append(self._values)
        if self._abandon is not None:
            for value in self._values.values():
                self._abandon(value)
        self._values = {}


_all: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


def _forget_all() -> None:
    for values in list(_all):
        values.forget()


# The pid alone would do, did pids not come round again. uWSGI forks without these hooks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
