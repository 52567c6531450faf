"""What a run sees of itself: ``current_envelope``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol, cast

from werkzeug.local import LocalProxy

from .envelope import Envelope


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


current_attempt: ContextVar[RunningTask] = ContextVar("async_hooks.attempt")

#: The envelope that this request runs; falsy outside a run.
current_envelope = cast(CurrentEnvelope, LocalProxy(current_attempt, "current"))
