"""A plain function as a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from .errors import ConfigError
from .receivers import awaited
from .registry import default_name
from .state import current_state
from .task import AsyncTask

P = ParamSpec("P")
R = TypeVar("R")

#: What a job may say as a task may; functions take no ``self``.
OPTIONS = ("name", "aliases", "queue", "priority", "timeout", "delay", "max_attempts", "auth_level")
METHODS = ("backoff", "unique_key", "ref", "finish", "discarded")


class Job(Generic[P, R]):
    """The function itself, and ``enqueue(**data)``, which runs it later. ``task`` is its task."""

    def __init__(self, function: Callable[P, R], options: Mapping[str, Any]) -> None:
        for key in options:
            if key not in (*OPTIONS, *METHODS):
                known = ", ".join((*OPTIONS, *METHODS))
                raise ConfigError(f"{key!r} is no option of a job. There are: {known}")
        functools.update_wrapper(self, function)
        self._function = function
        self.task = _task(function, options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Run the function in a fresh request, with data that JSON can carry; return the id.

        :raises TypeError: for positional arguments, which have no name to travel by.
        :raises DataError: if the data can't travel.
        """
        if args:
            raise TypeError(f"{self.task.name!r}: enqueue takes arguments by name only.")
        return self.task.dispatch(kwargs)


def _task(function: Callable[..., Any], options: Mapping[str, Any]) -> type[AsyncTask]:
    def run_action(self: AsyncTask, data: dict[str, Any]) -> Any:
        return awaited(current_state().app, function(**data))

    members: dict[str, Any] = {"name": default_name(function), **options}
    for key in METHODS:
        if key in members:
            members[key] = staticmethod(members[key])
    members["action"] = f"job:{members['name']}"
    members.update(
        run_action=run_action,
        __module__=function.__module__,
        __qualname__=function.__qualname__,
        __doc__=function.__doc__,
    )
    return type(function.__name__, (AsyncTask,), members)
