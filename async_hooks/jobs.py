"""A plain function as a task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from inspect import Parameter, Signature
from typing import Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack

from .errors import ConfigError
from .receivers import awaited
from .registry import default_name, definition_of
from .state import current_state
from .task import AsyncTask
from .validation import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

#: What a job may say as a task may; functions take no ``self``.
OPTIONS = (
    *("name", "aliases", "queue", "priority", "timeout", "delay", "max_attempts", "auth_level"),
    *("expires", "slice_seconds"),
    *("limit", "rate", "burst", "debounce", "debounce_max", "unique_until", "unique_for"),
)
METHODS = (
    *("backoff", "unique_key", "ref", "finish", "discarded"),
    *("limit_key", "rate_key", "merge"),
)


class LaunchOf(TypedDict, total=False):
    """The options of one launch, as :meth:`.AsyncTask.dispatch` takes them."""

    delay: float | timedelta
    run_at: datetime | None
    queue: str | None
    priority: int | None
    unique_key: str | None
    user: Any


class Job(Generic[P, R]):
    """The function itself, and what runs it later: ``enqueue``, ``dispatch``, ``dispatch_many``.

    ``task`` is its task.
    """

    def __init__(self, function: Callable[P, R], options: Mapping[str, Any]) -> None:
        known = (*OPTIONS, *METHODS)
        for key in options:
            if key not in known:
                hint = did_you_mean(key, known) or f"There are: {', '.join(known)}"
                raise ConfigError(f"{key!r} is no option of a job. {hint}")
        functools.update_wrapper(self, function)
        self._function = function
        self.task = _task(function, options)
        self._signature = _signature_of(function, self.task.name)
        self._is_decorated = hasattr(function, "__wrapped__")
        self._required = {
            each.name
            for each in self._signature.parameters.values()
            if each.default is Parameter.empty and each.kind is not Parameter.VAR_KEYWORD
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Call the function so in a fresh request, soon; return the id of the launch.

        :raises TypeError: if it can't be called so.
        :raises DataError: if the arguments can't travel.
        """
        return self.task.dispatch(self._bound(*args, **kwargs))

    def dispatch(self, data: Mapping[str, Any], **options: Unpack[LaunchOf]) -> str:
        """Launch with ``data``, the function's arguments by name; return the id.

        The options are those of :meth:`.AsyncTask.dispatch`.

        :raises TypeError: if the function can't be called so.
        :raises DataError: if the arguments can't travel.
        """
        self._check(data)
        return self.task.dispatch(data, **options)

    def dispatch_many(
        self, items: Iterable[Mapping[str, Any]], **options: Unpack[LaunchOf]
    ) -> list[str]:
        """Launch once with each of ``items``, as :meth:`.AsyncTask.dispatch_many` does.

        :raises TypeError: if the function can't be called so, naming the index of the item.
        """
        items = list(items)
        for index, data in enumerate(items):
            try:
                self._check(data)
            except TypeError as error:
                raise TypeError(f"Item {index}: {error}") from None
        return self.task.dispatch_many(items, **options)

    def _check(self, data: Mapping[str, Any]) -> None:
        if isinstance(data, Mapping) and all(isinstance(name, str) for name in data):
            self._bound(**data)

    def _bound(self, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments by name, as the function takes them."""
        if not args and self._required <= kwargs.keys() <= self._signature.parameters.keys():
            return kwargs  # As is usual; it is quicker to see than to bind.
        try:
            data = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            if self._is_decorated and not args:
                return kwargs  # Its decorator may supply an argument, or take one for itself.
            hint = _hint(self._signature, len(args), kwargs)
            raise TypeError(f"Job {self.task.name!r}: {error}.{hint}") from None
        for parameter in self._signature.parameters.values():
            if parameter.kind is Parameter.VAR_KEYWORD:
                data.update(data.pop(parameter.name, {}))
        return data


def _signature_of(function: Callable[..., Any], name: str) -> Signature:
    """Return how ``function`` can be called with arguments that travel, which is by name.

    :raises ConfigError: if it never can.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # Of some that are written in C, Python does not know it.
        return Signature([Parameter("data", Parameter.VAR_KEYWORD)])
    named = []
    for parameter in signature.parameters.values():
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise ConfigError(
                f"{name!r}: the argument {parameter.name!r} is positional only, and arguments "
                "travel by name. Remove the '/' behind it."
            )
        if parameter.kind is not Parameter.VAR_POSITIONAL:
            named.append(parameter)
    return signature.replace(parameters=named)


def _hint(signature: Signature, positional: int, names: Iterable[str]) -> str:
    """Say what may be meant by arguments that the function does not have."""
    if positional > sum(
        p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in signature.parameters.values()
    ):
        return " All others travel by name only."
    for name in names:
        if name in signature.parameters:
            continue
        if name in LaunchOf.__annotations__:
            return f" For an option of the launch, use job.dispatch({{…}}, {name}=…)."
        if question := did_you_mean(name, signature.parameters):
            return f" {question}"
    return ""


def _task(function: Callable[..., Any], options: Mapping[str, Any]) -> type[AsyncTask]:
    def run_action(self: AsyncTask, data: dict[str, Any]) -> Any:
        return awaited(current_state().app, function(**data))

    members: dict[str, Any] = {"name": default_name(function), **options}
    for key in METHODS:
        if key in members:
            members[key] = staticmethod(members[key])
    definition = definition_of(function)
    members["action"] = f"job:{members['name']}"
    members.update(
        run_action=run_action,
        __module__=definition.__module__,
        __qualname__=definition.__qualname__,
        __doc__=function.__doc__,
    )
    return type(definition.__name__, (AsyncTask,), members)
