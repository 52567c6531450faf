"""``flask async-hooks check``: compare this code with its configuration and its outbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError, OutboxUnavailable
from ..preparation import launching_tasks, receivers_without_task
from ..receivers import explain_shared_name, explain_unknown, receivers_of
from ..state import State, current_state
from ..task import AsyncTask
from .options import as_json, cli
from .render import Stderr, counted, show


@cli.command()
@as_json
def check(as_json: bool) -> int:
    """Check configuration, tables and backlog before a deploy.

    It changes nothing. Run it with the new code and the database which that code will use: a
    delivery whose task or receiver is unknown to this code waits until other code knows it.

    Exits with 0 if the code can be deployed, and with 1 if not or if the database can't be used;
    then each problem is named, with its remedy.
    """
    state = current_state()
    problems: list[str] = []
    backlog: list[Any] = []
    try:
        state.prepare()
        problems += receivers_without_task(state)
    except ConfigError as error:
        problems.append(str(error))
    try:
        if state.outbox is not None and state.outbox.check_tables():
            backlog = state.outbox.backlog()
            problems += state.outbox.losses() + state.outbox.orphaned()
    except OutboxUnavailable as error:
        problems.append(str(error))
    unknown = [waiting for waiting in backlog if not waiting.is_known]
    problems += [_explain_unknown(state, waiting) for waiting in unknown]
    warnings, shared = _without_receivers(state), _with_shared_names(state)
    if state.config.outbox is None:
        warnings += shared
    else:
        problems += shared
    found = {
        "ok": not problems,
        "problems": problems,
        "warnings": warnings,
        "unfinished": None if state.outbox is None else sum(waiting.count for waiting in backlog),
        "unknown": [{"task": w.task, "receiver": w.receiver, "count": w.count} for w in unknown],
    }
    show(found, _check_in_words, as_json)
    return 1 if problems else 0


def _without_receivers(state: State) -> list[str]:
    """Return warnings of what is not an error in an app that is still being written."""
    if not state.tasks.all():
        return ["No task is registered. Does your app factory import the tasks' module?"]
    return [
        f"Task {task.name!r} reaches no receiver. Does your app factory import the receivers' "
        "module?"
        for task in launching_tasks(state)
        if task.run_action is AsyncTask.run_action and not receivers_of(state, task, anonymous=True)
    ]


def _with_shared_names(state: State) -> list[str]:
    """Say of which tasks no launch would be accepted, if there were an outbox."""
    explained = (explain_shared_name(state, task) for task in launching_tasks(state))
    return [problem for problem in explained if problem is not None]


def _explain_unknown(state: State, waiting: Any) -> str:
    and_so = f"and has {counted(waiting.count, 'unfinished ')}"
    return explain_unknown(state, waiting.task, waiting.receiver, and_so)


def _check_in_words(found: dict[str, Any]) -> Iterator[str]:
    yield from (Stderr(f"Warning: {text}") for text in found["warnings"])
    yield from (Stderr(f"Error: {text}") for text in found["problems"])
    if not found["ok"]:
        return
    if found["unfinished"] is None:
        yield "The configuration is valid; there is no outbox to check."
    else:
        yield f"{counted(found['unfinished'], 'unfinished ')}, all known."
