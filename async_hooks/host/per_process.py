"""Values that belong to one process. A forked child must not use its parent's threads or files."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class PerProcess(dict[int, T]):
    """One value for each process, by pid, made by ``make`` when ``[os.getpid()]`` asks for it.

    There is no lock that a fork could copy locked: of several values made at once, one wins.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, make: Callable[[], T], close: Callable[[T], None] | None = None) -> None:
        """``close`` is called in a forked child with its parent's value."""
        super().__init__()
        self._make = make
        self._close = close
        self._inherited: list[T] = []
        _all.add(self)

    def __missing__(self, pid: int) -> T:
        return self.setdefault(pid, self._make())

    def forget(self) -> None:
        """Leave the parent's value, in a forked child."""
        # Kept, but out of reach: the end of a parent's connection, as an object, would close it.
        self._inherited += self.values()
        if self._close is not None:
            for value in self.values():
                self._close(value)
        self.clear()


_all: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


def _forget_all() -> None:
    for values in list(_all):
        values.forget()


# The pid alone would do, did pids not come round again. uWSGI forks without these hooks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
