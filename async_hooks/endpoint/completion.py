"""What a run leaves in the outbox when its request ends: its completion, and what it launched."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..delivery import DeliveryState, Ending
from ..envelope import Envelope
from ..errors import DataError, OutboxUnavailable
from ..signals import send, task_failed
from ..snapshot import snapshot
from ..task import AsyncTask
from ..verdict import ERROR_LENGTH, Outcome, Verdict
from .attempt import Run

#: Bytes of a result's JSON; of a longer one, or one that is no JSON, the beginning of its repr().
_MAX_RESULT = 64 * 1024

logger = logging.getLogger("async_hooks")


def complete(run: Run) -> None:
    """Record the completion in the outbox, and add what the run launched in any case."""
    assert run.verdict is not None  # noqa: S101 - that is why we are here
    is_completed = run.verdict.outcome is Outcome.COMPLETED
    additions = _taken(run, with_children=is_completed)
    is_recorded_here = is_completed and run.envelope.lease is not None
    try:
        if is_recorded_here:
            _record(run, additions)
        elif additions:
            run.state.launcher.add(run.state, additions)
    except Exception as error:
        logger.error("Envelope %s: outcome not recorded: %s", run.envelope.id, error)
        if not is_recorded_here:
            return
        if not isinstance(error, OutboxUnavailable):
            # The app's own commit failed, or what it launched is refused: the attempt's failure.
            run.fail(error)
            send(task_failed, run.state.app, envelope=run.envelope, exception=error)
        elif additions or run.state.session is not None:
            # What it launched, or wrote, is not there: it has to run again.
            run.verdict = Verdict(Outcome.UNWRITTEN, str(error))


def _record(run: Run, additions: Sequence[Envelope]) -> None:
    state = run.state
    # The result of a fan-out is that of its receivers.
    result = None if run.children else as_json(state.redact(run.result))
    ending = Ending(DeliveryState.COMPLETED, result=result, additions=additions)
    writer = state.session or state.store
    if writer is None or not writer.record(run.envelope, ending):
        run.verdict = Verdict(Outcome.REPLAYED, "Another attempt has taken its place.")
        return
    run.verdict = replace(run.verdict or Verdict(Outcome.COMPLETED), is_recorded=True)
    if additions and state.relay is not None:
        state.relay.wake()


def finish(run: Run) -> None:
    """Call the task's ``finish``, if it has one and this run was the last that it waited for."""
    task = run.task
    if task is None or task.finish is AsyncTask.finish or run.children or run.is_after_the_end:
        return
    try:
        result = run.result
        if run.envelope.parent_id is not None:
            store = run.state.store
            collected = None if store is None else store.collect_results(run.envelope.parent_id)
            if collected is None:
                return
            result = _in_order(run, task, collected)
        run.launching = True
        task().finish(result, run.envelope.data)
    except Exception:
        logger.exception("The finish of envelope %s failed; nothing is run again.", run.envelope.id)
    finally:
        run.launching = False
    if additions := _taken(run, with_children=False):
        run.state.launcher.add(run.state, additions)


def _taken(run: Run, *, with_children: bool) -> list[Envelope]:
    """Return, once, what ``run`` adds."""
    additions, run.additions = run.additions, []
    if with_children:
        return additions
    return [each for each in additions if each.id not in run.children]


def _in_order(run: Run, task: type[AsyncTask], results: Mapping[str, Any]) -> list[Any]:
    """Return the receivers' results in the order of their connection."""
    known = [*run.receivers_of(task)]
    names = [name for name in known if name in results]
    names += sorted(results.keys() - set(names))
    # What a run for one receiver returns is, by default, a list of its one result.
    return [
        value[0] if isinstance(value := results[name], list) and len(value) == 1 else value
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
