"""Deliveries that are too old to begin, or to go on."""

from __future__ import annotations

from ..errors import OutboxUnavailable
from ..validation import seconds
from ..verdict import Outcome, Verdict
from .attempt import Attempt

#: Seconds since its launch for which a delivery may go on whose task does not say.
_LONGEST = 30 * 24 * 3600.0


def too_old_to_begin(attempt: Attempt) -> Verdict | None:
    """Return the verdict on a delivery that did not begin in time, None if it did."""
    if attempt.task is None or attempt.task.expires is None or attempt.envelope.tells_of_an_end:
        return None
    return _too_old(attempt, seconds(attempt.task.expires), 0.0)


def too_old_to_continue(attempt: Attempt, after: float) -> Verdict | None:
    """Return the verdict on a delivery that would be too old in ``after`` seconds."""
    expires = attempt.task.expires if attempt.task is not None else None
    return _too_old(attempt, _LONGEST if expires is None else seconds(expires), after)


def _too_old(attempt: Attempt, limit: float, after: float) -> Verdict | None:
    store = attempt.state.store
    if store is None or attempt.envelope.lease is None:
        return None
    try:
        row = store.running(attempt.envelope)
    except OutboxUnavailable as error:
        return Verdict(Outcome.UNWRITTEN, str(error))
    age = 0.0 if row is None else store.now() - row.created_at + after
    if age <= limit:
        return None
    what = "would go on" if after else "would run"
    text = f"It expired: it {what} {age:.0f} seconds after its launch, and has {limit:g} for that."
    return Verdict(Outcome.DISCARDED, text)
