"""The verdict: what became of one attempt, as the endpoint says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY = "retry"
    DISCARDED = "discarded"
    UNKNOWN = "unknown"
    INTERCEPTED = "intercepted"
    REPLAYED = "replayed"
    EXPIRED = "expired"
    BUSY = "busy"
    #: The outbox could not be written: the attempt came to nothing.
    UNWRITTEN = "unwritten"
    #: A checkpoint ended the run: the next one goes on there.
    INTERRUPTED = "interrupted"
    #: The run asked to go on later, with other data.
    CONTINUED = "continued"


#: The endpoint's HTTP status for each outcome; an intercepted run keeps the interceptor's own.
STATUS = {
    Outcome.COMPLETED: 204,
    Outcome.FAILED: 500,
    Outcome.RETRY: 500,
    Outcome.DISCARDED: 500,
    Outcome.UNKNOWN: 404,
    Outcome.INTERCEPTED: 500,
    Outcome.REPLAYED: 409,
    Outcome.EXPIRED: 410,
    Outcome.BUSY: 503,
    Outcome.UNWRITTEN: 503,
    Outcome.INTERRUPTED: 503,
    Outcome.CONTINUED: 204,
}

#: The most characters of an error's text in a verdict.
ERROR_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Verdict:
    """``error`` says in words what went wrong; ``after`` (seconds) asks for a retry then.

    ``host_id`` names the record of consumed tokens that the endpoint keeps, if others share it.
    ``is_recorded`` says that the outbox knows of this ending already.
    """

    outcome: Outcome
    error: str | None = None
    after: float | None = None
    host_id: str | None = None
    is_recorded: bool = False
