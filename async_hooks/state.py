"""What the library keeps for one app: a frozen record in ``app.extensions["async_hooks"]``.

What lower rooms need of higher ones they reach through it, by the protocols below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flask import Flask, current_app

from .config import Config
from .context import Context
from .delivery import Addition
from .envelope import Envelope
from .errors import ConfigError
from .host.replay import ReplayGuard
from .registry import Registry
from .signing import Signing
from .verdict import Verdict

KEY = "async_hooks"


class Transport(Protocol):
    """Carries one envelope to where it runs."""

    def send(self, envelope: Envelope) -> Verdict | None:
        """Return the endpoint's verdict, or None if it will not be known here.

        :raises TransportError: if the envelope did not arrive, or no verdict came back.
        """
        ...


class Relay(Protocol):
    """Takes envelopes over from the request and sees to it that they travel."""

    def put(self, envelope: Envelope) -> None: ...

    def reserve(self, envelope: Envelope, queue: str) -> Envelope | None:
        """Return ``envelope`` with a lease, to be carried by this process; None without room."""
        ...

    def release(self, envelope: Envelope) -> None:
        """Give up the place that was reserved."""
        ...

    def wake(self) -> None:
        """Say that deliveries may wait in the outbox."""
        ...


class Launcher(Protocol):
    """Makes envelopes and hands them over."""

    def dispatch(
        self,
        task: type[Any],
        data: Mapping[str, Any],
        *,
        priority: int | None,
        user: Any,
        options: Any,
    ) -> str: ...

    def hand_over(self, envelope: Envelope) -> None: ...

    def keep(self, additions: Sequence[Addition]) -> None:
        """Keep what a run launched.

        :raises OutboxUnavailable: if that can't be.
        """
        ...


class Ledger(Protocol):
    """What is written into the outbox; see ``outbox.ledger``, which needs SQLAlchemy."""

    @property
    def joins(self) -> bool:
        """Whether launches join the app's own transactions."""
        ...

    def begin(self, envelope: Envelope) -> bool: ...

    def complete(
        self, envelope: Envelope, result: str | None, additions: Sequence[Addition]
    ) -> bool: ...

    def end(self, envelope: Envelope, verdict: Verdict) -> None: ...

    def collect_results(self, parent_id: str) -> Mapping[str, Any] | None: ...

    def give_back(self, envelopes: Sequence[Envelope]) -> int: ...

    def add(
        self, additions: Sequence[Addition], *, lease: str | None = None
    ) -> Mapping[str, str]: ...

    def join(self, addition: Addition) -> None: ...

    def unfinished(self, unique_key: str) -> str | None: ...

    def flush(self, *, is_last: bool = False) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    app: Flask
    config: Config
    #: Those of the AsyncHooks that set the app up; it may serve other apps as well.
    tasks: Registry[Any]
    context: Context
    signing: Signing
    replay_guard: ReplayGuard
    launcher: Launcher
    relay: Relay
    #: None without an outbox.
    ledger: Ledger | None = None
    #: What becomes of a result or an error before it is kept; the identity unless told otherwise.
    redact: Callable[[Any], Any] = lambda value: value
    #: What ``hooks.outbox`` is.
    outbox: Any = None
    #: False while nothing that is launched could run anywhere.
    is_reachable: Callable[[], bool]
    #: The tasks that were reported for reaching no receiver.
    without_receivers: set[str] = field(default_factory=set)

    def task_of(self, envelope: Envelope) -> type[Any] | None:
        """Return the task that ``envelope`` names, or None if this app has none of that name."""
        task: type[Any] | None = self.tasks.find(envelope.task)
        return task


def state_of(app: Flask) -> State:
    """Return the record of ``app``.

    :raises ConfigError: if the app was never initialised.
    """
    state: State | None = app.extensions.get(KEY)
    if state is None:
        raise ConfigError(f"{app!r} has no AsyncHooks. Call hooks.init_app(app) in its factory.")
    return state


def current_state() -> State:
    """Return the record of the current app; an application context must be pushed."""
    return state_of(current_app._get_current_object())  # type: ignore[attr-defined]
