"""The receivers of an async signal: which a run reaches, in which order, under which names."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import blinker
from flask import Flask

from .registry import Registry
from .state import State
from .task import AsyncTask, async_signal, default_name, nopriv_signal


class Receiver:
    """A receiver with a stable name and options of its own, as ``hooks.receiver`` makes it."""

    def __init__(
        self,
        function: Callable[..., Any],
        registry: Registry,
        *,
        name: str | None,
        aliases: Iterable[str],
        timeout: float | timedelta | None,
    ) -> None:
        self.function = function
        self.name = name if name is not None else default_name(function)
        self.aliases = tuple(aliases)
        self.timeout = timeout
        self._registry = weakref.ref(registry)

    def __call__(self, sender: Any, /, **kwargs: Any) -> Any:
        return self.function(sender, **kwargs)

    def belongs_to(self, registry: Registry, generation: int) -> bool:
        ours = registry is self._registry()
        return ours and registry.receivers.find(self.name, generation) is self


def receivers_of(
    state: State, task: type[AsyncTask], *, anonymous: bool
) -> dict[str, Callable[..., Any]]:
    """Return the receivers that ``task`` reaches, in the order of their connection, by name.

    A receiver is called ``module.QualName`` unless it has a ``name``. Closures of one factory
    share theirs: the second is called ``…#2``.
    """
    signals = [async_signal(task.action)]
    if anonymous:
        signals.append(nopriv_signal(task.action))
    named: dict[str, Callable[..., Any]] = {}
    for signal in signals:
        for receiver in _connected(signal, state):
            base = name = _name_of(receiver)
            count = 1
            while name in named:
                count += 1
                name = f"{base}#{count}"
            named[name] = receiver
    return named


def find_receiver(
    receivers: Mapping[str, Callable[..., Any]], name: str
) -> Callable[..., Any] | None:
    """Return the receiver that has ``name``, or had it formerly."""
    if name in receivers:
        return receivers[name]
    return next((r for r in receivers.values() if name in getattr(r, "aliases", ())), None)


def call(app: Flask, receiver: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Call ``receiver`` as blinker would; await what it returns if that is awaitable."""
    result = receiver(app, **kwargs)
    if not inspect.isawaitable(result):
        return result

    async def awaited() -> Any:
        return await result

    try:
        run = app.ensure_sync(awaited)
    except RuntimeError:  # Flask lacks its [async] extra.
        return asyncio.run(awaited())
    return run()


def _connected(signal: blinker.Signal, state: State) -> Iterator[Callable[..., Any]]:
    # blinker calls receivers in the order of memory addresses, but keeps the order they came in.
    reached = list(signal.receivers_for(state.app))
    for reference in list(signal.receivers.values()):
        receiver: Any = reference() if isinstance(reference, weakref.ref) else reference
        if receiver in reached and _is_for(receiver, state):
            yield receiver


def _is_for(receiver: Any, state: State) -> bool:
    belongs_to = getattr(receiver, "belongs_to", None)
    return belongs_to is None or belongs_to(state.registry, state.generation)


def _name_of(receiver: Any) -> str:
    if isinstance(name := getattr(receiver, "name", None), str):
        return name
    while hasattr(receiver, "func"):  # functools.partial
        receiver = receiver.func
    return default_name(receiver if hasattr(receiver, "__qualname__") else type(receiver))
