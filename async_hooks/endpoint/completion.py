"""What a run leaves in the outbox when its request ends: its completion, and what it launched."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OutboxUnavailable
from ..signals import send, task_failed
from ..snapshot import snapshot
from ..task import AsyncTask
from ..verdict import ERROR_LENGTH, Outcome, Verdict
from .attempt import Run

if TYPE_CHECKING:
    from ..state import Ledger

#: Bytes of a result's JSON; of a longer one, or one that is no JSON, the beginning of its repr().
_MAX_RESULT = 64 * 1024

logger = logging.getLogger("async_hooks")


def keep(run: Run, ledger: Ledger) -> None:
    """Let the outbox know of the completion, and of what the run launched in any case."""
    assert run.verdict is not None  # noqa: S101 - that is why we are here
    is_delivery = run.envelope.lease is not None
    completed = run.verdict.outcome is Outcome.COMPLETED
    additions = run.taken_additions(with_children=completed)
    try:
        if completed and is_delivery:
            _complete(run, ledger, additions)
        elif additions:
            run.state.launcher.keep(additions)
    except Exception as error:
        logger.error("What envelope %s did could not be written: %s", run.envelope.id, error)
        if not (completed and is_delivery):
            return
        if not isinstance(error, OutboxUnavailable):
            # The app's own commit failed, or what it launched is refused: the attempt's failure.
            run.fail(error)
            send(task_failed, run.state.app, envelope=run.envelope, exception=error)
        elif additions or ledger.joins:
            # What it launched, or wrote, is not there: it has to run again.
            run.verdict = Verdict(Outcome.UNWRITTEN, str(error))


def _complete(run: Run, ledger: Ledger, additions: list[Any]) -> None:
    is_split = any(addition.envelope.parent_id == run.envelope.id for addition in additions)
    # The result of a fan-out is that of its receivers.
    result = None if is_split else as_json(run.state.redact(run.result))
    if not ledger.complete(run.envelope, result, additions):
        run.verdict = Verdict(Outcome.REPLAYED, "Another attempt has taken its place.")
        return
    run.verdict = replace(run.verdict or Verdict(Outcome.COMPLETED), is_recorded=True)
    if additions:
        run.state.relay.wake()


def finish(run: Run) -> None:
    """Call the task's ``finish``, if it has one and this run was the last that it waited for."""
    task = run.state.task_of(run.envelope)
    if task is None or task.finish is AsyncTask.finish or run.is_split or run.is_after_the_end:
        return
    try:
        result = run.result
        if run.envelope.parent_id is not None:
            ledger = run.state.ledger
            gathered = (
                ledger.collect_results(run.envelope.parent_id) if ledger is not None else None
            )
            if gathered is None:
                return
            result = _in_order(run, task, gathered)
        run.launching = True
        task().finish(result, run.envelope.data)
    except Exception:
        logger.exception("The finish of envelope %s failed; nothing is run again.", run.envelope.id)
    finally:
        run.launching = False
    if additions := run.taken_additions(with_children=False):
        run.state.launcher.keep(additions)


def _in_order(run: Run, task: type[AsyncTask], gathered: Mapping[str, Any]) -> list[Any]:
    """Return the receivers' results in the order of their connection."""
    known = [*run.receivers_of(task)]
    names = [name for name in known if name in gathered]
    names += sorted(gathered.keys() - set(names))
    # What a run for one receiver returns is, by default, a list of its one result.
    return [
        value[0] if isinstance(value := gathered[name], list) and len(value) == 1 else value
        for name in names
    ]


def as_json(result: Any) -> str | None:
    """Return the JSON that keeps ``result``: itself, or the beginning of its repr()."""
    if result is None:
        return None
    try:
        return snapshot({"result": result}, max_bytes=_MAX_RESULT)
    except DataError:
        return snapshot({"result": repr(result)[:ERROR_LENGTH]}, max_bytes=_MAX_RESULT)
