"""What a developer writes: a subclass of AsyncTask for each piece of deferred work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import IntFlag
from random import uniform
from typing import Any, ClassVar, NamedTuple

import blinker
from flask import current_app

from .actions import action_name
from .current import current_attempt
from .errors import AsyncHooksError, NoAppContext
from .registry import default_name
from .state import State, current_state

#: Seconds at which the default backoff ends, ± 20 %.
LONGEST_BACKOFF = 3600.0


class Auth(IntFlag):
    """For which visitors a task launches and runs."""

    LOGGED_IN = 1
    LOGGED_OUT = 2
    BOTH = 3


class LaunchOptions(NamedTuple):
    """What one launch asks for, instead of what its task declares."""

    priority: int | None = None
    delay: float | timedelta = 0
    run_at: datetime | None = None
    queue: str | None = None
    unique_key: str | None = None


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
    #: The name that deliveries are grouped, worked and paused by.
    queue: ClassVar[str] = "default"
    #: Seconds that a launch waits.
    delay: ClassVar[float | timedelta] = 0
    #: Attempts that may fail before it is discarded; None: ``ASYNC_HOOKS_MAX_ATTEMPTS``.
    max_attempts: ClassVar[int | None] = None
    #: Seconds since its launch after which it does not begin any more, but is discarded.
    expires: ClassVar[float | timedelta | None] = None
    #: Seconds of a run after which its next checkpoint interrupts it, so that others have a turn.
    slice_seconds: ClassVar[float | timedelta | None] = None
    #: Runs at once, over all processes, for each ``limit_key``; None: any number.
    limit: ClassVar[int | None] = None
    #: Runs that begin, evenly spaced, for each ``rate_key``: ``"100/m"``, or per s, h, d.
    rate: ClassVar[str | None] = None
    #: Runs that may begin at once after a pause: in any minute at most 100 + ``burst``.
    burst: ClassVar[int] = 1
    #: Seconds since the last launch of one ``unique_key`` until the newest data runs, once.
    debounce: ClassVar[float | timedelta | None] = None
    #: Seconds since the first of them until it runs at the latest; None: 15 times ``debounce``.
    debounce_max: ClassVar[float | timedelta | None] = None
    #: Whether a launch while another runs is lost to it ("finished") or a new one ("started").
    unique_until: ClassVar[str] = "finished"
    #: Seconds that a ``unique_key`` stays taken beyond the end.
    unique_for: ClassVar[float | timedelta | None] = None

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
        several receivers it also runs once for each of them, so only load and send.
        """
        return self.send(**data)

    def backoff(self, attempt: int) -> float | timedelta:
        """Return the seconds to wait after ``attempt`` failed, counted from 1. Needs an outbox.

        The default starts at 5 seconds and triples up to an hour, ± 20 %.
        """
        return exponential(attempt)

    def unique_key(self, data: dict[str, Any]) -> str | None:
        """Return a key that only one unfinished delivery may hold. Needs an outbox.

        A launch whose key is taken adds nothing, and returns the id of the delivery that has it.
        """
        return None

    def limit_key(self, data: dict[str, Any]) -> str | None:
        """Return for whom ``limit`` counts; the default is the task, None is nobody."""
        return ""

    def rate_key(self, data: dict[str, Any]) -> str | None:
        """Return for whom ``rate`` counts; the default is the task, None is nobody."""
        return ""

    def merge(self, old: dict[str, Any], new: dict[str, Any]) -> Mapping[str, Any]:
        """Return the data that runs for two launches of one ``debounce``; the default is the new.

        It may be called more often than there are launches.
        """
        return new

    def ref(self, data: dict[str, Any]) -> str | None:
        """Return what ``outbox.find(ref=…)`` finds it by, up to 255 characters. Needs an outbox.

        The deliveries of its receivers, if there are several, are found by it as well.
        """
        return None

    def finish(self, result: Any, data: dict[str, Any]) -> None:
        """Called once all receivers have come to an end, whatever end. Needs an outbox.

        In a fresh request of its own, at least once: it is retried like any other run. ``result``
        has what each receiver that succeeded returned, by its name, as JSON has it (``{}`` if none
        did); where none was reached, it is what ``run_action`` returned. What failed, and how much,
        tells ``current_envelope.group``.
        """

    def discarded(self, data: dict[str, Any], error: str) -> None:
        """Called in a fresh request of its own, once, after a delivery was discarded.

        Needs an outbox. ``error`` is the text of the last error; ``current_envelope.of`` tells
        which delivery it was, and of which receiver.
        """

    def send(self, /, **kwargs: Any) -> list[Any]:
        """Fire ``wp_async_<action>`` with ``kwargs``; works inside ``run_action`` only.

        A single receiver runs at once. Of several, each gets a fresh request of its own.
        Returns the results of those that ran here.
        """
        attempt = current_attempt.get(None)
        if attempt is None:
            raise AsyncHooksError("'send' works inside run_action. To launch, send the action.")
        return attempt.send(type(self), kwargs)

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
        (seconds), ``run_at`` (an aware datetime), ``queue`` and ``unique_key`` need an outbox.

        :raises ConfigError: for a wrong option.
        :raises NoAppContext: where no application context is pushed.
        :raises DataError: if the data can't travel.
        :raises OutboxRequired: for what only an outbox can keep.
        """
        state, options = _state_for(cls), LaunchOptions(priority, delay, run_at, queue, unique_key)
        return state.launcher.dispatch(state, cls, data, user=user, options=options)

    @classmethod
    def dispatch_many(
        cls,
        items: Iterable[Mapping[str, Any]],
        *,
        delay: float | timedelta = 0,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        unique_key: str | None = None,
        user: Any = None,
    ) -> list[str]:
        """Launch once with each of ``items``, the data, and return the ids in their order.

        An outbox adds them in one transaction, and in much less time than one by one. The options
        and errors are those of :meth:`dispatch`; if one item can't travel, which the error names by
        its index, none is launched. ``ASYNC_HOOKS_MAX_LAUNCHES`` counts them as one.
        """
        state, options = _state_for(cls), LaunchOptions(priority, delay, run_at, queue, unique_key)
        return state.launcher.dispatch_many(state, cls, items, user=user, options=options)


def default_task(action: str | blinker.Signal) -> type[AsyncTask]:
    """Return the task of an ``action`` that has a receiver and no other task.

    Its data are the keywords that the signal is sent with.
    """

    def prepare_data(self: AsyncTask, sender: Any, /, **kwargs: Any) -> Mapping[str, Any]:
        return kwargs

    name = f"default:{action_name(action)}"
    members = {"action": action, "name": name, "prepare_data": prepare_data}
    return type("DefaultTask", (AsyncTask,), {"__module__": __name__, **members})


def _state_for(task: type[AsyncTask]) -> State:
    if not current_app:
        raise NoAppContext(
            f"Task {task.name!r} was dispatched outside of an application context. "
            "Wrap the call in 'with app.app_context():'."
        )
    return current_state()


def exponential(failures: int) -> float:
    """Return the seconds to wait after ``failures``: 5, 15, 45 … up to an hour, ± 20 %."""
    exponent = min(max(failures, 1) - 1, 10)  # No failure count can overflow it.
    return min(5.0 * 3.0**exponent, LONGEST_BACKOFF) * uniform(0.8, 1.2)  # noqa: S311
