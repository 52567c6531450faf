"""The delivery: an envelope's row in the outbox, as others see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from .envelope import Envelope


class DeliveryState(StrEnum):
    """``available`` is due at ``run_at``; the last three are final.

    ``held`` would be due, but something holds it; users see it as ``available``. ``waiting`` is a
    delivery whose children are not all final.
    """

    AVAILABLE = "available"
    HELD = "held"
    EXECUTING = "executing"
    WAITING = "waiting"
    COMPLETED = "completed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"

    @property
    def shown(self) -> DeliveryState:
        """The state that users see."""
        return DeliveryState.AVAILABLE if self is DeliveryState.HELD else self


FINAL = (DeliveryState.COMPLETED, DeliveryState.DISCARDED, DeliveryState.CANCELLED)
#: Those that users see.
SHOWN = tuple(state for state in DeliveryState if state.shown is state)
UNFINISHED = tuple(state for state in DeliveryState if state not in FINAL)


class Of(NamedTuple):
    """The delivery that a run tells of, and its receiver if it has one."""

    id: str
    receiver: str | None


class Claim(NamedTuple):
    """By which process, and by which lease, a delivery is claimed."""

    process_id: str
    lease: str


class Ending(NamedTuple):
    """What an attempt makes of its delivery when it ends.

    ``state`` is final, or ``available`` for another attempt at ``run_at`` (seconds since the epoch;
    None: as before). ``failures``, ``crashes``, ``refusals`` are what it adds to the delivery's
    counts. An attempt that is ``unused`` is not counted itself; any other ends a row of refusals.
    ``additions`` are added in the same transaction. ``body`` is what the next attempt has for data.
    """

    state: DeliveryState
    run_at: float | None = None
    error: str | None = None
    result: str | None = None
    failures: int = 0
    crashes: int = 0
    refusals: int = 0
    unused: bool = False
    additions: Sequence[Envelope] = ()
    body: str | None = None


class Progress(NamedTuple):
    """How far a group is: its parts that have come to an end, and those of them that failed.

    ``per_second`` are the parts that ended in a second on average, ``remaining`` the seconds that
    the others will take at that rate; None while nothing can be said.
    """

    done: int
    failed: int
    total: int
    per_second: float | None
    remaining: float | None


class Part(NamedTuple):
    """A part of a group that was discarded or cancelled, and its last error."""

    id: str
    receiver: str | None
    state: DeliveryState
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A launch and its parts: its receivers, or itself if it has none.

    ``counts`` has the number of parts in each state that one is in. ``failed`` are those that were
    discarded or cancelled, the first 100.
    """

    id: str
    total: int
    counts: Mapping[str, int]
    failed: Sequence[Part]
    is_finished: bool
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """``attempts`` counts those that began, ``crashes`` those of them that killed their process.

    ``error`` is the text of the last unsuccessful attempt. ``result`` is what ``run_action``
    returned, as JSON can carry it, and of a fan-out what each receiver returned, by name. Times are
    aware UTC. ``data`` is a dict; it is None, and ``error`` says why, where this code can't read
    the row. ``root_id`` is the launch of which it tells an end. ``cursor`` is where its next
    attempt goes on, ``progress`` a dict with ``done``, ``total`` and ``text``, as its run last
    showed it; None where it never did.
    """

    id: str
    parent_id: str | None
    root_id: str | None
    task: str
    receiver: str | None
    queue: str
    priority: int
    state: DeliveryState
    paused: bool
    attempts: int
    crashes: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    finished_at: datetime | None
    error: str | None
    result: Any
    data: Any
    ref: str | None
    cursor: Any
    progress: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can carry it; times are ISO 8601."""
        fields = asdict(self)
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in fields.items()
        }

    @property
    def is_finished(self) -> bool:
        """Whether its state is final."""
        return self.state in FINAL


def progress_in_words(progress: dict[str, Any] | None) -> str:
    """Return e.g. ``done 120 of 200: reading``, nothing where a run has shown nothing."""
    if progress is None:
        return ""
    done, total, text = (progress.get(key) for key in ("done", "total", "text"))
    words = "" if done is None else f"done {done}" + ("" if total is None else f" of {total}")
    return ": ".join(filter(None, (words, text)))
