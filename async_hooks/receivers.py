"""The receivers of an async signal: which a run reaches, in which order, under which names."""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import blinker
from flask import Flask

from .config import seconds
from .envelope import Envelope
from .registry import Owned, Registry
from .state import State
from .task import (
    DISCARDED,
    AsyncTask,
    async_signal,
    checked_aliases,
    default_name,
    exponential,
    nopriv_signal,
)

logger = logging.getLogger("async_hooks")


class Receiver(Owned):
    """A receiver with a stable name and options of its own, as ``hooks.receiver`` makes it."""

    def __init__(
        self,
        function: Callable[..., Any],
        registry: Registry,
        *,
        name: str | None,
        aliases: Iterable[str],
        timeout: float | timedelta | None,
        max_attempts: int | None,
        backoff: Callable[[int], float | timedelta] | None,
    ) -> None:
        super().__init__(name if name is not None else default_name(function), registry)
        self.aliases = checked_aliases(aliases, self.name)
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.backoff = backoff
        self._function = function

    def __call__(self, sender: Any, /, **kwargs: Any) -> Any:
        return self._function(sender, **kwargs)

    def _is_current(self, registry: Registry, generation: int) -> bool:
        return registry.receivers.find(self.name, generation) is self


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
    named = (receiver for receiver in receivers.values() if isinstance(receiver, Receiver))
    return next((receiver for receiver in named if name in receiver.aliases), None)


def timeout_of(state: State, envelope: Envelope) -> float:
    """Return the seconds that one attempt at ``envelope`` may take.

    The receiver that it runs has the first say, then the task, then the configuration.
    """
    for declared in _declared(state, envelope):
        if declared.timeout is not None:
            return seconds(declared.timeout)
    return state.config.timeout


def max_attempts_of(state: State, envelope: Envelope) -> int:
    """Return how often ``envelope`` may fail; who says so, as with :func:`timeout_of`."""
    if envelope.receiver == DISCARDED:
        return 1
    for declared in _declared(state, envelope):
        if declared.max_attempts is not None:
            most: int = declared.max_attempts
            return most
    return state.config.max_attempts


def backoff_of(state: State, envelope: Envelope, failures: int) -> float:
    """Return the seconds until ``envelope`` is tried again after its ``failures``-th failure.

    What the receiver or task says, if that is a time at all; else :func:`exponential`.
    """
    for declared in _declared(state, envelope):
        backoff = declared().backoff if isinstance(declared, type) else declared.backoff
        if backoff is None:
            continue
        try:
            return seconds(backoff(failures), or_none_at_all=True)
        except Exception:
            logger.exception("The backoff of %r did not return seconds.", declared.name)
    return exponential(failures)


def _declared(state: State, envelope: Envelope) -> Iterator[Any]:
    """Return who may have options for ``envelope``: the receiver that it runs, then the task."""
    task = state.task_of(envelope)
    if task is None:
        return
    receivers = receivers_of(state, task, anonymous=envelope.user is None)
    if envelope.receiver is not None:
        receiver = find_receiver(receivers, envelope.receiver)
    else:
        receiver = next(iter(receivers.values())) if len(receivers) == 1 else None
    if isinstance(receiver, Receiver):
        yield receiver
    yield task


def kinds_of(state: State) -> set[tuple[str, str]]:
    """Return every (task, receiver) that this code can run, former names too.

    The receiver is empty for an envelope that is to reach all.
    """
    kinds: set[tuple[str, str]] = set()
    for name, task in state.registry.tasks.all(state.generation):
        kinds.add((name, ""))
        kinds.add((name, DISCARDED))
        for anonymous in (False, True):
            for receiver_name, receiver in receivers_of(state, task, anonymous=anonymous).items():
                kinds.add((name, receiver_name))
                if isinstance(receiver, Receiver):
                    kinds.update((name, alias) for alias in receiver.aliases)
    return kinds


def call(app: Flask, receiver: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Call ``receiver`` as blinker would; await what it returns if that is awaitable."""
    return awaited(app, receiver(app, **kwargs))


def awaited(app: Flask, result: Any) -> Any:
    """Return ``result``, or what comes of it if it is awaitable."""
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    try:
        run = app.ensure_sync(wait)
    except RuntimeError:  # Flask lacks its [async] extra.
        import asyncio  # Here, because few apps come here, and it takes time to start.

        return asyncio.run(wait())
    return run()


def _connected(signal: blinker.Signal, state: State) -> Iterator[Callable[..., Any]]:
    # blinker calls receivers in the order of memory addresses, but keeps the order they came in.
    reached = list(signal.receivers_for(state.app))
    for reference in list(signal.receivers.values()):
        receiver: Any = reference() if isinstance(reference, weakref.ref) else reference
        if receiver in reached and _is_for(receiver, state):
            yield receiver


def _is_for(receiver: Any, state: State) -> bool:
    return not isinstance(receiver, Owned) or receiver.belongs_to(state.registry, state.generation)


def _name_of(receiver: Any) -> str:
    if isinstance(receiver, Owned):
        return receiver.name
    while isinstance(receiver, functools.partial):
        receiver = receiver.func
    return default_name(receiver if hasattr(receiver, "__qualname__") else type(receiver))
