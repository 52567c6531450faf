"""What a run leaves in the outbox when its request ends: its completion, and what it launched."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..delivery import DeliveryState, Ending
from ..envelope import holds_of
from ..errors import DataError, OutboxUnavailable
from ..log import ids, one_line
from ..signals import send, task_failed
from ..snapshot import snapshot
from ..texts import UNSHOWN, error_text, repr_of
from ..verdict import ERROR_LENGTH, Outcome, Verdict
from ..wsgi import is_from_keyboard
from .attempt import Attempt
from .checkpoints import Interruption
from .expiry import too_old_to_continue

#: Bytes of a result's JSON; of a longer one, or one that is no JSON, the beginning of its repr().
_MAX_RESULT = 64 * 1024

logger = logging.getLogger("async_hooks")


def complete(attempt: Attempt) -> None:
    """Record in the outbox that the run is completed, or goes on; add what it launched in any case.

    Only what was launched since a checkpoint that interrupts the run goes: it is launched again.
    """
    assert attempt.verdict is not None  # noqa: S101 - that is why we are here
    if attempt.verdict.outcome in (Outcome.INTERRUPTED, Outcome.UNWRITTEN):
        attempt.additions = []
        _release(attempt)
        return
    ending = _ending_of(attempt) if attempt.envelope.lease is not None else None
    additions = attempt.take_launches()
    if attempt.verdict.outcome is Outcome.COMPLETED:
        additions += attempt.additions
    try:
        if ending is not None:
            _record(attempt, ending._replace(additions=[*additions, *ending.additions]))
        elif additions:
            attempt.state.launcher.add(attempt.state, additions)
    except Exception as error:
        what, text = "Envelope %s: outcome not recorded: %s", one_line(error_text(error))
        logger.error(what, attempt.envelope.id, text, extra=ids(attempt.envelope))
        if ending is None:
            return
        if not isinstance(error, OutboxUnavailable):
            # The app's own commit failed, or what it launched is refused: the attempt's failure.
            attempt.fail(error)
            send(task_failed, attempt.state.app, envelope=attempt.envelope, exception=error)
        elif additions or attempt.envelope.finishes or attempt.state.session is not None:
            # What it launched, or wrote, or tells of its end, is not there: it has to run again.
            attempt.verdict = Verdict(Outcome.UNWRITTEN, str(error))


def _ending_of(attempt: Attempt) -> Ending | None:
    """Return what the run itself makes of its delivery; None where that is its sender's to say."""
    assert attempt.verdict is not None  # noqa: S101 - as above
    if attempt.verdict.outcome is Outcome.COMPLETED:
        if attempt.children:  # Its result will be that of its receivers.
            return Ending(DeliveryState.WAITING)
        told = [attempt.envelope.for_finish()] if attempt.envelope.finishes else []
        return Ending(DeliveryState.COMPLETED, result=_result_of(attempt), additions=told)
    if attempt.verdict.outcome is not Outcome.CONTINUED:
        return None
    after = attempt.verdict.after or 0.0
    refusal = too_old_to_continue(attempt, after)
    if refusal is not None:
        attempt.verdict = refusal
        return None
    try:
        return _continuation(attempt, after)
    except DataError as error:
        attempt.fail(error)
        send(task_failed, attempt.state.app, envelope=attempt.envelope, exception=error)
        return None


def _continuation(attempt: Attempt, after: float) -> Ending:
    envelope, config, store = attempt.envelope, attempt.state.config, attempt.state.store
    assert store is not None  # noqa: S101 - asked by all who come here
    data, body = getattr(attempt.exception, "data", None), None
    if data is not None:
        body = snapshot(data, max_bytes=config.max_bytes - len(envelope.carried))
    run_at = store.now() + after
    return Ending(DeliveryState.AVAILABLE, run_at=run_at, unused=True, body=body)


def _release(attempt: Attempt) -> None:
    """Let the next attempt begin, at the cursor, if a checkpoint has interrupted this one."""
    assert attempt.verdict is not None  # noqa: S101 - as above
    state, why = attempt.state, attempt.checkpoints.interruption
    if attempt.verdict.outcome is not Outcome.INTERRUPTED or state.store is None:
        return
    if state.session is not None:  # What was done behind the checkpoint is done again.
        state.session.rollback()
    # After a slice, those that wait have their turn.
    run_at = state.store.now() if why is Interruption.SLICE else None
    ending = Ending(DeliveryState.AVAILABLE, run_at=run_at, unused=True)
    try:
        state.store.record(attempt.envelope, ending)
    except OutboxUnavailable:
        return  # Its sender does so.
    attempt.verdict = replace(attempt.verdict, is_recorded=True)
    if why is Interruption.SLICE and state.relay is not None:
        state.relay.wake()


def _record(attempt: Attempt, ending: Ending) -> None:
    state = attempt.state
    writer = state.session or state.store
    if writer is None or not writer.record(attempt.envelope, ending):
        attempt.verdict = Verdict(Outcome.REPLAYED, "Another attempt has taken its place.")
        return
    attempt.verdict = replace(attempt.verdict or Verdict(Outcome.COMPLETED), is_recorded=True)
    if (ending.additions or ending.state is DeliveryState.AVAILABLE) and state.relay is not None:
        state.relay.wake(holds_of(ending.additions))


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
