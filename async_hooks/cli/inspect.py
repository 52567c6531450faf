"""``flask async-hooks …``: what shows how things are; ``commands`` holds what changes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from flask import current_app

from ..delivery import Delivery
from ..errors import OutboxUnavailable
from ..log import one_line
from ..receivers import receivers_of
from ..state import State, current_state
from ..task import AsyncTask
from .doctor import Diagnosis, diagnose
from .manage import STATES, Guarded, as_json, cli, name, needed_outbox, period

__all__ = ["cli"]

#: Columns that a longer error needs at least to stand in its delivery's line.
_LEAST = 40


@cli.command(cls=Guarded)
@click.option("--url", help="Base URL to ask instead of ASYNC_HOOKS_URL.")
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
@click.pass_context
def doctor(context: click.Context, url: str | None, as_json: bool) -> None:
    """Ask the app over the network whether it reaches itself.

    Exits with 0 if it does and with 1 if not, and then says why and what to do.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    diagnosis = diagnose(app, url)
    click.echo(_diagnosis_as_json(diagnosis) if as_json else _in_words(diagnosis))
    context.exit(0 if diagnosis.ok else 1)


def _diagnosis_as_json(diagnosis: Diagnosis) -> str:
    return json.dumps({"ok": diagnosis.ok, **asdict(diagnosis)})


def _in_words(diagnosis: Diagnosis) -> str:
    where = f"Address: {diagnosis.url or 'unknown'} ({diagnosis.why})\n"
    if diagnosis.ok:
        return where + f"The app answered a signed ping in {diagnosis.milliseconds} ms."
    return where + f"Trouble: {diagnosis.cause}\n{one_line(diagnosis.remedy)}"


@cli.command(cls=Guarded)
@as_json
@click.pass_context
def check(context: click.Context, as_json: bool) -> None:
    """Check configuration, tables and backlog against this code, before it is deployed.

    Changes nothing. Run it with the new code and the database that it will work on: a delivery
    whose task or receiver this code does not know would wait until some other code does.

    Exits with 0 if the code can be deployed, and with 1 if not or if the database can't be used,
    naming what is wrong and what to do.
    """
    state = current_state()
    warnings = _without_receivers(state)
    problems: list[str] = []
    backlog: list[Any] = []
    try:
        if state.outbox is not None and state.outbox.check_tables():
            backlog = state.outbox.backlog()
    except OutboxUnavailable as error:
        problems.append(str(error))
    parked = [waiting for waiting in backlog if not waiting.is_known]
    problems += [_parked(state, waiting) for waiting in parked]
    unfinished = sum(waiting.count for waiting in backlog)
    if as_json:
        found = {
            "ok": not problems,
            "problems": problems,
            "warnings": warnings,
            "unfinished": None if state.outbox is None else unfinished,
            "unknown": [{"task": w.task, "receiver": w.receiver, "count": w.count} for w in parked],
        }
        click.echo(json.dumps(found))
    else:
        for text in warnings:
            click.echo(f"Warning: {one_line(text)}", err=True)
        for text in problems:
            click.echo(f"Error: {one_line(text)}", err=True)
        if not problems:
            click.echo(_all_well(state, unfinished))
    context.exit(1 if problems else 0)


def _without_receivers(state: State) -> list[str]:
    """Return warnings of what is no error in an app that is still being written."""
    tasks = {task.name: task for _, task in state.registry.tasks.all(state.generation)}
    if not tasks:
        return ["No task is registered. Does your app factory import their module?"]
    return [
        f"Task {name!r} reaches no receiver. Does your app factory import their module?"
        for name, task in tasks.items()
        if task.run_action is AsyncTask.run_action and not receivers_of(state, task, anonymous=True)
    ]


