"""The delivery: an envelope's row in the outbox, as others see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from .envelope import Envelope


class DeliveryState(StrEnum):
    """``available`` is due at ``run_at``; the last three are final."""

    AVAILABLE = "available"
    EXECUTING = "executing"
    COMPLETED = "completed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"


FINAL = (DeliveryState.COMPLETED, DeliveryState.DISCARDED, DeliveryState.CANCELLED)


class Terms(NamedTuple):
    """What a delivery keeps beside its envelope.

    ``run_at`` is seconds since the epoch, None for at once.
    """

    queue: str = "default"
    run_at: float | None = None
    unique_key: str | None = None
    ref: str | None = None


class Addition(NamedTuple):
    """An envelope that is to become a delivery."""

    envelope: Envelope
    terms: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """``attempts`` counts those that began, ``crashes`` those of them that killed their process.

    ``error`` is what the last attempt that did not succeed said. ``result`` is what ``run_action``
    returned, as JSON can carry it. Times are aware UTC.
    """

    id: str
    parent_id: str | None
    task: str
    receiver: str | None
    queue: str
    priority: int
    state: DeliveryState
    attempts: int
    crashes: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    finished_at: datetime | None
    error: str | None
    result: Any
    data: dict[str, Any]
    ref: str | None

    @property
    def is_finished(self) -> bool:
        """Whether its state is final."""
        return self.state in FINAL
