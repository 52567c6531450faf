"""What a developer writes: a subclass of AsyncTask for each piece of deferred work."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import IntFlag
from pathlib import Path
from typing import Any, ClassVar

import blinker
from flask import current_app

from .config import seconds
from .context import current_run
from .errors import AsyncHooksError, ConfigError, NoAppContext, OutboxRequired
from .state import current_state


class Auth(IntFlag):
    """For which visitors a task launches and runs."""

    LOGGED_IN = 1
    LOGGED_OUT = 2
    BOTH = 3


def admits(level: Auth, *, anonymous: bool) -> bool:
    """Tell whether a task of ``level`` is for such a visitor."""
    return bool(int(level) & (2 if anonymous else 1))  # In the request: Flag's & is slow.


class SkipTask(Exception):
    """Raised by ``prepare_data``: launch nothing this time."""


class Retry(Exception):
    """Raised by a receiver or ``run_action``: try again, after so many seconds if given."""

    def __init__(self, message: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after.total_seconds() if isinstance(after, timedelta) else after


class Discard(Exception):
    """Raised by a receiver or ``run_action``: never try this again."""


def async_signal(action: str | blinker.Signal) -> blinker.NamedSignal:
    """Return the signal that fires in the fresh request, ``wp_async_<action>``.

    Connect the slow receivers of ``action`` here.
    """
    return blinker.signal(f"wp_async_{action_name(action)}")


def nopriv_signal(action: str | blinker.Signal) -> blinker.NamedSignal:
    """Return ``wp_async_nopriv_<action>``, which fires as well when the visitor was anonymous."""
    return blinker.signal(f"wp_async_nopriv_{action_name(action)}")


def action_name(action: str | blinker.Signal) -> str:
    """Return the exact name of the signal ``action``.

    :raises ConfigError: if it has none.
    """
    name = action if isinstance(action, str) else getattr(action, "name", None)
    if not name or not isinstance(name, str):
        raise ConfigError(
            f"expected an action to be a signal's name or a signal with a name, got: {action!r}. "
            "Make it with blinker.signal('name')."
        )
    return name


def action_signal(action: str | blinker.Signal) -> blinker.Signal:
    """Return the signal itself; a bare name means blinker's default namespace."""
    return blinker.signal(action) if isinstance(action, str) else action