def _parked(state: State, waiting: Any) -> str:
    what = f"Task {waiting.task!r}"
    if state.registry.tasks.find(waiting.task, state.generation) is not None:
        what = f"Receiver {waiting.receiver!r} of task {waiting.task!r}"
    wait = (
        "1 delivery of it waits" if waiting.count == 1 else f"{waiting.count} deliveries of it wait"
    )
    return (
        f"{what} is not known to this code, and {wait}. If it has a new name, add the old one to "
        "its 'aliases'; if it is gone, let them finish before, or cancel them."
    )


def _all_well(state: State, unfinished: int) -> str:
    if state.outbox is None:
        return "The configuration is right; there is no outbox to check."
    noun = "delivery" if unfinished == 1 else "deliveries"
    return f"{unfinished} unfinished {noun}, all known."


@cli.command(cls=Guarded)
@click.option(
    "--patience",
    type=period,
    default="60",
    show_default=True,
    help="How long a delivery may be due: seconds, or such as 5m.",
)
@as_json
@click.pass_context
def health(context: click.Context, patience: float, as_json: bool) -> None:
    """Tell in one line whether deliveries get away, for a monitor.

    Exits with 0 if they do, with 1 if one is due for too long, nothing relays what is due, a
    relay has trouble or the database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    if patience == 0:
        raise click.BadParameter("expected more than 0 seconds", param_hint="'--patience'")
    problem: str | None
    try:
        found = outbox.health(patience=patience)
    except OutboxUnavailable as error:
        problem, oldest, alive = one_line(error), None, None
    else:
        problem, oldest = found.problem, found.oldest_due
        alive = sum(relay.is_alive for relay in found.relays)
    if as_json:
        seconds = None if oldest is None else round(oldest.total_seconds(), 3)
        said = {"ok": problem is None, "problem": problem, "oldest_due_seconds": seconds}
        click.echo(json.dumps({**said, "relays_alive": alive}))
    elif problem is not None:
        click.echo(f"Trouble: {one_line(problem)}")
    else:
        due = "nothing is due" if oldest is None else f"due for {oldest.total_seconds():.0f} s"
        click.echo(f"OK: {due}; relays alive: {alive}.")
    context.exit(0 if problem is None else 1)


@cli.command(cls=Guarded)
@as_json
def status(as_json: bool) -> None:
    """Show how many deliveries there are, what waits, and which processes relay.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    health = outbox.health()
    late = health.oldest_due
    relays = [
        {
            "name": relay.name,
            "queues": relay.queues,
            "deliveries": relay.deliveries,
            "host": relay.host,
            "pid": relay.pid,
            "is_alive": relay.is_alive,
            "trouble": relay.problem,
            "started_at": relay.started_at.isoformat(),
            "seen_at": relay.seen_at.isoformat(),
        }
        for relay in health.relays
    ]
    backlog = [
        {
            "task": waiting.task,
            "receiver": waiting.receiver,
            "count": waiting.count,
            "due_at": waiting.due_at.isoformat(),
            "is_known": waiting.is_known,
        }
        for waiting in outbox.backlog()
    ]
    found = {
        "counts": outbox.counts(),
        "paused": outbox.paused(),
        "oldest_due_seconds": None if late is None else round(late.total_seconds(), 3),
        "relays": relays,
        "backlog": backlog,
    }
    click.echo(json.dumps(found) if as_json else _status_in_words(found))


