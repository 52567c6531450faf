"""What a run sees of itself: ``current_envelope``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol, cast

from werkzeug.local import LocalProxy

from .delivery import Group, Of
from .envelope import DISCARDED, Envelope


class RunningTask(Protocol):
    """The run that this context belongs to. Launching is on while ``launching`` is true."""

    envelope: Envelope
    launching: bool
    additions: list[Envelope]
    #: The State of the app that it is a run of.
    state: Any

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


current_attempt: ContextVar[RunningTask] = ContextVar("async_hooks.attempt")

#: The envelope that this request runs; falsy outside a run.
current_envelope = cast(CurrentEnvelope, LocalProxy(current_attempt, "current"))