class AsyncTask:
    """One way of deferring one action: what travels, and what happens where it arrives.

    A new instance serves each launch and each run, so nothing set on ``self`` outlives them.
    """

    #: The signal that triggers the task: its name in blinker's default namespace, or the signal.
    action: ClassVar[str | blinker.Signal]
    #: Stable identity on the wire; default ``module.QualName``.
    name: ClassVar[str]
    #: Former names, under which envelopes may still arrive.
    aliases: ClassVar[Iterable[str]] = ()
    #: For whom the task launches and runs at all.
    auth_level: ClassVar[Auth] = Auth.BOTH
    #: Lower goes first among the launches of one request.
    priority: ClassVar[int] = 10
    #: Seconds for one attempt; None: ``ASYNC_HOOKS_TIMEOUT``.
    timeout: ClassVar[float | timedelta | None] = None
    # These need an outbox.
    queue: ClassVar[str] = "default"
    delay: ClassVar[float | timedelta] = 0
    max_attempts: ClassVar[int | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = default_name(cls)

    def prepare_data(self, sender: Any, /, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """Return the data to travel, a dict of what JSON can carry.

        Runs in the triggering request with what the signal was sent with. Raise SkipTask to
        launch nothing.
        """
        raise NotImplementedError(f"{type(self).__qualname__} defines no prepare_data.")

    def run_action(self, data: dict[str, Any]) -> Any:
        """Do the work, in the fresh request. The default fires ``wp_async_<action>``.

        Where receivers want objects rather than ids, load them here and ``self.send`` them. With
        several receivers it runs once for each of them and once more: load and send, no more.
        """
        return self.send(**data)

    def send(self, /, **kwargs: Any) -> list[Any]:
        """Fire ``wp_async_<action>`` with ``kwargs``; works inside ``run_action`` only.

        A single receiver runs at once. Of several, each gets a fresh request of its own.
        Returns the results of those that ran here.
        """
        run = current_run.get(None)
        if run is None:
            raise AsyncHooksError("'send' works inside run_action. To launch, send the action.")
        return run.send(type(self), kwargs)

    @classmethod
    def dispatch(
        cls,
        data: Mapping[str, Any],
        *,
        delay: float | timedelta = 0,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        unique_key: str | None = None,
        user: Any = None,
    ) -> str:
        """Launch with ``data`` itself, without a signal, and return the id.

        ``user`` names the visitor to run as; without it, the one of this request. ``delay``
        (seconds), ``run_at``, ``queue`` and ``unique_key`` need an outbox.

        :raises NoAppContext: where no application context is pushed.
        :raises DataError: if the data can't travel.
        :raises OutboxRequired: for what only an outbox can keep.
        """
        if not current_app:
            raise NoAppContext(
                f"Task {cls.name!r} was dispatched outside of an application context. "
                "Wrap the call in 'with app.app_context():'."
            )
        wishes = {"delay": delay, "run_at": run_at, "queue": queue, "unique_key": unique_key}
        for key, wish in wishes.items():
            if wish:
                raise OutboxRequired(needs_outbox(key, f"task {cls.name!r}"))
        return current_state().launcher.dispatch(cls, data, priority=priority, user=user)


#: What a task may declare that only an outbox can keep, with what it is without one.
_KEPT_BY_OUTBOX = {
    "queue": "default",
    "delay": 0,
    "max_attempts": None,
    **dict.fromkeys(("backoff", "unique_key", "ref", "finish", "discarded")),
}


def check(task: type[AsyncTask]) -> None:
    """Refuse a task that is declared wrongly.

    :raises ConfigError: naming the class and the attribute.
    """
    if not (isinstance(task, type) and issubclass(task, AsyncTask)):
        raise ConfigError(f"expected a subclass of AsyncTask to register, got: {task!r}")
    where = task.__qualname__
    if not hasattr(task, "action"):
        raise ConfigError(f"{where!r} has no 'action'. Set it to the signal that triggers it.")
    action_name(task.action)
    if not isinstance(task.auth_level, int) or not task.auth_level & Auth.BOTH:
        raise ConfigError(
            f"{where!r}: expected 'auth_level' to be an Auth, got: {task.auth_level!r}"
        )
    if isinstance(task.priority, bool) or not isinstance(task.priority, int):
        raise ConfigError(f"{where!r}: expected 'priority' to be an int, got: {task.priority!r}")
    check_timeout(task.timeout, where)
    checked_aliases(task.aliases, where)
    for key, default in _KEPT_BY_OUTBOX.items():
        if getattr(task, key, default) != default:
            raise OutboxRequired(needs_outbox(key, f"task {task.name!r}"))


def check_timeout(timeout: Any, where: str) -> None:
    try:
        if timeout is not None:
            seconds(timeout)
    except ValueError as wrong:
        raise ConfigError(
            f"{where!r}: expected 'timeout' to be {wrong}, got: {timeout!r}"
        ) from None


def checked_aliases(aliases: Iterable[str], where: str) -> tuple[str, ...]:
    """Return ``aliases`` as a tuple.

    :raises ConfigError: if they are one string, which is a sequence of letters, or no strings.
    """
    if isinstance(aliases, str) or not all(isinstance(alias, str) for alias in aliases):
        raise ConfigError(f"{where!r}: expected 'aliases' to be a tuple of names, got: {aliases!r}")
    return tuple(aliases)


def needs_outbox(key: str, whose: str) -> str:
    return f"{key!r} of {whose} needs an outbox, and this version has none yet. Leave it out."


def default_name(thing: Any) -> str:
    """Return ``module.QualName``; for ``__main__``, the module that importing its file gives."""
    module = thing.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif path := getattr(main, "__file__", None):
            module = Path(path).stem
    return f"{module}.{thing.__qualname__}"