@cli.command(cls=Guarded)
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--task", type=name, help="Only those of the task of this name.")
@click.option("--queue", type=name, help="Only those in this queue.")
@click.option("--ref", type=name, help="Only those that their task gave this ref.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="So many.")
@as_json
def deliveries(
    state: str | None,
    task: str | None,
    queue: str | None,
    ref: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List deliveries, the newest first. With --json also their data and results.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    found = needed_outbox().find(state=state, task=task, queue=queue, ref=ref, limit=limit)
    if as_json:
        click.echo(json.dumps([_delivery_as_dict(delivery) for delivery in found]))
        return
    click.echo(_deliveries_in_words(found) if found else "There are no such deliveries.")
    if len(found) == limit:
        click.echo(f"These are the newest {limit}; there may be more (--limit).", err=True)


@cli.command(cls=Guarded)
@click.argument("delivery_id", metavar="ID", type=name)
@as_json
@click.pass_context
def why(context: click.Context, delivery_id: str, as_json: bool) -> None:
    """Say why a delivery is where it is.

    Exits with 0, with 1 if there is no such delivery or the database can't be used, and with 2 if
    the app has no outbox.
    """
    outbox = needed_outbox()
    delivery = outbox.get(delivery_id)
    sentence = outbox.why(delivery_id)
    if as_json:
        state = None if delivery is None else str(delivery.state)
        click.echo(json.dumps({"id": delivery_id, "state": state, "why": sentence}))
    else:
        click.echo(one_line(sentence))
    context.exit(1 if delivery is None else 0)


def _delivery_as_dict(delivery: Delivery) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(delivery).items()
    }


def _status_in_words(found: dict[str, Any]) -> str:
    late = found["oldest_due_seconds"]
    lines = [
        "Deliveries   " + ", ".join(f"{n} {state}" for state, n in found["counts"].items()),
        "Oldest due   " + ("none is due" if late is None else f"for {late:.0f} s"),
        "Paused       " + (", ".join(map(one_line, found["paused"])) or "no queue"),
        "Relays       " + ("" if found["relays"] else "none"),
        *_table(map(_relay_in_words, found["relays"])),
        "Unfinished   " + ("" if found["backlog"] else "none"),
        *_table(map(_waiting_in_words, found["backlog"])),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _relay_in_words(relay: dict[str, Any]) -> list[str]:
    alive = relay["is_alive"]
    since = f"since {_to_the_second(relay['started_at'])}"
    queues = f"queues {', '.join(relay['queues'])}" if relay["queues"] else "all queues"
    said = f"trouble: {relay['trouble']}" if relay["trouble"] else ""
    return [
        f"  {relay['host']}",
        f"pid {relay['pid']}",
        "alive" if alive else "dead",
        since if alive else f"seen  {_to_the_second(relay['seen_at'])}",
        f"worker {relay['name']}: {queues}" if relay["name"] else "",
        f"runs {', '.join(relay['deliveries'])}" if relay["deliveries"] else "",
        said,
    ]


def _waiting_in_words(waiting: dict[str, Any]) -> list[str]:
    parked = "" if waiting["is_known"] else "parked: this code does not know it"
    return [f"  {waiting['count']:>7}", waiting["task"], waiting["receiver"] or "", parked]


def _deliveries_in_words(found: Sequence[Delivery]) -> str:
    """Return a line for each delivery, or two where the terminal is too narrow for one."""
    width = shutil.get_terminal_size((0, 0)).columns  # 0: no terminal, and no limit.
    rows = [("id", "state", "attempts", "run_at (UTC)", "queue", "task", "receiver")]
    for one in found:
        tried = f"{one.attempts}/{one.max_attempts}"
        rows.append(
            (
                one.id,
                one.state,
                tried,
                _to_the_second(one.run_at),
                one.queue,
                one.task,
                one.receiver or "",
            )
        )
    errors = ["error", *(one.error or "" for one in found)]
    lines = list(_table(rows))
    least = min(_LEAST, max(map(len, errors)))
    if not width or len(lines[0]) + 2 + least <= width:
        joined = [f"{line}  {one_line(error)}" for line, error in zip(lines, errors, strict=True)]
    else:
        heads = _table(row[:4] for row in rows)
        tails = (
            "    " + "  ".join(map(one_line, filter(None, [*row[4:], error])))
            for row, error in zip(rows, errors, strict=True)
        )
        joined = [line for pair in zip(heads, tails, strict=True) for line in pair]
    return "\n".join(_fitting(line.rstrip(), width) for line in joined)


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Return the rows as lines, in columns as wide as what stands in them."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))


def _fitting(line: str, width: int) -> str:
    return line if not width or len(line) <= width else f"{line[: width - 3]}..."


def _to_the_second(moment: datetime | str) -> str:
    return str(moment)[:19].replace("T", " ")
