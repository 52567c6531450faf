"""The receivers of an async signal: which a run reaches, in which order, under which names."""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import blinker
from flask import Flask

from .actions import async_signal, nopriv_signal
from .envelope import Envelope
from .registry import AppBound, Registry, default_name
from .state import State
from .task import DISCARDED, AsyncTask, exponential
from .texts import log_exception
from .validation import a_function, checked, count, names, optional, seconds, seconds_or_zero

logger = logging.getLogger("async_hooks")


class Receiver(AppBound):
    """A receiver with a stable name and options of its own, as ``hooks.receiver`` makes it."""

    def __init__(
        self,
        function: Callable[..., Any],
        tasks: Registry[Any],
        *,
        name: str | None,
        aliases: Iterable[str],
        timeout: float | timedelta | None,
        max_attempts: int | None,
        backoff: Callable[[int], float | timedelta] | None,
    ) -> None:
        super().__init__(name if name is not None else default_name(function), tasks)
        self.aliases = checked(names, aliases, "aliases", where=self.name)
        self.timeout = checked(optional(seconds), timeout, "timeout", where=self.name)
        self.max_attempts = checked(optional(count), max_attempts, "max_attempts", where=self.name)
        self.backoff = checked(optional(a_function), backoff, "backoff", where=self.name)
        self._function = function

    def __call__(self, sender: Any, /, **kwargs: Any) -> Any:
        return self._function(sender, **kwargs)

    def option_for_outbox(self) -> str | None:
        """Return the first option that it has and that needs an outbox."""
        if self.max_attempts is not None:
            return "max_attempts"
        return "backoff" if self.backoff is not None else None


def receivers_of(
    state: State, task: type[AsyncTask], *, anonymous: bool
) -> dict[str, Callable[..., Any]]:
    """Return the receivers that ``task`` reaches, in the order of their connection, by name.

    A receiver is called ``module.QualName`` unless it has a ``name``. Closures of one factory
    share theirs: the second is called ``…#2``.
    """
    named: dict[str, Callable[..., Any]] = {}
    for signal in _signals_of(task.action, anonymous):
        for receiver in _connected(signal, state):
            base = name = _name_of(receiver)
            count = 1
            while name in named:
                count += 1
                name = f"{base}#{count}"
            named[name] = receiver
    return named


@lru_cache(maxsize=1024)
def _signals_of(action: str | blinker.Signal, anonymous: bool) -> Sequence[blinker.Signal]:
    """Return the async signals of ``action`` that fire for such a visitor."""
    first = async_signal(action)
    return (first, nopriv_signal(action)) if anonymous else (first,)


def find_receiver(
    receivers: Mapping[str, Callable[..., Any]], name: str
) -> Callable[..., Any] | None:
    """Return the receiver that has ``name``, or had it formerly."""
    if name in receivers:
        return receivers[name]
    named = (receiver for receiver in receivers.values() if isinstance(receiver, Receiver))
    return next((receiver for receiver in named if name in receiver.aliases), None)


class RunOptions(NamedTuple):
    """What holds for the attempts at one envelope: how long one may take, how many may fail."""

    timeout: float
    max_attempts: int
    #: Who may have a ``backoff``, in the order in which they are asked.
    declared: Sequence[Any]

    def backoff(self, failures: int) -> float:
        """Return the seconds until the next attempt, after the ``failures``-th has failed.

        What the receiver or task says, if that is a time at all; else :func:`exponential`.
        """
        for declared in self.declared:
            try:
                backoff = declared().backoff if isinstance(declared, type) else declared.backoff
                if backoff is not None:
                    return seconds_or_zero(backoff(failures))
            except Exception as error:
                what = "The backoff of %r did not return seconds."
                log_exception(logger, error, what, declared.name)
        return exponential(failures)


def options_of(state: State, envelope: Envelope) -> RunOptions:
    """Return what holds for the attempts at ``envelope``.

    The receiver that it runs has the first say, then the task, then the configuration.
    """
    task = state.tasks.find(envelope.task)
    receiver = _receiver_of(state, task, envelope) if task is not None else None
    declared: list[Any] = [each for each in (receiver, task) if each is not None]
    timeouts = (seconds(each.timeout) for each in declared if each.timeout is not None)
    most = (each.max_attempts for each in declared if each.max_attempts is not None)
    max_attempts = next(most, state.config.max_attempts)
    return RunOptions(
        next(timeouts, state.config.timeout),
        1 if envelope.receiver == DISCARDED else max_attempts,
        declared,
    )


def _receiver_of(state: State, task: type[AsyncTask], envelope: Envelope) -> Receiver | None:
    """Return the one receiver that ``envelope`` runs, if it has options of its own."""
    receivers = receivers_of(state, task, anonymous=envelope.user is None)
    found = None
    if envelope.receiver is not None:
        found = find_receiver(receivers, envelope.receiver)
    elif len(receivers) == 1:
        [found] = receivers.values()
    return found if isinstance(found, Receiver) else None


def kinds_of(state: State) -> set[tuple[str, str]]:
    """Return every (task, receiver) that this code can run, former names too.

    The receiver is empty for an envelope that is to reach all.
    """
    kinds: set[tuple[str, str]] = set()
    for name, task in state.tasks.all().items():
        kinds |= {(name, ""), (name, DISCARDED)}
        # An anonymous visitor's run reaches them all, under the names that others have as well.
        for receiver_name, receiver in receivers_of(state, task, anonymous=True).items():
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


def _connected(signal: blinker.Signal, state: State) -> Iterator[Any]:
    # blinker calls receivers in the order of memory addresses, but keeps the order they came in.
    reached = list(signal.receivers_for(state.app))
    for reference in list(signal.receivers.values()):
        receiver: Any = reference() if isinstance(reference, weakref.ref) else reference
        is_ours = not isinstance(receiver, AppBound) or receiver.tasks() is state.tasks
        if is_ours and receiver in reached:
            yield receiver


def _name_of(receiver: Any) -> str:
    if isinstance(receiver, AppBound):
        return receiver.name
    while isinstance(receiver, functools.partial):
        receiver = receiver.func
    return default_name(receiver if hasattr(receiver, "__qualname__") else type(receiver))
