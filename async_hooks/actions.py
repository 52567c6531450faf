"""Actions, and the signals that stand for them: what triggers a task, and what it fires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import blinker

from .errors import ConfigError
from .texts import repr_of

_PREFIX = "wp_async_"

#: The names of the async signals that a task of any AsyncHooks may fire.
_deferred: set[str] = set()


def async_signal(action: str | blinker.Signal) -> blinker.NamedSignal:
    """Return the signal that fires in the fresh request, ``wp_async_<action>``.

    Connect the slow receivers of ``action`` here.
    """
    return blinker.signal(f"{_PREFIX}{action_name(action)}")


def nopriv_signal(action: str | blinker.Signal) -> blinker.NamedSignal:
    """Return ``wp_async_nopriv_<action>``, which fires as well when the visitor was anonymous."""
    return blinker.signal(f"{_PREFIX}nopriv_{action_name(action)}")


def action_name(action: str | blinker.Signal) -> str:
    """Return the exact name of the signal ``action``.

    :raises ConfigError: if it has none.
    """
    name = action if isinstance(action, str) else getattr(action, "name", None)
    if not name or not isinstance(name, str):
        raise ConfigError(
            "expected an action to be a signal's name or a signal with a name, "
            f"got: {repr_of(action)}. Make it with blinker.signal('name')."
        )
    return name


def action_signal(action: str | blinker.Signal) -> blinker.Signal:
    """Return the signal itself; a bare name means blinker's default namespace."""
    return blinker.signal(action) if isinstance(action, str) else action


def async_signals() -> Iterator[blinker.NamedSignal]:
    """Return the async signals that there are, of whatever action."""
    namespace: Any = blinker.signal
    return (
        signal
        for name, signal in namespace.__self__.copy().items()
        if isinstance(name, str) and name.startswith(_PREFIX)
    )


def note_deferred(action: str | blinker.Signal) -> None:
    """Note that a task of some AsyncHooks defers ``action``."""
    _deferred.update((async_signal(action).name, nopriv_signal(action).name))


def is_deferred(signal: blinker.NamedSignal) -> bool:
    """Tell whether a task of any AsyncHooks of this process may fire ``signal``."""
    return signal.name in _deferred
