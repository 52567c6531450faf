"""What a run leaves in the outbox when its request ends: its completion, and what it launched."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..delivery import DeliveryState, Ending
from ..envelope import Envelope
from ..errors import OutboxUnavailable
from ..log import ids, one_line
from ..receivers import awaited
from ..signals import send, task_failed
from ..snapshot import snapshot
from ..task import AsyncTask
from ..texts import UNSHOWN, error_text, log_exception, repr_of
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
    # The result of a fan-out is that of its receivers.
    result = None if attempt.children else _result_of(attempt)
    ending = Ending(DeliveryState.COMPLETED, result=result, additions=additions)
    writer = state.session or state.store
    if writer is None or not writer.record(attempt.envelope, ending):
        attempt.verdict = Verdict(Outcome.REPLAYED, "Another attempt has taken its place.")
        return
    attempt.verdict = replace(attempt.verdict or Verdict(Outcome.COMPLETED), is_recorded=True)
    if additions and state.relay is not None:
        state.relay.wake()


def finish(attempt: Attempt) -> None:
    """Call the task's ``finish``, if it has one and this run was the last that it waited for."""
    task = attempt.task
    if (
        task is None
        or task.finish is AsyncTask.finish
        or attempt.children
        or attempt.is_after_the_end
    ):
        return
    try:
        result = attempt.result
        if attempt.envelope.parent_id is not None:
            store = attempt.state.store
            collected = None if store is None else store.collect_results(attempt.envelope.parent_id)
            if collected is None:
                return
            result = _in_order(attempt, task, collected)
        attempt.launching = True
        finishing: Any = task()
        awaited(attempt.state.app, finishing.finish(result, attempt.envelope.data))
    except BaseException as error:  # As in a run, sys.exit is a failure like any other.
        if is_from_keyboard(error):
            raise
        what = "The finish of envelope %s failed; nothing is run again."
        log_exception(logger, error, what, attempt.envelope.id, extra=ids(attempt.envelope))
    finally:
        attempt.launching = False
    if additions := _taken(attempt, with_children=False):
        attempt.state.launcher.add(attempt.state, additions)


def _taken(attempt: Attempt, *, with_children: bool) -> list[Envelope]:
    """Return, once, what ``attempt`` adds."""
    additions, attempt.additions = attempt.additions, []
    if with_children:
        return additions
    return [each for each in additions if each.id not in attempt.children]


def _in_order(attempt: Attempt, task: type[AsyncTask], results: Mapping[str, Any]) -> list[Any]:
    """Return the receivers' results in the order of their connection."""
    known = [*attempt.receivers_of(task)]
    names = [name for name in known if name in results]
    names += sorted(results.keys() - set(names))
    # What a run for one receiver returns is, by default, a list of its one result.
    return [
        value[0] if isinstance(value := results[name], list) and len(value) == 1 else value
        for name in names
    ]


def _result_of(attempt: Attempt) -> str | None:
    """Return the JSON that keeps the redacted result: itself, or the beginning of its repr()."""
    result = attempt.state.redact(attempt.result)
    if result is None:
        return None
    try:
        return snapshot({"result": result}, max_bytes=_MAX_RESULT)
    except BaseException as error:  # It is no JSON, or would not be looked at.
        if is_from_keyboard(error):
            raise
        shown = repr_of(result)[:ERROR_LENGTH]
    if shown == UNSHOWN:
        what = "Envelope %s: its result cannot be shown, and is not kept."
        logger.warning(what, attempt.envelope.id, extra=ids(attempt.envelope))
    return snapshot({"result": shown}, max_bytes=_MAX_RESULT)
