"""The receivers of an async signal: which a run reaches, in which order, under which names."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import blinker
from flask import Flask

from .actions import async_signal, nopriv_signal
from .connected import connected
from .context import admits
from .envelope import DISCARDED, FINISHED, Envelope
from .errors import ConfigError
from .registry import AppBound, Registry, default_name
from .state import State
from .task import AsyncTask, exponential
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

    A receiver is called ``module.QualName`` unless it has a ``name``. Of three that share theirs,
    the second is called ``…#2/3``: who looks for it finds it among as many only.
    """
    reached = connected(_signals_of(task.action, anonymous), state.app, state.tasks)
    named = {each.name: each.receiver for each in reached}
    if len(named) == len(reached):
        return named
    shared = Counter(each.name for each in reached)
    numbers: Counter[str] = Counter()
    named = {}
    for name, receiver, *_ in reached:
        numbers[name] += 1
        number, of = numbers[name], shared[name]
        named[name if of == 1 else f"{name}#{number}/{of}"] = receiver
    return named


def explain_shared_name(
    state: State, task: type[AsyncTask], *, anonymous: bool | None = None
) -> str | None:
    """Say which receivers that one run of ``task`` reaches share a name; None if none do.

    ``anonymous`` is whose run it is, by default that of any visitor whom the task is for.
    """
    if anonymous is None:
        anonymous = admits(task.auth_level, anonymous=True)
    reached = connected(_signals_of(task.action, anonymous), state.app, state.tasks)
    for name, number in Counter(each.name for each in reached).items():
        if number > 1:
            if len({id(each.receiver) for each in reached if each.name == name}) == 1:
                return (
                    f"Receiver {name!r} is connected to both signals of task {task.name!r}. "
                    f"Connect it to {async_signal(task.action).name!r} only, which fires for "
                    "anonymous visitors as well."
                )
            return (
                f"{number} receivers of task {task.name!r} are called {name!r}, so a delivery may "
                "not find its own. Give each another name with hooks.receiver(…, name=…)."
            )
    return None


def refuse_shared_names(state: State, task: type[AsyncTask]) -> None:
    """Refuse to launch ``task`` as long as receivers that one run of it reaches share a name.

    :raises ConfigError: with an outbox, where each waits for its own; without one, warn once.
    """
    number = sum(len(signal.receivers) for signal in _signals_of(task.action, True))
    checked, known = state.checked_receivers.get(task.name, (None, None))
    if number == checked:
        return
    problem = explain_shared_name(state, task)
    if problem is not None:
        if state.config.outbox is not None:
            raise ConfigError(problem)
        if known is None:
            logger.warning("%s", problem)
    state.checked_receivers[task.name] = number, problem


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
        kinds |= {(name, ""), (name, DISCARDED), (name, FINISHED)}
        # An anonymous visitor's run reaches more, and some then share a name.
        visitors = (False, True) if nopriv_signal(task.action).receivers else (False,)
        for anonymous in visitors:
            for each, receiver in receivers_of(state, task, anonymous=anonymous).items():
                kinds.add((name, each))
                if isinstance(receiver, Receiver):
                    kinds.update((name, alias) for alias in receiver.aliases)
    return kinds


def explain_unknown(state: State, task: str, receiver: str | None, and_so: str) -> str:
    """Say that this code does not know a task or its receiver, ``and_so`` on, and what to do."""
    what = f"Task {task!r}"
    if receiver and state.tasks.find(task) is not None:
        what = f"Receiver {receiver!r} of task {task!r}"
    return (
        f"{what} is unknown to this code, {and_so}. If its module is not imported at the start, "
        "name that in 'ASYNC_HOOKS_IMPORTS'; if it was renamed, add its old name to 'aliases'; if "
        "it was removed, let its deliveries finish first, or cancel them."
    )


def call(app: Flask, receiver: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Call ``receiver`` as blinker would; await what it returns if that is awaitable."""
    return awaited(app, receiver(app, **kwargs))


def _is_awaitable(result: Any) -> bool:
    """Tell whether ``result`` can be awaited; a proxy is what it stands for, if anything."""
    try:
        return inspect.iscoroutine(result) or hasattr(result, "__await__")
    except Exception:  # The app's object would not be asked.
        return False


def awaited(app: Flask, result: Any) -> Any:
    """Return ``result``, or what comes of it if it is awaitable."""
    if not _is_awaitable(result):
        return result

    async def wait() -> Any:
        return await result

    try:
        run = app.ensure_sync(wait)
    except RuntimeError:  # Flask lacks its [async] extra.
        import asyncio  # Here, because few apps come here, and it takes time to start.

        return asyncio.run(wait())
    return run()
