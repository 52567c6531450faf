"""What a run leaves in the outbox when its request ends: its completion, and what it launched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ..delivery import DeliveryState, Ending
from ..envelope import Envelope
from ..errors import OutboxUnavailable
from ..log import ids, one_line
from ..signals import send, task_failed
from ..snapshot import snapshot
from ..texts import UNSHOWN, error_text, repr_of
from ..verdict import ERROR_LENGTH, Outcome, Verdict
from ..wsgi import is_from_keyboard
from .attempt import Attempt

#: Bytes of a result's JSON; of a longer one, or one that is no JSON, the beginning of its repr().
_MAX_RESULT = 64 * 1024

logger = logging.getLogger("async_hooks")


def complete(attempt: Attempt) -> None:
    """Record the completion in the outbox, and add what the run launched in any case."""
    assert attempt.verdict is not None  # noqa: S101 - that is why we are here
    is_completed = attempt.verdict.outcome is Outcome.COMPLETED
    additions = _taken(attempt, with_children=is_completed)
    is_recorded_here = is_completed and attempt.envelope.lease is not None
    try:
        if is_recorded_here:
            _record(attempt, additions)
        elif additions:
            attempt.state.launcher.add(attempt.state, additions)
    except Exception as error:
        what, text = "Envelope %s: outcome not recorded: %s", one_line(error_text(error))
        logger.error(what, attempt.envelope.id, text, extra=ids(attempt.envelope))
        if not is_recorded_here:
            return
        if not isinstance(error, OutboxUnavailable):
            # The app's own commit failed, or what it launched is refused: the attempt's failure.
            attempt.fail(error)
            send(task_failed, attempt.state.app, envelope=attempt.envelope, exception=error)
        elif additions or attempt.state.session is not None:
            # What it launched, or wrote, is not there: it has to run again.
            attempt.verdict = Verdict(Outcome.UNWRITTEN, str(error))


def _record(attempt: Attempt, additions: Sequence[Envelope]) -> None:
    state = attempt.state
    if attempt.children:  # Its result will be that of its receivers.
        ending = Ending(DeliveryState.WAITING, additions=additions)
    else:
        if attempt.envelope.finishes:
            additions = [*additions, attempt.envelope.for_finish()]
        result = _result_of(attempt)
        ending = Ending(DeliveryState.COMPLETED, result=result, additions=additions)
    writer = state.session or state.store
    if writer is None or not writer.record(attempt.envelope, ending):
        attempt.verdict = Verdict(Outcome.REPLAYED, "Another attempt has taken its place.")
        return
    attempt.verdict = replace(attempt.verdict or Verdict(Outcome.COMPLETED), is_recorded=True)
    if additions and state.relay is not None:
        state.relay.wake()


def _taken(attempt: Attempt, *, with_children: bool) -> list[Envelope]:
    """Return, once, what ``attempt`` adds."""
    additions, attempt.additions = attempt.additions, []
    if with_children:
        return additions
    return [each for each in additions if each.id not in attempt.children]


def _result_of(attempt: Attempt) -> str | None:
    """Return the JSON that keeps the redacted result: itself, or the beginning of its repr()."""
    result = attempt.state.redact(attempt.result)
    is_told = attempt.envelope.finishes and attempt.reached is not None
    if result is None and not is_told:
        return None
    reached = {"receiver": attempt.reached} if is_told else {}
    try:
        return snapshot({"result": result, **reached}, max_bytes=_MAX_RESULT)
    except BaseException as error:  # It is no JSON, or would not be looked at.
        if is_from_keyboard(error):
            raise
        shown = repr_of(result)[:ERROR_LENGTH]
    if shown == UNSHOWN:
        what = "Envelope %s: its result cannot be shown, and is not kept."
        logger.warning(what, attempt.envelope.id, extra=ids(attempt.envelope))
    return snapshot({"result": shown, **reached}, max_bytes=_MAX_RESULT)
