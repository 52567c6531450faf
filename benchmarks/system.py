"""What is measured: a way of deferring work, and the processes that it consists of."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from .stores import Store, unavailable

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way of deferring work: ``module`` lies in ``systems``, ``settings`` are its app's."""

    name: str
    label: str
    module: str
    #: The distributions that it needs.
    packages: tuple[str, ...] = ()
    store: Store = Store.MEMORY
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: A command that makes the tables; it ends before the others start.
    prepare: Command = ()
    #: The commands that run beside the web processes.
    workers: tuple[Command, ...] = ()
    defers: bool = True

    @property
    def factory(self) -> str:
        return factory(self.module, self.settings)

    @property
    def web_workers(self) -> int:
        """How many web processes the throughput series has: two processes do the work."""
        return 1 if self.workers else 2

    @property
    def missing(self) -> str | None:
        """Say why it can't run here; None if it can."""
        absent = [package for package in self.packages if not _is_installed(package)]
        if absent:
            return f"{' and '.join(absent)} not installed"
        return unavailable(self.store)


def factory(module: str, settings: Mapping[str, Any]) -> str:
    """Return the call that makes the app, as gunicorn and Flask understand it."""
    arguments = [repr(module), *(f"{key}={value!r}" for key, value in settings.items())]
    return f"benchmarks.app:create_app({', '.join(arguments)})"


def python(module: str, *arguments: str) -> Command:
    """Return the command that runs ``module``, and what follows it, with this interpreter."""
    return (sys.executable, "-m", *module.split(), *arguments)


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
