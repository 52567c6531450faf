"""``flask async-hooks`` health, status, deliveries and why: show what the outbox holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from ..delivery import SHOWN, progress_in_words
from ..errors import OutboxUnavailable
from .options import as_json, cli, count, name, needed_outbox, one_of, period
from .render import Stderr, Table, show, to_the_second


@cli.command()
@click.option(
    "--patience",
    type=period,
    default="60",
    show_default=True,
    help="How long a delivery may be due, in seconds or e.g. 5m.",
)
@as_json
def health(patience: float, as_json: bool) -> int:
    """One-line health check, for monitoring.

    Exits with 0 if all is well, with 1 if a delivery has been due for too long, no process relays
    what is due, a relay has a problem, a former name of the app has unfinished deliveries, the
    tables had vanished or the database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    if patience == 0:
        raise click.BadParameter("expected more than 0 seconds", param_hint="'--patience'")
    keys = ("ok", "problem", "oldest_due_seconds", "relays_alive", "overdue", "skew_seconds")
    found: dict[str, Any] = dict.fromkeys(keys)
    try:
        health = outbox.health(patience=patience)
    except OutboxUnavailable as error:
        found.update(ok=False, problem=str(error))
    else:
        found["ok"], found["problem"] = health.ok, health.problem
        found["oldest_due_seconds"] = _seconds(health.oldest_due)
        found["relays_alive"] = sum(relay.can_relay for relay in health.relays)
        found["overdue"], found["skew_seconds"] = health.overdue, outbox.skew()
    show(found, _health_in_words, as_json)
    return 0 if found["ok"] else 1


def _health_in_words(found: dict[str, Any]) -> Iterator[str]:
    oldest = found["oldest_due_seconds"]
    due = "nothing is due" if oldest is None else f"due for {oldest:.0f} s"
    overdue = f"; overdue: {', '.join(found['overdue'])}" if found["overdue"] else ""
    skew = f"; {_skewed(found)}" if found["skew_seconds"] else ""
    well = f"OK: {due}; relays alive: {found['relays_alive']}{overdue}{skew}."
    yield well if found["ok"] else f"Problem: {found['problem']}"


def _skewed(found: dict[str, Any]) -> str:
    return f"this host's clock is {found['skew_seconds']:+.1f} s off the database's"


@cli.command()
@as_json
def status(as_json: bool) -> int:
    """Show counts of deliveries, paused queues and relays.

    Exits with 0, with 1 if the database can't be used or the tables had vanished, and with 2 if the
    app has no outbox.
    """
    outbox = needed_outbox()
    found = {
        "counts": outbox.counts(),  # At first: what looks at the tables learns of a loss.
        "paused": outbox.paused(),
        "oldest_due_seconds": _seconds(outbox.overdue()),
        "relays": [asdict(relay) for relay in outbox.relays()],
        "groups": [asdict(group) for group in outbox.open_groups()],
        "backlog": [asdict(waiting) for waiting in outbox.backlog()],
        "skew_seconds": outbox.skew(),
        "problems": [*(losses := outbox.losses()), *outbox.orphaned()],
    }
    show(found, _status_in_words, as_json)
    return 1 if losses else 0


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else round(age.total_seconds(), 3)


def _status_in_words(found: dict[str, Any]) -> Iterator[str | Table]:
    oldest, relays, backlog = found["oldest_due_seconds"], found["relays"], found["backlog"]
    yield "Deliveries   " + ", ".join(f"{n} {state}" for state, n in found["counts"].items())
    yield "Oldest due   " + ("none" if oldest is None else f"{oldest:.0f} s ago")
    yield "Paused       " + (", ".join(found["paused"]) or "none")
    yield "Relays       " + ("" if relays else "none")
    yield Table([_relay_row(relay) for relay in relays], head=4)
    if found["groups"]:
        yield "Groups"
        yield Table([_group_row(group) for group in found["groups"]], head=2)
    yield "Unfinished   " + ("" if backlog else "none")
    yield Table([_backlog_row(waiting) for waiting in backlog], head=2)
    if found["skew_seconds"]:
        yield f"Clock        {_skewed(found)}"
    yield from (f"Problem      {problem}" for problem in found["problems"])


