"""What a run sees of itself: ``current_envelope``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol, cast

from werkzeug.local import LocalProxy

from .delivery import Group, Of
from .envelope import DISCARDED, Envelope
from .errors import AsyncHooksError


class RunningTask(Protocol):
    """The run that this context belongs to. Launching is on while ``launching`` is true."""

    envelope: Envelope
    launching: bool
    additions: list[Envelope]
    #: The State of the app that it is a run of.
    state: Any
    #: How far it is, and whether it may go on.
    checkpoints: Any

    def send(self, task: type[Any], kwargs: Mapping[str, Any]) -> list[Any]: ...

    def count_launch(self, task: type[Any]) -> None:
        """Count a launch of ``task`` by this run.

        :raises DepthExceeded: if it has made as many as are allowed, or is too deep for any.
        """
        ...


class CurrentEnvelope(Envelope):
    """The envelope of a run, as it sees it, and what it can say of itself."""

    @property
    def data(self) -> dict[str, Any]:
        """The task's data, decoded anew at each call."""
        data = super().data
        told: dict[str, Any] = data["data"] if self.receiver == DISCARDED else data
        return told

    @property
    def of(self) -> Of | None:
        """The delivery that ``discarded`` or ``finish`` is told of; None in any other run."""
        if self.receiver == DISCARDED:
            return Of(*super().data["of"])
        return Of(self.root_id, None) if self.root_id is not None else None

    @property
    def group(self) -> Group | None:
        """The launch that it is a part of, or tells of; None without an outbox."""
        state = current_attempt.get().state
        if state.store is None:
            return None
        launch_id = self.root_id or self.parent_id or self.id
        max_age = 0.0 if self.root_id is not None else 1.0  # At the end, the counts are the last.
        found: Group | None = state.outbox.group(launch_id, max_age=max_age)
        return found

    @property
    def cursor(self) -> Any:
        """What the last checkpoint of this delivery said, whichever attempt made it; else None.

        :raises Interrupted: if the delivery was cancelled, or is another attempt's.
        """
        return _checkpoints("cursor").cursor

    @property
    def is_cancelled(self) -> bool:
        """Whether what this run does is in vain: it was cancelled, or replaced. Asks the outbox."""
        is_cancelled: bool = _checkpoints("is_cancelled").is_cancelled
        return is_cancelled

    def checkpoint(
        self, cursor: Any, *, done: Any = None, total: Any = None, text: str | None = None
    ) -> None:
        """Keep that the run is at ``cursor``: another attempt goes on there.

        What was launched since the last checkpoint is sent with it; with the outbox ``"app"``, the
        session is committed with it. ``done``, ``total`` and ``text`` are as for :meth:`progress`.
        ``cursor`` is what JSON can carry, up to 16 kB. The deadline of ``timeout`` starts anew.

        :raises Interrupted: if the run is to end here; let it pass.
        :raises AsyncHooksError: inside a savepoint, or what ``session.begin()`` opened.
        :raises DataError: if the cursor or the progress can't be kept.
        """
        _checkpoints("checkpoint").reach(cursor, done, total, text)

    def progress(self, done: Any, total: Any = None, text: str | None = None) -> None:
        """Show how far the run is, to others within a second; the deadline starts anew.

        :raises DataError: if that is not JSON of up to 16 kB.
        """
        _checkpoints("progress").show(done, total, text)


current_attempt: ContextVar[RunningTask] = ContextVar("async_hooks.attempt")

#: The envelope that this request runs; falsy outside a run.
current_envelope = cast(
    CurrentEnvelope,
    LocalProxy(
        current_attempt,
        "current",
        unbound_message="'current_envelope' is there in a run only; outside of one it is falsy.",
    ),
)


def _checkpoints(name: str) -> Any:
    attempt = current_attempt.get(None)
    if attempt is None or not attempt.launching:
        raise AsyncHooksError(f"{name!r} of 'current_envelope' works inside run_action only.")
    return attempt.checkpoints
