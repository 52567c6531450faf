"""``flask async-hooks`` init-db, adopt, retry, cancel … purge: what changes deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..delivery import FINAL, DeliveryState
from ..state import current_state
from .options import cli, instant, name, needed_outbox, one_of, period
from .render import counted, duration, say

if TYPE_CHECKING:  # Comes with an optional extra.
    from ..outbox.admin import Outbox


@cli.command()
@click.option("--recreate", is_flag=True, help="First delete the tables and their contents.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def init_db(recreate: bool, yes: bool) -> None:
    """Create the outbox's tables.

    Run it at each deploy, before the new code serves; running it again is harmless. Tables of
    another version are refused; --recreate deletes them, with all deliveries, and creates new ones.

    Exits with 0 if the tables are there now, with 1 if the answer was no, they have another
    version or the database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    if recreate and not yes:
        click.confirm("Delete the outbox's tables and all their contents?", abort=True)
    for loss in outbox.losses():  # Whoever runs this is told, and then nobody any more.
        say(loss, err=True)
    done = "were created" if outbox.create(recreate=recreate) else "are up to date"
    say(f"The outbox's tables {done}, version {outbox.version}.")


@cli.command()
@click.argument("former", metavar="OLD", type=name)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def adopt(former: str, yes: bool) -> None:
    """Adopt the deliveries of this app's former name.

    OLD is a former ASYNC_HOOKS_AUDIENCE; by default that was the app's name. Where this app holds
    the same unique key already, OLD's delivery loses its key.

    Exits with 0, with 1 if the answer was no or the database can't be used, and with 2 if the app
    has no outbox.
    """
    outbox = needed_outbox()
    if not yes:
        click.confirm(f"Take over all deliveries of {former!r}?", abort=True)
    say(f"Adopted {counted(outbox.adopt(former))} of {former!r}.")


class Verb(NamedTuple):
    """What is done to deliveries, and why it may not be done to one."""

    present: str
    past: str
    refusal: str = ""


_RETRY = Verb("Retry", "Retried", "is executing, or each of its children succeeded or is executing")
_CANCEL = Verb("Cancel", "Cancelled", "had already finished")
_RESCHEDULE = Verb(
    "Reschedule", "Rescheduled", "is executing, waits for its children or has finished"
)
_DELETE = Verb(
    "Delete", "Deleted", "or another part of its fan-out has not finished; cancel that first"
)
_PURGE = Verb("Purge", "Purged")


def _selection(*states: DeliveryState) -> list[click.Parameter]:
    """Return the arguments that select deliveries: IDs, or a state to be narrowed."""
    return [
        click.Argument(["ids"], metavar="[ID]...", type=name, nargs=-1),
        click.Option(["--state"], type=one_of(*states), help="All in this state, instead of IDs."),
        click.Option(["--task"], type=name, help="With --state: only deliveries of this task."),
        click.Option(["--queue"], type=name, help="With --state: only deliveries in this queue."),
        click.Option(["--yes"], is_flag=True, help="Do not ask for confirmation."),
    ]


@cli.command(params=_selection(DeliveryState.AVAILABLE, *FINAL))
def retry(**selection: Any) -> int:
    """Retry deliveries now, with a fresh attempt count.

    Name IDs, or --state for all deliveries in it. Executing ones are skipped. In a fan-out,
    the children that did not succeed are retried.

    Exits with 0, with 1 if an ID does not exist or was not retried, if the answer was no or the
    database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    return _change(_RETRY, outbox, outbox.retry, outbox.retrying, **selection)


@cli.command(params=_selection(DeliveryState.AVAILABLE, DeliveryState.EXECUTING))
def cancel(**selection: Any) -> int:
    """Cancel unfinished deliveries and their children.

    Name IDs, or --state for all deliveries in it. A running attempt can't be stopped, but its
    outcome is ignored.

    Exits with 0, with 1 if an ID does not exist or had finished, if the answer was no or the
    database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    return _change(_CANCEL, outbox, outbox.cancel, outbox.cancelling, **selection)


