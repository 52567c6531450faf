"""What is connected to the async signals, and for which of the apps of this process.

Signals are global, and an app factory that runs twice connects its local functions twice. Nothing
tells for which app a plain receiver was connected, but for when that was: each app that is set up
ends a period.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import blinker
from flask import Flask

from .actions import async_signals
from .registry import AppBound, Registry, default_name


class Connected(NamedTuple):
    """A receiver, its name, and the place in ``signal.receivers`` where ``kept`` refers to it."""

    name: str
    receiver: Any
    signal: blinker.Signal
    key: Any
    kept: Any


class _Known(NamedTuple):
    #: Returns what the signal kept: what is connected later may have the key of what is gone.
    kept: Callable[[], Any]
    period: int


logger = logging.getLogger("async_hooks")

#: The names of receivers that were reported.
_reported: set[str] = set()

#: How many apps have been set up.
_period = 0
_known: weakref.WeakKeyDictionary[blinker.Signal, dict[Any, _Known]] = weakref.WeakKeyDictionary()


def end_period() -> None:
    """Note that an app is set up: what is connected from now on may be for another."""
    global _period
    for signal in async_signals():
        before, now = _known.get(signal, {}), {}
        # Copied in one step, because a collection meanwhile ends the connections of what is gone.
        for key, kept in signal.receivers.copy().items():
            known = before.get(key)
            is_known = known is not None and known.kept() is kept
            now[key] = known if known and is_known else _Known(_weakly(kept), _period)
        _known[signal] = now
    _period += 1


def connected(
    signals: Iterable[blinker.Signal], app: Flask, tasks: Registry[Any]
) -> list[Connected]:
    """Return the receivers of ``signals`` that ``app`` reaches, in the order of their connection.

    ``tasks`` are those of its AsyncHooks. What was connected for an earlier app is left out: of
    receivers of one name and code, those of the latest period count.
    """
    found = [each for signal in signals if signal.receivers for each in _of(signal, app, tasks)]
    if len(found) < 2 or len({each.name for each in found}) == len(found):
        return found
    periods = [_period_of(each) for each in found]
    kinds = [_kind(each) for each in found]
    latest: dict[Hashable, int] = {}
    for kind, period in zip(kinds, periods, strict=True):
        latest[kind] = max(period, latest.get(kind, 0))
    is_latest = [period == latest[kind] for kind, period in zip(kinds, periods, strict=True)]
    _report_differing(app, found, is_latest)
    return [each for each, is_kept in zip(found, is_latest, strict=True) if is_kept]


def _report_differing(app: Flask, found: Sequence[Connected], is_latest: Sequence[bool]) -> None:
    """Warn, once for each name, of what is left out and is not quite what has its place.

    A factory makes the same again, as a rule; what closes over another text may be another's.
    """
    for name in {each.name for each, is_kept in zip(found, is_latest, strict=True) if not is_kept}:
        of_name = [
            (_facts_of(each.receiver), k)
            for each, k in zip(found, is_latest, strict=True)
            if each.name == name
        ]
        kept = [facts for facts, is_kept in of_name if is_kept]
        if name not in _reported and any(f not in kept for f, is_kept in of_name if not is_kept):
            _reported.add(name)
            logger.warning(
                "%r calls the receivers %r of the latest app of this process only. If one that was "
                "connected before is for this app as well, give each a name of its own with "
                "hooks.receiver(…, name=…).",
                app.name,
                name,
            )


def _of(signal: blinker.Signal, app: Flask, tasks: Registry[Any]) -> Iterator[Connected]:
    # blinker calls receivers in the order of memory addresses, but keeps the order they came in.
    reached = list(signal.receivers_for(app))
    for key, kept in signal.receivers.copy().items():
        receiver: Any = kept() if isinstance(kept, weakref.ref) else kept
        is_ours = not isinstance(receiver, AppBound) or receiver.tasks() is tasks
        if is_ours and receiver in reached:
            name = receiver.name if isinstance(receiver, AppBound) else default_name(receiver)
            yield Connected(name, receiver, signal, key, kept)


def _period_of(connected: Connected) -> int:
    """Return when it was connected: until there is a second app, all is for the first."""
    if _period < 2:
        return 0
    known = _known.get(connected.signal, {}).get(connected.key)
    is_known = known is not None and known.kept() is connected.kept
    return known.period if known and is_known else _period


def _kind(connected: Connected) -> Hashable:
    """Return what a receiver has in common with what replaces it in the next period."""
    receiver = connected.receiver
    if isinstance(receiver, AppBound):  # Its registry has replaced the one before.
        return id(receiver)
    code = _code_of(receiver) or _code_of(vars(type(receiver)).get("__call__"))
    return connected.name, *code


def _code_of(called: Any) -> dict[CodeType, None]:
    """Return the code of ``called``, and of the functions that it closes over or is given.

    What a decorator has made of two functions is alike but for these.
    """
    found: dict[CodeType, None] = {}
    rest = [called]
    while rest:
        match rest.pop():
            case functools.partial() as partial:
                rest += [partial.func, *partial.args, *partial.keywords.values()]
            case MethodType() as method:
                rest.append(method.__func__)
            case FunctionType() as function if function.__code__ not in found:
                found[function.__code__] = None
                rest += _closed_over(function)
    return found


def _facts_of(receiver: Any) -> list[Any]:
    """Return the texts and numbers that ``receiver`` closes over or is given."""
    given: list[Any] = []
    if isinstance(receiver, functools.partial):
        given = [*receiver.args, *receiver.keywords.values()]
    elif isinstance(receiver, FunctionType):
        given = [*_closed_over(receiver), *(receiver.__defaults__ or ())]
    return [each for each in given if isinstance(each, (str, int))]


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # Not assigned yet.
            continue


def _weakly(kept: Any) -> Callable[[], Any]:
    """Return what returns ``kept``, and does not keep alive what the signal no longer does."""
    if not isinstance(kept, weakref.ref):
        try:
            return weakref.ref(kept)
        except TypeError:  # Of its kind, e.g. with __slots__, none can be referred to weakly.
            pass
    return lambda: kept
