"""What the library keeps for one app: a frozen record in ``app.extensions["async_hooks"]``.

Lower layers reach higher ones through it, by the protocols below.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flask import Flask, current_app

from .config import Config
from .context import Context
from .envelope import Envelope, Hold
from .errors import ConfigError, TransportError
from .host.per_process import PerProcess
from .host.replay import ReplayGuard
from .registry import Registry
from .signing import Signing
from .verdict import Verdict

if TYPE_CHECKING:  # Made by higher layers, and reached through here.
    from .outbox.session import SessionOutbox
    from .outbox.store import Store
    from .relay.process import Process

KEY = "async_hooks"

#: What a sender knows of an attempt: the endpoint's verdict, why there is none, or nothing.
Result = Verdict | TransportError | None


class Transport(Protocol):
    """Carries one envelope to where it runs."""

    def send(self, envelope: Envelope) -> Verdict | None:
        """Return the endpoint's verdict, or None if it will not be known here.

        :raises TransportError: if the envelope did not arrive, or no verdict came back.
        """
        ...


class Source(Protocol):
    """Where the envelopes of one process wait until its senders take them."""

    def next(self) -> Envelope | None:
        """Wait for the next envelope and return it; None tells a sender to end.

        Once it is stopped, it returns at once what waits and only this process can run.
        """
        ...

    def settle(self, envelope: Envelope, result: Result) -> None:
        """Take note of what became of an envelope that :meth:`next` returned."""
        ...

    def lose(self, envelope: Envelope, error: BaseException) -> None:
        """Take note that a sender failed on ``envelope``."""
        ...

    def stop(self) -> None:
        """Give out nothing more that can wait for another process, and let senders end."""
        ...

    def end(self, unfinished: Sequence[Envelope], error: TransportError) -> None:
        """Take note that the process ends, with ``unfinished`` still on their way."""
        ...


class Submits(Protocol):
    """Takes envelopes over from a request, and sees to it that they travel."""

    def submit(self, envelope: Envelope) -> None: ...


class Relays(Protocol):
    """Carries what waits in the outbox."""

    def start(self) -> None: ...

    def attend(self) -> None:
        """Show that this process lives, because it runs what others send."""
        ...

    def wake(self, holds: Collection[Hold] = ()) -> None:
        """Say that something may wait there, by ``holds`` if they are named."""
        ...


class Launches(Protocol):
    """Makes envelopes and hands them over."""

    def dispatch(
        self,
        state: State,
        task: type[Any],
        data: Mapping[str, Any],
        *,
        user: Any,
        options: Any,
    ) -> str: ...

    def dispatch_many(
        self,
        state: State,
        task: type[Any],
        items: Iterable[Mapping[str, Any]],
        *,
        user: Any,
        options: Any,
    ) -> list[str]: ...

    def hand_over(self, state: State, envelope: Envelope) -> None: ...

    def add(self, state: State, envelopes: Sequence[Envelope]) -> object:
        """Add what a run launched to the outbox.

        :raises OutboxUnavailable: if that can't be.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The record of one app."""

    app: Flask
    config: Config
    #: Those of the AsyncHooks that set the app up; it may serve other apps as well.
    tasks: Registry[Any]
    context: Context
    signing: Signing
    replay_guard: ReplayGuard
    launcher: Launches
    #: What carries envelopes that only memory has.
    memory: Submits
    #: What carries the outbox, and the outbox itself; all None without one.
    relay: Relays | None = None
    store: Store | None = None
    #: There where launches join the app's own transactions.
    session: SessionOutbox | None = None
    #: This process, as the outbox knows it.
    process: PerProcess[Process]
    #: What becomes of a result or an error before it is kept; the identity unless told otherwise.
    redact: Callable[[Any], Any] = lambda value: value
    #: What ``hooks.outbox`` is.
    outbox: Any = None
    #: Makes the app ready to serve, to relay or to be managed, once in each process.
    prepare: Callable[[], None]
    #: False while nothing that is launched could run anywhere.
    is_reachable: Callable[[], bool]
    #: The record that takes this one's place while the app is under test; None: this one does.
    under_test: State | None = None
    #: By task: how many receivers were connected when their names were checked, and what was wrong.
    checked_receivers: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    #: The tasks that were reported for reaching no receiver.
    without_receivers: set[str] = field(default_factory=set)

    def task_of(self, envelope: Envelope) -> type[Any] | None:
        """Return the task that ``envelope`` names, or None if this app has none of that name."""
        task: type[Any] | None = self.tasks.find(envelope.task)
        return task


def state_of(app: Flask) -> State:
    """Return the record of ``app``; under test, the one that reaches no outbox.

    :raises ConfigError: if the app was never initialised.
    """
    state: State | None = app.extensions.get(KEY)
    if state is None:
        raise ConfigError(f"{app!r} has no AsyncHooks. Call hooks.init_app(app) in its factory.")
    if state.under_test is not None and is_under_test(app):
        return state.under_test
    return state


def is_under_test(app: Flask) -> bool:
    """Tell whether ``app`` is TESTING, and the test did not say that it launches as ever.

    Both are read at each launch, because tests set them once the factory has returned.
    """
    return app.testing and app.config.get("ASYNC_HOOKS_TESTING") != "live"


def current_state() -> State:
    """Return the record of the current app; an application context must be pushed."""
    return state_of(current_app._get_current_object())  # type: ignore[attr-defined]
