"""What an outbox tells its operators: values, and sentences about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..delivery import Delivery, DeliveryState, progress_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``oldest_due`` is since how long the longest waiting delivery is due, None if none is.

    ``relays`` are the processes that relay or run, with what keeps each from it, if anything does;
    ``overdue`` are the ids of what runs for longer than its timeout.
    """

    ok: bool
    oldest_due: timedelta | None
    relays: list[RelaySeen]
    overdue: list[str]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySeen:
    """A process that relays or runs something, as it was last seen, and what it executes, by id.

    ``name`` and ``queues`` are a worker's; a web process has no name. No queues means all. Of its
    ``deliveries``, those ``overdue`` run for longer than their timeout; ``cancelled`` ones still
    keep their threads. One without ``claims`` only runs what others send it.
    """

    id: str
    name: str
    queues: list[str]
    deliveries: list[str]
    overdue: list[str]
    cancelled: list[str]
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    is_alive: bool
    claims: bool
    problem: str | None

    @property
    def can_relay(self) -> bool:
        """Whether it is alive, and claims."""
        return self.is_alive and self.claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The unfinished deliveries of one task and receiver; unknown ones wait for their code."""

    task: str
    receiver: str | None
    count: int
    due_at: datetime
    is_known: bool


def problem_of(late: timedelta | None, relays: Sequence[RelaySeen], patience: float) -> str | None:
    """Say why deliveries are not sent in time; the oldest is ``late`` overdue."""
    alive = [relay for relay in relays if relay.can_relay]
    problem = cause = _problem(alive)
    if late is not None and not alive:
        problem, cause = "A delivery is due, and no process relays.", "No process relays."
    if late is not None and late.total_seconds() > patience:
        problem = f"A delivery has been due for {late.total_seconds():.0f} s."
        problem += f" {cause}" if cause is not None else ""
    return problem


def reason(
    delivery: Delivery,
    now: datetime,
    *,
    is_known: bool,
    is_paused: bool,
    held: str | None,
    relays: Sequence[RelaySeen],
    unfinished: Sequence[Delivery],
) -> str:
    """Say in one sentence why the delivery is where it is; ``held`` says what holds it."""
    error = f" Last error: {delivery.error}" if delivery.error else ""
    finished = in_words(delivery.finished_at)
    match delivery.state:
        case DeliveryState.COMPLETED | DeliveryState.CANCELLED:
            return f"It was {delivery.state} at {finished}."
        case DeliveryState.DISCARDED:
            return f"It was discarded at {finished} after {delivery.attempts} attempts.{error}"
        case DeliveryState.EXECUTING:
            is_overdue = any(delivery.id in relay.overdue for relay in relays)
            how = "runs, for longer than its timeout" if is_overdue else "is claimed or runs"
            shown = progress_in_words(delivery.progress)
            progress = f" ({shown})" if shown else ""
            return f"Attempt {max(delivery.attempts, 1)} {how}{progress}.{error}"
    if delivery.state is DeliveryState.WAITING:
        return f"{_what_a_group_waits_for(unfinished, relays)}{error}"
    alive = [relay for relay in relays if relay.can_relay]
    problem = _problem(alive)
    if delivery.paused:
        why = "It is held because it was paused."
    elif not is_known:
        why = "It is parked: this code does not know its task or receiver."
    elif is_paused:
        why = f"It waits because the queue {delivery.queue!r} is paused."
    elif delivery.run_at > now:
        why = f"It waits for its time, {in_words(delivery.run_at)}."
    elif held is not None:
        why = held
    elif not alive:
        why = "It is due, and no process relays."
    elif problem is not None:
        why = f"It is due, and the relay has a problem: {problem}"
    else:
        why = "It is due, and waits for a relay to claim it."
    return f"{why}{error}"


def _what_a_group_waits_for(unfinished: Sequence[Delivery], relays: Sequence[RelaySeen]) -> str:
    """Name the parts that a group waits for, and how each is."""
    if not unfinished:
        return "Its parts have come to an end, and a relay will say so in a moment."
    overdue = {one for relay in relays for one in relay.overdue}
    parts = [
        f"{part.id} ({part.receiver or part.task}: "
        f"{'overdue' if part.id in overdue else 'paused' if part.paused else part.state})"
        for part in unfinished
    ]
    return f"It waits for the end of {', '.join(parts)}."


def moment(at: Any) -> datetime:
    """Return a time of the table's as others see it; of one that no calendar has, the nearest."""
    try:
        return datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError, TypeError):  # SQLite's columns hold anything.
        is_late = isinstance(at, (int, float)) and at > 0
        return (datetime.max if is_late else datetime.min).replace(tzinfo=UTC)


def lateness(due_at: float, now: float) -> timedelta:
    """Return how long ago ``due_at`` was, of what is too long for any clock the longest."""
    try:
        return timedelta(seconds=now - due_at)
    except OverflowError:
        return timedelta.max


def in_words(at: datetime | None) -> str:
    """Return a time as sentences name it."""
    return at.isoformat(sep=" ", timespec="seconds") if at is not None else "?"


def _problem(relays: Sequence[RelaySeen]) -> str | None:
    return next((relay.problem for relay in relays if relay.problem), None)
