"""What each way of ending means for a delivery, as data; the table in the docs is made of it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ..state import Result
from ..texts import text_of
from ..verdict import Outcome, Verdict


class Action(StrEnum):
    """What becomes of the delivery."""

    COMPLETE = "completed"
    RETRY = "retried after its backoff"
    DISCARD = "discarded"
    AT_ONCE = "retried at once"
    WAIT = "sent again"
    PARK = "parked until a process knows it"
    WATCH = "left to the process that runs it"


class Rule(NamedTuple):
    """``then`` and ``counts``, what the delivery has used up, apply to an attempt that began.

    One that did not begin is sent again, whatever the rule says, and has used up nothing. If the
    rule ``slows``, that delivery waits longer each time; if it ``breaks``, all others wait as well:
    it says something of the way that they go.
    """

    action: Action
    counts: str = "nothing"
    slows: bool = False
    breaks: bool = False


#: By outcome, as the endpoint says it, or by the cause of a TransportError.
RULES: dict[str, Rule] = {
    Outcome.COMPLETED: Rule(Action.COMPLETE, "an attempt"),
    Outcome.FAILED: Rule(Action.RETRY, "an attempt"),
    Outcome.RETRY: Rule(Action.RETRY, "an attempt"),
    Outcome.DISCARDED: Rule(Action.DISCARD, "an attempt"),
    Outcome.UNKNOWN: Rule(Action.PARK),
    Outcome.INTERCEPTED: Rule(Action.WAIT, slows=True),
    Outcome.BUSY: Rule(Action.WAIT, slows=True),
    Outcome.UNWRITTEN: Rule(Action.WAIT, slows=True),
    Outcome.EXPIRED: Rule(Action.WAIT, slows=True),
    Outcome.INTERRUPTED: Rule(Action.WAIT),
    Outcome.CONTINUED: Rule(Action.WAIT),
    Outcome.REPLAYED: Rule(Action.WATCH),
    "timeout": Rule(Action.WATCH, slows=True, breaks=True),
    "connection-broken": Rule(Action.AT_ONCE, "a crash", slows=True, breaks=True),
    "server-replaced": Rule(Action.WAIT),
    "not-taken": Rule(Action.WAIT),
}

#: A connection refused, an address unknown, another app, a login page, no verdict or a forged one.
OTHERWISE = Rule(Action.RETRY, "an attempt", slows=True, breaks=True)

#: The process that ran it died, and only others say so.
CRASHED = RULES["connection-broken"]

#: It is over, and nobody knows what became of it.
LOST = Rule(Action.RETRY, "an attempt")


def rule_for(result: Result) -> Rule:
    """Return what ``result`` means; None is a transport that will not know."""
    if result is None:
        return RULES[Outcome.REPLAYED]
    if isinstance(result, Verdict):
        return RULES[result.outcome]
    return RULES.get(text_of(result.cause), OTHERWISE)