def _change(
    verb: Verb,
    outbox: Outbox,
    change: Callable[[str], bool],
    change_all: Callable[..., Iterator[int]],
    *,
    ids: tuple[str, ...],
    state: str | None,
    yes: bool,
    **filters: str | None,
) -> int:
    """Change the deliveries that are selected; return 1 if one that was named was not changed."""
    if state is None and any(filters.values()):
        raise click.UsageError("--task and --queue need --state.")
    if state is None and not ids:
        raise click.UsageError("Name an ID, or --state for all deliveries in it.")
    if state is not None and ids:
        raise click.UsageError("Name IDs or --state, not both.")
    if state is not None:
        _in_steps(verb, outbox.count([state], **filters), change_all([state], **filters), yes)
    return _change_named(verb, outbox, change, ids)


def _change_named(
    verb: Verb, outbox: Outbox, change: Callable[[str], bool], ids: Iterable[str]
) -> int:
    code = 0
    for delivery_id in ids:
        if change(delivery_id):
            say(f"Delivery {delivery_id} is {verb.past.lower()}.")
            continue
        code = 1
        refusal = f"Delivery {delivery_id} is not {verb.past.lower()}: it {verb.refusal}."
        is_there = outbox.get(delivery_id) is not None
        say(refusal if is_there else outbox.why(delivery_id), err=True)
    return code


def _in_steps(verb: Verb, number: int, steps: Iterable[int], yes: bool, which: str = "") -> None:
    """Ask, go through ``steps``, and show the progress where there are many."""
    if number == 0:
        say(f"There is nothing to {verb.present.lower()}.")
        return
    if not yes:
        click.confirm(f"{verb.present} {counted(number)}{which}?", abort=True)
    total = 0
    for step in steps:
        if 0 < total < number:
            say(f"{verb.past} {total} of {number} ...")
        total += step
    say(f"{verb.past} {counted(total)}.")


@cli.command()
@click.argument("delivery_id", metavar="ID", type=name)
@click.argument("when", type=instant)
def reschedule(delivery_id: str, when: datetime) -> int:
    """Let a delivery that waits run at another time.

    WHEN has an offset from UTC, for example 2027-01-31T18:00+01:00; one that is past means now. The
    attempt count stays.

    Exits with 0, with 1 if ID does not exist, is executing or had finished, or the database can't
    be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    change = partial(outbox.reschedule, run_at=when)
    return _change_named(_RESCHEDULE, outbox, change, [delivery_id])


@cli.command()
@click.argument("delivery_id", metavar="ID", type=name)
def delete(delivery_id: str) -> int:
    """Delete a finished delivery and its children.

    Cancel an unfinished one first. The relays delete what finished by themselves; see purge.

    Exits with 0, with 1 if ID does not exist, it or another part of its fan-out has not finished,
    or the database can't be used, and with 2 if the app has no outbox.
    """
    outbox = needed_outbox()
    return _change_named(_DELETE, outbox, outbox.delete, [delivery_id])


@cli.command()
@click.argument("queue", type=name)
def pause(queue: str) -> None:
    """Pause a queue: nothing in it starts until it is resumed.

    Deliveries already claimed still run.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    needed_outbox().pause(queue)
    say(f"The queue {queue!r} is paused.")


@cli.command()
@click.argument("queue", type=name)
def resume(queue: str) -> None:
    """Resume a paused queue.

    Exits with 0, with 1 if the database can't be used, with 2 if the app has no outbox.
    """
    was_paused = needed_outbox().resume(queue)
    say(f"The queue {queue!r} {'is resumed' if was_paused else 'was not paused'}.")


@cli.command()
@click.option(
    "--older-than",
    type=period,
    help="Minimum age in seconds, or e.g. 12h, 7d; default: ASYNC_HOOKS_KEEP.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def purge(older_than: float | None, yes: bool) -> None:
    """Delete deliveries that finished long enough ago.

    The relays do this automatically, after ASYNC_HOOKS_KEEP.

    Exits with 0, with 1 if the answer was no or the database can't be used, and with 2 if the app
    has no outbox.
    """
    outbox = needed_outbox()
    if older_than is None:
        older_than = current_state().config.keep
    which = f" that finished more than {duration(older_than)} ago"
    _in_steps(_PURGE, outbox.purgeable(older_than), outbox.purging(older_than), yes, which)