_WHAT_IT_RUNS = {"deliveries": "runs", "overdue": "overdue", "cancelled": "cancelled, but runs"}


def _relay_row(relay: dict[str, Any]) -> list[str]:
    queues = f"queues {', '.join(relay['queues'])}" if relay["queues"] else "all queues"
    since, seen = to_the_second(relay["started_at"]), to_the_second(relay["seen_at"])
    return [
        f"  {relay['host']}",
        f"pid {relay['pid']}",
        "alive" if relay["is_alive"] else "dead",
        f"since {since}" if relay["is_alive"] else f"seen  {seen}",
        f"worker {relay['name']}: {queues}" if relay["name"] else "",
        "" if relay["claims"] else "runs only what others send",
        *(
            f"{what} {', '.join(relay[which])}" if relay[which] else ""
            for which, what in _WHAT_IT_RUNS.items()
        ),
        f"problem: {relay['problem']}" if relay["problem"] else "",
    ]


def _group_row(group: dict[str, Any]) -> list[str]:
    done, failed, total, *_ = group["progress"]
    trouble = f"{failed} failed" if failed else ""
    return [f"  {group['id']}", f"{done} of {total} done", trouble]


def _backlog_row(waiting: dict[str, Any]) -> list[str]:
    parked = "" if waiting["is_known"] else "parked: this code does not know it"
    return [f"  {waiting['count']:>7}", waiting["task"], waiting["receiver"] or "", parked]


@cli.command()
@click.option("--state", type=one_of(*SHOWN), help="Only deliveries in this state.")
@click.option("--task", type=name, help="Only deliveries of this task.")
@click.option("--queue", type=name, help="Only deliveries in this queue.")
@click.option("--ref", type=name, help="Only deliveries with this ref, given by their task.")
@click.option("--limit", type=count, default=50, show_default=True, help="At most this many.")
@as_json
def deliveries(limit: int, as_json: bool, **filters: str | None) -> None:
    """List deliveries, newest first.

    --json adds their data and results.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    found = [asdict(delivery) for delivery in needed_outbox().find(limit=limit, **filters)]
    show(found, lambda found: _deliveries_in_words(found, limit), as_json)


def _deliveries_in_words(found: list[dict[str, Any]], limit: int) -> Iterator[str | Table]:
    heads = ["id", "state", "attempts", "run_at (UTC)", "queue", "task", "receiver", "progress"]
    heads.append("error")
    if found:
        yield Table([heads, *map(_delivery_row, found)], head=4, is_cut=True)
    else:
        yield "There are no such deliveries."
    if len(found) == limit:
        yield Stderr(f"Only the newest {limit} are shown; there may be more (--limit).")


def _delivery_row(delivery: dict[str, Any]) -> list[str]:
    return [
        delivery["id"],
        delivery["state"],
        f"{delivery['attempts']}/{delivery['max_attempts']}",
        to_the_second(delivery["run_at"]),
        delivery["queue"],
        delivery["task"],
        delivery["receiver"] or "",
        progress_in_words(delivery["progress"]),
        delivery["error"] or "",
    ]


@cli.command()
@click.argument("delivery_id", metavar="ID", type=name)
@as_json
def why(delivery_id: str, as_json: bool) -> int:
    """Explain in one sentence why a delivery is in its state.

    Exits with 0, with 1 if there is no such delivery or the database can't be used, and with 2 if
    the app has no outbox.
    """
    outbox = needed_outbox()
    delivery = outbox.get(delivery_id)
    state = None if delivery is None else str(delivery.state)
    found = {"id": delivery_id, "state": state, "why": outbox.why(delivery_id)}
    show(found, lambda found: [found["why"]], as_json)
    return 1 if delivery is None else 0
